"""Check radii by other means: NumPy float64, rounding accounted for, no code shared with what computed them.

`recheck` believes nothing. From multipliers it recomputes the lower bound over all opponents (the points of other
classes), from a witness its size, its box and its nearest neighbour. A wrong certificate costs tightness, never truth.
`recheck_views` has the distances and the prediction, `recheck_bounds` the bound of one opponent from its multipliers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from nn_adv.certify.recheck_bounds import (
    box_room,
    dual_norms,
    gamma,
    multiplier_bounds,
    pixel_values,
    quotient,
    sq_lengths,
)
from nn_adv.certify.recheck_views import (
    Base,
    View,
    earlier_copies,
    is_correct,
    may_win,
    own_ranges,
    partial_views,
    reached_within,
    views,
    witness_size,
)

_MAX_DISTANCES = 48 * 2**20  # distances held at a time: 384 MB
_FIRST_OPPONENTS, _MAX_OPPONENTS = 8, 64  # compared with the anchors at a time
_TOGETHER = 64  # images screened together
_MANY = 1 / 64  # share of the points from which on a product with all of them is cheaper than one by one


class _Screening(NamedTuple):
    """What is left to prove: that no opponent in the view of image b lies below the target."""

    image: int
    view: View
    anchors: np.ndarray
    target: float


class CertificateLike(Protocol):
    """What `recheck` reads of a certificate; all point indices are rows of ``points``, negative ones are padding."""

    @property
    def anchors(self) -> np.ndarray:
        """Own-class points near each image ``[B, m]``."""

    @property
    def image(self) -> np.ndarray:
        """The image of each solved opponent ``[S]``."""

    @property
    def opponent(self) -> np.ndarray:
        """The opponent ``[S]``."""

    @property
    def rows(self) -> np.ndarray:
        """Own-class points of its constraints ``[S, M]``."""

    @property
    def multipliers(self) -> np.ndarray:
        """One per constraint ``[S, M]``."""


class Screened(NamedTuple):
    """What to believe about opponents that are not listed, so that not all distances need be computed.

    Attributes:
      lower: radius below which none of them wins ``[B]``.
      near: rows that the nearest point is among, unless it is a listed opponent ``[B, K]``; -1 is padding.
    """

    lower: np.ndarray
    near: np.ndarray


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
    certificate: CertificateLike,
    adversarial: np.ndarray,
    *,
    norm: str,
    bounds: tuple[float, float] | None,
    index: np.ndarray | None = None,
    leave_out: np.ndarray | None = None,
    screened: Screened | None = None,
) -> Recheck:
    """Return radii of 1NN that hold whatever the certificate says, for images ``[B, d]`` inside the bounds.

    The lower bound is the least over all opponents: listed ones by their multipliers (the best where listed twice), the
    rest by the triangle inequality, or one constraint of an anchor where that is not enough. Of equal points only that
    of lowest index can win. The witness counts if it is inside the bounds and an opponent is nearest to it. Where
    rounding could matter, exact arithmetic classifies; uint8 images among uint8 points are integers in it.

    Args:
      points: ``[n, d]``, uint8 or float32, in any order.
      labels: ``[n]``, -1 for rows to ignore.
      images: ``[B, d]``, uint8 or float32.
      image_labels: ``[B]``.
      certificate: see `CertificateLike`; entries that make no sense count for nothing.
      adversarial: ``[B, d]`` float32 witnesses; the image itself where there is none.
      norm: "l1", "l2" or "linf".
      bounds: the box, rounded to float32 as pixels are; or None.
      index: ``[n]`` original index of each row, for ties; its position when None.
      leave_out: ``[B]`` a row that is neither opponent nor constraint of each image, negative for none.
      screened: what to take as given about the opponents that are not listed; recomputed when None.

    Raises:
      ValueError: an unknown norm, or an image outside the bounds.
    """
    if norm not in ("l1", "l2", "linf"):
        raise ValueError(f"norm must be 'l1', 'l2' or 'linf', got {norm!r}")
    if bounds is not None:
        bounds = (float(np.float32(bounds[0])), float(np.float32(bounds[1])))
    box_room(pixel_values(images), bounds)
    base = _base(points, labels, index)
    image_labels = np.asarray(image_labels)
    leave_out = np.full(len(images), -1) if leave_out is None else np.asarray(leave_out)
    listed = _listed_bounds(base, images, image_labels, certificate, leave_out, norm, bounds)
    result = Recheck(np.zeros(len(images)), np.full(len(images), np.inf), np.zeros(len(images), bool))
    step = max(1, _MAX_DISTANCES // len(points))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        real = _is_possible(images[part], adversarial[part], bounds)
        ranges = np.zeros((len(real), 2))
        ranges[real] = own_ranges(base, adversarial[part][real], image_labels[part][real], leave_out[part][real])
        pending: list[_Screening] = []
        batch = (base, images[part], image_labels[part], leave_out[part])
        looked_at = views(*batch) if screened is None else partial_views(*batch, _near_rows(screened, listed, part))
        for k, view in enumerate(looked_at):
            b = start + k
            result.correct[b] = is_correct(base, view)
            if not result.correct[b]:
                result.upper[b] = 0
                continue
            if real[k]:
                result.upper[b] = witness_size(base, view, adversarial[b], ranges[k], norm)
            proved = listed.get(b, {})
            result.lower[b] = min(proved.values(), default=np.inf)
            if screened is not None:
                result.lower[b] = min(result.lower[b], max(0.0, np.nan_to_num(screened.lower[b], posinf=np.inf)))
                continue
            view.other[list(proved)] = False
            anchors = _own_rows(view, certificate.anchors[b])
            pending.append(_Screening(b, view, anchors, min(result.lower[b], result.upper[b])))
            if len(pending) == _TOGETHER:
                _screen_all(base, pending, result.lower, norm, bounds)
                pending = []
        _screen_all(base, pending, result.lower, norm, bounds)
    return result


def _base(points: np.ndarray, labels: np.ndarray, index: np.ndarray | None) -> Base:
    indices = np.arange(len(points)) if index is None else np.asarray(index)
    low, high = pixel_values(np.array([points.min(), points.max()])).tolist()
    labels = np.asarray(labels)
    copies = earlier_copies(points, labels, indices)
    return Base(points, labels, indices, copies, low, high, (high - low) * (1 + gamma(4)))


def _near_rows(screened: Screened, listed: dict[int, dict[int, float]], part: slice) -> list[np.ndarray]:
    """Return the rows to look at around each image: those given, and the listed opponents."""
    rows = [
        np.append(near, np.array(list(listed.get(part.start + k, ())), int))
        for k, near in enumerate(screened.near[part])
    ]
    return [np.unique(some[some >= 0]) for some in rows]


def _is_possible(images: np.ndarray, adversarial: np.ndarray, bounds) -> np.ndarray:
    """Return which witnesses are finite, inside the bounds and not the image itself, ``[B]``."""
    moved = pixel_values(adversarial)
    possible = np.isfinite(moved).all(axis=1) & (moved != pixel_values(images)).any(axis=1)
    if bounds is not None:
        possible &= ((moved >= bounds[0]) & (moved <= bounds[1])).all(axis=1)
    return possible


def _listed_bounds(
    base: Base, images, image_labels, certificate: CertificateLike, leave_out, norm: str, bounds
) -> dict[int, dict[int, float]]:
    """Return {image: {listed opponent: its best bound}}; rows that are no constraints of an image count for nothing."""
    image, opponent = np.asarray(certificate.image), np.asarray(certificate.opponent)
    real = (image >= 0) & (image < len(images)) & (opponent >= 0) & (opponent < len(base.points))
    image, opponent = image[real], opponent[real]
    rows, multipliers = np.asarray(certificate.rows)[real], np.asarray(certificate.multipliers, float)[real]
    is_row = (rows >= 0) & (rows < len(base.points)) & (rows != leave_out[image][:, None])
    rows = np.where(is_row, rows, -1)
    rows = np.where(base.labels[rows] == image_labels[image][:, None], rows, -1)
    is_opponent = (base.labels[opponent] >= 0) & (base.labels[opponent] != image_labels[image])
    is_opponent &= (opponent != leave_out[image]) & may_win(base.copies[opponent], leave_out[image])
    found = multiplier_bounds(base.points, images, image, opponent, rows, multipliers, norm=norm, bounds=bounds)
    image, opponent, found = image[is_opponent], opponent[is_opponent], found[is_opponent]
    listed: dict[int, dict[int, float]] = {}
    for b, j, proved in zip(image.tolist(), opponent.tolist(), found.tolist(), strict=True):
        of_image = listed.setdefault(b, {})
        of_image[j] = max(of_image.get(j, 0.0), proved)
    return listed


def _own_rows(view: View, anchors: np.ndarray) -> np.ndarray:
    """Return the anchors that are own-class points, and the nearest of those."""
    anchors = anchors[(anchors >= 0) & (anchors < len(view.own))]
    return np.unique(np.append(anchors[view.own[anchors]], np.argmin(np.where(view.own, view.distances, np.inf))))


def _screen_all(base: Base, pending: list[_Screening], lower: np.ndarray, norm: str, bounds) -> None:
    """Screen images, those with many opponents in linf together first; their bounds go to ``lower``."""
    many = []
    for some in pending if norm == "linf" else []:
        some.view.other[:] &= _is_below(base, some.view, slice(None), some.anchors, some.target, norm)
        if np.isfinite(some.target) and some.view.other.sum() > _MANY * len(base.points):
            many.append(some)
    if many:
        width = max(len(some.anchors) for some in many)
        reached = reached_within(
            base,
            np.stack([np.pad(some.anchors, (0, width - len(some.anchors)), constant_values=-1) for some in many]),
            np.stack([some.view.values for some in many]),
            np.stack([some.view.distances - some.view.errors for some in many]),
            np.array([some.target for some in many]),
            bounds,
        )
        for some, is_reached in zip(many, reached, strict=True):
            some.view.other[:] &= is_reached
    for b, view, anchors, target in pending:
        lower[b] = min(lower[b], _screen(base, view, anchors, target, norm, bounds))


def _screen(base: Base, view: View, anchors: np.ndarray, target: float, norm: str, bounds) -> float:
    """Return a bound over all opponents of a view; ``target`` where all that lie below it were proved above it.

    The nearest come first: no bound over all is above theirs, so the others need not be proved any farther.
    """
    opponents = np.flatnonzero(view.other & _is_below(base, view, slice(None), anchors, target, norm))
    opponents = opponents[np.argsort(view.distances[opponents])]
    size = _FIRST_OPPONENTS
    while len(opponents):
        part, opponents = opponents[:size], opponents[size:]
        target = min(target, float(_single_bounds(base, view, part, anchors, target, norm, bounds).min()))
        opponents = opponents[_is_below(base, view, opponents, anchors, target, norm)]
        size = min(2 * size, _MAX_OPPONENTS)
    return target


def _is_below(base: Base, view: View, rows: np.ndarray | slice, anchors, target: float, norm: str) -> np.ndarray:
    """Return which opponents among rows are not proved to be at least ``target`` away by their distance alone.

    With z_i the nearest own-class point, r_2 >= (||x - z_j|| - ||x - z_i||) / 2 by the triangle inequality, r_linf >=
    r_2 / sqrt(d) and r_1 >= r_2, and r_1 >= (D_j - D_i) / 2 / spread, since no entry of z_j - z_i exceeds the spread
    of the pixel values.
    """
    size = view.values.size
    nearest = sq_lengths(pixel_values(base.points[anchors]) - view.values).min() * (1 + gamma(size + 8))
    scale = math.sqrt(size) if norm == "linf" else 1.0
    reach = (2 * target * scale + math.sqrt(nearest)) ** 2
    if norm == "l1" and base.spread > 0:
        reach = min(reach, 2 * target * base.spread + nearest)
    return view.distances[rows] - view.errors[rows] < reach * (1 + gamma(16))


def _single_bounds(base, view, opponents, anchors, target, norm, bounds) -> np.ndarray:
    """Return for each opponent the best bound of one constraint; from ``target`` on it may be weaker than need be.

    The free bound is (D_j - D_i) / 2 over the dual norm of z_j - z_i, and that norm is first bounded by products.
    """
    size = view.values.size
    error = gamma(size + 8)
    others, owns = pixel_values(base.points[opponents]), pixel_values(base.points[anchors])
    far, near = sq_lengths(others - view.values)[:, None], sq_lengths(owns - view.values)[None]
    margins = (far - near) / 2 - error * (far + near)
    products = (others - view.values) @ (owns - view.values).T
    lengths = np.sqrt(np.maximum(far + near - 2 * products, 0) + 4 * error * (far + near)) * (1 + gamma(4))
    if norm == "linf":
        lengths *= math.sqrt(size) * (1 + gamma(4))
    elif norm == "l1":
        lengths = np.minimum(lengths, base.spread * (1 + gamma(4)))
    free = quotient(margins, lengths)
    found = free.max(axis=1)
    if norm != "l2":
        low = np.flatnonzero(found < target)
        gaps = others[low][:, None] - owns
        free[low] = np.maximum(free[low], quotient(margins[low], dual_norms(norm, gaps) * (1 + error)))
        found = free.max(axis=1)
        for count in (1, len(anchors)) if bounds is not None else ():  # the best anchor alone is mostly enough
            low = np.flatnonzero(found < target)
            tried = anchors[np.argsort(-free[low], axis=1)[:, :count]]
            arguments = (np.zeros(tried.size, int), np.repeat(opponents[low], count), tried.reshape(-1, 1))
            boxed = multiplier_bounds(
                base.points, view.image[None], *arguments, np.ones((tried.size, 1)), norm=norm, bounds=bounds
            )
            found[low] = np.maximum(found[low], boxed.reshape(len(low), count).max(axis=1))
    return found
