"""Paths as users write them."""

from __future__ import annotations

import os
import pathlib


def as_path(path: str | os.PathLike[str], name: str = "path") -> pathlib.Path:
    """Return a path, there or not, with a leading ``~`` or ``~USER`` replaced by that home.

    Raises:
      ValueError: no path, an empty one, or one in the home of somebody unknown.
    """
    if not isinstance(path, str | os.PathLike) or os.fspath(path) in ("", b"") or "\0" in os.fsdecode(path):
        raise ValueError(f"{name} must be a path, a text that is not empty or a pathlib.Path, got {path!r}")
    expanded = os.path.expanduser(os.fsdecode(path))
    if expanded.startswith("~"):
        raise ValueError(f"{name} {path} begins with a home that is not known: write the whole path")
    return pathlib.Path(expanded)
