"""Checks of what a certificate is asked about, before any long work: images, labels, pixel bounds, left-out points."""

from __future__ import annotations

from typing import NamedTuple

import chex
import numpy as np

from nn_adv.border import as_bounds, as_images, as_integers, as_labels
from nn_adv.neighbors import Reference
from nn_adv.neighbors.units import check_squares, other_units, within_unit_range


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
      images: ``[B, ...]``, uint8 or float, or nested lists of floats. B may be 0.
      labels: ``[B]``.
      bounds: lowest and highest pixel value, which images and points keep to; or None.
      leave_out: ``[B]`` index of a point, -1 for none; or None.
      are_embedded_later: whether the points are embedded ones, so that the images are no images like them.

    Raises:
      ValueError: images, labels, bounds or left-out points of a wrong shape, type or range, or images in other units
        than the points or bounds.
    """
    box = check_bounds(bounds)
    size = None if are_embedded_later else reference.blocks.shape[-1]
    images = np.asarray(as_images(images, num_pixels=size, float_dtype=np.float32))
    if not are_embedded_later:
        _check_units(reference, images, box)
    as_images(images, bounds=box)
    labels = as_labels(labels, reference.num_classes, count=len(images))
    return Queries(images, labels, box, check_leave_out(reference, leave_out, len(images)))


def check_leave_out(reference: Reference, leave_out: chex.Array | None, count: int) -> chex.Array:
    """Return the index of the point that each of ``count`` images may not use, -1 for none.

    Raises:
      ValueError: what is no such index for each image.
    """
    if leave_out is None:
        return np.full(count, -1, np.int32)
    num_points = reference.num_points
    limits = {} if num_points is None else {"high": num_points - 1}
    return as_integers(leave_out, "leave_out", low=-1, count=count, **limits)


def check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return bounds rounded to float32, refusing what is not a lowest and a highest pixel value.

    Raises:
      ValueError: bounds that are not two numbers in order.
    """
    ends = as_bounds(bounds)
    return None if ends is None else as_bounds(tuple(float(np.float32(end)) for end in ends))


def check_scale(reference: Reference, images: np.ndarray) -> None:
    """Refuse points or checked images ``[B, ...]`` of which float32 cannot hold squared distances.

    Raises:
      ValueError: as `check_squares`.
    """
    size = reference.blocks.shape[-1]
    check_squares("points of the reference", float(np.max(np.abs(reference.pixel_range))), size)
    if images.dtype != np.uint8 and len(images):
        check_squares("images", float(max(images.max(), -images.min(), np.max(np.abs(reference.pixel_range)))), size)


def _check_units(reference: Reference, images: np.ndarray, box: tuple[float, float] | None) -> None:
    """Refuse images, points and a box that cannot belong together."""
    problem = other_units(reference, images, "images")
    if problem:
        raise ValueError(problem)
    if box is None:
        return
    if np.uint8 in (images.dtype, reference.blocks.dtype) and not within_unit_range(*box):
        raise ValueError(f"bounds must be in the units of the pixels, where uint8 v stands for v / 255, got {box}")
    low, high = np.asarray(reference.pixel_range)
    if low < box[0] or high > box[1]:
        # As float32: the fewest digits that tell the numbers apart.
        ends = ", ".join(str(np.float32(end)) for end in box)
        raise ValueError(
            f"points of the reference must be inside the bounds ({ends}), got pixels from {low!s} to {high!s}"
        )
