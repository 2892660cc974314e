"""What a workdir belongs to (config.json, written once), and what its last run asked for (asked.json)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.files import ResultsError, dumps, write_whole

CONFIG_FILE = "config.json"
ASKED_FILE = "asked.json"


def read_config(workdir: Path) -> dict[str, Any] | None:
    """Return {"hash": ..., "config": ...} of a workdir; None if it has none."""
    path = workdir / CONFIG_FILE
    try:
        stored = json.loads(path.read_bytes())
        if config_hash(stored["config"]) != stored["hash"]:
            raise ValueError("its hash is wrong")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is damaged ({error}): restore it, or choose another --workdir") from error
    return stored


def require_config(workdir: Path) -> dict[str, Any]:
    """Return what `read_config` does, or raise `ResultsError` where there is nothing."""
    stored = read_config(workdir)
    if stored is None:
        raise ResultsError(f"{workdir} holds no results: there is no {CONFIG_FILE} in it")
    return stored


def create_config(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.json whole or not at all and return it; when several shards start at once the first one's stays."""
    content = dumps({"hash": config_hash(config), "config": config}, indent=2, sort_keys=True)
    write_whole(workdir / CONFIG_FILE, content + "\n", replace=False)
    return json.loads((workdir / CONFIG_FILE).read_bytes())


def check_same(workdir: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise `ResultsError`, listing the differences, if a workdir belongs to another configuration."""
    new_hash = config_hash(config)
    if new_hash == stored["hash"]:
        return
    old, new = (
        {name: json.dumps(value) for name, value in flatten(some).items()}
        for some in (stored["config"], json.loads(dumps(config)))
    )
    changes = [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    raise ResultsError(
        f"workdir {workdir} belongs to configuration {stored['hash']}, this is {new_hash} ({'; '.join(changes)}): "
        "choose another --workdir, or run the old configuration"
    )


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash a plain configuration (12 hex digits); the order of its keys does not matter, tuples equal lists."""
    return hashlib.sha256(dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def read_asked(workdir: Path) -> dict[str, Any] | None:
    """Return {"units": ..., "settings": ...} of the last run into a workdir; None where it is not known."""
    path = workdir / ASKED_FILE
    try:
        asked = json.loads(path.read_bytes())
        return {"units": list(asked["units"]), "settings": dict(asked["settings"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is damaged ({error}): remove it") from error


def write_asked(workdir: Path, units: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Keep what a run asks for: the names of its units, and what its report is to say besides."""
    content = dumps({"units": sorted(units), "settings": settings}, indent=1)
    write_whole(workdir / ASKED_FILE, content + "\n")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return what nested mappings hold by dotted names; any other value by the prefix."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    parts = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
    return {name: item for part in parts for name, item in part.items()}
