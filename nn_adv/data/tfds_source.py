"""MNIST, Fashion-MNIST and CIFAR-10 out of a prepared tensorflow-datasets folder, without TensorFlow."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from nn_adv.data.dataset import Dataset
from nn_adv.data.preparation import prepare

_DIGIT_NAMES = tuple(str(label) for label in range(10))
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLASS_NAMES = {"mnist": _DIGIT_NAMES, "fashion_mnist": _FASHION_NAMES, "cifar10": _CIFAR10_NAMES}
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_MAGIC = b"\x89PNG"
_PNG_DEPTH = 24  # where a PNG says its bits a channel


def load_tfds(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Read a prepared data set, preparing it first where its folder is missing.

    The originals are lossless. A folder that holds JPEG images was re-encoded by whoever made it: its title and note
    say so, since figures from it are not figures for the data set of that name. Arguments are those of `prepare`.

    Returns:
        The data set with uint8 images, in the order of the prepared folder.

    Raises:
        ValueError: As in `prepare`, or if the folder is not one that can be read.
    """
    folder = prepare(name, data_dir)
    train_images, train_labels, train_is_jpeg = _read_split(folder, "train")
    test_images, test_labels, test_is_jpeg = _read_split(folder, "test")
    is_jpeg = train_is_jpeg or test_is_jpeg
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=_CLASS_NAMES[name],
        note="JPEG copy: re-encoded, not the original pixels" if is_jpeg else "",
        title=_TITLES[name] + (" (JPEG copy)" if is_jpeg else ""),
    )


def _read_split(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return images [N, H, W, C] uint8, labels [N] int32 and whether any image is stored as JPEG."""
    try:
        # Records come still encoded and in bulk: decoding them here takes half the time of decoding one by one there.
        source = tfds.builder_from_directory(folder).as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        records = source.__getitems__(range(len(source)))
    except Exception as error:  # tfds raises many kinds for a damaged folder or one of another file format
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"cannot read {split} images from {folder} ({reason}): it must be a tensorflow-datasets folder in "
            "array_record format; name another data_dir to have one made there"
        ) from error
    shape = source.dataset_info.features["image"].shape
    images = np.empty((len(records), *shape), np.uint8)
    for number, record in enumerate(records):
        try:
            images[number] = _decode(record["image"], shape)
        except ValueError as error:
            raise ValueError(
                f"{split} image {number} in {folder} is none of this dataset's: {error}; name another data_dir to have "
                "it made there"
            ) from error
    labels = np.fromiter((record["label"] for record in records), np.int32, len(records))
    return images, labels, any(record["image"].startswith(_JPEG_MAGIC) for record in records)


def _decode(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a PNG or JPEG file; raise ValueError unless it is a grey or coloured picture, as ``shape`` has it."""
    try:
        picture = Image.open(io.BytesIO(encoded))
        picture.load()
    except (OSError, SyntaxError) as error:  # what Pillow raises for damage
        raise ValueError(f"it cannot be decoded ({error})") from error
    mode = "L" if shape[2] == 1 else "RGB"
    if (picture.height, picture.width, picture.mode) != (*shape[:2], mode):
        found = f"{picture.height} x {picture.width} pixels of mode {picture.mode}"
        raise ValueError(f"it has {found} in place of {shape[0]} x {shape[1]} of mode {mode}")
    if "transparency" in picture.info or (encoded.startswith(_PNG_MAGIC) and encoded[_PNG_DEPTH] > 8):
        raise ValueError("it has transparency, or 16 bits a channel, which Pillow would leave out")
    return np.asarray(picture).reshape(shape)
