"""Fast scores of a block of points for a batch of queries, and how far they can be from the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from nn_adv.neighbors import distances
from nn_adv.neighbors.reference import NO_POINT, Reference
from nn_adv.pixels import as_float


class Screen(NamedTuple):
    """How to score blocks for one batch of queries.

    Attributes:
      queries: ``[Q, d]``, in the dtype that decides: uint8, or float32.
      tile: scores ``[Q, b]`` of the block with a number, in units that only compare; int32 scores are exact.
      ceiling: highest score ``[Q]`` of any point within a distance ``[Q]``; None where scores are exact integers.
    """

    queries: chex.Array
    tile: Callable[[chex.Array], chex.Array]
    ceiling: Callable[[chex.Array], chex.Array] | None


def largest(dtype) -> chex.Array:
    """Return the score of no point: infinity, or the largest int32."""
    return jnp.asarray(jnp.inf, dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.asarray(NO_POINT, dtype)


def make_screen(reference: Reference, queries: chex.Array, norm: str) -> Screen:
    """Return the fastest screen for queries ``[Q, d]``: exact integers if both sides are uint8, else bounded floats."""
    points_are_integers = reference.blocks.dtype == jnp.uint8
    if queries.dtype == jnp.uint8 and not points_are_integers:
        queries = as_float(queries)
    is_integer = queries.dtype == jnp.uint8
    if norm == "l2" and is_integer:
        return _integer_l2_screen(reference, queries)
    if norm == "l2":
        return (_pixel_l2_screen if points_are_integers else _float_l2_screen)(reference, queries)

    def tile(number):
        points = reference.blocks[number]
        if is_integer:
            return distances.elementwise_tile(norm, queries.astype(jnp.int16), points.astype(jnp.int16))
        points = as_float(points)
        return distances.elementwise_tile(norm, queries, points)

    def masked_tile(number):
        scores = tile(number)
        return jnp.where(reference.index[number][None] == NO_POINT, largest(scores.dtype), scores)

    return Screen(queries, masked_tile, None if is_integer else distances.elementwise_ceiling(norm, queries.shape[-1]))


def _integer_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    centered = distances.centered_pixels(queries)
    norms = jnp.sum(jnp.square(queries.astype(jnp.int32) - 128), axis=-1)

    def tile(number):
        return distances.integer_sq_l2(centered, norms, reference.blocks[number], reference.sq_norms[number])

    return Screen(queries, tile, None)


def _pixel_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    """Screen float queries against uint8 points in bfloat16: the points are exact, the queries are moved a little."""
    exact = queries * 255 - 128
    centered, moved = distances.round_to_bfloat16(exact)
    size = queries.shape[-1]
    # Rounding of 255 q, and of the float32 pixel v / 255 that a point means, in units of 1/255.
    slack = 6e-5 * np.sqrt(size) * jnp.maximum(1, jnp.max(jnp.abs(queries), axis=-1))
    rounding = distances.float64_norms(exact - moved) * 1.001 + slack
    norms = distances.float64_norms(moved)

    def tile(number):
        return distances.pixel_sq_l2(centered, norms**2, reference.blocks[number], reference.sq_norms[number])

    bound = distances.l2_ceiling(norms, rounding, size)
    return Screen(queries, tile, lambda distance: bound(distance * 255))


def _float_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    centered = queries - reference.center
    norms = distances.float64_norms(centered)

    def tile(number):
        points = reference.blocks[number] - reference.center
        return distances.float_sq_l2(centered, norms**2, points, reference.sq_norms[number])

    return Screen(queries, tile, distances.l2_ceiling(norms, norms * 2.0**-22, queries.shape[-1]))
