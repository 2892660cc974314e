"""Whether a witness is one: its size, and whether an opponent is nearer to it than the own class."""

from __future__ import annotations

import math

import numpy as np

from nn_adv.certify.verify.linear import mapped_values, raised
from nn_adv.certify.verify.rounding import dual_norms, gamma, pixel_values, sq_lengths
from nn_adv.certify.verify.views import (
    BLOCK,
    Base,
    Measured,
    View,
    is_correct,
    measured_distances,
    point_distances,
    point_errors,
)

_RIVALS = 64  # opponents compared with a witness at a time; the winner is among the first


def own_ranges(
    base: Base,
    measured: Measured,
    witnesses: np.ndarray,
    is_real: np.ndarray,
    labels: np.ndarray,
    leave_out: np.ndarray,
) -> np.ndarray:
    """Return for real witnesses ``[c, d]`` what their squared distance to their own class lies between, ``[c, 2]``."""
    ranges = np.full((len(witnesses), 2), np.inf)
    for label in np.unique(labels[is_real & (labels >= 0)]):
        mine = np.flatnonzero(is_real & (labels == label))
        values, moved = mapped_values(base.linear_map, pixel_values(witnesses[mine]))
        rows = np.flatnonzero(base.labels == label)
        if measured.distances.size:  # those to all points are known
            ways = _ways(values, measured.starts[mine], measured.moved[mine] + moved)
            near = [
                _may_be_nearest(base, measured, k, rows, leave_out[k], way)
                for k, way in zip(mine.tolist(), ways, strict=True)
            ]
            rows = rows[np.any(near, axis=0)]
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            distances, lengths, point_lengths = point_distances(base.points[block], values)
            errors = point_errors(distances, lengths[:, None], point_lengths, base, moved[:, None])
            distances[block == leave_out[mine][:, None]] = np.inf
            ends = np.stack([(distances - errors).min(axis=1), (distances + errors).min(axis=1)], axis=1)
            ranges[mine] = np.minimum(ranges[mine], ends)
    return ranges


def _ways(mapped: np.ndarray, starts: np.ndarray, moved: np.ndarray | float) -> np.ndarray:
    """Return upper bounds on the l2 ways from ``starts`` to mapped witnesses ``[c, k]``, ``[c]``."""
    return np.sqrt(sq_lengths(mapped - starts)) * (1 + gamma(starts.shape[-1] + 8)) + moved


def _may_be_nearest(base: Base, measured: Measured, k: int, rows: np.ndarray, leave_out: int, way: float) -> np.ndarray:
    """Return which of some points may be the nearest of them to a witness, by its way from the image."""
    distances, errors = measured_distances(base, measured, k, rows)
    nearest = (distances + errors)[rows != leave_out].min(initial=np.inf)
    reach = (np.sqrt(nearest) + 2 * way) * (1 + gamma(16))  # triangle inequality
    with np.errstate(invalid="ignore"):  # where a distance overflows, nothing is ruled out
        return ~(np.sqrt(np.maximum(distances - errors, 0)) > reach)


def witness_size(base: Base, view: View, witness: np.ndarray, own_range: np.ndarray) -> float:
    """Return the size of a change, rounded up, if an opponent wins against the own class, at a D in a range ``[2]``.

    Otherwise inf. An opponent so far from the image that the change cannot bring it that near is not looked at.
    """
    floor, ceiling = own_range.tolist()
    values = pixel_values(witness)
    change = values - view.values
    error = 1 + gamma(max(change.size, view.start.size) + 8)
    dual_of = {"l1": "linf", "l2": "l2", "linf": "l1"}[base.norm]
    size = float(dual_norms(dual_of, change) * error)
    mapped, off = mapped_values(base.linear_map, values)
    way = _ways(mapped, view.start, view.moved + float(off))
    reach = (math.sqrt(max(ceiling, 0)) + way) * error
    opponents = np.flatnonzero(view.other & (view.distances - view.errors <= reach**2))
    opponents = opponents[np.argsort(view.distances[opponents])]
    nearest = np.inf
    for start in range(0, len(opponents), _RIVALS):
        part = pixel_values(base.points[opponents[start : start + _RIVALS]])
        nearest = min(nearest, sq_lengths(part - mapped).min())
        if nearest * error + raised(nearest * error, off) < floor:
            return size
    if nearest > ceiling * error + raised(nearest, off):
        return np.inf
    distances, lengths, point_lengths = point_distances(base.points, mapped[None])
    errors = point_errors(distances[0], lengths[0], point_lengths, base, off)
    changed = view._replace(image=witness, values=values, start=mapped, distances=distances[0], errors=errors)
    return np.inf if is_correct(base, changed) else size
