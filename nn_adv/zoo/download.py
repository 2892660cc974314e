"""Fetch files of weights from Google Drive or an address; what arrives is checked before it gets its name."""

from __future__ import annotations

import http.client
import pathlib
import shutil
import urllib.request

from nn_adv.zoo import files
from nn_adv.zoo.entries import File

_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_LONGEST_REASON = 300  # characters


def fetch(file: File, folder: pathlib.Path) -> pathlib.Path:
    """Download a file into ``folder`` and return its path.

    It arrives as NAME.part and is renamed once it is whole, as far as the server and the file itself tell
    (`files.check`).

    Raises:
      OSError: it has no source, could not be had, or what came is not the file; the error says how to get it by hand.
      ImportError: it is on Google Drive, and gdown is not installed.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    kind, _, rest = file.source.partition(":")
    if not file.source:
        raise missing(file, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "gdrive":
            _from_google_drive(rest, part)
        else:
            _from_address(file.source, part)
        _check(part, path.suffix)
    except ImportError as error:
        raise ImportError(f"{error}; or {by_hand(file, folder)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OSError(f"cannot download {file.name} ({_in_one_line(error)}); {by_hand(file, folder)}") from error
    return part.replace(path)


def missing(file: File, folder: pathlib.Path) -> FileNotFoundError:
    """Say that a file is not there, and how to get it."""
    return FileNotFoundError(f"no file {folder / file.name}; {by_hand(file, folder)}")


def by_hand(file: File, folder: pathlib.Path) -> str:
    """Say where a file can be had with a browser, and where to put it."""
    kind, _, rest = file.source.partition(":")
    page = f"https://drive.google.com/file/d/{rest}/view" if kind == "gdrive" else file.source
    return f"get it from {page} and save it as {folder / file.name}" if page else f"put it into {folder}"


def _check(part: pathlib.Path, suffix: str) -> None:
    """Delete what is not the file, so that the next download does not go on from it."""
    try:
        files.check(part, suffix)
    except files.Damaged as error:
        part.unlink()
        raise OSError(f"what came {error.problem}") from error
    except ValueError:  # whole, but not to be read: the reader says why
        pass


def _from_google_drive(identity: str, part: pathlib.Path) -> None:
    try:
        import gdown
    except ImportError as error:
        raise ImportError(f"{part.stem} is on Google Drive: pip install 'nn_adv[zoo]', or gdown alone") from error
    try:
        gdown.download(id=identity, output=str(part), quiet=True, resume=True, timeout=_TIMEOUT)
    except (OSError, ValueError):
        raise
    except Exception as error:  # gdown has errors of its own
        raise OSError(_in_one_line(error)) from error
    if not part.is_file():
        raise OSError("Google Drive gave no file")


def _from_address(address: str, part: pathlib.Path) -> None:
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as response, part.open("wb") as stream:
        shutil.copyfileobj(response, stream, _CHUNK)
        length = response.headers.get("Content-Length")
    size = part.stat().st_size
    if length is not None and size != int(length):
        raise OSError(f"only {size} of {length} bytes came")


def _in_one_line(error: Exception) -> str:
    """Say what an error says, its line breaks left out: gdown's second line has the reason."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
