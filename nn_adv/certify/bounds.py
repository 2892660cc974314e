"""Cheap bounds that leave few opponents: distances first, then one constraint at a time.

For an image x with nearest own-class point i at squared distance D_i, an opponent j wins only where
``||u - z_j|| <= ||u - z_i||``, so by the triangle inequality ``r_j >= (sqrt(D_j) - sqrt(D_i)) / 2`` in l2 (Hagai &
Weiss 2024): one distance product rules out all but the nearest opponents, whatever their number. For those,
``r_j >= max_i h_ij / ||g_ij||_q`` over a few own points, with q the dual norm (``g_ij = z_j - z_i``,
``h_ij = (D_j - D_i) / 2``).
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv import pixels
from nn_adv.neighbors.distances import float64_distances
from nn_adv.neighbors.reference import Reference
from nn_adv.neighbors.screens import make_screen


@jax.jit
def screen(reference: Reference, queries: chex.Array) -> jax.Array:
    """Return scores ``[Q, rows]`` that order the points by distance, up to the error that `score_ceiling` bounds."""
    tile = make_screen(reference, queries, "l2").tile
    scores = lax.map(lambda number: tile(number).astype(jnp.float32), jnp.arange(reference.blocks.shape[0]))
    return jnp.moveaxis(scores, 0, 1).reshape(len(queries), -1)


@jax.jit
def score_ceiling(reference: Reference, queries: chex.Array, distances: chex.Array) -> jax.Array:
    """Return the highest score ``[Q]`` that `screen` can give a point within an l2 distance ``[Q]``."""
    ceiling = make_screen(reference, queries, "l2").ceiling
    if ceiling is not None:
        return ceiling(distances)
    return jnp.square(distances * 255) * (1 + 1e-5)


@functools.partial(jax.jit, static_argnames="count")
def lowest(scores: chex.Array, usable: chex.Array, *, count: int) -> jax.Array:
    """Return the rows ``[Q, count]`` with the lowest scores among the usable, -1 where there are fewer."""
    values, rows = lax.top_k(jnp.where(usable, -scores, -jnp.inf), count)
    return jnp.where(jnp.isfinite(values), rows, -1)


def reach(norm: str, radius: chex.Array, size: int) -> chex.Array:
    """Return how far, in l2, an lp perturbation of ``radius`` can move an image of ``size`` pixels."""
    return radius * np.sqrt(size) if norm == "linf" else radius


@functools.partial(jax.jit, static_argnames="norm")
def single(
    reference: Reference,
    queries: chex.Array,
    image: chex.Array,
    opponents: chex.Array,
    anchors: chex.Array,
    *,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """Return squared distances ``[T, K]`` to opponents and the best bound from one constraint, in float64.

    Call under ``jax.enable_x64(True)``.

    Args:
      reference: points from `fit`.
      queries: images ``[Q, d]``.
      image: which query each of T lists is about ``[T]``.
      opponents: rows ``[T, K]``, -1 for none.
      anchors: own-class rows ``[T, m]``, -1 for none.
      norm: of the perturbation.
    """
    points = reference.blocks.reshape(-1, reference.blocks.shape[-1])

    def one(inputs):
        image, opponents, anchors = inputs
        query = values64(queries[image])
        near = values64(points[anchors])
        far = values64(points[opponents])
        sq_near = float64_distances("l2", query, near)
        sq_far = float64_distances("l2", query, far)

        def bound(inputs):
            own, sq_own, is_anchor = inputs
            gap = far - own
            length = {
                "l2": lambda: jnp.sqrt(jnp.sum(jnp.square(gap), axis=1)),
                "linf": lambda: jnp.sum(jnp.abs(gap), axis=1),
                "l1": lambda: jnp.max(jnp.abs(gap), axis=1),
            }[norm]()
            height = (sq_far - sq_own) / 2
            return jnp.where(is_anchor & (length > 0), height / jnp.where(length > 0, length, 1), 0)

        bounds = lax.map(bound, (near, sq_near, anchors >= 0)).max(axis=0)
        return sq_far, jnp.where(opponents >= 0, jnp.maximum(bounds, 0), jnp.inf)

    return lax.map(one, (image, opponents, anchors))


def values64(images: chex.Array) -> jax.Array:
    """Return the pixel values the library works with, as float64; call under ``jax.enable_x64(True)``."""
    return pixels.float64_pixels(images) if images.dtype == jnp.uint8 else images.astype(jnp.float64)
