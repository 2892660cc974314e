"""Classification tasks cut out of one resident data set, as index arrays."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from nn_adv.border import as_count, as_number
from nn_adv.data.dataset import Dataset

KINDS = ("all", "one_vs_rest", "pairs")
_HOLDOUT_SEED = 20240406  # fixed: the same images are held out in every run, and in every task of a class


@dataclasses.dataclass(frozen=True)
class Task:
    """Name the images of one task by their index in the data set; holds no image.

    Attributes:
        name: "3v8" for a pair (3 is class 0, 8 is class 1), "3vrest" (3 is class 1, the rest class 0) or "all".
        class_names: One name per class of the task.
        train_index: [n] int32 into the training images, ascending.
        train_labels: [n] int32 labels within the task.
        holdout_index: [h] int32 into the training images, disjoint from train_index, for early stopping only.
        holdout_labels: [h] int32 labels within the task.
        test_index: [m] int32 into the test images, ascending.
        test_labels: [m] int32 labels within the task.
    """

    name: str
    class_names: tuple[str, ...]
    train_index: np.ndarray
    train_labels: np.ndarray
    holdout_index: np.ndarray
    holdout_labels: np.ndarray
    test_index: np.ndarray
    test_labels: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes of the task."""
        return len(self.class_names)


def tasks(
    dataset: Dataset, kind: str = "pairs", *, train_per_class: int | None = None, holdout: float = 0.0
) -> list[Task]:
    """Cut a data set into tasks.

    Args:
        dataset: The data set; its images are neither copied nor read.
        kind: "pairs" for every pair of classes, "one_vs_rest" for every class against the others, "all" for one task
            of all classes.
        train_per_class: How many training images to use of each class of the data set, the first ones; all of them
            if None or if there are fewer.
        holdout: Share in [0, 1) of those to keep apart for early stopping, per class of the data set and rounded,
            but at least one image of each if it is above 0.

    Returns:
        One task per pair in the order 0v1, 0v2, ..., per class, or one.

    Raises:
        ValueError: For an unknown kind, an option out of range, or a data set with fewer than two classes or with a
            class that has no image left to train on or none to test on.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not isinstance(dataset, Dataset):
        raise ValueError(f"dataset must be a data.Dataset, as data.load returns, got {type(dataset).__name__}")
    train_per_class = train_per_class if train_per_class is None else as_count(train_per_class, "train_per_class")
    holdout = as_number(holdout, "holdout", below=1)
    if dataset.num_classes < 2:
        raise ValueError(f"dataset must have two classes or more, got {dataset.num_classes} in {dataset.title}")
    members = [_members(dataset, label, train_per_class, holdout) for label in range(dataset.num_classes)]
    return [_task(name, names, members, mapping) for name, names, mapping in _mappings(dataset.class_names, kind)]


def _members(
    dataset: Dataset, label: int, train_per_class: int | None, holdout: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the training, holdout and test indices of one class, each ascending."""
    train = np.flatnonzero(dataset.train_labels == label)[:train_per_class]
    test = np.flatnonzero(dataset.test_labels == label)
    num_holdout = max(1, round(holdout * len(train))) if holdout else 0
    if num_holdout >= len(train) or not len(test):
        raise ValueError(
            f"dataset must have training and test images of every class beside a holdout of {holdout}, got "
            f"{len(train)} and {len(test)} of class {label} ({dataset.class_names[label]}) in {dataset.title}"
        )
    order = np.random.default_rng([_HOLDOUT_SEED, label]).permutation(len(train))
    return np.sort(train[order[num_holdout:]]), np.sort(train[order[:num_holdout]]), test


def _mappings(class_names: tuple[str, ...], kind: str) -> list[tuple[str, tuple[str, ...], dict[int, int]]]:
    """Return name, class names and {class of the data set: class of the task} of every task."""
    classes = range(len(class_names))
    if kind == "pairs":
        return [
            (f"{a}v{b}", (class_names[a], class_names[b]), {a: 0, b: 1}) for a, b in itertools.combinations(classes, 2)
        ]
    if kind == "one_vs_rest":
        return [(f"{a}vrest", ("rest", class_names[a]), {b: int(b == a) for b in classes}) for a in classes]
    return [("all", class_names, {label: label for label in classes})]


def _task(name: str, class_names: tuple[str, ...], members: list, mapping: dict[int, int]) -> Task:
    index_and_labels = []
    for part in range(3):  # training, holdout, test
        index = np.concatenate([members[label][part] for label in mapping])
        labels = np.concatenate([np.full(len(members[label][part]), mapping[label]) for label in mapping])
        order = np.argsort(index)
        index_and_labels += [index[order].astype(np.int32), labels[order].astype(np.int32)]
    return Task(name, class_names, *index_and_labels)
