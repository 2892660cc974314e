"""Lower bounds that hold in floating point: what multipliers prove about one opponent, rounding subtracted.

For an opponent z_j, own-class points z_i and any lambda >= 0, every v that lets z_j win has w.v >= H with
``w = sum lambda_i (z_j - z_i)`` and ``H = sum lambda_i (D_j - D_i) / 2``, so none is smaller than the least ||v|| with
``w.v >= H`` inside the box. With a linear map M the points are mapped ones, and w is ``M'`` times that sum. All of it
is NumPy float64 on pixels that float32 holds; the error of each step (`rounding`, `linear`) is taken off.
"""

from __future__ import annotations

import numpy as np

from nn_adv.certify.verify.linear import LinearMap, in_pixels, mapped_values
from nn_adv.certify.verify.rounding import box_room, dual_norms, gamma, pixel_values, quotient, sq_lengths

# Multipliers outside this range count as 0, so that no product of them and two float32 numbers over- or underflows.
_MULTIPLIER_RANGE = (1e-100, 1e100)
_UNDERFLOW = 1e-150  # more than a length loses whose squares underflow, as they do where a linear map is tiny
_MAX_ROOT_STEPS = 60
_LARGEST = 256  # entries that are sorted at first: a change that is small in l1 moves few pixels
# Numbers in one [S, M, d] array: 16 MB.
_CHUNK = 2**21


def multiplier_bounds(
    points: np.ndarray,
    images: np.ndarray,
    image: np.ndarray,
    opponent: np.ndarray,
    constraints: np.ndarray,
    multipliers: np.ndarray,
    *,
    norm: str,
    bounds: tuple[float, float] | None,
    linear_map: LinearMap | None = None,
) -> np.ndarray:
    """Return lower bounds ``[S]`` on the distance from images to the cells of opponents.

    Points are ``[n, d]`` (``[n, k]`` with a linear map) and images ``[B, d]``, uint8 or float32. Each bound is of an
    ``image [S]``, an opponent ``[S]`` and constraints ``[S, M]``, places of points, -1 for unused. Any multipliers
    ``[S, M]`` give a sound bound if the constraints are own-class points; those that are NaN, infinite, negative or of
    a negative point count as 0. For l2 with bounds their scale matters, otherwise not.

    Raises:
      ValueError: an image outside the bounds.
    """
    usable = (multipliers > _MULTIPLIER_RANGE[0]) & (multipliers < _MULTIPLIER_RANGE[1]) & (constraints >= 0)
    width = int(usable.sum(axis=1).max(initial=0))
    order = np.argsort(~usable, axis=1, kind="stable")[:, :width]
    constraints = np.take_along_axis(np.where(usable, constraints, 0), order, axis=1)
    multipliers = np.take_along_axis(np.where(usable, multipliers, 0), order, axis=1)
    found = np.zeros(len(image))
    step = max(1, _CHUNK // max(1, width * points.shape[1], images.shape[1]))
    for start in range(0, len(image) if width else 0, step):
        part = slice(start, start + step)
        own, other = points[constraints[part]], points[opponent[part]]
        center = images if len(images) == 1 else images[image[part]]
        values = (pixel_values(own), pixel_values(other), pixel_values(center))
        found[part] = _bounds(*values, multipliers[part], norm, bounds, linear_map)
    return found


def _bounds(own, other, center, multipliers, norm, bounds, linear_map) -> np.ndarray:
    """Return bounds [S] for own-class values [S, M, d], opponents [S, d], images [S, d] and multipliers [S, M]."""
    count, terms = own.shape[1:]
    low, high = box_room(center, bounds)
    start, moved = mapped_values(linear_map, center)
    far, near = sq_lengths(other - start)[:, None], sq_lengths(own - start[:, None])
    gaps = other[:, None] - own
    # Each D errs by gamma(d + 2) D, the sum over the constraints by gamma(M + 2); twice the half covers the products.
    height_error = gamma(terms + count + 8) * np.sum(multipliers * (far + near), axis=1)
    target = np.sum(multipliers * (far - near) / 2, axis=1) - height_error
    if linear_map is None:
        w, drift = _combined(gaps, multipliers, norm)
    else:
        # M x is off by ``moved``, and so is h_i by that times ||w_j - w_i||.
        reach = np.sum(multipliers * (np.sqrt(far) + np.sqrt(near)), axis=1)
        target = target - moved * reach * (1 + gamma(terms + count + 16))
        combined, drift = _combined(gaps, multipliers, "l2")
        w, drift = in_pixels(linear_map, combined, norm, drift)
    found = {"l1": _l1, "l2": _l2, "linf": _linf}[norm](target, w, drift, low, high)
    if bounds is None:
        return found
    # Beyond the far corner of the box there is nothing: the opponent is out of reach.
    reach = np.maximum(high, -low)
    corner = {"l1": reach.sum(axis=1), "l2": np.sqrt(sq_lengths(reach)), "linf": reach.max(axis=1)}[norm]
    return np.where(found > corner * (1 + gamma(reach.shape[1] + 8)), np.inf, found)


def _combined(gaps, multipliers, norm) -> tuple[np.ndarray, np.ndarray]:
    """Return w = sum lambda_i g_i ``[S, d]``, and its error in the dual norm ``[S]``."""
    # Entry k of w errs by gamma(M + 2) sum lambda_i |g_ik|, so in the dual norm by as much of the gaps' dual norms;
    # the factor 2 covers the rounding of those.
    w = np.matmul(multipliers[:, None], gaps)[:, 0]
    return w, 2 * gamma(gaps.shape[1] + 2) * np.sum(multipliers * dual_norms(norm, gaps), axis=1)


def _l2(target, w, drift, low, high) -> np.ndarray:
    """Free: H / ||w||. Box: r^2 / 2 >= H - phi(w), phi(w) = sum max_t (w_k t - t^2 / 2) (weak duality)."""
    error = gamma(w.shape[1] + 8)
    length = np.sqrt(sq_lengths(w)) * (1 + error) + drift + _UNDERFLOW
    t = np.clip(w, low, high)
    # phi is convex with gradient t and |t| <= |w|: moving w by the drift adds at most |w| drift. Its terms are >= 0.
    phi = np.sum(t * (w - t / 2), axis=1) * (1 + error) + (length + drift) * drift
    boxed = np.sqrt(np.maximum(2 * (target - phi), 0)) * (1 - gamma(8))
    return np.fmax(quotient(target, length), boxed)


def _linf(target, w, drift, low, high) -> np.ndarray:
    """Root of sum |w_k| min(eps, room_k) + eps drift = H.

    The sum is at most ``fixed + eps slope`` for every split of the pixels into those held at their room and the open
    ones, so each split proves a bound; Newton's steps from 0 rise to the best split.
    """
    error = 1 + gamma(w.shape[1] + 8)
    size, room = np.abs(w), np.where(w > 0, high, -low)
    best = np.zeros(len(w))
    for _ in range(_MAX_ROOT_STEPS):
        is_open = room > best[:, None]
        slope = np.sum(np.where(is_open, size, 0), axis=1) * error + drift
        fixed = np.sum(np.where(is_open, 0, room) * size, axis=1) * error
        risen = quotient(target - fixed, slope)
        if not (risen > best).any():
            break
        best = np.maximum(best, risen)
    return best


def _l1(target, w, drift, low, high) -> np.ndarray:
    """Largest (H - sum room_k (|w_k| - mu)^+) / (mu + drift) over mu > 0: any mu is sound, a |w_k| is the best.

    Of a pixel with endless room the |w_k| must not exceed mu.
    """
    size, room = np.abs(w), np.where(w > 0, high, -low)
    largest = size.max(axis=1)
    free = quotient(target, largest + drift)
    has_end = np.isfinite(room)
    if not has_end.any():
        return free
    least = np.max(np.where(has_end, 0, size), axis=1)[:, None]
    room = np.where(has_end, room, 0)
    mu, is_last = _best_threshold(target, size, room, drift, least, _LARGEST)
    if is_last.any():  # of the largest |w_k|: the best may lie beyond
        rest = target[is_last], size[is_last], room[is_last], drift[is_last], least[is_last]
        mu[is_last], _ = _best_threshold(*rest, size.shape[1])
    held_back = np.sum(room * np.maximum(size - mu, 0), axis=1) * (1 + gamma(w.shape[1] + 8))
    return np.maximum(free, quotient(target - held_back, mu[:, 0] + drift))


def _best_threshold(target, size, room, drift, least, count) -> tuple[np.ndarray, np.ndarray]:
    """Return the best mu ``[S, 1]`` of `_l1` among the ``count`` largest |w_k|, and whether it is the last of them."""
    count = min(count, size.shape[1])
    largest = np.argpartition(size, -count, axis=1)[:, -count:]
    sizes, rooms = np.take_along_axis(size, largest, axis=1), np.take_along_axis(room, largest, axis=1)
    order = np.argsort(-sizes, axis=1)
    sizes, rooms = np.take_along_axis(sizes, order, axis=1), np.take_along_axis(rooms, order, axis=1)
    held = np.cumsum(rooms * sizes, axis=1) - sizes * np.cumsum(rooms, axis=1)
    proved = np.where(sizes >= least, quotient(target[:, None] - held, sizes + drift[:, None]), 0)
    best = np.argmax(proved, axis=1)[:, None]
    return np.maximum(np.take_along_axis(sizes, best, axis=1), least), best[:, 0] == count - 1
