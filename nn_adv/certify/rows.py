"""The points of a reference as NumPy arrays: what host code looks at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nn_adv.neighbors import Reference
from nn_adv.neighbors.reference import NO_POINT

SEVERAL = -2  # more than one


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
    ends = np.array([points.min(axis=1)[is_point].min(), points.max(axis=1)[is_point].max()])
    low, high = pixel_values(ends, np.float64)
    return Rows(points, origins, labels, row_of, float(low), float(high - low))


def pixel_values(points: np.ndarray, dtype) -> np.ndarray:
    """Return the numbers that points stand for: uint8 pixels are ``v / 255`` rounded to float32."""
    if points.dtype == np.uint8:
        points = points.astype(np.float32) / np.float32(255)
    return points.astype(dtype)


def earlier_copies(rows: Rows) -> np.ndarray:
    """Return for every row ``[R]`` the row of the equal point of lower index: -1 for none, `SEVERAL` for more than one.

    Equal points are equally far from any image, so of those present 1NN only ever predicts the one of lowest index,
    whatever their classes. At most one point is left out: a row with one copy before it counts where that is left out,
    one with several never.
    """
    found = np.full(len(rows.points), -1, np.int64)
    # Equal rows have equal sums, and few others have: only those are compared.
    whole, half = (part.sum(axis=1, dtype=np.float64) for part in (rows.points, rows.points[:, ::2]))
    _, group, count = np.unique(whole + np.sqrt(2) * half, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    second: dict[bytes, int] = {}
    order = np.argsort(rows.origins, kind="stable")
    for row in order[(count[group] > 1)[order] & (rows.labels[order] >= 0)].tolist():
        pixels = (rows.points[row] + 0).tobytes()  # -0 is 0
        if first.setdefault(pixels, row) != row:
            found[row] = first[pixels] if second.setdefault(pixels, row) == row else SEVERAL
    return found


def pixel_scale(rows: Rows, images: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return a power of two that no pixel of the image or its nearest witness exceeds, for images ``[B, d]``.

    The least that no pixel of image and points exceeds, or less where points farther than ``reach [B]``, the distance
    of an opponent, are larger. What depends on the spacing of float32 pixels is stated for 1 and scaled by it.
    """
    largest = np.abs(images).max(axis=1)
    largest_point = max(abs(rows.lowest_pixel), abs(rows.lowest_pixel + rows.spread))
    largest = np.minimum(np.maximum(largest, largest_point), largest + reach)
    return np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1))))
