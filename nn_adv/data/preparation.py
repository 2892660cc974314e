"""Download the original files and writes them as tensorflow-datasets would, without TensorFlow.

tensorflow-datasets needs TensorFlow to parse these files and to encode arrays as PNG. Parsed here and handed over as
PNG bytes, they end in the same folder, in the same order, as if it had done all the work.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pathlib
import shutil
import tarfile
import tempfile
import urllib.request

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from nn_adv.paths import as_path

_VERSIONS = {"cifar10": "3.0.2", "fashion_mnist": "3.0.1", "mnist": "3.0.1"}
_TIMEOUT_SECONDS = 30
_IDX_HEADER_BYTES = {"images": 16, "labels": 8}
_CIFAR_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def folder_of(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Return where the prepared data set is looked for, whether or not it is there."""
    if name not in _VERSIONS:
        raise ValueError(f"name must be one of {', '.join(_VERSIONS)}, got {name!r}")
    root = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets" if data_dir is None else data_dir
    return as_path(root, "data_dir").absolute() / name / _VERSIONS[name]


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Make the prepared folder of a data set unless it is there, and returns it.

    The folder appears only when it is complete: an interrupted call leaves none.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".
        data_dir: Folder of the prepared data sets; TFDS_DATA_DIR or ~/tensorflow_datasets unless given.

    Returns:
        <data_dir>/<name>/<version>, which `tfds.data_source(name, data_dir=...)` reads too.

    Raises:
        ValueError: For another name, or if the originals cannot be downloaded, are not the known files or find no room.
    """
    folder = folder_of(name, data_dir)
    if (folder / "dataset_info.json").exists():
        return folder
    root = folder.parents[1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            files = _download(name, pathlib.Path(scratch))
            splits = _read_cifar(files) if name == "cifar10" else _read_mnist(files)
            _write(name, root, splits, scratch)
    except (OSError, http.client.HTTPException) as error:
        if (folder / "dataset_info.json").exists():  # another process on a shared disk was faster
            return folder
        raise ValueError(
            f"{name} is not at {folder} and could not be made there ({error}): copy a prepared folder to that place, "
            f"or name the folder that holds {name}/{_VERSIONS[name]} as data_dir or TFDS_DATA_DIR, "
            "or try again with internet access"
        ) from error
    return folder


def _download(name: str, scratch: pathlib.Path) -> dict[str, pathlib.Path]:
    """Download the original files of a data set; returns them by file name, with checksums verified."""
    files = {}
    for url, known in tfds.builder_cls(name).url_infos.items():
        target = scratch / url.rpartition("/")[2]
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            target.open("wb") as file,
            tqdm.wrapattr(file, "write", total=known.size, desc=target.name, leave=False) as progress,
        ):
            shutil.copyfileobj(response, progress)
        with target.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != known.checksum:
            raise OSError(f"{url} is not the known file: its SHA-256 is {checksum}, not {known.checksum}")
        files[target.name] = target
    return files


def _read_mnist(files: dict[str, pathlib.Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parses the four IDX files; returns images [N, 28, 28] and labels [N] by split."""

    def read(prefix: str, kind: str, rank: int) -> np.ndarray:
        with gzip.open(files[f"{prefix}-{kind}-idx{rank}-ubyte.gz"]) as file:
            return np.frombuffer(file.read(), np.uint8, offset=_IDX_HEADER_BYTES[kind])

    prefixes = {"train": "train", "test": "t10k"}
    return {
        split: (read(prefix, "images", 3).reshape(-1, 28, 28), read(prefix, "labels", 1))
        for split, prefix in prefixes.items()
    }


def _read_cifar(files: dict[str, pathlib.Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Parses the binary archive; returns images [N, 32, 32, 3] and labels [N] by split."""
    splits = {}
    with tarfile.open(files["cifar-10-binary.tar.gz"]) as archive:
        members = {pathlib.PurePath(member.name).name: member for member in archive if member.isfile()}
        for split, names in _CIFAR_FILES.items():
            raw = b"".join(archive.extractfile(members[name]).read() for name in names)  # type: ignore[union-attr]
            rows = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)  # one label, then three colour planes
            splits[split] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]
    return splits


def _write(name: str, root: pathlib.Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], scratch: str) -> None:
    """Write the splits through the official builder, its own parsing replaced."""
    official = tfds.builder_cls(name)

    class PreparedBuilder(official, skip_registration=True):  # type: ignore[call-arg, misc, valid-type]
        """The official data set, fed with images that are already parsed."""

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split, *arrays) for split, arrays in splits.items()}

        def _generate_examples(self, split, images, labels):
            # Examples as PNG bytes under the official keys, which decide the order on disk.
            for key, (image, label) in enumerate(zip(images, labels, strict=True)):
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "png")
                encoded.seek(0)
                example = {"image": encoded, "label": int(label)}
                yield key, example | ({"id": f"{split}_{key:05d}"} if name == "cifar10" else {})

    PreparedBuilder.name = official.name
    builder = PreparedBuilder(data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_dir=scratch)
