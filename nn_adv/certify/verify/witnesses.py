"""Whether a witness is one: its size, and whether an opponent is nearer to it than the own class."""

from __future__ import annotations

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
        if len(rows) and measured.distances.size:  # those to all points are known
            rows = rows[_may_be_nearest(base, measured, mine, rows, leave_out[mine], values, moved)]
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            distances, lengths, point_lengths = point_distances(base.points[block], values)
            errors = point_errors(distances, lengths[:, None], point_lengths, base, moved[:, None])
            distances[block == leave_out[mine][:, None]] = np.inf
            ends = np.stack([(distances - errors).min(axis=1), (distances + errors).min(axis=1)], axis=1)
            ranges[mine] = np.minimum(ranges[mine], ends)
    return ranges


def _may_be_nearest(
    base: Base,
    measured: Measured,
    mine: np.ndarray,
    rows: np.ndarray,
    leave_out: np.ndarray,
    mapped: np.ndarray,
    moved: np.ndarray,
) -> np.ndarray:
    """Return which of some points may be the nearest to one of the witnesses ``mapped [c, k]`` of images ``mine [c]``.

    No farther from a witness than the point nearest to its image, that is.
    """
    distances, errors = measured_distances(base, measured, mine[:, None], rows)
    distances[rows == leave_out[:, None]] = np.inf
    nearest = np.argmin(distances, axis=1)
    to_nearest = sq_lengths(pixel_values(base.points[rows[nearest]]) - mapped) * (1 + gamma(mapped.shape[1] + 8))
    is_known = np.isfinite(distances[np.arange(len(mine)), nearest])
    ceilings = np.where(is_known, to_nearest + raised(to_nearest, moved), np.inf)
    reaches = _reaches(base, measured.starts[mine], measured.moved[mine], mapped, moved, ceilings)
    with np.errstate(invalid="ignore"):  # where a distance overflows, nothing is ruled out
        return ~(distances - errors > reaches[:, None]).all(axis=0)


def _reaches(base: Base, starts, started, mapped, moved, ceilings) -> np.ndarray:
    """Return squared distances from images beyond which no point is within ``ceilings [c]`` of the witnesses, ``[c]``.

    Of an image x, a witness y and a point z, ||y - z|| >= ||x - z|| - ||y - x||, and ||y - z||^2 = ||x - z||^2 +
    ||y - x||^2 - 2 (y - x).(z - x), where no z_k makes the product larger than the end of the pixels that y_k moves to.
    Where a witness moves few pixels, and far, the second says more.
    """
    change, error = mapped - starts, gamma(starts.shape[1] + 16)
    squares = sq_lengths(change)
    reaches = (np.sqrt(np.maximum(ceilings, 0)) + np.sqrt(squares) * (1 + error) + started + moved) ** 2 * (1 + error)
    if base.linear_map is not None:
        return reaches
    with np.errstate(invalid="ignore"):  # points may have pixels that are not finite
        terms = change * (np.where(change > 0, base.largest_pixel, base.lowest_pixel) - starts)
        slack = error * (ceilings + squares + 2 * np.abs(terms).sum(axis=1))
        return np.fmin(reaches, ceilings - squares + 2 * terms.sum(axis=1) + slack)


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
    (reach,) = _reaches(base, view.start[None], view.moved, mapped[None], off, np.array([ceiling]))
    opponents = np.flatnonzero(view.other & (view.distances - view.errors <= reach))
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
