"""Cheap bounds that leave few opponents: distances first, then one constraint at a time.

For an image x with nearest own-class point i at squared distance D_i, an opponent j wins only where
``||u - z_j|| <= ||u - z_i||``, so by the triangle inequality ``r_j >= (sqrt(D_j) - sqrt(D_i)) / 2`` in l2 (Hagai &
Weiss 2024): one distance product rules out all but the nearest opponents, whatever their number. For those,
``r_j >= max_i h_ij / ||g_ij||_q`` over a few own points, with q the dual norm (``g_ij = z_j - z_i``,
``h_ij = (D_j - D_i) / 2``). In linf distances rule out little where most pixels are black or white; there one more
product does (`linf_reach`).
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv import pixels
from nn_adv.certify.problems import l1_maximum, linf_root
from nn_adv.neighbors.distances import float64_distances, matmul_t
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


def distance_limit(norm: str, radius: np.ndarray, nearest: np.ndarray, size: int, spread: float) -> np.ndarray:
    """Return the l2 distance beyond which no opponent can win within ``radius``.

    Args:
      norm: of the perturbation.
      radius: ``[B]``.
      nearest: distance of the nearest own point ``[B]``.
      size: number of pixels.
      spread: largest difference of two pixels of the points, a bound on ``max |g|``.
    """
    limit = nearest + 2 * radius * (np.sqrt(size) if norm == "linf" else 1)
    if norm == "l1":  # h_ij <= g_ij . v <= max |g| ||v||_1
        limit = np.minimum(limit, np.sqrt(nearest**2 + 2 * spread * radius))
    return limit


@functools.partial(jax.jit, static_argnames="limits")
def linf_reach(
    reference: Reference,
    queries: chex.Array,
    anchors: chex.Array,
    epsilon: chex.Array,
    lowest_pixel: float,
    spread: float,
    *,
    limits: tuple[float, float] | None = None,
) -> jax.Array:
    """Return which points may win against single own-class points within epsilon in linf, booleans ``[Q, rows]``.

    Within epsilon and the limits each pixel moves by c +- w, so that ``g . v <= g . c + |g| . w``. Numbers p, q of
    [0, s] have ``|p - q| <= p + q - 2 p q / s``, with equality at the ends: a bound on ``|g|`` linear in z_j, so that
    one product of an own-class point bounds all opponents.

    Args:
      reference: points from `fit`.
      queries: images ``[Q, d]``.
      anchors: own-class rows ``[Q, m]``, -1 for none.
      epsilon: ``[Q]`` float32.
      lowest_pixel: no pixel of the points is below.
      spread: largest difference of two pixels of the points, above 0.
      limits: bounds of pixels.
    """
    points = reference.blocks.reshape(-1, reference.blocks.shape[-1])
    x, own = pixels.as_float(queries)[:, None], pixels.as_float(points[anchors])
    low, high = -epsilon[:, None, None], epsilon[:, None, None]
    if limits is not None:
        low, high = jnp.maximum(low, limits[0] - x), jnp.minimum(high, limits[1] - x)
    center, width = (low + high) / 2, (high - low) / 2
    slope = 1 - 2 * (own - lowest_pixel) / spread  # |g| <= (z_j - lowest) slope + (z_i - lowest)
    # h - g . c - |g| . w >= |z_j|^2 / 2 - z_j . normal + offset
    normal = x + center + width * slope
    offset = own * (x + center - own / 2) + width * (lowest_pixel * slope - (own - lowest_pixel))
    offset = jnp.where(anchors >= 0, jnp.sum(offset, axis=2), -jnp.inf)
    flat, length = normal.reshape(-1, x.shape[-1]), jnp.linalg.norm(normal, axis=2)

    def tile(block):
        z = pixels.as_float(block)
        sq = jnp.sum(jnp.square(z), axis=1)
        margins = sq / 2 - matmul_t(flat, z).reshape(*anchors.shape, -1) + offset[..., None]
        # Generous for rounding: what is ruled out wrongly all the same, the recheck finds.
        slack = 3e-6 * (sq + length[..., None] * jnp.sqrt(sq))
        return ~jnp.any(margins > slack, axis=1)

    reached = lax.map(tile, reference.blocks)
    return jnp.moveaxis(reached, 0, 1).reshape(len(queries), -1)


@functools.partial(jax.jit, static_argnames=("norm", "limits"))
def single(
    reference: Reference,
    queries: chex.Array,
    image: chex.Array,
    opponents: chex.Array,
    anchors: chex.Array,
    *,
    norm: str,
    limits: tuple[float, float] | None = None,
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
      limits: bounds of pixels; not used in l2, where one constraint alone gains little from them.
    """
    points = reference.blocks.reshape(-1, reference.blocks.shape[-1])

    def one(inputs):
        image, opponents, anchors = inputs
        query = pixels.float64_pixels(queries[image])
        own, other = pixels.float64_pixels(points[anchors]), pixels.float64_pixels(points[opponents])
        sq_own = float64_distances("l2", query, own)
        sq_other = float64_distances("l2", query, other)
        if norm == "l2":  # expanded: only a relative error of the length matters here
            products = (other - query) @ (own - query).T
            lengths = jnp.sqrt(jnp.maximum(sq_other[:, None] + sq_own - 2 * products, 0))
        else:
            reduce = jnp.sum if norm == "linf" else jnp.max
            lengths = lax.map(lambda point: reduce(jnp.abs(other - point), axis=1), own).T
        heights = (sq_other[:, None] - sq_own) / 2
        is_usable = (anchors >= 0) & (lengths > 0)
        bounds = jnp.where(is_usable, heights / jnp.where(lengths > 0, lengths, 1), -jnp.inf)
        if norm != "l2" and limits is not None:  # the box matters more here: at a bound pixels move one way only
            nearest = jnp.argmax(bounds, axis=1)
            gap = other - own[nearest]
            room = jnp.where(gap > 0, limits[1] - query, query - limits[0])
            height = jnp.take_along_axis(heights, nearest[:, None], axis=1)[:, 0]
            boxed = (linf_root if norm == "linf" else l1_maximum)(height, jnp.abs(gap), room)
            bounds = jnp.where(is_usable, jnp.maximum(bounds, boxed[:, None]), -jnp.inf)
        # A little is given away for the rounding; what comes near the radius is solved in any case.
        bounds = jnp.maximum(bounds.max(axis=1), 0) * (1 - 1e-7)
        return sq_other, jnp.where(opponents >= 0, bounds, jnp.inf)

    return lax.map(one, (image, opponents, anchors))


def doubt(sq_distances: np.ndarray, size: int, *, in_integers: bool = False) -> np.ndarray:
    """Return by how much squared distances ``[B]``, in float64, may differ and still be a tie in exact arithmetic.

    Ties between uint8 images are those of the integers. Rounding ``v / 255`` to float32 moves a pixel by 2^-25 at most,
    hence a distance by s = 2^-24 sqrt(d), its square D by 2 sqrt(D) s + s^2, and a difference of two by twice as much.
    """
    rounding = 2 * (size + 16) * 2.0**-52 * sq_distances
    if not in_integers:
        return rounding
    moved = 2.0**-24 * np.sqrt(size)
    return rounding + 4 * (np.sqrt(sq_distances) + moved) * moved
