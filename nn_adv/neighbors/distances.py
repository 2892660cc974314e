"""Distances between a tile of queries and a block of points: fast ones to screen with, exact ones to decide with.

Between uint8 images every kernel is exact in int32. For floats the fast kernels carry an error; a ceiling
bounds it, so a search can prove what it left out. Nothing here knows about labels or neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv import pixels

# Columns added per pass over an elementwise tile: more are slower, and 128 * 255 no longer fits int16.
_UNROLL = 16
_UNIT_ROUNDOFF = 2.0**-24
_LEAST_NORMAL = 2.0**-126  # smaller float32 numbers, read or computed, count as 0


def float64_norms(rows: chex.Array) -> jax.Array:
    """Return euclidean norms ``[Q]`` of ``[Q, d]``, summed in float64 and rounded once to float32."""
    with jax.enable_x64(True):
        return jnp.sqrt(jnp.sum(jnp.square(rows.astype(jnp.float64)), axis=-1)).astype(jnp.float32)


def expanded_sq_l2(query_sq_norms: chex.Array, sq_norms: chex.Array, products: chex.Array) -> jax.Array:
    """Return squared distances ``[Q, b]`` from squared norms ``[Q]`` and ``[b]`` and inner products, in their type."""
    return query_sq_norms[:, None] + (sq_norms[None] - 2 * products)


def elementwise_tile(norm: str, queries: chex.Array, points: chex.Array) -> jax.Array:
    """Return l1 or linf distances of ``[Q, d]`` to ``[b, d]``: int16 inputs give exact int32, float32 rounded float32.

    Points run along the vector lanes and a few columns are added per pass, so the accumulator stays in registers
    and no ``[Q, b, d]`` array exists.
    """
    extra = -queries.shape[-1] % _UNROLL
    queries = jnp.pad(queries, ((0, 0), (0, extra)))
    columns = jnp.pad(points, ((0, 0), (0, extra))).T
    combine = jnp.add if norm == "l1" else jnp.maximum
    is_integer = queries.dtype == jnp.int16
    # The bits of floats that are not negative order as the floats do, and a maximum of integers is one instruction.
    as_bits = norm == "linf" and not is_integer

    def term(q, z):
        difference = jnp.abs(q - z)
        return lax.bitcast_convert_type(difference, jnp.int32) if as_bits else difference

    def add_columns(step, total):
        q = lax.dynamic_slice_in_dim(queries, step * _UNROLL, _UNROLL, axis=1)
        z = lax.dynamic_slice_in_dim(columns, step * _UNROLL, _UNROLL, axis=0)
        part = functools.reduce(combine, [term(q[:, j, None], z[j][None]) for j in range(_UNROLL)])
        return combine(total, part.astype(total.dtype))

    dtype = jnp.int32 if is_integer or as_bits else jnp.float32
    start = jnp.zeros((queries.shape[0], points.shape[0]), dtype)
    total = lax.fori_loop(0, columns.shape[0] // _UNROLL, add_columns, start)
    return lax.bitcast_convert_type(total, jnp.float32) if as_bits else total


def float64_distances(norm: str, query: chex.Array, points: chex.Array) -> jax.Array:
    """Return float64 distances (squared for l2) of one query ``[d]`` to points ``[m, d]``; call under enable_x64.

    Between uint8 images they are exact integers, in units of 1/255.
    """
    if query.dtype == points.dtype == jnp.uint8:
        difference = points.astype(jnp.float64) - query.astype(jnp.float64)
    else:
        difference = pixels.float64_pixels(points) - pixels.float64_pixels(query)
    if norm == "l2":
        return jnp.sum(jnp.square(difference), axis=-1)
    return (jnp.sum if norm == "l1" else jnp.max)(jnp.abs(difference), axis=-1)


def l2_ceiling(query_norms: chex.Array, rounding: chex.Array, terms: int) -> Callable[[chex.Array], jax.Array]:
    """Return U with: any point within distance t of the query has a screening score of at most U(t).

    The screen computes ``|q|^2 - 2 q.z + |z|^2`` in float32 for a query moved by at most ``rounding``, so the exact
    score is at most ``(t + rounding)^2``. Each inner product of m terms errs by at most ``gamma_m |q| |z|``
    (Higham 2002, "Accuracy and stability of numerical algorithms", 3.1), and ``|z| <= |q| + t + rounding``.
    Underflow may move every pixel, and change every product, by a few times the least normal number.
    """
    gamma = (terms + 16) * _UNIT_ROUNDOFF * 1.01
    moved, lost = 4 * np.sqrt(terms) * _LEAST_NORMAL, (4 * terms + 64) * _LEAST_NORMAL

    def ceiling(distance):
        reach = distance * (1 + 1e-5) + rounding + np.float32(moved)
        return reach**2 * (1 + 1e-5) + gamma * (2 * query_norms + reach) ** 2 + np.float32(lost)

    return ceiling


def elementwise_ceiling(norm: str, size: int) -> Callable[[chex.Array], jax.Array]:
    """Return U as `l2_ceiling` does, for direct scores: a sum (l1) or the largest (linf) of ``size`` rounded terms."""
    terms = size if norm == "l1" else 1
    share, lost = (terms + 16) * _UNIT_ROUNDOFF * 1.01, (4 * terms + 64) * _LEAST_NORMAL
    return lambda distance: distance * np.float32(1 + share) + np.float32(lost)
