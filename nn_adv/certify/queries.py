"""Checks of what a certificate is asked about, before any long work: images, labels, pixel bounds, left-out points."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.neighbors import Reference
from nn_adv.neighbors.reference import NO_POINT


class Queries(NamedTuple):
    """Checked arguments: NumPy arrays, bounds as the float32 numbers they stand for, -1 where no point is left out."""

    images: np.ndarray
    labels: np.ndarray
    bounds: tuple[float, float] | None
    leave_out: np.ndarray


def check_queries(
    reference: Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    bounds: tuple[float, float] | None = None,
    leave_out: chex.Array | None = None,
    are_embedded_later: bool = False,
) -> Queries:
    """Refuse questions that make no sense.

    Bounds are pixel values, so they are rounded to float32 as pixels are: 0.2 is the float32 nearest to it, which a
    uint8 pixel of 51 is as well.

    Args:
      reference: points from `neighbors.fit`.
      images: ``[B, ...]``, uint8 or float, or nested lists of floats.
      labels: ``[B]``.
      bounds: lowest and highest pixel value, which images and points keep to; or None.
      leave_out: ``[B]`` index of a point, -1 for none; or None.
      are_embedded_later: whether the points are embedded ones, so that the images need not have as many pixels.

    Raises:
      ValueError: images, labels, bounds or left-out points of a wrong shape, type or range.
    """
    images = _as_images(images)
    if not are_embedded_later:
        _check_size(images, reference.blocks.shape[-1])
    labels = _check_integers("labels", labels, len(images), 0, reference.num_classes - 1)
    last = int(reference.num_points or 0) - 1
    leave_out = np.full(len(images), -1) if leave_out is None else leave_out
    leave_out = _check_integers("leave_out", leave_out, len(images), -1, last)
    box = check_bounds(bounds)
    _check_pixels("images", images, box)
    if box is not None:
        is_point = (reference.index != NO_POINT)[..., None]
        _check_pixels("points of the reference", reference.blocks, box, is_point)
    return Queries(images, labels, box, leave_out)


def check_counts(**counts: int) -> None:
    """Raise ValueError for a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return bounds rounded to float32, refusing what is not a lowest and a highest pixel value.

    Raises:
      ValueError: bounds that are not two numbers in order.
    """
    if bounds is None:
        return None
    ends = np.asarray(bounds, np.float32)
    if ends.shape != (2,) or not ends[0] < ends[1]:
        raise ValueError(f"bounds must be (lowest, highest) or None, got {bounds}")
    return float(ends[0]), float(ends[1])


def _as_images(images: chex.Array) -> np.ndarray:
    try:
        images = np.asarray(images)
    except ValueError:
        raise ValueError("images must be an array [B, ...], got a list of images of different shapes") from None
    if images.ndim == 0 or len(images) == 0:
        raise ValueError(f"images must hold at least one image, got shape {images.shape}")
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"images must be [B, ...] with at least one pixel each, got shape {images.shape}")
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or float, got dtype {images.dtype}")
    return images


def _check_size(images: np.ndarray, size: int) -> None:
    if images[0].size != size:
        raise ValueError(f"images must be [B, ...] with {size} pixels each, as the points, got shape {images.shape}")


def _check_integers(name: str, values: chex.Array, count: int, low: int, high: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be integers [{count}], got {values.dtype} of shape {values.shape}")
    outside = (values < low) | (values > high)
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(f"{name} must be at least {low} and at most {high}, got {values[first]} at index {first}")
    return values


@jax.jit
def _range(images: chex.Array, is_real: chex.Array) -> tuple[chex.Array, chex.Array]:
    """Return the least and the greatest pixel as float32, without the rows that only fill up a block."""
    values = images.astype(jnp.float32)
    return jnp.min(values, where=is_real, initial=jnp.inf), jnp.max(values, where=is_real, initial=-jnp.inf)


def _check_pixels(name: str, images: chex.Array, bounds, is_real: chex.Array | bool = True) -> None:
    if images.dtype == np.uint8:
        if bounds is None or (bounds[0] <= 0 and bounds[1] >= 1):
            return
        low, high = (np.float32(end) / np.float32(255) for end in _range(images, is_real))
    else:
        low, high = (np.float32(end) for end in _range(images, is_real))
    if not (np.isfinite(low) and np.isfinite(high)):
        # Only images can be: `neighbors.fit` takes no such points.
        is_finite = np.isfinite(np.asarray(images, np.float32).reshape(len(images), -1)).all(axis=1)
        raise ValueError(f"{name} must be finite, got NaN or infinity at index {int(np.argmin(is_finite))}")
    if bounds is not None and (low < bounds[0] or high > bounds[1]):
        # As float32: the fewest digits that tell the numbers apart.
        ends = ", ".join(str(np.float32(end)) for end in bounds)
        raise ValueError(f"{name} must be inside the bounds ({ends}), got pixels from {low!s} to {high!s}")
