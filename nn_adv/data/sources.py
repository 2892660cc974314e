"""The data sets by name."""

from __future__ import annotations

import importlib
import os
from importlib import resources
from types import ModuleType

import numpy as np

from nn_adv.data import npz
from nn_adv.data.dataset import Dataset

DATASETS = ("cifar10", "digits", "fashion_mnist", "mnist")
_NPZ_PREFIX = "npz:"


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory, downloading it where it is not yet on this machine.

    Args:
        name: One of `DATASETS`, or "npz:PATH" for your own arrays (see `load_npz`).
        data_dir: Folder of the prepared tensorflow-datasets; TFDS_DATA_DIR or ~/tensorflow_datasets unless given.

    Returns:
        The data set, images [N, H, W, C] as stored (uint8, or float32 from an npz file that holds floats).

    Raises:
        ValueError: For an unknown name, an unfit npz file, or a data set that is not here and cannot be downloaded.
        ImportError: Where tensorflow-datasets is missing; digits and npz files do without.
    """
    if isinstance(name, str) and name.startswith(_NPZ_PREFIX):
        return npz.load_npz(name.removeprefix(_NPZ_PREFIX))
    if name == "digits":
        return _load_digits()
    if name in DATASETS:
        return of_tfds("tfds_source").load_tfds(name, data_dir=data_dir)
    raise ValueError(f"dataset must be one of {', '.join(DATASETS)} or npz:PATH, got {name!r}")


def of_tfds(module: str) -> ModuleType:
    """Import a module of this folder that needs tensorflow-datasets, which takes longer to import than most to run."""
    try:
        return importlib.import_module(f"nn_adv.data.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(f"nn_adv.data needs {error.name} for this: pip install 'nn_adv[data]'") from error


def _load_digits() -> Dataset:
    """Load scikit-learn's 1,797 digits (Alpaydin & Kaynak 1998, UCI, CC BY 4.0): 1,198 to train on, 599 to test on.

    They lie in a file beside this one: scikit-learn itself takes a second to import.

    The first two thirds of each class, in file order, are the training images, so that no seed is involved. Writers
    come one after another in the file: most test images are by writers not seen in training, but this is not certain.
    """
    with resources.files("nn_adv.data").joinpath("digits.npz").open("rb") as file, np.load(file) as digits:
        pixels, labels = digits["pixels"], digits["labels"].astype(np.int32)
    # Pixels are whole numbers 0..16; 16 becomes 255. The rounding moves a pixel by less than 1/510 of the range.
    images = np.round(pixels * (255 / 16)).astype(np.uint8)[..., None]
    is_train = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        is_train[members[: round(len(members) * 2 / 3)]] = True
    return Dataset(
        name="digits",
        train_images=images[is_train],
        train_labels=labels[is_train],
        test_images=images[~is_train],
        test_labels=labels[~is_train],
        class_names=tuple(str(label) for label in range(10)),
        note="pixels 0..16 quantised to 0..255, each within 1/510 of its value",
        title="digits (scikit-learn 8x8)",
    )
