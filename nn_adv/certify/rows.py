"""The points of a reference as NumPy arrays: what host code looks at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nn_adv.neighbors import Reference
from nn_adv.neighbors.reference import NO_POINT


class Rows(NamedTuple):
    """The points of a reference on the host, block after block.

    Attributes:
      points: ``[R, d]``, uint8 or float32.
      origins: ``[R]`` original index, `NO_POINT` in the padding.
      labels: ``[R]`` class, -1 in the padding.
      row_of: ``[n]`` the row of each point by its original index.
      lowest_pixel: no pixel of the points is below.
      spread: largest difference between two pixels of the points.
    """

    points: np.ndarray
    origins: np.ndarray
    labels: np.ndarray
    row_of: np.ndarray
    lowest_pixel: float
    spread: float


def host_rows(reference: Reference) -> Rows:
    """Return the points of a reference as NumPy arrays."""
    points = np.asarray(reference.blocks).reshape(-1, reference.blocks.shape[-1])
    origins = np.asarray(reference.index).reshape(-1)
    is_point = origins != NO_POINT
    labels = np.where(is_point, np.asarray(reference.labels)[np.where(is_point, origins, 0)], -1)
    row_of = np.empty(is_point.sum(), np.int64)
    row_of[origins[is_point]] = np.flatnonzero(is_point)
    low, high = pixel_values(np.array([points.min(), points.max()]), np.float64)
    return Rows(points, origins, labels, row_of, float(low), float(high - low))


def pixel_values(points: np.ndarray, dtype) -> np.ndarray:
    """Return the numbers that points stand for: uint8 pixels are ``v / 255`` rounded to float32."""
    if points.dtype == np.uint8:
        points = points.astype(np.float32) / np.float32(255)
    return points.astype(dtype)


def cross_class_copies(rows: Rows) -> list[tuple[int, int]]:
    """List (row, row of an exact copy of lower index in another class): where the copy votes, the row never wins."""
    sums = rows.points.sum(axis=1, dtype=np.float64)  # equal rows have equal sums: only those are compared
    _, group, count = np.unique(sums, return_inverse=True, return_counts=True)
    earlier: dict[bytes, list[int]] = {}
    found = []
    order = np.argsort(rows.origins, kind="stable")
    for row in order[(count[group] > 1)[order] & (rows.labels[order] >= 0)].tolist():
        copies = earlier.setdefault((rows.points[row] + 0).tobytes(), [])
        found += [(row, copy) for copy in copies if rows.labels[copy] != rows.labels[row]]
        copies.append(row)
    return found
