"""Files of weights: state dicts as PyTorch and safetensors write them, read without running anything in them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (with it NumPy knows "bfloat16")
import numpy as np
import safetensors
import safetensors.numpy

from nn_adv.paths import as_path

# Entries under which training scripts keep the weights, beside the epoch, the optimizer and so on.
_USUAL_KEYS = ("state_dict", "model")
_SHOWN = 5
# How files begin: PyTorch's are zips, since 1.6, or pickles.
_ZIP, _PICKLE = rb"PK\x03\x04", rb"\x80[\x02-\x05]"
_SAFETENSORS = rb"(?s).{4}\0{4}\{"
_FORMATS = {
    _ZIP: ("a zip, as PyTorch's files are", "give it a name that ends in .pt"),
    _PICKLE: ("a pickle, as PyTorch's older files are", "give it a name that ends in .pt"),
    _SAFETENSORS: ("a safetensors file", "give it a name that ends in .safetensors"),
    rb"\x1f\x8b": ("a gzip file", "unpack it"),
    rb"(?s).{257}ustar": ("a tar file", "unpack it"),
}
_WEB_PAGE = rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)"
_FOLDER_BIT = 0x10  # among a record's attributes
_CHUNK = 1 << 20


class Damaged(ValueError):
    """A file is not whole, or not of weights.

    Attributes:
      problem: the message without the file's name and what to do.
    """

    def __init__(self, path: pathlib.Path, problem: str):
        super().__init__(f"{path} {problem}: delete it and get it again")
        self.problem = problem


def read_state_dict(
    path: str | os.PathLike[str], *, outer_key: str | None = None, prefixes: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read the weights in a file as arrays by their dotted keys, running none of its code.

    The steps are those of RobustBench's loader: take the entry ``outer_key`` if one is given, then the entry
    "state_dict" (or "model") if there is one; then, for each word of ``prefixes`` in turn, every key that contains the
    word *anywhere* loses that many leading characters.

    Args:
      path: a ``.safetensors`` file; anything else is read as PyTorch's.
      outer_key: the entry of the file that holds the weights.
      prefixes: words that stand before the keys, such as "module." where a network was saved inside `DataParallel`.

    Returns:
      Arrays in the precision of the file, but for half precisions, which are widened to float32.

    Raises:
      OSError: there is no such file, or it cannot be read from the disk.
      Damaged: it is cut off, a web page, or differs from the checksums inside it.
      ValueError: it needs code, or holds something else than named arrays.
      MemoryError: it does not fit into memory.
      ImportError: it is a file of PyTorch's, which is not installed.
    """
    path = as_path(path)
    _check_head(path, path.suffix)
    if path.suffix == ".safetensors":
        read_metadata(path)  # its header and its length agree: what fails from here on is not damage
        try:
            content: Any = safetensors.numpy.load_file(path)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # such as for a dtype that NumPy has not
            raise ValueError(f"{path} cannot be read: {_reason(error)}") from error
    else:
        content = _load_torch(path)
    content = _weights_in(path, content, outer_key)  # what stands beside the weights is freed here
    return _strip(path, _to_numpy(path, content), prefixes)


def write_state_dict(
    path: str | os.PathLike[str], state: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays by their dotted keys; the file is there as a whole or not at all.

    Args:
      path: a ``.safetensors`` file; anything else is written as PyTorch's. Its folder is made.
      state: the arrays.
      metadata: text kept beside the arrays, in safetensors only.

    Raises:
      OSError: it could not be written, the dtype of an array included.
      ImportError: it is to be a file of PyTorch's, which is not installed.
    """
    path = as_path(path)
    arrays = {key: np.require(value, requirements="C") for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(arrays, temporary, dict(metadata or {}))
        else:
            torch = import_torch(f"{path.name} is a file of PyTorch's")
            torch.save({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, temporary)
        temporary.replace(path)
    except (safetensors.SafetensorError, RuntimeError) as error:  # what the two libraries make of a full disk
        raise OSError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the text kept in a ``.safetensors`` file.

    Raises:
      OSError: there is no such file.
      Damaged: it is cut off, or no such file.
      ValueError: it is a file of another kind.
    """
    path = as_path(path)
    _check_head(path, ".safetensors")
    with _damage_told(path, "safetensors file"), safetensors.safe_open(path, "np") as file:
        return dict(file.metadata() or {})


def check(path: pathlib.Path, suffix: str) -> None:
    """Check that a file, whose name is to have a suffix, is whole and of weights, as far as it tells by itself.

    Safetensors tell their size, PyTorch's zips have checksums. Its older format has neither.

    Raises:
      OSError: there is no such file, or it cannot be read from the disk.
      Damaged: it is not.
      ValueError: it is a file of another kind.
    """
    _check_head(path, suffix)
    if suffix == ".safetensors":
        read_metadata(path)
    elif _is_zip(path):
        _check_zip(path)
    elif not re.match(_PICKLE, _head(path)):
        raise Damaged(path, "is damaged, cut off or no file of tensors")


def _check_head(path: pathlib.Path, suffix: str) -> None:
    """Raise a clear error for what is plainly another kind of file, before any library says something less clear."""
    head = _head(path)
    if not head:
        raise Damaged(path, "is empty")
    if re.match(_WEB_PAGE, head):
        raise Damaged(
            path, "is a web page, not weights (a quota, which lasts a day at Google Drive, a sign-in or a warning)"
        )
    readable = (_SAFETENSORS,) if suffix == ".safetensors" else (_ZIP, _PICKLE)
    for beginning, (kind, remedy) in _FORMATS.items():
        if beginning not in readable and re.match(beginning, head):
            raise ValueError(f"{path} is {kind}: {remedy}")


def _head(path: pathlib.Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as file:
        return file.read(512)


@contextlib.contextmanager
def _damage_told(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Call damage whatever a reader of the file's structure raises: it can trip anywhere. The disk's errors pass."""
    try:
        yield
    except Exception as error:
        is_of_the_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # sent beyond the file
        if is_of_the_disk or isinstance(error, MemoryError):
            raise
        raise Damaged(path, f"is damaged, cut off or no {kind} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return re.split(r"\.\s|\n", str(error))[0] or "it ends too early"


def _is_zip(path: pathlib.Path) -> bool:
    return re.match(_ZIP, _head(path)) is not None


def _check_zip(path: pathlib.Path) -> None:
    """Hold a zip of PyTorch's against its checksums, which PyTorch does not look at."""
    with _damage_told(path, "file of tensors"), zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        for record in records:
            if record.external_attr & _FOLDER_BIT and not record.is_dir():  # PyTorch would not read it, and not say so
                raise zipfile.BadZipFile(f"{record.filename} is marked as a folder")
            if record.CRC:  # 0: written without, as PyTorch can
                with archive.open(record) as stream:
                    while stream.read(_CHUNK):
                        pass
    if not any(record.filename.endswith("/data.pkl") for record in records):
        raise ValueError(f"{path} is a zip of something else than tensors (it has no data.pkl): unpack it")


def import_torch(why: str) -> Any:
    """Return PyTorch; ImportError that says why it is needed where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{why}: pip install 'nn_adv[zoo]', or torch alone") from error
    return torch


def _load_torch(path: pathlib.Path) -> Any:
    torch = import_torch(f"{path.name} is a file of PyTorch's")
    is_zip = _is_zip(path)
    if is_zip:
        _check_zip(path)
    remedy = "if you trust whoever made it, load it in PyTorch once and save its state_dict() alone"
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|type \S+ <class '(\S+)'|got <class '(\S+)'", str(error))
        if not found and not is_zip:
            raise Damaged(path, f"is damaged, cut off or no file of tensors ({_reason(error)})") from error
        asked = f"code ({next(filter(None, found.groups()))})" if found else "what PyTorch holds for unsafe"
        doubt = "" if is_zip else ", or is damaged"  # the older format has no checksums
        raise ValueError(f"{path} asks for {asked}, which is never run here{doubt}: {remedy}") from error
    except Exception as error:
        _tell_memory(path, error)
        if is_zip:  # its checksums agree
            raise ValueError(f"{path} cannot be read ({_reason(error)}): {remedy}") from error
        raise Damaged(path, f"is damaged, cut off or no file of tensors ({_reason(error)})") from error


def _tell_memory(path: pathlib.Path, error: Exception) -> None:
    """Raise MemoryError where PyTorch, which has none, means it."""
    if "allocate memory" in str(error):
        raise MemoryError(f"{path} does not fit into memory") from error


def _harmless_globals() -> list[Any]:
    """What NumPy's numbers and arrays need; training scripts keep accuracies as such beside the weights."""
    makers = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    cores = ("numpy.core", "numpy._core")  # of NumPy before 2 and since
    named = [(maker, f"{core}.multiarray.{name}") for name, maker in makers.items() for core in cores]
    dtypes = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    return [*named, np.ndarray, np.dtype, *dtypes]


def _weights_in(path: pathlib.Path, content: Any, outer_key: str | None) -> dict[Any, Any]:
    content = _as_dict(path, "the file", content)
    if outer_key is not None:
        if outer_key not in content:
            raise ValueError(f"{path} has no entry {outer_key!r}: it has {_first(content)}")
        content = _as_dict(path, f"entry {outer_key!r}", content[outer_key])
    for key in _USUAL_KEYS:
        if isinstance(content.get(key), dict):
            return content[key]
    return content


def _as_dict(path: pathlib.Path, what: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a state dict, arrays by name: {what} is a {type(value).__name__}")
    return value


def _to_numpy(path: pathlib.Path, entries: dict[Any, Any]) -> dict[str, np.ndarray]:
    """Move tensors out of ``entries`` into arrays, one at a time: both copies at once may not fit into memory."""
    arrays: dict[str, np.ndarray] = {}
    for key in list(entries):
        value = entries.pop(key)
        if not isinstance(key, str):
            raise ValueError(f"{path} must hold arrays by name, got the name {key!r}")
        if hasattr(value, "detach"):
            value = value.detach()
            try:
                value = (value.float() if value.is_floating_point() and value.itemsize < 4 else value).numpy().copy()
            except (TypeError, RuntimeError) as error:  # sparse, quantised, without values
                _tell_memory(path, error)
                raise ValueError(f"{path} holds no plain tensor as {key!r}: {_reason(error)}") from error
        if not isinstance(value, np.ndarray | np.generic | int | float):
            raise ValueError(
                f"{path} holds a {type(value).__name__} as {key!r} where the weights should be: give the entry that "
                f"holds them as outer_key, out of {_first([*arrays, key, *entries])}"
            )
        array = np.asarray(value)
        arrays[key] = array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array
    return arrays


def _strip(path: pathlib.Path, state: dict[str, np.ndarray], prefixes: Sequence[str]) -> dict[str, np.ndarray]:
    for word in prefixes:
        stripped = {key[len(word) :] if word in key else key: value for key, value in state.items()}
        if len(stripped) != len(state):
            raise ValueError(f"{path} has keys that are the same without {word!r}: take it out of prefixes")
        state = stripped
    return state


def _first(keys: Iterable[Any]) -> str:
    names = [repr(key) for key in keys]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
