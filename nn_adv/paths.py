"""Paths as users write them."""

from __future__ import annotations

import os
import pathlib


def expand(path: str | os.PathLike[str], name: str = "path") -> pathlib.Path:
    """Replace a leading ``~`` or ``~USER`` by that home; everything that takes a path calls this first.

    Args:
      path: of a file or folder, there or not.
      name: what to call it in errors.

    Raises:
      ValueError: it is no path, empty, or in the home of somebody unknown.
    """
    try:
        text = os.fspath(path)
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
    except TypeError as error:
        raise ValueError(f"{name} must be a path, a text that is not empty or a pathlib.Path, got {path!r}") from error
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{name} {text} begins with a home that is not known: write the whole path")
    return pathlib.Path(expanded)
