"""Check radii by other means: NumPy float64, rounding accounted for, no code shared with what computed them.

`recheck` believes nothing. From multipliers it recomputes the lower bound over all opponents (the points of other
classes), from a witness its size, its box and its nearest neighbour. A wrong certificate costs tightness, never truth.
`views` has the distances and the prediction, `witnesses` judges a witness, `multipliers` has the bound of one opponent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nn_adv.certify.verify.multipliers import multiplier_bounds
from nn_adv.certify.verify.rounding import (
    LEAST_SINGLE,
    box_room,
    dual_norms,
    gamma,
    pixel_values,
    quotient,
    single_gamma,
    single_values,
    sq_lengths,
)
from nn_adv.certify.verify.views import (
    Base,
    View,
    is_correct,
    make_base,
    may_win,
    measure,
    reached_within,
    views,
)
from nn_adv.certify.verify.witnesses import own_ranges, witness_size

_MAX_DISTANCES = 48 * 2**20  # distances made at a time: 384 MB; the last ones are held meanwhile
_FIRST_OPPONENTS, _MAX_OPPONENTS = 16, 128  # compared with the anchors at a time
_TOGETHER = 64  # images screened together
_MANY = 1 / 64  # share of the points: so many opponents left of an image gain by a product with all points


class Certificate(NamedTuple):
    """What proves a lower bound. Points are known by their places in the array they came in, negative ones are padding.

    Attributes:
      anchors: own-class points near each image ``[B, m]``. They bound every opponent that is not listed below.
      image: the image of each of S solved opponents ``[S]``.
      opponent: the opponent ``[S]``.
      constraints: own-class points of its constraints ``[S, M]``.
      multipliers: one per constraint, not negative ``[S, M]`` float64.
    """

    anchors: np.ndarray
    image: np.ndarray
    opponent: np.ndarray
    constraints: np.ndarray
    multipliers: np.ndarray


class Screened(NamedTuple):
    """What to believe about opponents that are not listed, so that not all distances need be computed."""

    lower: np.ndarray  # radius below which none of them wins [B]
    near: np.ndarray  # points that the nearest one is among, unless it is a listed opponent [B, K]; -1 is padding


class Recheck(NamedTuple):
    """What was proved, ``[B]`` each: the radius is in [lower, upper], the prediction of the image is its label."""

    lower: np.ndarray
    upper: np.ndarray
    correct: np.ndarray


def recheck(
    points: np.ndarray,
    labels: np.ndarray,
    images: np.ndarray,
    image_labels: np.ndarray,
    certificate: Certificate,
    adversarial: np.ndarray,
    *,
    norm: str,
    bounds: tuple[float, float] | None,
    index: np.ndarray | None = None,
    leave_out: np.ndarray | None = None,
    screened: Screened | None = None,
    linear_map: np.ndarray | None = None,
) -> Recheck:
    """Return radii of 1NN that hold whatever the certificate says, for images ``[B, d]`` inside the bounds.

    The lower bound is the least over all opponents: listed ones by their multipliers (the best where listed twice), the
    rest by the triangle inequality, or one constraint of an anchor where that is not enough. Of equal points only that
    of lowest index can win. The witness counts if it is inside the bounds and an opponent is nearest to it. Where
    rounding could matter, exact arithmetic classifies; uint8 images among uint8 points are integers in it.

    Args:
      points: ``[n, d]``, uint8 or float32, in any order.
      labels: ``[n]``, -1 for points to ignore.
      images: ``[B, d]``, uint8 or float32.
      image_labels: ``[B]``.
      certificate: see `Certificate`; entries that make no sense count for nothing.
      adversarial: ``[B, d]`` float32 witnesses; the image itself where there is none.
      norm: "l1", "l2" or "linf".
      bounds: the box, rounded to float32 as pixels are; or None.
      index: ``[n]`` original index of each point, for ties; its place when None.
      leave_out: ``[B]`` a point that is neither opponent nor constraint of each image, negative for none.
      screened: what to take as given about the opponents that are not listed; recomputed when None.
      linear_map: M ``[k, d]``, rounded to float32, of a 1NN that measures from ``M x`` to points ``[n, k]``, which are
        the mapped ones then, float32; or None.

    Raises:
      ValueError: an unknown norm, arrays of other shapes, an image outside the bounds, or a linear map that fits images
        and points not.
    """
    if norm not in ("l1", "l2", "linf"):
        raise ValueError(f"norm must be 'l1', 'l2' or 'linf', got {norm!r}")
    # Arrays of JAX would stay in float32, whose rounding is not accounted for.
    points, labels, images, image_labels, adversarial = map(
        np.asarray, (points, labels, images, image_labels, adversarial)
    )
    adversarial = pixel_values(adversarial).astype(np.float32)
    _check_shapes(points, labels, images, image_labels, adversarial)
    if bounds is not None:
        bounds = (float(np.float32(bounds[0])), float(np.float32(bounds[1])))
    box_room(pixel_values(images), bounds)
    indices = np.arange(len(points)) if index is None else np.asarray(index)
    shape = (images.shape[1],) * 2 if linear_map is None else linear_map.shape
    if shape != (points.shape[1], images.shape[1]):
        wanted = f"[{points.shape[1]}, {images.shape[1]}], from images to points"
        raise ValueError(f"linear_map must be {wanted}, got {'none' if linear_map is None else f'shape {shape}'}")
    base = make_base(points, labels, indices, norm, bounds, linear_map)
    leave_out = np.full(len(images), -1) if leave_out is None else np.asarray(leave_out)
    listed = _listed_bounds(base, images, image_labels, certificate, leave_out)
    result = Recheck(np.zeros(len(images)), np.full(len(images), np.inf), np.zeros(len(images), bool))
    step = max(1, _MAX_DISTANCES // len(points))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        real = _is_possible(images[part], adversarial[part], bounds)
        measured = measure(base, images[part], all_points=screened is None)
        ranges = own_ranges(base, measured, adversarial[part], real, image_labels[part], leave_out[part])
        known = None if screened is None else _known_points(screened.near[part], listed[part])
        left: list[tuple[int, View]] = []  # those whose other opponents are still to be bounded
        for b, view in enumerate(views(base, measured, image_labels[part], leave_out[part], known), start):
            result.correct[b] = is_correct(base, view)
            if not result.correct[b]:
                result.upper[b] = 0
                continue
            if real[b - start]:
                result.upper[b] = witness_size(base, view, adversarial[b], ranges[b - start])
            result.lower[b] = min(listed[b].values(), default=np.inf)
            if screened is not None:
                result.lower[b] = min(result.lower[b], max(0.0, np.nan_to_num(screened.lower[b], posinf=np.inf)))
                continue
            view.other[list(listed[b])] = False
            left.append((b, view._replace(anchors=_own_points(view, certificate.anchors[b]))))
            if len(left) == _TOGETHER:
                _screen_all(base, left, result)
                left = []
        _screen_all(base, left, result)
    return result


def _check_shapes(points, labels, images, image_labels, adversarial) -> None:
    if points.ndim != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"points must be [n, d] with labels [n], got shapes {points.shape} and {labels.shape}")
    if images.ndim != 2 or image_labels.shape != images.shape[:1] or adversarial.shape != images.shape:
        shapes = f"{images.shape}, {image_labels.shape} and {adversarial.shape}"
        raise ValueError(f"images must be [B, d] with image_labels [B] and adversarial [B, d], got shapes {shapes}")


def _known_points(near: np.ndarray, listed: list[dict[int, float]]) -> list[np.ndarray]:
    """Return the points to look at around each image: those near, and the listed opponents."""
    known = [np.append(some, np.array(list(bounds), int)) for some, bounds in zip(near, listed, strict=True)]
    return [np.unique(some[some >= 0]) for some in known]


def _is_possible(images: np.ndarray, adversarial: np.ndarray, bounds) -> np.ndarray:
    """Return which witnesses are finite, inside the bounds and not the image itself, ``[B]``."""
    moved = pixel_values(adversarial)
    possible = np.isfinite(moved).all(axis=1) & (moved != pixel_values(images)).any(axis=1)
    if bounds is not None:
        possible &= ((moved >= bounds[0]) & (moved <= bounds[1])).all(axis=1)
    return possible


def _listed_bounds(
    base: Base, images: np.ndarray, image_labels: np.ndarray, certificate: Certificate, leave_out: np.ndarray
) -> list[dict[int, float]]:
    """Return for each image {listed opponent: its best bound}; what is no constraint of it counts for nothing."""
    image, opponent = np.asarray(certificate.image), np.asarray(certificate.opponent)
    real = (image >= 0) & (image < len(images)) & (opponent >= 0) & (opponent < len(base.points))
    image, opponent = image[real], opponent[real]
    own, multipliers = np.asarray(certificate.constraints)[real], np.asarray(certificate.multipliers, float)[real]
    own = np.where((own >= 0) & (own < len(base.points)) & (own != leave_out[image][:, None]), own, -1)
    own = np.where(base.labels[own] == image_labels[image][:, None], own, -1)
    arguments = (base.points, images, image, opponent, own, multipliers)
    found = multiplier_bounds(*arguments, norm=base.norm, bounds=base.bounds, linear_map=base.linear_map)
    is_opponent = (base.labels[opponent] >= 0) & (base.labels[opponent] != image_labels[image])
    is_opponent &= (opponent != leave_out[image]) & may_win(base.copies[opponent], leave_out[image])
    listed: list[dict[int, float]] = [{} for _ in images]
    for s in np.flatnonzero(is_opponent).tolist():
        of_image, j = listed[image[s]], int(opponent[s])
        of_image[j] = max(of_image.get(j, 0.0), float(found[s]))
    return listed


def _own_points(view: View, anchors: np.ndarray) -> np.ndarray:
    """Return the anchors that are own-class points, and the nearest of those."""
    anchors = anchors[(anchors >= 0) & (anchors < len(view.own))]
    own = np.flatnonzero(view.own)
    return np.unique(np.append(anchors[view.own[anchors]], own[np.argmin(view.distances[own])]))


def _screen_all(base: Base, left: list[tuple[int, View]], result: Recheck) -> None:
    """Bound the opponents of views, those with many in linf together first; the bounds of images go to ``result``."""
    targets = {b: min(result.lower[b], result.upper[b]) for b, _ in left}
    many = []
    for b, view in left:
        view.other[:] &= _is_below(base, view, slice(None), targets[b])
        takes_product = base.norm == "linf" and base.linear_map is None and np.isfinite(targets[b])
        if takes_product and view.other.sum() > _MANY * len(base.points):
            many.append((b, view))
    # The product takes all points once, whatever is left.
    if sum(view.other.sum() for _, view in many) > len(base.points):
        reached = reached_within(base, [view for _, view in many], np.array([targets[b] for b, _ in many]))
        for (_, view), is_reached in zip(many, reached, strict=True):
            view.other[:] &= is_reached
    for b, view in left:
        result.lower[b] = min(result.lower[b], _screen(base, view, targets[b]))


def _screen(base: Base, view: View, target: float) -> float:
    """Return a bound over all opponents of a view; ``target`` where all that lie below it were proved above it.

    The nearest come first: no bound over all is above theirs, so the others need not be proved any farther.
    """
    opponents = np.flatnonzero(view.other)
    opponents = opponents[np.argsort(view.distances[opponents])]
    size = _FIRST_OPPONENTS
    while len(opponents):
        part, opponents = opponents[:size], opponents[size:]
        target = min(target, float(_single_bounds(base, view, part, target).min()))
        opponents = opponents[_is_below(base, view, opponents, target)]
        size = min(2 * size, _MAX_OPPONENTS)
    return target


def _is_below(base: Base, view: View, opponents: np.ndarray | slice, target: float) -> np.ndarray:
    """Return which opponents are not proved to be at least ``target`` away by their distance alone.

    With z_i the nearest own-class point, r_2 >= (||x - z_j|| - ||x - z_i||) / 2 by the triangle inequality, r_linf >=
    r_2 / sqrt(d) and r_1 >= r_2, and r_1 >= (D_j - D_i) / 2 / spread, since no entry of z_j - z_i exceeds the spread
    of the pixel values. A linear map that makes a move of size 1 up to L long has (||x - z_j|| - ||x - z_i||) / 2 / L.
    """
    size, linear_map = view.start.size, base.linear_map
    nearest = (view.distances[view.anchors] + view.errors[view.anchors]).min()
    scale = math.sqrt(size) if base.norm == "linf" else 1.0
    scale = scale if linear_map is None else linear_map.stretch
    reach = (2 * target * scale + math.sqrt(nearest)) ** 2
    if base.norm == "l1" and 0 < base.spread < np.inf:
        reach = min(reach, 2 * target * base.spread + nearest)
    # Not proved unless a comparison says so: NaN, as of points that are not finite, proves nothing.
    return ~(view.distances[opponents] - view.errors[opponents] >= reach * (1 + gamma(16)))


def _single_bounds(base: Base, view: View, opponents: np.ndarray, target: float) -> np.ndarray:
    """Return for each opponent the best bound of one constraint; from ``target`` on it may be weaker than need be.

    The free bound is (D_j - D_i) / 2 over the dual norm of z_j - z_i; one inside the box is no weaker.
    """
    every = np.arange(len(view.anchors))
    if base.linear_map is None:
        rough, steps = _rough_bounds(base, view, opponents), [(_free_bounds, 1), (_free_bounds, len(every))]
    else:
        tried = np.tile(every, (len(opponents), 1))
        rough, steps = _bounds_of_each(base._replace(bounds=None), view, opponents, tried), []
    found = rough.max(axis=1)
    if base.norm != "l2" and base.bounds is not None:
        steps[1:] = [(_bounds_of_each, 1), (_bounds_of_each, len(every))]
    for bounds_of, count in steps:  # the anchor that seems best is mostly enough
        low = np.flatnonzero(found < target)
        if not len(low):
            break
        tried = np.argsort(-rough[low], axis=1)[:, :count]
        found[low] = np.maximum(found[low], bounds_of(base, view, opponents[low], tried).max(axis=1))
    return found


def _rough_bounds(base: Base, view: View, opponents: np.ndarray) -> np.ndarray:
    """Return free bounds ``[c, m]``, weaker ones, from distances that are known and products in single precision."""
    anchors, size, start = view.anchors, view.start.size, view.start.astype(np.float32)
    to_others, to_owns = (single_values(base.points[some]) - start for some in (opponents, anchors))
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 proves nothing here
        far, near = view.distances[opponents][:, None], view.distances[anchors]
        doubt = (view.errors[opponents][:, None] + view.errors[anchors]) * (1 + gamma(8))
        # A product of two vectors is off by its rounding, as the product of their lengths, and by what is too small.
        error = single_gamma(size + 8) * (far + near + doubt) + size * LEAST_SINGLE
        squares = np.maximum(far + near - 2 * (to_others @ to_owns.T), 0) + doubt + error
        lengths = np.sqrt(squares) * (1 + gamma(4))
        if base.norm == "linf":
            lengths *= math.sqrt(size) * (1 + gamma(4))
        elif base.norm == "l1":
            lengths = np.minimum(lengths, base.spread * (1 + gamma(4)))
        return quotient((far - near - doubt) / 2, lengths)


def _free_bounds(base: Base, view: View, opponents: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Return the free bounds ``[c, t]`` of opponents ``[c]`` by places of anchors ``[c, t]``."""
    others, owns = pixel_values(base.points[opponents]), pixel_values(base.points[view.anchors])
    far, near = sq_lengths(others - view.start)[:, None], sq_lengths(owns - view.start)[tried]
    error = gamma(view.start.size + 8)
    margins = (far - near) / 2 - error * (far + near)
    gaps = others[:, None] - owns[tried]
    return quotient(margins, dual_norms(base.norm, gaps) * (1 + error))


def _bounds_of_each(base: Base, view: View, opponents: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Return bounds inside the box, if there is one, and with the linear map, otherwise as `_free_bounds`."""
    own = view.anchors[tried].reshape(-1, 1)
    arguments = (np.zeros(len(own), int), np.repeat(opponents, tried.shape[1]), own)
    found = multiplier_bounds(
        base.points, view.image[None], *arguments, np.ones((len(own), 1)), norm=base.norm, bounds=base.bounds,
        linear_map=base.linear_map,
    )  # fmt: skip
    return found.reshape(tried.shape)
