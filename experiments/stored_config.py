"""The configuration that a workdir belongs to: `config.json` and its hash, written once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.storage import ResultsError, sync_folder

CONFIG_FILE = "config.json"


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash a plain configuration (12 hex digits); the order of its keys does not matter, tuples equal lists."""
    return hashlib.sha256(dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def dumps(value: Any, **options: Any) -> str:
    """Write plain data, NumPy and JAX values among it, as JSON."""

    def plain(item: Any) -> Any:
        if hasattr(item, "tolist"):  # NumPy and JAX scalars and arrays.
            return item.tolist()
        raise TypeError(f"{type(item).__name__} is not plain data: {item!r}")

    return json.dumps(value, default=plain, allow_nan=False, **options)


def read(workdir: Path) -> dict[str, Any] | None:
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


def require(workdir: Path) -> dict[str, Any]:
    """Return what `read` does, or raise `ResultsError` where there is nothing."""
    stored = read(workdir)
    if stored is None:
        raise ResultsError(f"{workdir} holds no results: there is no {CONFIG_FILE} in it")
    return stored


def create(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write config.json whole or not at all and return it; when several shards start at once the first one's stays."""
    content = dumps({"hash": config_hash(config), "config": config}, indent=2, sort_keys=True)
    with tempfile.NamedTemporaryFile(dir=workdir, prefix=".config-", delete=True) as file:
        file.write(content.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        with contextlib.suppress(FileExistsError):
            os.link(file.name, workdir / CONFIG_FILE)  # Unlike a rename, never replaces.
    sync_folder(workdir)
    return json.loads((workdir / CONFIG_FILE).read_bytes())


def check_same(workdir: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise `ResultsError`, listing the differences, if a workdir belongs to another configuration."""
    new_hash = config_hash(config)
    if new_hash == stored["hash"]:
        return
    old, new = _flatten(stored["config"]), _flatten(json.loads(dumps(config)))
    changes = [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    raise ResultsError(
        f"workdir {workdir} belongs to configuration {stored['hash']}, this is {new_hash} ({'; '.join(changes)}): "
        "choose another --workdir, or run the old configuration"
    )


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
