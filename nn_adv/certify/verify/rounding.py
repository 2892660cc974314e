"""Rounding in NumPy float64, bounded as in Higham 2002, "Accuracy and stability of numerical algorithms", 3."""

from __future__ import annotations

import numpy as np

_UNIT_ROUNDOFF = 2.0**-53
LEAST_SINGLE = 2.0**-120  # more than two float32 numbers lose whose product is too small for the type
LEAST_LENGTH = 1e-300  # no division by zero, and no infinite radius times zero


def gamma(count: int) -> float:
    """Return the largest relative error of ``count`` roundings in a row: ``count u / (1 - count u)``."""
    return count * _UNIT_ROUNDOFF / (1 - count * _UNIT_ROUNDOFF)


def single_gamma(count: int) -> float:
    """Return `gamma` of roundings to float32."""
    return gamma(count * 2**29) if count < 2**23 else np.inf


def pixel_values(images: np.ndarray) -> np.ndarray:
    """Return the float64 values of images: uint8 means float32(v / 255), others are rounded to float32."""
    return single_values(images).astype(np.float64)


def single_values(images: np.ndarray) -> np.ndarray:
    """Return the same as float32, which holds them."""
    if images.dtype == np.uint8:
        return np.divide(images, np.float32(255), dtype=np.float32)
    return images.astype(np.float32, copy=False)


def sq_lengths(vectors: np.ndarray) -> np.ndarray:
    """Return squared l2 norms over the last axis; of rounded differences they err by ``gamma(d + 2)`` at most."""
    return np.einsum("...d,...d->...", vectors, vectors)


def dual_norms(norm: str, vectors: np.ndarray) -> np.ndarray:
    """Return, over the last axis, the norm dual to ``norm``."""
    if norm == "l2":
        return np.sqrt(sq_lengths(vectors))
    sizes = np.abs(vectors)
    return sizes.max(axis=-1, initial=0) if norm == "l1" else sizes.sum(axis=-1)


def quotient(target: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return ``target / length`` rounded down, 0 where the target is not positive or one of them is NaN."""
    with np.errstate(over="ignore"):
        return np.fmax(np.where(target > 0, target / np.maximum(length, LEAST_LENGTH) * (1 - gamma(8)), 0), 0)


def box_room(values: np.ndarray, bounds: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each pixel may fall (as a negative number) and rise, rounded outwards."""
    if bounds is None:
        return np.full_like(values, -np.inf), np.full_like(values, np.inf)
    if (values < bounds[0]).any() or (values > bounds[1]).any():
        raise ValueError(f"images must be inside the bounds {bounds}, got {values.min()} to {values.max()}")
    return (bounds[0] - values) * (1 + gamma(4)), (bounds[1] - values) * (1 + gamma(4))
