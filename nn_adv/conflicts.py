"""Pairs of images of different classes that are close: what no classifier keeps apart, and what pruning cuts."""

from __future__ import annotations

import numpy as np
import scipy

_METRICS = {"l1": "cityblock", "linf": "chebyshev"}
_MEASURED_AT_A_TIME = 2**22  # distances: 32 MiB
_CANCELLED = 1e-3  # of the squared norms: below, an expanded squared distance has lost too many digits


def conflicts(pixels: np.ndarray, labels: np.ndarray, limit: float, *, norm: str) -> tuple[np.ndarray, ...]:
    """Return the positions of two images of different classes, and their distance, for all below ``limit`` or at 0.

    Pixels are ``[N, d]`` float64, and so are distances. Of E pairs all three are ``[E]``, the lower class first.
    """
    found = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))]
    for label in np.unique(labels)[:-1]:
        own, others = np.flatnonzero(labels == label), np.flatnonzero(labels > label)
        step = max(1, _MEASURED_AT_A_TIME // len(others))
        for rows in (own[start : start + step] for start in range(0, len(own), step)):
            table = _distances(pixels[rows], pixels[others], norm)
            one, two = np.nonzero((table < limit) | (table == 0))
            found.append((rows[one].astype(np.int32), others[two].astype(np.int32), table[one, two]))
    first, second, apart = zip(*found, strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(apart)


def _distances(one: np.ndarray, other: np.ndarray, norm: str) -> np.ndarray:
    """Return all distances between rows; in l2 by a product, and directly where it loses digits."""
    if norm != "l2":
        return scipy.spatial.distance.cdist(one, other, _METRICS[norm])
    sizes = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)
    table = sizes - 2 * one @ other.T
    rows, columns = np.nonzero(table <= _CANCELLED * sizes)
    table[rows, columns] = [np.sum((one[i] - other[j]) ** 2) for i, j in zip(rows, columns, strict=True)]
    return np.sqrt(table)
