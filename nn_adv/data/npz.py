"""A user's own arrays, checked before any long work starts."""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib

import numpy as np

from nn_adv.border import as_images, as_labels
from nn_adv.data.dataset import Dataset
from nn_adv.paths import as_path

_SPLITS = ("train", "test")
# What NumPy and zipfile raise for files that are damaged, or none of theirs.
_UNREADABLE = (
    *(AttributeError, EOFError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
# What the first axis of an image is, and not its last, where the channels come first.
_CHANNELS, _MOST_CHANNELS = (1, 3), 4


def load_npz(path: str | os.PathLike[str]) -> Dataset:
    """Load train_images, train_labels, test_images, test_labels and, if there, class_names from an npz file.

    Images are [N, H, W, C]: uint8, where v means v / 255, or floats, kept as float32 and as such in [0, 1]: 1.000000001
    is 1. Labels are whole numbers 0..C-1, [N], where C is the number of class_names or one more than the largest
    label; each class needs a training image. Names stored as bytes are read as UTF-8.

    Args:
        path: The file, as written by `np.savez` or `np.savez_compressed`; pickled objects are not read.

    Returns:
        The data set, named "npz:PATH" and titled with the file's stem.

    Raises:
        ValueError: If the file cannot be read or an array is unfit: one line naming the array, the first bad index
            and what is wanted.
    """
    path = as_path(path, "npz path")
    arrays = _read(path)
    images = {split: _checked_images(f"{split}_images", arrays[f"{split}_images"]) for split in _SPLITS}
    if images["test"].shape[1:] != images["train"].shape[1:] or images["test"].dtype != images["train"].dtype:
        raise ValueError(
            f"test_images must be like train_images, {_describe(images['train'])}, got {_describe(images['test'])}"
        )
    labels = {
        split: as_labels(arrays[f"{split}_labels"], count=len(images[split]), name=f"{split}_labels")
        for split in _SPLITS
    }
    class_names = _class_names(arrays.get("class_names"), labels["train"])
    _check_classes(labels, class_names)
    return Dataset(
        name=f"npz:{path}",
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        class_names=class_names,
        title=path.stem.encode(errors="replace").decode(),  # names of files may hold what no text does
    )


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read all known arrays of the file, class_names only if it is there."""
    required = [f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in required if key not in file]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            return {key: file[key] for key in (*required, "class_names") if key in file}
    except _UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"cannot load {path} ({reason}): it must be an npz file, without pickled objects, of the arrays "
            f"{', '.join(required)}"
        ) from error


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _checked_images(name: str, images: np.ndarray) -> np.ndarray:
    """Return the images as uint8 or float32, or raises ValueError for the first unfit one."""
    if images.ndim == 4 and images.shape[1] in _CHANNELS and min(images.shape[2:]) > _MOST_CHANNELS:
        raise ValueError(
            f"{name} must be [N, H, W, C], got {list(images.shape)}, which looks like [N, C, H, W]: save "
            "np.moveaxis(images, 1, -1)"
        )
    return as_images(images, name=name, bounds=(0, 1), rank=4, float_dtype=np.float32, may_be_none=False)


def _class_names(names: np.ndarray | None, train_labels: np.ndarray) -> tuple[str, ...]:
    """Return the names in the file, or numbers up to the largest training label."""
    if names is None:
        # No more classes than images: a label that is plainly a mistake must not ask for that many names.
        names = np.arange(min(int(train_labels.max()) + 1, len(train_labels)))
    if names.size < 2:
        raise ValueError(f"class_names or train_labels must give two classes or more, got {names.size}")
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(names))
    except UnicodeDecodeError as error:
        raise ValueError(f"class_names must be texts, or bytes of UTF-8, got {error.object!r}") from error


def _check_classes(labels: dict[str, np.ndarray], class_names: tuple[str, ...]) -> None:
    """Raise ValueError for a label of no class and for a class without a training image."""
    for split, values in labels.items():
        as_labels(values, len(class_names), name=f"{split}_labels")
    absent = np.setdiff1d(np.arange(len(class_names)), labels["train"])
    if absent.size:
        raise ValueError(
            f"train_labels must hold every class, got no image of class {absent[0]} ({class_names[absent[0]]}): "
            "number the classes that occur 0..C-1"
        )
