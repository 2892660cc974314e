"""Fetch files of weights from Google Drive, Zenodo or an address; what arrives is checked before it gets its name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import json
import pathlib
import shutil
import urllib.error
import urllib.request
from typing import Any

from nn_adv.zoo import files
from nn_adv.zoo.catalogue import File

_ZENODO = "https://zenodo.org"
_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 20
_LONGEST_REASON = 300  # characters
_USER_AGENT = "nn_adv"


def fetch(file: File, folder: pathlib.Path) -> pathlib.Path:
    """Download a file into ``folder``, going on where an earlier download stopped.

    It arrives as NAME.part and is renamed once it is whole: by its hash, where that is known, else by its size, where
    the server tells it, and by what the file tells of itself (`files.check`).

    Returns:
      Its path.

    Raises:
      OSError: it has no source, could not be had, or what came is not the file; the error says how to get it by hand.
      ImportError: it is on Google Drive, and gdown is not installed; or only PyTorch can tell whether it is whole.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    kind, _, rest = file.source.partition(":")
    if not file.source:
        raise missing(file, folder)
    md5 = file.md5
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "gdrive":
            _from_google_drive(rest, part)
        elif kind == "zenodo":
            address, told = _on_zenodo(rest)
            if md5 and md5 != told:
                raise OSError(f"its MD5 is {md5} in the catalogue and {told} at Zenodo: one of them is another file")
            md5 = told
            _from_address(address, part)
        else:
            _from_address(file.source, part)
        _check(part, path.suffix, md5)
    except ImportError as error:
        raise ImportError(f"{error}; or {by_hand(file, folder)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OSError(f"cannot download {file.name} ({_in_one_line(error)}); {by_hand(file, folder)}") from error
    return part.replace(path)


def missing(file: File, folder: pathlib.Path) -> FileNotFoundError:
    """Say that a file is not there, how to get it, and which downloads of it have not come to their end."""
    parts = sorted(path.name for path in folder.glob(f"{glob.escape(file.name)}.part*"))
    to_do = f"{'remove all but one, and ' if len(parts) > 1 else ''}download=True goes on with it"
    unfinished = f"; unfinished: {', '.join(parts)} ({to_do})"
    return FileNotFoundError(f"no file {folder / file.name}; {by_hand(file, folder)}{unfinished if parts else ''}")


def by_hand(file: File, folder: pathlib.Path) -> str:
    """Say where a file can be had with a browser, and where to put it."""
    kind, _, rest = file.source.partition(":")
    pages = {
        "": "",
        "gdrive": f"https://drive.google.com/file/d/{rest}/view",
        "zenodo": f"{_ZENODO}/records/{rest.partition('/')[0]}",
    }
    page = pages.get(kind, file.source)
    return f"get it from {page} and save it as {folder / file.name}" if page else f"put it into {folder}"


def _check(part: pathlib.Path, suffix: str, md5: str) -> None:
    """Delete what is not the file, so that the next download does not go on from it."""
    with part.open("rb") as stream:
        if md5 and hashlib.file_digest(stream, "md5").hexdigest() == md5:
            return
    problem = "its MD5 is not the published one: it was damaged on the way or has been replaced" if md5 else ""
    try:
        files.check(part, suffix)
    except files.Damaged as error:
        problem = f"what came {error.problem}"
    except ValueError:  # whole, but not to be read: the reader says why
        pass
    if problem:
        part.unlink()
        raise OSError(problem)


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


def _on_zenodo(source: str) -> tuple[str, str]:
    """Ask Zenodo for the address and the MD5 of RECORD/FILE."""
    record, _, name = source.partition("/")
    with _open(f"{_ZENODO}/api/records/{record}") as response:
        answer = json.load(response)
    try:
        found = {one["key"]: (one["links"]["self"], one["checksum"].removeprefix("md5:")) for one in answer["files"]}
    except (LookupError, TypeError, AttributeError) as error:
        raise OSError(f"Zenodo's answer for record {record} is not that of a record with files") from error
    if name not in found:
        raise OSError(f"record {record} of Zenodo has no file {name!r}")
    return found[name]


def _in_one_line(error: Exception) -> str:
    """Say what an error says, its line breaks left out: gdown's second line has the reason."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def _open(address: str, start: int = 0) -> Any:
    headers = {"User-Agent": _USER_AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=_TIMEOUT)


def _from_address(address: str, part: pathlib.Path) -> None:
    """Download to ``part``, from its end on if it is there and the server can."""
    start = part.stat().st_size if part.is_file() else 0
    try:
        response = _open(address, start)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        start = _whole_size(error.headers.get("Content-Range", ""), part)
        if start:
            return  # all of it had come
        response = _open(address)
    with contextlib.closing(response):
        resumed = start and response.status == http.HTTPStatus.PARTIAL_CONTENT
        length = response.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as stream:
            shutil.copyfileobj(response, stream, _CHUNK)
    expected = (start if resumed else 0) + int(length) if length is not None else None
    size = part.stat().st_size
    if expected is not None and size != expected:
        raise OSError(f"only {size} of {expected} bytes came: the next download goes on from there")


def _whole_size(content_range: str, part: pathlib.Path) -> int:
    """Return the size of ``part`` if that of the whole file, in "bytes */SIZE", is the same; else delete it for 0."""
    size = part.stat().st_size
    if content_range.rpartition("/")[2] == str(size):
        return size
    part.unlink()
    return 0
