"""Variants of 1NN by name: "1nn", then what is done to its training images, step after step, joined by "+".

    subset:N     N images drawn at random, as many of each class; those of N are among those of 2 N
    swap:S       a share S of the images, drawn at random, get the label of another class
    mirror       each image once more, left and right exchanged
    shift:P      each image four times more, moved by P pixels, the border repeated
    prune:R      the fewest images left out so that the two classes are 2 R apart in l2 (`neighbors.prune`)
    centres:N    N centres of clusters of each class instead of images (`training.cluster_prototypes`)
    learned:N    N prototypes of each class, learned for the main radii (`training.learn_prototypes`)
    pca:N        distances are those of the first N principal components of the points made so far
    low-pass:N   distances are those of the lowest N x N frequencies of each channel
    metric:P     distances are measured in that norm; its radii are bounded by its margins alone

subset and swap come first. Alternatives, "1nn+prune:2|3", are those of which held-out training images choose one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.methods import NEIGHBOR
from nn_adv import certify, data, neighbors, training
from nn_adv.threat import Threat, check_norm

# What each step takes.
_STEPS: dict[str, tuple[type, ...]] = {
    "subset": (int,),
    "swap": (float,),
    "mirror": (),
    "shift": (int,),
    "prune": (float,),
    "centres": (int,),
    "learned": (int,),
    "pca": (int,),
    "low-pass": (int,),
    "metric": (str,),
}
_OF_TASKS = ("subset", "swap")
_RANDOM = (*_OF_TASKS, "centres", "learned")


class Made(NamedTuple):
    """What 1NN is made of."""

    points: np.ndarray  # ``[n, ...]``
    labels: np.ndarray  # ``[n]``
    metric: str = "l2"  # norm that it measures distances in
    linear_map: np.ndarray | None = None  # ``[k, d]`` of pixels before they are measured, or None


def alternatives(name: str) -> list[str]:
    """List the variants that a name with alternatives stands for.

    Raises:
      ValueError: there is no such variant.
    """
    first, *steps = str(name).split("+")
    if first != NEIGHBOR:
        raise ValueError(f"variants must begin with 1nn, got {name!r}")
    choices = []
    for step in steps:
        what, colon, values = step.partition(":")
        choices.append([f"{what}{colon}{value}" for value in values.split("|")])
    found = ["+".join([first, *chosen]) for chosen in itertools.product(*choices)]
    for one in found:
        _parse(one)
    return found


def check_exact(name: str) -> None:
    """Raise ValueError for a name that does not stand for one variant, with radii that can be computed exactly."""
    if len(alternatives(name)) > 1 or any(what == "metric" for what, _ in _parse(name)):
        raise ValueError(f"methods must name variants of 1NN without alternatives that measure in l2, got {name!r}")


def check_sizes(name: str, tasks: Sequence[data.Task], image_shape: Sequence[int]) -> None:
    """Raise ValueError for a variant that asks for more than one of the tasks, or an image ``[H, W, C]``, has."""
    height, width, channels = image_shape
    most = {"shift": max(height, width) - 1, "low-pass": min(height, width), "pca": height * width * channels}
    chosen = alternatives(name)
    for task, one in itertools.product(tasks, chosen):
        # What is left of a task by those that choose, before they join in.
        most["subset"] = len(task.train_index) + len(task.holdout_index) * (len(chosen) == 1)
        for what, values in _parse(one):
            if what in most and values[0] > most[what]:
                largest = f"{what}:{most[what]}"
                raise ValueError(f"variants must not ask for more than {largest} on {task.name}, got {name!r}")


def is_random(name: str) -> bool:
    """Tell whether a variant holds random numbers, so that several seeds differ."""
    return any(what in _RANDOM for what, _ in _parse(alternatives(name)[0]))


def of_task(name: str, task: data.Task, seed: int) -> data.Task:
    """Return the task of the training images, and of the labels, that a variant is given."""
    for what, values in _parse(name):
        if what == "subset":
            task = _subset(task, seed, *values)
        elif what == "swap":
            task = _swap(task, seed, *values)
    return task


def make(name: str, images: np.ndarray, labels: np.ndarray, *, seed: int, epsilons: Mapping[str, float]) -> Made:
    """Make the points of a variant without alternatives from images ``[n, H, W, C]`` and labels ``[n]`` of its task.

    Prototypes are learned for the epsilons, the main one of each norm.
    """
    measured: dict[str, Any] = {}
    for what, values in _parse(name):
        if what == "mirror":
            images, labels = np.concatenate([images, images[:, :, ::-1]]), np.tile(labels, 2)
        elif what == "shift":
            images, labels = _shifted(images, *values), np.tile(labels, 5)
        elif what == "prune":
            kept = neighbors.prune(images, labels, radius=values[0])
            images, labels = images[kept], labels[kept]
        elif what == "centres":
            images, labels = training.cluster_prototypes(images, labels, key=jax.random.key(seed), per_class=values[0])
        elif what == "learned":
            threats = [Threat(norm, epsilon) for norm, epsilon in epsilons.items()]
            options: dict[str, Any] = {"key": jax.random.key(seed), "per_class": values[0], "threats": threats}
            images, labels = training.learn_prototypes(images, labels, **options)
        elif what in ("pca", "low-pass"):
            embedding = certify.pca(images, *values) if what == "pca" else certify.low_pass(images.shape[1:], *values)
            measured["linear_map"] = embedding.linear_map(images.shape[1:])
        elif what == "metric":
            (measured["metric"],) = values
    return Made(images, labels, **measured)


def _parse(name: str) -> list[tuple[str, tuple]]:
    steps = []
    for step in name.split("+")[1:]:
        what, *values = step.split(":")
        try:
            kinds = _STEPS[what]
            steps.append((what, tuple(kind(value) for kind, value in zip(kinds, values, strict=True))))
        except (KeyError, ValueError):
            allowed = ", ".join(f"{what}:{kinds[0].__name__}" if kinds else what for what, kinds in _STEPS.items())
            raise ValueError(f"variants must be made of {allowed}, got {step!r} in {name!r}") from None
    _check(name, steps)
    return steps


def _check(name: str, steps: Sequence[tuple[str, tuple]]) -> None:
    for what, values in steps:
        if what == "metric":
            check_norm(*values)
        elif values and not 0 < values[0] < (1 if what == "swap" else math.inf):
            raise ValueError(f"variants must have finite numbers above 0 (swap: below 1), got {values[0]} in {name!r}")
    named = [what for what, _ in steps]
    if len(set(named)) < len(named) or {"pca", "low-pass"} <= set(named):
        raise ValueError(f"variants must have each step once, and one of pca and low-pass, got {name!r}")
    order = [what not in _OF_TASKS for what in named]
    if order != sorted(order):
        raise ValueError(f"variants must begin with {' and '.join(_OF_TASKS)}, got {name!r}")


def _subset(task: data.Task, seed: int, count: int) -> data.Task:
    """Keep so many images: class after class, one of each in turn, in an order that the seed draws."""
    order = np.random.default_rng(seed).permutation(len(task.train_index))
    labels = task.train_labels[order]
    turn = np.zeros(len(order), int)
    for label in range(task.num_classes):
        turn[labels == label] = np.arange(np.sum(labels == label))
    kept = np.sort(order[np.argsort(turn, kind="stable")[:count]])
    return dataclasses.replace(task, train_index=task.train_index[kept], train_labels=task.train_labels[kept])


def _swap(task: data.Task, seed: int, share: float) -> data.Task:
    """Give a share of the images the label of another class; the images of a share are among those of a larger one."""
    rng = np.random.default_rng(seed)
    order, offsets = rng.permutation(len(task.train_index)), rng.integers(1, task.num_classes, len(task.train_index))
    swapped = order[: round(share * len(order))]
    labels = task.train_labels.copy()
    labels[swapped] = (labels[swapped] + offsets[swapped]) % task.num_classes
    return dataclasses.replace(task, train_labels=labels)


def _shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
    starts = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    parts = [padded[:, y * pixels :, x * pixels :][:, :height, :width] for y, x in starts]
    return np.concatenate(parts)
