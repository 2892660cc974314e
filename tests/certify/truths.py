"""Brute-force radii of 1NN: one linear or quadratic program per opponent, with every constraint of the own class."""

from __future__ import annotations

import numpy as np
from scipy import optimize

from tests.neighbors.truths import as_pixels


def predict(points, labels, image: np.ndarray, leave_out: int | None = None, linear_map=None) -> int:
    """Return the label of the nearest point."""
    return int(labels[nearest(points, image, leave_out, linear_map)])


def mapped(linear_map: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the points that 1NN with a linear map compares with, as float64."""
    return (as_pixels(points) @ linear_map.T.astype(np.float64)).astype(np.float32).astype(np.float64)


def nearest(points: np.ndarray, image: np.ndarray, leave_out: int | None = None, linear_map=None) -> int:
    """Return the index of the nearest point, ties to the lowest; uint8 against uint8 in integers."""
    if linear_map is not None:
        points, image = mapped(linear_map, points), as_pixels(image[None])[0] @ linear_map.T.astype(np.float64)
    elif points.dtype == np.uint8 and image.dtype == np.uint8:
        points, image = points.astype(np.int64), image.astype(np.int64)
    else:
        points, image = as_pixels(points), as_pixels(image[None])[0]
    distances = ((points.reshape(len(points), -1) - image.ravel()) ** 2).sum(axis=1).astype(np.float64)
    if leave_out is not None and leave_out >= 0:
        distances[leave_out] = np.inf
    return int(np.argmin(distances))


def true_radius(points, labels, image, label, *, norm, bounds, leave_out=None, linear_map=None) -> float:
    """Return the smallest norm of a change that lets a point of another class win: inf if none can, 0 if one has."""
    if predict(points, labels, image, leave_out, linear_map) != label:
        return 0.0
    options = {"norm": norm, "bounds": bounds, "leave_out": leave_out, "linear_map": linear_map}
    opponents = np.flatnonzero(np.asarray(labels) != label)
    radii = [opponent_radius(points, labels, image, label, j, **options)[0] for j in opponents if j != leave_out]
    return min(radii, default=np.inf)


def opponent_radius(points, labels, image, label, opponent, *, norm, bounds, leave_out=None, linear_map=None):
    """Return the distance to the cell of one opponent, and the multipliers [own] that prove it and their rows [own]."""
    own = np.flatnonzero(np.asarray(labels) == label)
    own = own[own != leave_out] if leave_out is not None else own
    points, image = as_pixels(points), as_pixels(image[None])[0]
    start = image
    if linear_map is not None:
        points, start = mapped(linear_map, points), image @ linear_map.T.astype(np.float64)
    copies = (points[own] == points[opponent]).all(axis=1)
    if (copies & (own < opponent)).any():
        return np.inf, np.zeros(len(own)), own
    normals = points[opponent] - points[own]
    # (D_j - D_i) / 2 as a product, which loses no digits where the two are close
    margins = (normals * ((points[opponent] + points[own]) / 2 - start)).sum(axis=1)
    if linear_map is not None:
        normals = normals @ linear_map
        is_beyond = (normals == 0).all(axis=1) & ~copies  # no change tells the two apart
        if (margins[is_beyond] > 0).any():
            return np.inf, np.zeros(len(own)), own
        copies |= is_beyond
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    solve = {"l1": _l1, "l2": _l2, "linf": _linf}[norm]
    if (margins[~copies] <= 0).all():
        return 0.0, np.zeros(len(own)), own
    radius, multipliers = solve(normals[~copies], margins[~copies], low - image, high - image)
    everywhere = np.zeros(len(own))
    everywhere[~copies] = multipliers
    return radius, everywhere, own


def _l1(normals, margins, low, high):
    """min sum(p + m) with v = p - m, 0 <= p <= high, 0 <= m <= -low."""
    box = np.stack([np.zeros(2 * len(low)), np.concatenate([high, -low])], axis=1)
    return _linear(np.ones(2 * len(low)), np.hstack([normals, -normals]), margins, box)


def _linf(normals, margins, low, high):
    """min t with -t <= v <= t."""
    size = len(low)
    eye, ones = np.eye(size), np.ones((size, 1))
    padded = np.hstack([normals, np.zeros((len(normals), 1))])
    rows = np.vstack([padded, np.hstack([-eye, ones]), np.hstack([eye, ones])])
    box = np.concatenate([np.stack([low, high], axis=1), [[0, np.inf]]])
    return _linear(np.r_[np.zeros(size), 1], rows, np.r_[margins, np.zeros(2 * size)], box, len(normals))


def _linear(cost, rows, right, box, count=None):
    """min cost.v, rows v >= right, box; returns the value and the multipliers of the first `count` rows."""
    count = len(rows) if count is None else count
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    # The tolerances are absolute: one length for all constraints and about 1 for the answer.
    lengths = np.linalg.norm(rows[:count], axis=1)
    unit = (right[:count] / lengths).max()
    lengths = np.r_[lengths, np.ones(len(rows) - count)]
    rows, right, box = rows / lengths[:, None], right / lengths / unit, box / unit
    result = optimize.linprog(cost, -rows, -right, bounds=box, method="highs-ds", options=tight)
    if result.status == 2:
        return np.inf, np.zeros(count)
    assert result.status == 0, result.message
    return unit * result.fun, -result.ineqlin.marginals[:count] / lengths[:count]


def _l2(normals, margins, low, high):
    """min ||v||: least distance programming (Lawson and Hanson 1974), then the system of its active set."""
    eye = np.eye(len(low))
    rows, right = np.vstack([normals, eye, -eye]), np.concatenate([margins, low, -high])
    real = np.isfinite(right)
    # One length for all rows and about 1 for the answer.
    lengths = np.linalg.norm(rows, axis=1)
    unit = (margins / lengths[: len(margins)]).max()
    a, b = (rows / lengths[:, None])[real], (right / lengths / unit)[real]
    weights, residual = optimize.nnls(np.vstack([a.T, b]), np.r_[np.zeros(a.shape[1]), 1.0], maxiter=100 * len(b))
    if residual < 1e-7:
        return np.inf, np.zeros(len(margins))
    dual = weights / (1 - b @ weights)
    active = dual > 1e-9 * dual.max()
    for _ in range(len(b)):
        exact = np.zeros_like(dual)
        exact[active] = np.linalg.lstsq(a[active] @ a[active].T, b[active], rcond=None)[0]
        violation = b - a @ (a.T @ exact)
        if (exact < 0).any():
            active[np.argmin(exact)] = False
        elif violation.max() > 1e-12:
            active[np.argmax(violation)] = True
        else:
            dual = exact
            break
    v = a.T @ dual
    # Weak duality: |v| is too large by no more than the gap, if v is feasible.
    assert (a @ v - b).min() > -1e-9 and abs(b @ dual - v @ v) < 1e-9 * (v @ v), "the program was not solved"
    multipliers = np.zeros(len(rows))
    multipliers[real] = dual * unit / lengths[real]
    return unit * np.linalg.norm(v), multipliers[: len(margins)]
