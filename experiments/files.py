"""Files that are there whole or not at all, and disks that say in one line what is wrong with them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class ResultsError(ValueError):
    """A problem with a workdir that the user can solve; the message is one line and names the remedy."""


def write_whole(path: Path, content: bytes | str, *, replace: bool = True) -> None:
    """Write or replace a file atomically, text as UTF-8; its folder is made if needed. Then the file is durable.

    Without ``replace`` a file that is there stays.
    """
    if isinstance(content, str):  # names of files in it may hold what no text does
        content = content.encode(errors="backslashreplace")
    with one_line_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                if replace:
                    os.replace(file.name, path)
                else:
                    with contextlib.suppress(FileExistsError):
                        os.link(file.name, path)  # unlike a rename, never replaces
                    os.unlink(file.name)
            except BaseException:
                os.unlink(file.name)
                raise
        sync_folder(path.parent)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write or replace an .npz file, as `write_whole` does."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz file that is there; ValueError, which says why, where it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a `ResultsError` that names ``path`` and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResultsError(
                f"no space left to write {path}: free some and run the same command again; "
                "the results so far are intact and it will continue from them"
            ) from error
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error


def dumps(value: Any, **options: Any) -> str:
    """Write plain data, NumPy and JAX values among it, as JSON."""

    def plain(item: Any) -> Any:
        if hasattr(item, "tolist"):  # NumPy and JAX scalars and arrays.
            return item.tolist()
        raise TypeError(f"{type(item).__name__} is not plain data: {item!r}")

    return json.dumps(value, default=plain, allow_nan=False, **options)
