"""Rule out opponents without solving anything: distances first, then one constraint at a time.

For an image x with nearest own-class point i at squared distance D_i, an opponent j wins only where
``||u - z_j|| <= ||u - z_i||``, so by the triangle inequality ``r_j >= (sqrt(D_j) - sqrt(D_i)) / 2`` in l2 (Hagai &
Weiss 2024): one distance product rules out all but the nearest opponents, whatever their number. For those,
``r_j >= max_i h_ij / ||g_ij||_q`` over a few own points, with q the dual norm (``g_ij = z_j - z_i``,
``h_ij = (D_j - D_i) / 2``). In linf distances rule out little where most pixels are black or white; there one more
product does (`linf_reach`).

Points are known by their positions in the blocks of the reference, P in all; -1 is no point.
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
from nn_adv.certify.state import Search
from nn_adv.neighbors.distances import float64_distances
from nn_adv.neighbors.reference import Reference
from nn_adv.neighbors.screens import make_screen
from nn_adv.neighbors.sharded import of_all_points, on_host
from nn_adv.neighbors.streamed import Streamed
from nn_adv.precision import matmul_t

_TILE = 16  # opponents bounded together
_LISTS = 64  # lists of opponents in one call
_REACH_BATCH = 64  # images in one product of `linf_reach`


def score(reference: Reference | Streamed, queries: np.ndarray) -> chex.Array:
    """Return scores ``[Q, P]`` that order the points by distance, up to the error that `score_ceiling` bounds."""
    return _of_all_points(_score, reference, queries)


def _of_all_points(of_points, reference: Reference | Streamed, *arguments: np.ndarray, **options) -> chex.Array:
    """Return what a jitted function says of each query and point, ``[Q, P]``; of those on disk, slab after slab."""
    if not isinstance(reference, Streamed):
        return of_points(reference, *arguments, **options)
    slabs = reference.slabs()
    return np.concatenate([on_host(of_points(slab, *arguments, **options))[:, : len(i)] for slab, i in slabs], axis=1)


@jax.jit
def _score(reference: Reference, queries: chex.Array) -> jax.Array:
    def local(reference, queries):
        tile = make_screen(reference, queries, "l2").tile
        scores = lax.map(lambda number: tile(number).astype(jnp.float32), jnp.arange(reference.blocks.shape[0]))
        return jnp.moveaxis(scores, 0, 1).reshape(len(queries), -1)

    return of_all_points(local, reference, queries)


def score_ceiling(search: Search, distances: np.ndarray) -> np.ndarray:
    """Return the highest score ``[B]`` that `score` can give a point within an l2 distance ``[B]``."""
    filling = len(search.queries) - len(distances)
    padded = np.pad(distances, (0, filling)).astype(np.float32) * np.float32(1 + 1e-6)
    reference = search.reference.head if isinstance(search.reference, Streamed) else search.reference
    return on_host(_score_ceiling(reference, search.queries, padded))[: len(distances)]


@jax.jit
def _score_ceiling(reference: Reference, queries: chex.Array, distances: chex.Array) -> jax.Array:
    ceiling = make_screen(reference, queries, "l2").ceiling
    if ceiling is not None:
        return ceiling(distances)
    return jnp.square(distances * 255) * (1 + 1e-5)


def lowest(scores: chex.Array, usable: np.ndarray, count: int) -> np.ndarray:
    """Return the points ``[B, count]`` with the lowest scores ``[Q, P]`` among the usable ``[B, P]``, B at most Q."""
    padded = np.pad(usable, ((0, len(scores) - len(usable)), (0, 0)))
    return np.array(on_host(_lowest(scores, padded, count=min(count, usable.shape[1]))))[: len(usable)]


@functools.partial(jax.jit, static_argnames="count")
def _lowest(scores: chex.Array, usable: chex.Array, *, count: int) -> jax.Array:
    values, points = lax.top_k(jnp.where(usable, -scores, -jnp.inf), count)
    return jnp.where(jnp.isfinite(values), points, -1)


def distance_limit(search: Search, images: np.ndarray) -> np.ndarray:
    """Return the l2 distances ``[T]`` beyond which no opponent can beat the best witness of images ``[T]``."""
    radius, nearest = search.best[images], search.distance[images]
    limit = nearest + 2 * radius * search.points.stretch(search.norm)
    if search.norm == "l1" and search.points.linear_map is None:  # h_ij <= g_ij . v <= max |g| ||v||_1
        limit = np.minimum(limit, np.sqrt(nearest**2 + 2 * search.points.spread * radius))
    return limit


def linf_reach(search: Search, opponents: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return the opponents, by image, that single own points do not rule out within the best witness in linf.

    Within epsilon and the bounds each pixel moves by c +- w, so that ``g . v <= g . c + |g| . w``. Numbers p, q of
    [0, s] have ``|p - q| <= p + q - 2 p q / s``, with equality at the ends: a bound on ``|g|`` linear in z_j, so that
    one product of an own-class point bounds all opponents.
    """
    left: dict[int, np.ndarray] = {}
    images = np.array(list(opponents), np.int32)
    pixel_range = search.points.lowest_pixel, search.points.spread or 1.0
    for start in range(0, len(images), _REACH_BATCH):
        part = images[start : start + _REACH_BATCH]
        padded = np.pad(part, (0, _REACH_BATCH - len(part)), mode="edge")
        anchors, epsilon = search.anchors[padded], search.best[padded].astype(np.float32)
        arguments = search.queries[padded], search.points.stored[anchors], anchors >= 0, epsilon
        options = {"pixel_range": tuple(map(np.float32, pixel_range)), "bounds": search.bounds}
        reached = on_host(_of_all_points(_linf_reach, search.reference, *arguments, **options))
        found = zip(part.tolist(), reached, strict=False)  # without the filling
        left |= {b: opponents[b][is_reached[opponents[b]]] for b, is_reached in found}
    return left


@functools.partial(jax.jit, static_argnames="bounds")
def _linf_reach(reference: Reference, queries, own, is_own, epsilon, *, pixel_range, bounds) -> jax.Array:
    """Tell of all points whether they may win within epsilon ``[Q]`` against own points ``[Q, m, d]``, ``[Q, P]``."""
    local = functools.partial(_linf_reach_of, pixel_range=pixel_range, bounds=bounds)
    return of_all_points(local, reference, queries, own, is_own, epsilon)


def _linf_reach_of(reference: Reference, queries, own, is_own, epsilon, *, pixel_range, bounds) -> jax.Array:
    lowest_pixel, spread = pixel_range
    x, own = pixels.as_float(queries)[:, None], pixels.as_float(own)
    low, high = -epsilon[:, None, None], epsilon[:, None, None]
    if bounds is not None:
        low, high = jnp.maximum(low, bounds[0] - x), jnp.minimum(high, bounds[1] - x)
    center, width = (low + high) / 2, (high - low) / 2
    slope = 1 - 2 * (own - lowest_pixel) / spread  # |g| <= (z_j - lowest) slope + (z_i - lowest)
    # h - g . c - |g| . w >= |z_j|^2 / 2 - z_j . normal + offset
    normal = x + center + width * slope
    offset = own * (x + center - own / 2) + width * (lowest_pixel * slope - (own - lowest_pixel))
    sizes = jnp.sum(jnp.abs(offset), axis=2)[..., None]
    offset = jnp.where(is_own, jnp.sum(offset, axis=2), -jnp.inf)
    flat, length = normal.reshape(-1, x.shape[-1]), jnp.linalg.norm(normal, axis=2)

    def tile(block):
        z = pixels.as_float(block)
        sq = jnp.sum(jnp.square(z), axis=1)
        margins = sq / 2 - matmul_t(flat, z).reshape(*is_own.shape, -1) + offset[..., None]
        # Generous for rounding: what is ruled out wrongly all the same, the recheck finds.
        slack = 3e-6 * (sq + length[..., None] * jnp.sqrt(sq) + sizes)
        return ~jnp.any(margins > slack, axis=1)

    reached = lax.map(tile, reference.blocks)
    return jnp.moveaxis(reached, 0, 1).reshape(len(queries), -1)


def by_one_constraint(
    search: Search, images: np.ndarray, opponents: np.ndarray, *, norm: str, bounds: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared distances ``[T, K]`` from images ``[T]`` to opponents and the best lower bound of one constraint.

    The bound is weaker, and quicker, without bounds of pixels. In l2 they are not used: one constraint alone gains
    little from them.
    """
    num_lists, width = opponents.shape
    filling = (0, -num_lists % _LISTS), (0, -width % _TILE)  # so that few shapes are compiled
    image = np.pad(images, filling[0]).astype(np.int32)
    lists = np.pad(opponents, filling, constant_values=-1).astype(np.int32)
    anchors = np.pad(search.anchors[images], (filling[0], (0, 0)), constant_values=-1).astype(np.int32)
    options, points = {"norm": norm, "bounds": bounds}, search.points
    found = []
    with jax.enable_x64(True):
        for start in range(0, max(len(image), 1), _LISTS):
            some, opponent, anchor = (x[start : start + _LISTS] for x in (image, lists, anchors))
            # The points themselves: what is compiled does not depend on their number, nor on where they are.
            of_points = points.measured[opponent], points.measured[anchor], opponent >= 0, anchor >= 0
            found.append(_by_one_constraint(points.linear_map, search.queries[some], *of_points, **options))
    sq_distances, lower = (np.concatenate(part)[:num_lists, :width] for part in zip(*found, strict=True))
    return sq_distances, lower


@functools.partial(jax.jit, static_argnames=("norm", "bounds"))
def _by_one_constraint(linear_map, queries, opponents, anchors, is_opponent, is_own, *, norm: str, bounds):
    def one(inputs):
        query, other, own = map(pixels.float64_pixels, inputs[:3])
        is_opponent, is_own = inputs[3:]
        image_pixels = query
        if linear_map is not None:
            query = linear_map @ query
        sq_own = float64_distances("l2", query, own)
        sq_other = float64_distances("l2", query, other)
        if linear_map is not None:  # from here on moves of pixels: g_ij = M' (w_j - w_i)
            own, other = (own - query) @ linear_map, (other - query) @ linear_map
        if norm == "l2" and linear_map is None:  # expanded: only a relative error of the length matters here
            products = (other - query) @ (own - query).T
            lengths = jnp.sqrt(jnp.maximum(sq_other[:, None] + sq_own - 2 * products, 0))
        else:
            dual = {"l1": jnp.inf, "l2": 2, "linf": 1}[norm]
            lengths = lax.map(lambda point: jnp.linalg.norm(other - point, dual, axis=1), own).T
        heights = (sq_other[:, None] - sq_own) / 2
        is_usable = is_own & (lengths > 0)
        lower = jnp.where(is_usable, heights / jnp.where(lengths > 0, lengths, 1), -jnp.inf)
        if norm != "l2" and bounds is not None:  # the box matters more here: at a bound pixels move one way only
            nearest = jnp.argmax(lower, axis=1)
            gap = other - own[nearest]
            room = jnp.where(gap > 0, bounds[1] - image_pixels, image_pixels - bounds[0])
            height = jnp.take_along_axis(heights, nearest[:, None], axis=1)[:, 0]
            boxed = (linf_root if norm == "linf" else l1_maximum)(height, jnp.abs(gap), room)
            lower = jnp.where(is_usable, jnp.maximum(lower, boxed[:, None]), -jnp.inf)
        # A little is given away for the rounding; what comes near the radius is solved in any case.
        lower = jnp.maximum(lower.max(axis=1), 0) * (1 - 1e-7)
        return sq_other, jnp.where(is_opponent, lower, jnp.inf)

    return lax.map(one, (queries, opponents, anchors, is_opponent, is_own))


def in_tiles(
    search: Search, opponents: dict[int, np.ndarray], *, norm: str, bounds: tuple[float, float] | None
) -> dict[int, np.ndarray]:
    """Return the lower bounds of `by_one_constraint` for lists of any length, by image."""
    tiles = {b: np.pad(some, (0, -len(some) % _TILE), constant_values=-1) for b, some in opponents.items()}
    image = np.repeat(np.array(list(tiles), int), [len(some) // _TILE for some in tiles.values()])
    if not len(image):
        return {b: np.zeros(0) for b in opponents}
    lists = np.concatenate(list(tiles.values())).reshape(-1, _TILE)
    lower = by_one_constraint(search, image, lists, norm=norm, bounds=bounds)[1]
    return {b: lower[image == b].reshape(-1)[: len(some)] for b, some in opponents.items()}


def doubt(sq_distances: np.ndarray, size: int, moved: np.ndarray | float = 0.0) -> np.ndarray:
    """Return by how much squared distances ``[B]``, in float64, may differ and still be a tie in exact arithmetic.

    Where a distance may be off by s, its square D is by 2 sqrt(D) s + s^2, and a difference of two by twice as much.

    Args:
      sq_distances: D.
      size: number of terms of a distance.
      moved: s, beside the rounding of the sums: from `integer_rounding` or `Points.mapping_error`.
    """
    rounding = 2 * (size + 16) * 2.0**-52 * sq_distances
    if not np.any(moved):
        return rounding
    return rounding + 4 * (np.sqrt(sq_distances) + moved) * moved


def integer_rounding(size: int) -> float:
    """Return how far distances between uint8 images may be from those of the integers, which decide their ties.

    Rounding ``v / 255`` to float32 moves a pixel by 2^-25 at most.
    """
    return 2.0**-24 * np.sqrt(size)
