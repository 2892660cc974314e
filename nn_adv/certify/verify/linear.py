"""Distances of ``M x`` to mapped points in float64: what a linear map adds to the errors, and what it stretches.

An image x has the exact value ``M x``; what is computed differs from it by ``gamma(d) |M| |x|`` at most, entry by entry
(Higham 2002, 3.5). An opponent w_j wins against w_i only if ``g . v >= h`` with ``g = M' (w_j - w_i)`` and ``h`` half
the difference of the squared distances. Without a map everything here is the identity, with no error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nn_adv.certify.verify.rounding import LEAST_LENGTH, dual_norms, gamma, sq_lengths


class LinearMap(NamedTuple):
    """A linear map, and bounds on how long it makes a move of size 1."""

    matrix: np.ndarray  # M [k, d] float64
    frobenius: float  # its Frobenius norm, rounded up: no move of l2 size 1 becomes longer
    stretch: float  # how long a move of size 1 in the norm of the perturbation can become in l2, rounded up; above 0


def make_map(matrix: np.ndarray, norm: str) -> LinearMap:
    """Return M ``[k, d]``, rounded to float32 as `recheck` means it, with its lengths."""
    matrix = np.asarray(matrix, np.float32).astype(np.float64)
    count, size = matrix.shape
    error = 1 + gamma(count * size + 8)
    frobenius = math.sqrt(float(np.sum(matrix**2))) * error
    if norm == "l1":
        longest = math.sqrt(float(np.sum(matrix**2, axis=0).max())) * error
        return LinearMap(matrix, frobenius, longest + LEAST_LENGTH)
    gram = matrix @ matrix.T if count <= size else matrix.T @ matrix
    # Products err by gamma(max(k, d)) of the Frobenius norm squared, eigenvalues by a modest multiple of the roundoff.
    largest = float(np.linalg.eigvalsh(gram)[-1]) + 64 * gamma(count + size) * frobenius**2
    spectral = min(math.sqrt(max(largest, 0.0)) * error, frobenius)
    if norm == "l2":
        return LinearMap(matrix, frobenius, spectral + LEAST_LENGTH)
    of_rows = math.sqrt(float(np.sum(np.abs(matrix).sum(axis=1) ** 2)))
    return LinearMap(matrix, frobenius, min(spectral * math.sqrt(size), of_rows) * error + LEAST_LENGTH)


def mapped_values(linear_map: LinearMap | None, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what distances of images ``[..., d]`` are measured from ``[..., k]``, and its error in l2 ``[...]``."""
    if linear_map is None:
        return values, np.zeros(values.shape[:-1])
    size = values.shape[-1]
    bound = np.abs(values) @ np.abs(linear_map.matrix).T
    moved = gamma(size + 2) * np.sqrt(sq_lengths(bound)) * (1 + gamma(size + bound.shape[-1] + 8))
    return values @ linear_map.matrix.T, moved


def raised(sq_distances: Any, moved: Any) -> Any:
    """Return by how much squared distances may be off when the image is by ``moved`` in l2: 2 sqrt(D) e + e^2."""
    if not np.any(moved):
        return 0.0
    return (2 * np.sqrt(np.maximum(sq_distances, 0)) + moved) * moved * (1 + gamma(8))


def in_pixels(linear_map: LinearMap, gaps: np.ndarray, norm: str, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``M' g`` ``[..., d]`` of g ``[..., k]``, and its error ``[...]`` in the norm dual to ``norm``.

    ``moved [...]`` is the error of g in l2.
    """
    count, size = linear_map.matrix.shape
    # Entries of differences g are rounded once, before the products.
    error = (gamma(count + 4) * dual_norms("l2", gaps) + moved) * (1 + gamma(count + 8)) * linear_map.frobenius
    return gaps @ linear_map.matrix, error * (math.sqrt(size) * (1 + gamma(4)) if norm == "linf" else 1)
