"""Accuracy of a classifier over many images: clean, robust by known radii, and the highest that any can have.

Only batches of the size asked for reach the device (the last is filled up, the filling ignored), so each function
compiles once however many images there are. Host code: arrays in, NumPy arrays out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chex
import numpy as np
from scipy import sparse, stats
from scipy.sparse.csgraph import maximum_bipartite_matching

from nn_adv.border import as_array, as_count, as_images, as_labels, check_size
from nn_adv.conflicts import conflicts
from nn_adv.pixels import as_float
from nn_adv.threat import check_norm

_TIE = 1e-6  # relative: so close to 2 epsilon no conflict is claimed, since pixels are rounded


def map_batches(fn: Callable[..., chex.Array], *arrays: chex.Array, batch_size: int) -> np.ndarray:
    """Apply ``fn`` to rows of ``arrays`` in batches of one size and join its results.

    Args:
      fn: takes as many arrays ``[batch_size, ...]`` as were given, returns ``[batch_size, ...]``.
      *arrays: equally long in their first axis; a NumPy array stays on the host until its batch comes.
      batch_size: rows per call, at least 1.

    Returns:
      Results for all rows, in order; where there are none, the first 0 of those for rows of zeros.

    Raises:
      ValueError: ``batch_size`` below 1, no arrays, or arrays of different lengths.
    """
    batch_size = as_count(batch_size, "batch_size")
    arrays = tuple(as_array(array, "arrays") for array in arrays)
    shapes = [array.shape for array in arrays]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise ValueError(f"arrays must be one or more, equally long, got shapes {shapes}")
    num_rows = shapes[0][0]
    if num_rows == 0:
        return np.asarray(fn(*(np.zeros((batch_size, *array.shape[1:]), array.dtype) for array in arrays)))[:0]
    results = []
    for start in range(0, num_rows, batch_size):
        rows = np.arange(start, start + batch_size)
        kept = min(batch_size, num_rows - start)
        batch = fn(*(array[rows % num_rows] for array in arrays))  # past the end, the first rows fill the batch
        results.append(np.asarray(batch)[:kept])
    return np.concatenate(results)


def correct(
    predict_fn: Callable[[chex.Array], chex.Array], images: np.ndarray, labels: np.ndarray, *, batch_size: int = 500
) -> np.ndarray:
    """Tell for each image whether it is classified correctly.

    Args:
      predict_fn: float images ``[B, ...]`` to labels ``[B]``.
      images: ``[N, ...]``, uint8 or floats in [0, 1].
      labels: ``[N]``, 0 or more.
      batch_size: images per call, at least 1.

    Returns:
      Booleans ``[N]``.

    Raises:
      ValueError: images or labels that are none, ``batch_size`` below 1, or predictions of another shape.
    """
    images = as_images(images, bounds=(0, 1))
    labels = as_labels(labels, count=images.shape[0])

    def is_right(images, labels):
        predicted = np.asarray(predict_fn(as_float(images)))
        if predicted.shape != labels.shape:
            raise ValueError(f"predict_fn must return a class per image, {labels.shape}, got shape {predicted.shape}")
        return predicted == labels

    return map_batches(is_right, images, labels, batch_size=batch_size)


def robust_curve(radii: np.ndarray, correct: np.ndarray, epsilons: Sequence[float]) -> np.ndarray:
    """Tell at each epsilon which images are robust, given the radius within which nothing changes their prediction.

    A radius is an infimum over changes of the prediction, so an image is robust at its own radius; at epsilon 0 the
    robust images are the correct ones. Lower bounds of the radii give certified flags, upper bounds give flags that
    no robust classification exceeds, exact radii the truth. The epsilons need no order: one set of radii answers all.

    Args:
      radii: ``[N]``, at least 0, in pixel units; inf where no change of the prediction exists.
      correct: ``[N]``, True where the clean image is classified correctly; the others are robust nowhere.
      epsilons: ``[E]``, at least 0.

    Returns:
      Booleans ``[E, N]``.

    Raises:
      ValueError: radii and correct of different lengths, epsilons of another shape, or a radius or an epsilon that is
        negative or NaN.
    """
    radii, correct, at = np.asarray(radii), np.asarray(correct, bool), np.asarray(epsilons, float)
    if radii.ndim != 1 or radii.shape != correct.shape:
        raise ValueError(f"radii and correct must be [N] both, got shapes {radii.shape} and {correct.shape}")
    _check_epsilons(at)
    check_size(radii, "radii")
    return correct & (radii >= at[:, None])


def ceiling(images: chex.Array, labels: chex.Array, epsilons: Sequence[float], *, norm: str) -> np.ndarray:
    """Return the highest robust accuracy that any classifier can have on these images, at each epsilon.

    Two images of different classes closer than 2 epsilon conflict: the point halfway between them, which is inside
    every pixel box that both are in, is a perturbation of each by less than epsilon, and has one label only. A
    classifier is robust around a set of images without conflicts, at most. The fewest images to give up cover all
    conflicts; for two classes they are as many as a maximum matching has pairs (Bhagoji, Cullina and Mittal 2019,
    arXiv 1909.12272; Koenig), so the ceiling is attained by some classifier. For more classes half a matching of the
    images with their copies (the cover by fractions of images) bounds that number from below: no classifier, random
    ones included, exceeds the ceiling, but it may lie above the best there is.

    At epsilon 0 only equal images conflict. Distances are in float64; one within 1e-6 of 2 epsilon, relative, is no
    conflict, so rounding can only raise the ceiling. Memory grows with the number of conflicts.

    Args:
      images: ``[N, ...]``, uint8 or float; one or more.
      labels: ``[N]``, 0 or more.
      epsilons: ``[E]``, at least 0, in pixel units.
      norm: "l1", "l2" or "linf", of the perturbations.

    Returns:
      ``[E]`` float64 in [0, 1].

    Raises:
      ValueError: unknown norm, no images, images and labels that do not fit, epsilons of another shape, or one that is
        negative or NaN.
    """
    check_norm(norm)
    _check_epsilons(epsilons)
    images = as_images(images, may_be_none=False)
    labels, count = np.asarray(as_labels(labels, count=images.shape[0])), images.shape[0]
    limits = 2 * np.asarray(epsilons, np.float64) * (1 - _TIE)
    pixels = np.asarray(as_float(images), np.float64).reshape(count, -1)
    first, second, apart = conflicts(pixels, labels, limits.max(initial=0), norm=norm)
    given_up = []
    for limit in limits:
        some = (apart < limit) | (apart == 0)
        pairs = np.concatenate([first[some], second[some]]), np.concatenate([second[some], first[some]])
        graph = sparse.csr_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(count, count))
        given_up.append(np.count_nonzero(maximum_bipartite_matching(graph) >= 0) / 2)
    return 1 - np.array(given_up) / count


def _check_epsilons(epsilons: Any) -> None:
    """Raise ValueError unless they are numbers ``[E]`` of 0 or more."""
    check_size(np.asarray(epsilons), "epsilons")
    if np.ndim(epsilons) != 1:
        raise ValueError(f"epsilons must be [E], got shape {np.shape(epsilons)}")


def wilson_interval(successes: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a share (Wilson 1927), that of the images an evaluation drew at random.

    Args:
      successes: how many of ``count`` images.
      count: at least 1.
      level: probability that such an interval covers the true share, roughly.

    Returns:
      The lower and the upper end, in [0, 1].

    Raises:
      ValueError: a count that is no whole number of 1 or more, or successes that are none between 0 and count.
    """
    count = as_count(count, "count")
    successes = as_count(successes, "successes", low=0, high=count)
    interval = stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)
