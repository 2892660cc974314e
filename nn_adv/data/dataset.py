"""What a data set is here: two resident arrays of images with their labels."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Hold the images of one data set, undivided; tasks refer to them by index.

    Attributes:
        name: What `load` was asked for, e.g. "cifar10".
        train_images: [N, H, W, C], uint8 where v means v / 255, or float32 in [0, 1].
        train_labels: [N] int32 in 0..num_classes-1.
        test_images: [M, H, W, C], same dtype as the training images.
        test_labels: [M] int32 in 0..num_classes-1.
        class_names: One name per class.
        note: What a reader of results must know about these pixels; empty if there is nothing.
        title: The name to print in tables and figures; `name` unless given.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    note: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not all of them occur."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, (H, W, C)."""
        return self.train_images.shape[1:]
