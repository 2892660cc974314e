"""What a search is asked: queries, points left out, and whether images and points can be in the same units."""

from __future__ import annotations

import math
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.border import as_images, as_integers
from nn_adv.neighbors.reference import Reference
from nn_adv.neighbors.streamed import Streamed
from nn_adv.threat import check_norm

# Pixels of 0..1 lie no farther outside [0, 1] than this, whatever was done to them.
_UNIT_RANGE = (-0.5, 1.5)
# Floats of this mean size are no pixels of 0..1.
_MEAN_SIZE = 2.0
# Largest pixels of which float32 holds the squares of distances (times the square root of d), with some digits.
_LEAST, _MOST = 2.0**-50, 2.0**60


def check_reference(reference: Reference | Streamed, *, on_disk: bool = True) -> None:
    """Raise ValueError for what is no reference, and where ``on_disk`` is not possible for points on disk."""
    if not isinstance(reference, (Reference, Streamed)):
        raise ValueError(f"reference must be from neighbors.fit, shard or stream, got {type(reference).__name__}")
    if not on_disk and isinstance(reference, Streamed):
        raise ValueError("reference must be from neighbors.fit or shard here, got points on disk")


def flatten_queries(reference: Reference | Streamed, queries: chex.Array) -> chex.Array:
    """Return queries as ``[Q, d]``, uint8 or float32, after checking them; inside jit, their shape and dtype."""
    check_reference(reference)
    queries = as_images(queries, name="queries", num_pixels=reference.size, float_dtype=np.float32)
    problem = other_units(reference, queries, "queries")
    if problem and queries.dtype == np.uint8:
        raise ValueError(problem)
    if problem:  # floats may lie anywhere
        warnings.warn(problem, stacklevel=3)
    queries = queries.reshape(len(queries), reference.size)
    # In a cluster an array of one process is no argument beside those of a mesh, one of the host is.
    return jnp.asarray(queries) if reference.mesh is None or not isinstance(queries, np.ndarray) else queries


def check_metric(reference: Reference | Streamed, norm: str) -> None:
    """Raise ValueError for an unknown norm, and for one that the points of a linear map are not measured in."""
    check_norm(norm)
    check_reference(reference)
    if reference.mapped is not None and norm != "l2":
        raise ValueError(f"norm must be 'l2' for a reference with a linear_map, got {norm!r}")


def check_unmapped(reference: Reference | Streamed) -> None:
    """Raise ValueError for points with a linear map, where distances between pixels are meant."""
    check_reference(reference)
    if reference.mapped is not None:
        raise ValueError("reference must be fitted without a linear_map, got one with it")


def check_leave_out(reference: Reference | Streamed, leave_out: chex.Array | None, count: int) -> chex.Array:
    """Return the index of the point that each of ``count`` images may not use, -1 for none.

    Raises:
      ValueError: what is no such index for each image.
    """
    if leave_out is None:
        return np.full(count, -1, np.int32)
    num_points = reference.num_points
    limits = {} if num_points is None else {"high": num_points - 1}
    return as_integers(leave_out, "leave_out", low=-1, count=count, **limits)


def other_units(reference: Reference | Streamed, images: chex.Array, name: str) -> str | None:
    """Say in one line why images ``[N, ...]`` cannot be in the units of the points; None where they can, or inside jit.

    uint8 pixels v stand for v / 255, so floats beside them must be pixels of 0..1.
    """
    points_are_integers, in_integers = (array.dtype == np.uint8 for array in (reference, images))
    if any(isinstance(array, jax.core.Tracer) for array in (reference.pixel_range, images)):
        return None
    low, high = np.asarray(reference.pixel_range).tolist()
    if in_integers and not points_are_integers and not within_unit_range(low, high):
        return (
            f"{name} must be in the units of the points: uint8 pixels v stand for v / 255, but the points lie between "
            f"{low:.6g} and {high:.6g}; fit the points as uint8, or give {name} as floats in their units"
        )
    if in_integers or not points_are_integers or not len(images):
        return None
    # The mean is looked at only where it can be so large.
    size = max(-float(images.min()), float(images.max()))
    size = float(abs(images).mean()) if size > _MEAN_SIZE else size
    if size > _MEAN_SIZE:
        return (
            f"{name} must be in the units of the points: uint8 points v stand for v / 255, but the pixels of {name} "
            f"are {size:.6g} in size on average; divide pixels of 0..255 by 255, or give them as uint8"
        )
    return None


def within_unit_range(low: float, high: float) -> bool:
    """Return whether pixels between two numbers may be pixels of 0..1."""
    return _UNIT_RANGE[0] <= low and high <= _UNIT_RANGE[1]


def check_squares(name: str, largest: float, size: int, factor_of: str = "points and images") -> None:
    """Raise ValueError where float32 cannot hold squared distances between images of ``size`` pixels up to ``largest``.

    The message says what to multiply.
    """
    most = _MOST / math.sqrt(size)
    if largest == 0 or _LEAST <= largest <= most:
        return
    raise ValueError(
        f"{name} must have a largest pixel between {_LEAST:.3g} and {most:.3g} in size, whose squares float32 holds, "
        f"got {largest:.6g}; multiply {factor_of} by a power of two"
    )
