"""The accuracies of a row: what PGD leaves unbroken of a network, and what the radii of 1NN say.

Every method is evaluated on the same images. An accuracy is a plain dict with a split, a threat, what the number is
(clean, attacked, certified or exact), how many images there were and how many of them were robust.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import classifiers, plan, radii
from nn_adv import data, evaluation
from nn_adv.threat import Threat

Evaluation = dict[str, Any]


class Images(NamedTuple):
    """The images that a task is evaluated on, the same for every method; both splits together.

    Attributes:
      images, labels: ``[N, ...]`` and ``[N]``.
      split: ``[N]`` "train" or "test".
      image: ``[N]`` number of the image in its split of the dataset.
    """

    images: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    image: np.ndarray


def choose_images(dataset: data.Dataset, task: data.Task, count: int) -> Images:
    """Take the first ``count`` images of each split (0: all), as many of each class."""
    train, test = balanced(task.train_labels, count), balanced(task.test_labels, count)
    train_index, test_index = task.train_index[train], task.test_index[test]
    return Images(
        np.concatenate([dataset.train_images[train_index], dataset.test_images[test_index]]),
        np.concatenate([task.train_labels[train], task.test_labels[test]]),
        np.repeat(["train", "test"], [len(train), len(test)]),
        np.concatenate([train_index, test_index]),
    )


def attacked(
    config: ml_collections.ConfigDict, classifier: classifiers.Classifier, chosen: Images, *, seed: int
) -> list[Evaluation]:
    """Count the images that are classified correctly, and those that PGD does not break at growing radii."""
    settings, (images, labels, split, _) = config.evaluation, chosen
    predict = functools.partial(classifiers.predict, classifier)

    def attack(*arguments):
        return classifiers.pgd_attack(
            classifier,
            *arguments,
            num_steps=settings.num_steps,
            num_restarts=settings.num_restarts,
            step_share=settings.step_share,
        ).success

    clean = evaluation.correct(predict, images, labels, batch_size=settings.batch_size)
    found = _counts(split, None, 0.0, "clean", clean)
    at_main_radius = []
    for norm, radius in plan.main_radii(config).items():
        epsilons = plan.curve_radii(config, radius)
        unbroken = evaluation.unbroken_curve(
            attack,
            images,
            labels,
            threats=[Threat(norm, epsilon) for epsilon in epsilons],
            key=jax.random.key(seed),
            start_from=clean,
            batch_size=settings.batch_size,
        )
        for epsilon, flags in zip(epsilons, unbroken, strict=True):
            found += _counts(split, norm, epsilon, "attacked", flags)
        at_main_radius.append(unbroken[epsilons.index(radius)])
    return found + _counts(split, "worst", None, "attacked", np.logical_and.reduce(at_main_radius))


def exact(config: ml_collections.ConfigDict, known: radii.Radii) -> list[Evaluation]:
    """Count the images that are robust at the networks' radii and at a finer grid of them."""
    found = _counts(known.split, None, 0.0, "clean", known.correct)
    at_main_radius = []
    for norm, radius in plan.main_radii(config).items():
        epsilons = plan.curve_radii(config, radius, fine=True)
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
        for name in ("train", "test")
    ]


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Return rows of the first images of each class, ``count`` in all (0: all rows), in their order."""
    if count == 0 or count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    share = [len(part) for part in np.array_split(np.arange(count), len(classes))]
    rows = [np.flatnonzero(labels == label)[:size] for label, size in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows))
