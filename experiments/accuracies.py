"""The accuracies of a row: what attacks leave unbroken of a network, and what the radii of 1NN say.

Every method is evaluated on the same images. An accuracy is a plain dict with a split, a threat, what the number is
(clean, attacked, certified or exact), how many images there were and how many of them were robust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import plan, radii
from nn_adv import attacks, data

Evaluation = dict[str, Any]
SPLITS = ("train", "test")


class Images(NamedTuple):
    """The images that a task is evaluated on, the same for every method; all splits together.

    Attributes:
      images, labels: ``[N, ...]`` and ``[N]``.
      split: ``[N]`` "train" or "test".
      image: ``[N]`` number of the image in its split of the dataset.
    """

    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    image: np.ndarray


def choose_images(dataset: data.Dataset, task: data.Task, splits: Sequence[str], count: int) -> Images:
    """Take the first ``count`` images of each of the splits (0: all), as many of each class."""
    everything = {
        "train": (dataset.train_images, task.train_index, task.train_labels),
        "test": (dataset.test_images, task.test_index, task.test_labels),
    }
    parts = []
    for name in splits:
        images, index, labels = everything[name]
        rows = balanced(labels, count)
        parts.append((images[index[rows]], labels[rows], np.full(len(rows), name), index[rows]))
    return Images(*map(np.concatenate, zip(*parts, strict=True)))


def first_images(dataset: data.Dataset, splits: Sequence[str], count: int) -> Images:
    """Take the first ``count`` images of each of the splits (0: all), in the dataset's order."""
    everything = {
        "train": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    parts = []
    for name in splits:
        images, labels = (array[: count or None] for array in everything[name])
        parts.append((images, labels, np.full(len(labels), name), np.arange(len(labels))))
    return Images(*map(np.concatenate, zip(*parts, strict=True)))


def attacked(
    config: ml_collections.ConfigDict, split: np.ndarray, places: Sequence[np.ndarray], names: Sequence[str]
) -> list[Evaluation]:
    """Count the images that are classified correctly, and those that no attack broke, by growing radii of each norm.

    Args:
      config: from `configs.binary_tasks`.
      split: ``[N]``.
      places: from `attacked.broken_by`, for each of `plan.make_threats`.
      names: of the attacks.
    """
    found = _counts(split, None, 0.0, "clean", places[0] != attacks.CLEAN)
    at_main_radius = []
    order = list(plan.main_epsilons(config))
    pairs = zip(plan.make_threats(config), places, strict=True)
    for threat, broken_by in sorted(pairs, key=lambda pair: (order.index(pair[0].norm), pair[0].epsilon)):
        unbroken = broken_by == attacks.UNBROKEN
        for item in _counts(split, threat.norm, threat.epsilon, "attacked", unbroken):
            left = attacks.count_unbroken(broken_by[split == item["split"]], len(names))
            found.append(item | {"left": dict(zip(("clean", *names), left, strict=True))})
        if threat.epsilon == plan.main_epsilons(config)[threat.norm]:
            at_main_radius.append(unbroken)
    return found + _counts(split, "worst", None, "attacked", np.logical_and.reduce(at_main_radius))


def exact(config: ml_collections.ConfigDict, known: radii.Radii) -> list[Evaluation]:
    """Count the images that are robust at the networks' radii and at a finer grid of them."""
    found = _counts(known.split, None, 0.0, "clean", known.correct)
    at_main_radius = []
    for norm, radius in plan.main_epsilons(config).items():
        epsilons = plan.curve_epsilons(config, radius, fine=True)
        least, most = radii.robust_between(known, norm, epsilons)
        for epsilon, *bounds in zip(epsilons, least, most, strict=True):
            found += _exact_counts(known.split, norm, epsilon, *bounds)
        main = epsilons.index(radius)
        at_main_radius.append((least[main], most[main]))
    return found + _exact_counts(known.split, "worst", None, *np.logical_and.reduce(at_main_radius))


def _exact_counts(split, norm, epsilon, least, most) -> list[Evaluation]:
    """One exact count for each split whose images are all decided; else what is certified and what is not broken."""
    certified = _counts(split, norm, epsilon, "certified", least)
    attacked = _counts(split, norm, epsilon, "attacked", most)
    found = []
    for lower, upper in zip(certified, attacked, strict=True):
        found += [lower | {"kind": "exact"}] if lower["robust"] == upper["robust"] else [lower, upper]
    return found


def _counts(split, norm, epsilon, kind, flags) -> list[Evaluation]:
    return [
        {
            "split": name,
            "norm": norm,
            "epsilon": epsilon,
            "kind": kind,
            "count": int(np.sum(split == name)),
            "robust": int(np.sum(flags[split == name])),
        }
        for name in SPLITS
        if np.any(split == name)
    ]


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Return rows of the first images of each class, ``count`` in all (0: all rows), in their order."""
    if count == 0 or count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    share = [len(part) for part in np.array_split(np.arange(count), len(classes))]
    rows = [np.flatnonzero(labels == label)[:size] for label, size in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows))
