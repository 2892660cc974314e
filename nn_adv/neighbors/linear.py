"""The metric ``||M (x - z)||``: points mapped once, images when they are asked about, both in float64."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv import pixels
from nn_adv.border import as_array

_IMAGES_AT_A_TIME = 1024


def as_linear_map(values: Any, size: int) -> np.ndarray:
    """Return M ``[k, size]`` as float32.

    Raises:
      ValueError: another shape, another kind of numbers, or one that is not finite in float32.
    """
    array = as_array(values, "linear_map")
    if array.ndim != 2 or array.shape[1] != size or not len(array):
        raise ValueError(f"linear_map must be [k, {size}], a column for each pixel, got shape {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"linear_map must be floating point, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # found below
        linear_map = np.asarray(array).astype(np.float32)
    if not np.isfinite(linear_map).all():
        row, column = np.argwhere(~np.isfinite(linear_map))[0].tolist()
        raise ValueError(f"linear_map must be finite, got {linear_map[row, column]} at row {row}, column {column}")
    return linear_map


def map_points(linear_map: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return ``M z`` of points ``[n, d]``, computed in float64 and rounded to float32, ``[n, k]``."""
    exact = linear_map.astype(np.float64).T
    mapped = np.empty((len(points), len(linear_map)), np.float32)
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as points
        for start in range(0, len(points), _IMAGES_AT_A_TIME):
            part = points[start : start + _IMAGES_AT_A_TIME]
            part = part.astype(np.float32) / np.float32(255) if part.dtype == np.uint8 else part
            mapped[start : start + len(part)] = part.astype(np.float64) @ exact
    return mapped


def map_queries(linear_map: chex.Array, queries: chex.Array) -> jax.Array:
    """Return ``M x`` of queries ``[Q, d]`` in float64, ``[Q, k]``; jittable, whether or not float64 is enabled."""
    with jax.enable_x64(True):
        return pixels.float64_pixels(queries) @ pixels.float64_pixels(linear_map).T
