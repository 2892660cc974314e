"""Models of a sweep that could not be evaluated: recorded beside the rows, tried again by the next run."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.files import write_whole

_FOLDER = "failures"
_LONGEST = 500  # characters of a reason that is not the project's own; the whole traceback is recorded beside it


class SomeFailed(ValueError):
    """What could be run has been run and reported, but some has failed.

    Attributes:
      report: a `runner.Report`; None if there is nothing to report.
    """

    def __init__(self, message: str, report: Any):
        super().__init__(message)
        self.report = report


def describe(error: Exception | SystemExit) -> dict[str, Any]:
    """Return what is recorded of an error, in plain values that may pass between processes."""
    return {
        "reason": _one_line(error),
        "traceback": "".join(traceback.format_exception(error)),
        **getattr(error, "details", {}),
    }


def record(workdir: Path, unit: str, description: Mapping[str, Any]) -> None:
    """Write down why a unit failed (`describe`), in place of what an earlier run wrote of it."""
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    failure = {"unit": unit, **description, "finished": finished}
    write_whole(_path(workdir, unit), json.dumps(failure, indent=2).encode() + b"\n")


def forget(workdir: Path, unit: str) -> None:
    """Remove the record of a unit, if there is one."""
    _path(workdir, unit).unlink(missing_ok=True)


def read(workdir: Path) -> dict[str, Mapping[str, Any]]:
    """Return the failures of a workdir by unit, those of all shards.

    A record that cannot be read, or that its shard removes meanwhile, is left out: its unit is without a row still.
    """
    found = {}
    for path in sorted((workdir / _FOLDER).glob("*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
            failure = json.loads(path.read_bytes())
            found[failure["unit"]] = failure
    return found


def file_name(unit: str) -> str:
    """Return a name for files of a unit, without separators and signs."""
    return re.sub(r"[^\w.-]+", "-", unit)


def _path(workdir: Path, unit: str) -> Path:
    return workdir / _FOLDER / f"{file_name(unit)}.json"


def _one_line(error: Exception | SystemExit) -> str:
    """Say what went wrong; a type that is no message by itself is named."""
    if type(error).__name__ == "TracerArrayConversionError":  # of JAX
        return "it uses NumPy on the images: use jax.numpy, or torch: for a torch module"
    if isinstance(error, ValueError | OSError):
        return _joined(str(error))
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of a function that a compiled program called
        last_call = text.rpartition('\n  File "')[2].splitlines()
        start = next((number for number, line in enumerate(last_call) if number and line[:1].strip()), 0)
        text = "\n".join(last_call[start:])
    else:
        text = f"{type(error).__name__}: {text}"
    text = _joined(text)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    is_memory = isinstance(error, MemoryError) or re.search("RESOURCE_EXHAUSTED|out of memory", text)
    return f"out of memory, a batch_size may be lower: {text}" if is_memory else text


def _joined(text: str) -> str:
    return " ".join(text.split()) or "no message"
