"""Models of a sweep that could not be evaluated: recorded beside the rows, tried again by the next run."""

from __future__ import annotations

import datetime
import json
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.storage import write_whole

_FOLDER = "failures"


class SomeFailed(ValueError):
    """What could be run has been run and reported, but some has failed.

    Attributes:
      page: of the report; None if there is nothing to report.
    """

    def __init__(self, message: str, page: Path | None):
        super().__init__(message)
        self.page = page


def record(workdir: Path, unit: str, error: Exception, **details: Any) -> dict[str, Any]:
    """Write down why a unit failed, in place of what an earlier run wrote of it; return what was written."""
    failure = {
        "unit": unit,
        "reason": _one_line(error),
        "traceback": "".join(traceback.format_exception(error)),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **details,
    }
    write_whole(_path(workdir, unit), json.dumps(failure, indent=2).encode() + b"\n")
    return failure


def forget(workdir: Path, unit: str) -> None:
    """Remove the record of a unit, if there is one."""
    _path(workdir, unit).unlink(missing_ok=True)


def read(workdir: Path) -> dict[str, Mapping[str, Any]]:
    """Return the failures of a workdir by unit, those of all shards."""
    found = [json.loads(path.read_bytes()) for path in sorted((workdir / _FOLDER).glob("*.json"))]
    return {failure["unit"]: failure for failure in found}


def file_name(unit: str) -> str:
    """Return a name for files of a unit, without separators and signs."""
    return re.sub(r"[^\w.-]+", "-", unit)


def _path(workdir: Path, unit: str) -> Path:
    return workdir / _FOLDER / f"{file_name(unit)}.json"


def _one_line(error: Exception) -> str:
    """Say what went wrong; a type that is no message by itself is named."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
