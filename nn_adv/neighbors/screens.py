"""Fast scores of a block of points for a batch of queries, and how far they can be from the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv import precision
from nn_adv.neighbors import distances
from nn_adv.neighbors.linear import map_queries
from nn_adv.neighbors.reference import NO_POINT, Reference, sums_fit_int32
from nn_adv.pixels import as_float


class Screen(NamedTuple):
    """How to score blocks for one batch of queries."""

    queries: chex.Array  # [Q, d], in the dtype that decides: uint8, or float32; mapped ones [Q, k] in float64
    # Scores [Q, b] of the block with a number, in units that only compare; int32 scores are exact.
    tile: Callable[[chex.Array], chex.Array]
    # Highest score [Q] of any point within a distance [Q]; None where scores are exact integers.
    ceiling: Callable[[chex.Array], chex.Array] | None


def largest(dtype) -> chex.Array:
    """Return the score of no point: infinity, or the largest int32."""
    return jnp.asarray(jnp.inf, dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.asarray(NO_POINT, dtype)


def make_screen(reference: Reference, queries: chex.Array, norm: str) -> Screen:
    """Return the fastest screen for queries ``[Q, d]``: exact integers between uint8 images, else bounded floats.

    Integers are floats too where their sums may not fit int32. With a linear map (l2 only) the blocks are those of
    `Reference.searched`.
    """
    if reference.mapped is not None:
        return _float_l2_screen(reference.mapped, map_queries(reference.linear_map, queries))
    points_are_integers = reference.blocks.dtype == jnp.uint8
    if queries.dtype == jnp.uint8 and not points_are_integers:
        queries = as_float(queries)
    is_exact = queries.dtype == jnp.uint8 and sums_fit_int32(norm, queries.shape[-1])
    if norm != "l2":
        return _elementwise_screen(reference, queries, norm, is_exact)
    if is_exact:
        return _integer_l2_screen(reference, queries)
    return (_pixel_l2_screen if points_are_integers else _float_l2_screen)(reference, queries)


def _elementwise_screen(reference: Reference, queries: chex.Array, norm: str, is_exact: bool) -> Screen:
    in_integers = queries.dtype == jnp.uint8
    dtype = jnp.int16 if is_exact else jnp.float32
    values = queries.astype(dtype)

    def tile(number):
        points = reference.blocks[number]
        points = points.astype(dtype) if in_integers else as_float(points)
        scores = distances.elementwise_tile(norm, values, points)
        return jnp.where(reference.index[number][None] == NO_POINT, largest(scores.dtype), scores)

    if is_exact:
        return Screen(queries, tile, None)
    bound = distances.elementwise_ceiling(norm, queries.shape[-1])
    return Screen(queries, tile, lambda distance: bound(distance * 255 if in_integers else distance))


def _integer_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    product = reference.products.integers
    centered = precision.centered_pixels(queries, product)
    norms = jnp.sum(jnp.square(queries.astype(jnp.int32) - 128), axis=-1, dtype=jnp.int32)

    def tile(number):
        points = precision.centered_pixels(reference.blocks[number], product)
        products = precision.integer_products(centered, points, product)
        return distances.expanded_sq_l2(norms, reference.sq_norms[number], products)

    return Screen(queries, tile, None)


def _pixel_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    """Screen against uint8 points, exact in any product, as uint8 queries are; others are moved a little."""
    product = reference.products.floats
    size, in_integers = queries.shape[-1], queries.dtype == jnp.uint8
    exact = queries.astype(jnp.float32) - 128 if in_integers else queries * 255 - 128
    centered, moved = precision.rounded(exact, product)
    rounding = jnp.zeros(len(queries), jnp.float32)
    if not in_integers:
        # Rounding of 255 q, and of the float32 pixel v / 255 that a point means, in units of 1/255.
        slack = np.float32(6e-5 * np.sqrt(size)) * jnp.maximum(1, jnp.max(jnp.abs(queries), axis=-1))
        rounding = distances.float64_norms(exact - moved) * 1.001 + slack
    norms = distances.float64_norms(moved)

    def tile(number):
        points = precision.centered_pixels(reference.blocks[number], product)
        products = precision.float_products(centered, points, product)
        return distances.expanded_sq_l2(norms**2, reference.sq_norms[number], products)

    bound = distances.l2_ceiling(norms, rounding, size)
    return Screen(queries, tile, lambda distance: bound(distance * 255))


def _float_l2_screen(reference: Reference, queries: chex.Array) -> Screen:
    if queries.dtype == jnp.float64:
        with jax.enable_x64(True):
            centered = (queries - reference.center.astype(jnp.float64)).astype(jnp.float32)
    else:
        centered = queries - reference.center
    norms = distances.float64_norms(centered)

    def tile(number):
        products = precision.matmul_t(centered, reference.blocks[number] - reference.center)
        return distances.expanded_sq_l2(norms**2, reference.sq_norms[number], products)

    return Screen(queries, tile, distances.l2_ceiling(norms, norms * 2.0**-22, queries.shape[-1]))
