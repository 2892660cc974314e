"""Published networks as functions of images, from the files in a folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nn_adv import models
from nn_adv.paths import as_path
from nn_adv.zoo import convert, files
from nn_adv.zoo import download as downloads
from nn_adv.zoo.entries import Entry, File, find

_FINGERPRINTS = "fingerprints"  # in the metadata of a file that is kept: of what it was made from
_END_BYTES = 1 << 20
_LEAST_PROBABILITY = 1e-30  # float32 has a logarithm and a gradient for it


class Model(NamedTuple):
    """A network with its weights.

    Attributes:
      entry: what the catalogue says of it.
      logits_fn: images ``[B, H, W, C]`` in [0, 1] to what the published network returns (``entry.output``),
        ``[B, num_classes]``; of probabilities the logarithm, which gives attacks back the differences of logits that
        they climb. Networks of one architecture share what is compiled.
    """

    entry: Entry
    logits_fn: Partial


def load(
    name: str,
    folder: str | os.PathLike[str],
    *,
    catalogue: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Model:
    """Load a network of a catalogue.

    Its weights are read from FOLDER/DATASET/THREAT/NAME.pt (RobustBench's layout) and kept beside it, under the
    published keys, as NAME.safetensors, from which they are read the next time, without PyTorch. Such a file is made
    anew when its source has changed or it cannot be read; without its source it is enough. A
    NAME.safetensors from elsewhere is used where there is no NAME.pt, and not overwritten unless it is damaged.

    Args:
      name: of the network.
      folder: RobustBench's ``model_dir``.
      catalogue: a file of one's own (`nn_adv.zoo.catalogue`).
      download: fetch files that are not there.

    Raises:
      OSError: a file is not there and is not or cannot be downloaded: the error says where it is and where to put it.
      ValueError: unknown name, or a file that is not of weights or not of this network's.
      ImportError: a package that reads or fetches the files is missing.
    """
    entry = find(name, catalogue)
    try:
        network = _network(entry.architecture, entry.num_classes, json.dumps(entry.arguments, sort_keys=True))
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from error
    variables = _from_cache(entry, network, folder, download)
    if variables is None:
        variables = _from_files(entry, network, folder, download)
    outputs_fn = Partial(network.apply, variables)
    return Model(entry, Partial(_logarithm, outputs_fn) if entry.output == "probabilities" else outputs_fn)


def _logarithm(fn: Partial, images: chex.Array) -> jax.Array:
    return jnp.log(jnp.maximum(fn(images), _LEAST_PROBABILITY))


def has_weights(entry: Entry, folder: str | os.PathLike[str]) -> bool:
    """Tell whether a network can be loaded from ``folder`` without a download."""
    return _cache(entry, folder).is_file() or not _missing(entry, folder)


def fingerprints(entry: Entry, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Tell a network from others of its name: a number for its entry, and for each file that `load` would read.

    Of a file are taken its size and its ends, where PyTorch's zips keep a checksum of every tensor. Files of other
    kinds that differ in the middle alone look the same. What is kept of files that are gone has the numbers of those.

    Returns:
      Numbers by "catalogue" (what of the entry decides what `load` gives) and by the names of the files.
    """
    parts = [[file.name, file.outer_key, file.into] for file in entry.files]
    decisive = [entry.architecture, dict(entry.arguments), entry.num_classes, entry.output]
    decisive += [[parts, entry.prefixes, entry.renames, entry.unused]]
    found = {"catalogue": _digest(json.dumps(decisive, sort_keys=True).encode())}
    if not _missing(entry, folder):
        return found | {file.name: _fingerprint(_place(entry, folder) / file.name) for file in entry.files}
    cache = _cache(entry, folder)
    try:
        kept = files.read_metadata(cache).get(_FINGERPRINTS)
    except (FileNotFoundError, ValueError):  # ValueError: damaged, or of another kind
        return found
    return (json.loads(kept) if kept else {cache.name: _fingerprint(cache)}) | found


def _fingerprint(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(_END_BYTES)
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _END_BYTES, 0))
        return _digest(start + stream.read() + str(size).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def _network(architecture: str, num_classes: int, arguments: str) -> nn.Module:
    """Build a network, the same object for the same options: a function bound to another one would compile again."""
    return models.create(architecture, num_classes, **json.loads(arguments))


def _place(entry: Entry, folder: str | os.PathLike[str]) -> pathlib.Path:
    return as_path(folder, "folder") / entry.dataset / entry.threat


def _cache(entry: Entry, folder: str | os.PathLike[str]) -> pathlib.Path:
    return _place(entry, folder) / f"{entry.name}.safetensors"


def _missing(entry: Entry, folder: str | os.PathLike[str]) -> list[File]:
    place = _place(entry, folder)
    return [file for file in {file.name: file for file in entry.files}.values() if not (place / file.name).is_file()]


def _from_cache(
    entry: Entry, network: nn.Module, folder: str | os.PathLike[str], download: bool
) -> dict[str, Any] | None:
    """Read what was kept, or None if it is not there, or to be made anew: out of date, damaged, no longer fitting."""
    path = _cache(entry, folder)
    if not path.is_file() or path.name in (file.name for file in entry.files):
        return None
    has_source = not _missing(entry, folder)
    try:
        if has_source and files.read_metadata(path).get(_FINGERPRINTS) != json.dumps(fingerprints(entry, folder)):
            return None
        return _convert(entry, network, files.read_state_dict(path), str(path))
    except ValueError:
        if has_source or (download and any(file.source for file in entry.files)):
            return None
        raise


def _from_files(entry: Entry, network: nn.Module, folder: str | os.PathLike[str], download: bool) -> dict[str, Any]:
    place, absent = _place(entry, folder), _missing(entry, folder)
    if absent and not download:
        raise FileNotFoundError(f"{entry.name}: {'; '.join(str(downloads.missing(file, place)) for file in absent)}")
    for file in absent:
        downloads.fetch(file, place)
    state: dict[str, np.ndarray] = {}
    for file in entry.files:
        part = files.read_state_dict(place / file.name, outer_key=file.outer_key, prefixes=entry.prefixes)
        where = f"{entry.name}: {place / file.name}"
        for key, value in part.items():
            try:
                arrays = _renamed(entry, key, value)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            for name, array in arrays:
                if file.into + name in state:
                    raise ValueError(f"{where}: key {key} is read as {file.into}{name}, as another key was before it")
                state[file.into + name] = array
    names = ", ".join(dict.fromkeys(str(place / file.name) for file in entry.files))
    variables = _convert(entry, network, state, names)
    cache = _cache(entry, folder)
    if not _is_from_elsewhere(cache):
        used = {key: state[key] for key in state if not any(re.fullmatch(pattern, key) for pattern in entry.unused)}
        # A folder that cannot be written to is no reason not to run.
        with contextlib.suppress(OSError):
            files.write_state_dict(cache, used, metadata={_FINGERPRINTS: json.dumps(fingerprints(entry, folder))})
    return variables


def _is_from_elsewhere(cache: pathlib.Path) -> bool:
    """Tell whether there is such a file that was not made here, the source itself among them."""
    try:
        return cache.is_file() and _FINGERPRINTS not in files.read_metadata(cache)
    except files.Damaged:
        return False
    except ValueError:  # a file of another kind
        return True


def _renamed(entry: Entry, key: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    arrays = [(key, value)]
    for pattern, new in entry.renames:
        arrays = [renamed for key, value in arrays for renamed in _replaced(pattern, new, key, value)]
    return arrays


def _replaced(pattern: str, new: str | tuple[str, ...], key: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    try:
        if isinstance(new, str):
            return [(re.sub(pattern, new, key), value)]
        if not re.search(pattern, key):
            return [(key, value)]
        if value.ndim == 0 or len(value) % len(new):
            raise ValueError(f"{key} of shape {list(value.shape)} cannot be cut into {len(new)} equal parts")
        parts = np.split(value, len(new))
        return [(re.sub(pattern, name, key), part) for name, part in zip(new, parts, strict=True)]
    except re.error as error:
        raise ValueError(f"renames: {pattern!r} cannot be replaced by {new!r} ({error})") from error


def _convert(entry: Entry, network: nn.Module, state: dict[str, np.ndarray], where: str) -> dict[str, Any]:
    try:
        return convert.from_state_dict(network, state, image_shape=entry.image_shape, unused=entry.unused)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {where}: {error}") from error
