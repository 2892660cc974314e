"""What distances alone say about robustness: bounds for any distance and threat norms, and the theorem's d0 / 2.

A point moved by v is at most ``||v||`` nearer or farther, so a perturbation must be half as large as the margin
between the classes to change the nearest one. This needs one search and no reference to the shape of the cells;
`nn_adv.certify.radius` computes how far the bound is from the truth where the distance is Euclidean.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import numpy as np

from nn_adv import neighbors
from nn_adv.border import as_images, as_labels
from nn_adv.certify.inputs import check_question, host_pixels
from nn_adv.neighbors.inputs import check_unmapped
from nn_adv.threat import check_norm, float64_sizes

# Distances are rounded to float32 once (half of this, relative), and below this size they may be flushed to zero.
_RELATIVE_ROUNDING = 2.0**-23
_UNDERFLOW = 1e-18
_GROUP = 16  # pixels that are one mean in the search for lower bounds
_PER_SEARCH = 256  # points whose nearest opponent is searched at once, those with the smallest bounds first
_EXPONENT = {"l1": 1.0, "l2": 0.5, "linf": 0.0}  # 1 / p


class Separation(NamedTuple):
    """How far the classes of a data set are apart.

    Attributes:
      distance: d0, the smallest distance between two points of different classes; inf if there is one class only. Of
        pairs of uint8 points whose integers are equally far apart it is that of any one, between pixels ``v / 255``.
      guaranteed_radius: d0 / 2: closer than that to any of the points, 1NN predicts the label of that point.
      pair: positions of two points at that distance, the one of the lower class first; (-1, -1) if there are none.
    """

    distance: float
    guaranteed_radius: float
    pair: tuple[int, int]


def norm_ratio(norm: str, other: str, size: int) -> float:
    """Return the smallest c with ``||v||_norm <= c ||v||_other`` for all v of ``size`` pixels: ``d^(1/p - 1/q)`` or 1.

    Raises:
      ValueError: unknown norm.
    """
    check_norm(norm)
    check_norm(other)
    exponent = _EXPONENT[norm] - _EXPONENT[other]
    return 1.0 if exponent <= 0 else math.sqrt(size) if exponent == 0.5 else float(size)


def margin_bound(
    reference: neighbors.Reference | neighbors.Streamed,
    images: chex.Array,
    labels: chex.Array,
    *,
    distance_norm: str,
    threat_norm: str,
) -> np.ndarray:
    """Bound the radius of 1NN from below by half the margin between the nearest points, in any two norms.

    Let 1NN measure distances in ``distance_norm`` and the attacker be bounded in ``threat_norm``. With c from
    `norm_ratio`, no perturbation smaller than ``(d_other - d_own) / (2 c)`` changes the prediction
    (Hagai & Weiss 2024, for one norm). Pixel bounds are not used: the result holds with them and without. A training
    image is its own neighbour at distance 0. Rounding is subtracted, so the bound holds for exact arithmetic.

    Args:
      reference: points from `neighbors.fit`, `neighbors.shard` or `neighbors.stream`.
      images: ``[B, ...]`` with as many pixels as a point; uint8, or floats in the units of the points.
      labels: ``[B]`` the classes that the images should get.
      distance_norm: "l1", "l2" or "linf", how 1NN measures.
      threat_norm: "l1", "l2" or "linf", how perturbations are measured.

    Returns:
      ``[B]`` float64; 0 where the image is misclassified or a tie, inf where no other class has points.

    Raises:
      ValueError: unknown norm, a reference with a linear map, or images and labels as refused by `check_question`.
    """
    check_unmapped(reference)
    size = reference.size
    ratio = norm_ratio(distance_norm, threat_norm, size)
    images, labels, *_ = check_question(reference, images, labels)
    table = np.asarray(neighbors.class_distances(reference, images, norm=distance_norm), np.float64)
    of_points = np.asarray(reference.labels)[: reference.num_points]
    has_points = np.bincount(of_points, minlength=reference.num_classes) > 0
    # A distance above the largest float32 reads as infinite.
    table = np.where(has_points, np.minimum(table, np.finfo(np.float32).max), np.inf)
    table = np.sqrt(table) if distance_norm == "l2" else table
    rows = np.arange(len(labels))
    own = table[rows, labels]
    table[rows, labels] = np.inf
    other = table.min(axis=1, initial=np.inf)
    allowance = _absolute_rounding(reference.dtype, distance_norm, size)
    with np.errstate(invalid="ignore"):  # inf - inf: neither class has points
        margin = other * (1 - _RELATIVE_ROUNDING) - own * (1 + _RELATIVE_ROUNDING) - 2 * allowance
    return np.where(margin > 0, margin / (2 * ratio) * (1 - 1e-12), 0.0)


def separation(points: chex.Array, labels: chex.Array, *, norm: str = "l2") -> Separation:
    """Find the smallest distance d0 between points of different classes, exactly.

    If every two points of different classes are at least d0 apart, 1NN in that norm classifies every perturbation of
    a point by less than d0 / 2 as the point itself (Hagai & Weiss 2024). Each class is searched among the classes
    above it, the points that may be closest first, until no other can be closer; no table of all pairs is built.

    Args:
      points: ``[n, ...]``, uint8 (pixels ``v / 255`` rounded to float32) or float.
      labels: ``[n]`` integers from 0.
      norm: "l1", "l2" or "linf", of the distance and of the threat.

    Raises:
      ValueError: unknown norm, no points, or points and labels as refused by `neighbors.fit`.
    """
    check_norm(norm)
    points = np.asarray(as_images(points, name="points", float_dtype=np.float32, may_be_none=False))
    labels = as_labels(labels, count=len(points))
    # In l2 a search in all pixels is one product, and no dearer than one for bounds.
    means = _group_means(points) if norm != "l2" else np.zeros((len(points), 0), np.float32)
    best = (math.inf, (-1, -1))
    for label in np.unique(labels)[:-1]:
        lower, upper = np.flatnonzero(labels == label), np.flatnonzero(labels > label)
        reference = _of_one_class(points[upper])
        is_bounded = means.size and len(lower) > _PER_SEARCH
        at_least = _lower_bounds(means[lower], means[upper], norm) if is_bounded else np.zeros(len(lower))
        order, count = np.argsort(at_least), _PER_SEARCH if is_bounded else len(lower)
        for start in range(0, len(lower), count):
            some = np.resize(order[start : start + count], count)  # of one shape, for one compilation
            if at_least[some[0]] > best[0]:
                break
            best = min(best, _closest_pair(points, lower[some], upper, reference, norm))
    distance, pair = best
    allowance = _absolute_rounding(points.dtype, norm, points[0].size)
    return Separation(distance, max(0.0, distance * (1 - 1e-12) - allowance) / 2, pair)


def _of_one_class(points: np.ndarray) -> neighbors.Reference:
    return neighbors.fit(points, np.zeros(len(points), np.int32), 1)


def _group_means(points: np.ndarray) -> np.ndarray:
    """Return the means of each `_GROUP` neighbouring pixels of each point, ``[n, m]`` float32."""
    flat = host_pixels(points, np.float32).reshape(len(points), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % _GROUP)))
    return flat.reshape(len(flat), -1, _GROUP).mean(axis=2, dtype=np.float64).astype(np.float32)


def _lower_bounds(lower: np.ndarray, upper: np.ndarray, norm: str) -> np.ndarray:
    """Bound the distance of each point to the nearest among others from below, given the means of both.

    A mean of g pixels differs by no more than the mean of their differences: ``||x - z||_p >= g^(1/p) ||means||_p``.
    """
    found = neighbors.nearest(_of_one_class(upper), lower, norm=norm).distances[:, 0]
    distances = np.minimum(np.asarray(found, np.float64), np.finfo(np.float32).max)  # larger ones read as infinite
    # Each mean is rounded once, as are uint8 pixels before.
    largest = max(float(np.abs(means).max()) for means in (lower, upper))
    rounding = 2.0**-22 * largest * norm_ratio(norm, "linf", lower.shape[1]) + _UNDERFLOW
    return (distances * (1 - _RELATIVE_ROUNDING) - rounding) * norm_ratio(norm, "linf", _GROUP)


def _closest_pair(
    points: np.ndarray, lower: np.ndarray, upper: np.ndarray, reference: neighbors.Reference, norm: str
) -> tuple[float, tuple[int, int]]:
    """Return distance and positions of the closest pair of a point at ``lower`` and one at ``upper``, the reference."""
    found = neighbors.nearest(reference, points[lower], norm=norm)
    distances, indices = np.asarray(found.distances)[:, 0], np.asarray(found.indices)[:, 0]
    allowance = _absolute_rounding(points.dtype, norm, points[0].size)
    # Rounded distances leave a few candidates to measure again.
    rows = np.flatnonzero(distances <= distances.min() * (1 + 2 * _RELATIVE_ROUNDING) + 2 * allowance)
    first, second = lower[rows], upper[indices[rows]]
    sizes = float64_sizes(norm, host_pixels(points[first], np.float64) - host_pixels(points[second], np.float64))
    return min(zip(sizes.tolist(), zip(first.tolist(), second.tolist(), strict=True), strict=True))


def _absolute_rounding(dtype, norm: str, size: int) -> float:
    """How far a distance may be off beside its own rounding.

    Between uint8 images it is one of integers, and each of the two pixels ``v / 255`` is rounded by up to 2^-25.
    """
    return _UNDERFLOW + (norm_ratio(norm, "linf", size) * 2.0**-24 if dtype == np.uint8 else 0.0)
