"""Images among the points they are classified by: distances with a bound on their error, prediction, witness.

NumPy float64 for `recheck`. Inner products of d numbers err by ``gamma(d)`` of the product of lengths, whatever the
order of summation (Higham 2002, "Accuracy and stability of numerical algorithms", 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nn_adv.certify.recheck_bounds import dual_norms, gamma, pixel_values, sq_lengths

_BLOCK = 2048  # points converted to float64 at a time
_RIVALS = 512  # own-class points compared with a witness at a time


class Base(NamedTuple):
    """The points [n, d] as given, their labels and original indices [n], the spread of their pixel values."""

    points: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    spread: float


class View(NamedTuple):
    """One image: as given and as values [d], distances [n] and their error, masks [n] of its own class and the rest."""

    image: np.ndarray
    values: np.ndarray
    distances: np.ndarray
    error: float
    own: np.ndarray
    other: np.ndarray


def views(base: Base, images, adversarial, image_labels, leave_out, part: range, bounds) -> Iterator[tuple]:
    """Yield (b, view, view of the witness or None) for the images of a part, whose distances come from one pass.

    A witness that is the image itself, not finite or outside the bounds is none.
    """
    values = pixel_values(images[part.start : part.stop])
    moved = pixel_values(adversarial[part.start : part.stop])
    real = np.isfinite(moved).all(axis=1) & (moved != values).any(axis=1)
    if bounds is not None:
        real &= ((moved >= bounds[0]) & (moved <= bounds[1])).all(axis=1)
    slot = len(values) + np.cumsum(real) - 1
    distances, errors = _distances(base, np.concatenate([values, moved[real]]))
    for k, b in enumerate(part):
        used = base.labels >= 0
        if leave_out[b] >= 0:
            used[leave_out[b]] = False
        own = used & (base.labels == image_labels[b])
        view = View(images[b], values[k], distances[k], errors[k], own, used & ~own)
        witness = None
        if real[k]:
            witness = view._replace(values=moved[k], distances=distances[slot[k]], error=errors[slot[k]])
        yield b, view, witness


def _distances(base: Base, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances [c, n] of values [c, d] as |x|^2 - 2 x.z + |z|^2, and bounds on their errors [c].

    Each of the three errs by gamma(d) of the lengths it is made of, together gamma(d + 2) (|x| + |z|)^2.
    """
    distances = np.empty((len(values), len(base.points)))
    sq_norms = np.empty(len(base.points))
    doubled, own_sq_norms = -2 * values, sq_lengths(values)
    for start in range(0, len(base.points), _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = pixel_values(base.points[block])
        sq_norms[block] = sq_lengths(rows)
        np.matmul(doubled, rows.T, out=distances[:, block])
        distances[:, block] += sq_norms[block]
        distances[:, block] += own_sq_norms[:, None]
    lengths = np.sqrt(own_sq_norms) + np.sqrt(sq_norms[base.labels >= 0].max(initial=0))
    return distances, gamma(values.shape[1] + 8) * lengths**2


def is_correct(base: Base, view: View) -> bool:
    """Return whether the nearest point is of the own class; near ties are decided exactly, equal ones by the index."""
    own, other = (view.distances[mask].min(initial=np.inf) for mask in (view.own, view.other))
    slack = 2 * view.error
    if base.points.dtype == np.uint8 and view.image.dtype == np.uint8:
        # Integers are the distances of v / 255; rounding those to float32 moves a difference by s = 2^-23 sqrt(d) at
        # most, and its square D by 2 sqrt(D) s + s^2, once for each of the two that are compared.
        moved = 2.0**-23 * math.sqrt(view.values.size)
        slack += 4.1 * (math.sqrt(max(own, other, 0)) + moved) * moved if max(own, other) < np.inf else 0
    if abs(own - other) > slack or own == other == np.inf:
        return bool(own < other)
    near = np.flatnonzero((view.own | view.other) & (view.distances <= max(own, other) + slack))
    return bool(view.own[_exactly_nearest(base, near, view.image)])


def _exactly_nearest(base: Base, candidates: np.ndarray, image: np.ndarray) -> int:
    """Return the nearest candidate, ties to the lowest index, in exact arithmetic.

    Products of two float32 numbers are exact in float64, and `math.fsum` rounds a sum once, so its sign is right.
    """
    as_values = pixel_values
    if base.points.dtype == np.uint8 and image.dtype == np.uint8:
        as_values = np.float64
    x, best, nearest = as_values(image), -1, None
    candidates = candidates[np.argsort(base.index[candidates])]
    while len(candidates):
        raw = base.points[candidates[0]]
        z = as_values(raw)
        terms = None if nearest is None else np.concatenate([z * z, -2 * x * z, -nearest * nearest, 2 * x * nearest])
        if terms is None or math.fsum(terms) < 0:
            best, nearest = int(candidates[0]), z
        candidates = candidates[(base.points[candidates] != raw).any(axis=1)]
    return best


def witness_size(base: Base, view: View, witness: View, norm: str) -> float:
    """Return the size of a change, rounded up, if it is strictly nearer to an opponent than to its own class."""
    if not witness.other.any():
        return np.inf
    error = gamma(witness.values.size + 8)
    winner = np.argmin(np.where(witness.other, witness.distances, np.inf))
    most = sq_lengths(pixel_values(base.points[winner]) - witness.values) * (1 + error)
    if witness.distances[witness.own].min() < most - 4 * witness.error:
        return np.inf
    rivals = np.flatnonzero(witness.own & (witness.distances <= most + witness.error))
    for start in range(0, len(rivals), _RIVALS):
        own = pixel_values(base.points[rivals[start : start + _RIVALS]]) - witness.values
        if (sq_lengths(own) * (1 - error) <= most).any():
            return np.inf
    dual_of = {"l1": "linf", "l2": "l2", "linf": "l1"}[norm]
    return float(dual_norms(dual_of, witness.values - view.values) * (1 + error))
