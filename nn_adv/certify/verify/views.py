"""Images among the points they are classified by: distances with a bound on their error, and prediction.

NumPy float64 for `recheck`, and whole numbers for uint8 images among uint8 points. Inner products of d numbers err by
``gamma(d)`` of the product of lengths, whatever the order of summation (Higham 2002, "Accuracy and stability of
numerical algorithms", 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nn_adv.certify.verify.linear import LinearMap, make_map, mapped_values, raised
from nn_adv.certify.verify.rounding import box_room, gamma, pixel_values, sq_lengths

BLOCK = 512  # points converted to float64 at a time: 12 MB at d=3072, larger ones convert more slowly
_EXACT_TERMS = 1024  # products of integers up to 2^7: float32 holds their sums, up to 2^24, and twice those


class Base(NamedTuple):
    """What is asked: points [n, d] as given, labels and original indices [n], ends of the pixels, norm and bounds.

    With a linear map the points are mapped ones [n, k], and there are no ends of pixels.
    """

    points: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    copies: np.ndarray  # [n] the place of an equal point of lower index: -1 if there is none, -2 if there are more
    lowest_pixel: float
    largest_pixel: float
    spread: float  # rounded up
    norm: str
    bounds: tuple[float, float] | None
    linear_map: LinearMap | None


class Measured(NamedTuple):
    """Images ``[c, d]``; distances are measured from ``starts [c, k]``, the mapped values, which are off by ``moved``.

    Squared ones to all points are ``[c, n]``, or ``[c, 0]`` where only a few points are looked at. Their errors come
    from the lengths of images ``[c]`` and of points ``[n]``, 0 for integers, which have `_pixel_rounding`.
    """

    images: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    moved: np.ndarray
    distances: np.ndarray
    lengths: np.ndarray
    point_lengths: np.ndarray


class View(NamedTuple):
    """One image: as given and as values [d], distances [n] and their errors, masks [n] of own points and opponents.

    Distances are measured from ``start [k]``, the mapped values, which is off by ``moved`` in l2. Between uint8 images
    and points the errors cover both the distance of pixels and that of the integers, over 255^2.
    """

    image: np.ndarray
    values: np.ndarray
    start: np.ndarray
    moved: float
    distances: np.ndarray
    errors: np.ndarray
    own: np.ndarray
    other: np.ndarray
    anchors: np.ndarray = np.zeros(0, int)  # own points near the image


def make_base(points: np.ndarray, labels: np.ndarray, indices: np.ndarray, norm: str, bounds, linear_map) -> Base:
    """Return what all views share, of a linear map ``[k, d]`` or None."""
    if linear_map is not None:
        copies = _copies(points, labels, indices)
        return Base(points, labels, indices, copies, -np.inf, np.inf, np.inf, norm, bounds, make_map(linear_map, norm))
    low, high = pixel_values(np.array([points.min(), points.max()])).tolist()
    copies, spread = _copies(points, labels, indices), (high - low) * (1 + gamma(4))
    return Base(points, labels, indices, copies, low, high, spread, norm, bounds, None)


def _copies(points: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return `Base.copies`.

    Equal points are equally far from everything, and ties go to the lowest index. So of those that are not left out
    only the first can be predicted, whatever their labels.
    """
    copies = np.full(len(points), -1)
    if points.dtype == np.uint8 and points.shape[1] % 8 == 0 and points.flags.c_contiguous:
        keys = points.view(np.uint64).sum(axis=1)
    else:
        keys = points.sum(axis=1, dtype=float) + math.pi * points[:, : points.shape[1] // 2].sum(axis=1, dtype=float)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = np.flatnonzero((counts[inverse] > 1) & (labels >= 0))
    seen: dict[bytes, list[int]] = {}
    for place in shared[np.argsort(indices[shared])].tolist():
        equal = seen.setdefault((points[place] + 0).tobytes(), [])  # -0 + 0 is 0
        copies[place] = (-1, *equal)[len(equal)] if len(equal) < 2 else -2
        equal.append(place)
    return copies


def may_win(copies: np.ndarray, leave_out: np.ndarray | int) -> np.ndarray:
    """Return which points have no equal one of lower index beside the one left out (negative for none)."""
    return (copies == -1) | ((copies >= 0) & (copies == leave_out))


def measure(base: Base, images: np.ndarray, *, all_points: bool) -> Measured:
    """Measure images ``[c, d]`` in one pass over the points, or leave their distances for later."""
    values = pixel_values(images)
    starts, moved = mapped_values(base.linear_map, values)
    points = base.points if all_points else base.points[:0]
    if _are_integers(base, images):
        lengths, point_lengths = np.zeros(len(images)), np.zeros(len(points))
        distances = _integer_distances(points, images)
    else:
        distances, lengths, point_lengths = point_distances(points, starts)
    return Measured(images, values, starts, moved, distances, lengths, point_lengths)


def _are_integers(base: Base, images: np.ndarray) -> bool:
    return base.linear_map is None and base.points.dtype == np.uint8 and images.dtype == np.uint8


def measured_distances(
    base: Base, measured: Measured, k: int | np.ndarray, rows: np.ndarray | slice
) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared distances of image k, or images ``[c, 1]``, to some points, and their errors."""
    distances = measured.distances[k, rows]
    if _are_integers(base, measured.images):
        return distances, _pixel_rounding(distances, base.points.shape[1])
    lengths = measured.lengths[k], measured.point_lengths[rows]
    return distances, point_errors(distances, *lengths, base, measured.moved[k])


def views(
    base: Base,
    measured: Measured,
    image_labels: np.ndarray,
    leave_out: np.ndarray,
    known: Sequence[np.ndarray] | None = None,
) -> Iterator[View]:
    """Yield the views of images.

    With ``known``, a few points for each image, distances to others are inf, and others are no opponents.
    """
    images, values, starts, moved = measured.images, measured.values, measured.starts, measured.moved
    for k, label in enumerate(image_labels):
        used = base.labels >= 0
        if leave_out[k] >= 0:
            used[leave_out[k]] = False
        own = used & (base.labels == label)
        other = used & ~own & may_win(base.copies, leave_out[k])
        if known is None:
            distances, errors = measured_distances(base, measured, k, slice(None))
        else:
            is_known = np.zeros(len(used), bool)
            is_known[known[k]] = True
            distances = np.full(len(used), np.inf)
            distances[is_known] = sq_lengths(pixel_values(base.points[is_known]) - starts[k])
            errors = np.where(is_known, gamma(starts.shape[1] + 8) * distances + raised(distances, moved[k]), 0)
            other &= is_known
            if _are_integers(base, images):
                errors[is_known] += _pixel_rounding(distances[is_known], starts.shape[1])
        yield View(images[k], values[k], starts[k], float(moved[k]), distances, errors, own, other)


def point_distances(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return squared distances [c, n] of values [c, d] as |x|^2 - 2 x.z + |z|^2, and lengths |x| [c] and |z| [n]."""
    distances = np.empty((len(values), len(points)))
    sq_norms = np.empty(len(points))
    doubled, own_sq_norms = -2 * values, sq_lengths(values)
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        rows = pixel_values(points[block])
        sq_norms[block] = sq_lengths(rows)
        np.matmul(doubled, rows.T, out=distances[:, block])
        distances[:, block] += sq_norms[block]
        distances[:, block] += own_sq_norms[:, None]
    return distances, np.sqrt(own_sq_norms), np.sqrt(sq_norms)


def _integer_distances(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return squared distances [c, n] of pixels v / 255, exact up to the division: sums of float32 products are."""
    queries = images.astype(np.float32) - 128
    doubled, sq_norms = -2 * queries, sq_lengths(queries.astype(np.float64))
    distances = np.empty((len(images), len(points)))
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        rows = points[block].astype(np.float32) - 128
        found = np.repeat(sq_norms[:, None], len(rows), axis=1)
        for first in range(0, rows.shape[1], _EXACT_TERMS):
            terms = rows[:, first : first + _EXACT_TERMS]
            found += doubled[:, first : first + _EXACT_TERMS] @ terms.T
            found += sq_lengths(terms)
        np.divide(found, 255.0**2, out=distances[:, block])
    return distances


def _pixel_rounding(distances: np.ndarray, size: int) -> np.ndarray:
    """Bound how far squared distances D of ``size`` pixels v / 255 move when each of those is rounded to float32.

    A difference moves by s = 2^-23 sqrt(size) at most, and so D by 2 sqrt(D) s + s^2. Roots take long: 2 sqrt(D) is at
    most D / t + t for every t > 0, and hardly more where t is near sqrt(D).
    """
    moved, typical = 2.0**-23 * math.sqrt(size), math.sqrt(size) / 8
    return distances * (1.03 * moved / typical) + 1.03 * moved * (typical + 2 * moved)


def point_errors(distances: np.ndarray, length: np.ndarray, point_lengths: np.ndarray, base: Base, moved) -> np.ndarray:
    """Bound the errors of `point_distances`: each of the three terms errs by gamma(d) of the lengths it is made of.

    A mapped image is off by ``moved`` besides.
    """
    errors = gamma(base.points.shape[1] + 8) * (length + point_lengths) ** 2
    return errors if base.linear_map is None else errors + raised(distances + errors, moved)


def reached_within(base: Base, some: Sequence[View], epsilons: np.ndarray) -> np.ndarray:
    """Return which points single anchors do not prove to lose within linf changes of finite epsilon, ``[c, n]``.

    With pixels that move by c +- w, ``g . v <= g . c + |g| . w``, and numbers p, q in [0, s] have ``|p - q| <= p + q -
    2 p q / s``, so that the sum is at most linear in z_j: a product with all points.
    """
    width = max(len(view.anchors) for view in some)
    anchors = np.stack([np.pad(view.anchors, (0, width - len(view.anchors)), constant_values=-1) for view in some])
    distances = np.stack([view.distances - view.errors for view in some])
    images = np.stack([view.values for view in some])
    count, size = images.shape
    own, x = pixel_values(base.points[np.maximum(anchors, 0)]), images[:, None]
    low, high = (room[:, None] for room in box_room(images, base.bounds))
    low, high = np.maximum(low, -epsilons[:, None, None]), np.minimum(high, epsilons[:, None, None])
    center, width = (low + high) / 2, (high - low) / 2
    slope = 1 - 2 * (own - base.lowest_pixel) / (base.spread or 1.0)
    normal = center + width * slope  # |g| <= (z_j - lowest) slope + (z_i - lowest)
    offset = np.sum(width * (own - base.lowest_pixel - base.lowest_pixel * slope) - own * center, axis=2)
    nearest = sq_lengths(own - x) / 2
    # No number summed above exceeds 4 top (|c| + w), and each is off by a few roundings.
    top = max(abs(base.lowest_pixel), abs(base.largest_pixel)) + base.spread
    error = 4 * gamma(size + 32) * (top * np.sum(np.abs(center) + width, axis=2) + nearest)
    ceiling = np.where(anchors >= 0, nearest + offset + error, np.inf)[..., None]
    flat = normal.reshape(-1, size)
    reached = np.empty((count, len(base.points)), bool)
    for start in range(0, len(base.points), BLOCK):
        block = slice(start, start + BLOCK)
        products = (flat @ pixel_values(base.points[block]).T).reshape(*anchors.shape, -1)
        # Not proved unless a comparison says so: NaN, which numbers near the largest may give, proves nothing.
        reached[:, block] = ~(distances[:, None, block] / 2 > products + ceiling).any(axis=1)
    return reached


def is_correct(base: Base, view: View) -> bool:
    """Return whether the nearest point is of the own class; near ties are decided exactly, equal ones by the index."""
    used = view.own | view.other
    reach = (view.distances + view.errors)[used].min(initial=np.inf)
    with np.errstate(invalid="ignore"):  # a point too far for float64 has an infinite distance, of an infinite error
        near = np.flatnonzero(used & (view.distances - view.errors <= reach)) if reach < np.inf else np.zeros(0, int)
    is_own = view.own[near]
    if is_own.all() or not is_own.any():
        return bool(is_own.any())
    return bool(view.own[_exactly_nearest(base, near, view.image)])


def _exactly_nearest(base: Base, candidates: np.ndarray, image: np.ndarray) -> int:
    """Return the nearest candidate, ties to the lowest index, in exact arithmetic.

    All float32 numbers are multiples of 2^-149, so whole numbers of any length do.
    """
    candidates = candidates[np.argsort(base.indices[candidates])]
    points, first = np.unique(base.points[candidates], axis=0, return_index=True)  # of equal ones the lowest index wins
    if base.linear_map is not None:
        start = _whole(base.linear_map.matrix) @ _whole(pixel_values(image))  # in units of 2^-298
        gaps = _whole(pixel_values(points)) * 2**149 - start
    elif points.dtype == np.uint8 and image.dtype == np.uint8:
        gaps = points.astype(int) - image
    else:
        gaps = _whole(pixel_values(points)) - _whole(pixel_values(image))
    distances = np.sum(gaps * gaps, axis=1)
    return int(candidates[first[distances == distances.min()].min()])


def _whole(values: np.ndarray) -> np.ndarray:
    return np.array([int(value) for value in np.ravel(values * 2.0**149)], object).reshape(values.shape)
