"""Exact k-nearest search in l1, l2 and linf: queries go through in blocks, over one device, a mesh, or points on disk.

No array grows with queries times points. `blocks` finds the nearest points of a block of queries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv.border import as_count
from nn_adv.neighbors import sharded
from nn_adv.neighbors.blocks import finish, nearest_in_blocks, nearest_of
from nn_adv.neighbors.inputs import check_leave_out, check_metric, check_reference, flatten_queries
from nn_adv.neighbors.reference import NO_POINT, Reference
from nn_adv.neighbors.screens import make_screen
from nn_adv.neighbors.streamed import Streamed

_QUERY_BLOCK = 1024


class Neighbors(NamedTuple):
    """The k nearest points of every query, nearest first; beyond the points there are, distance inf and index -1.

    Attributes:
      distances: ``[Q, k]`` float32, true distances (not squared) in the units of the points ([0, 1] for uint8).
      indices: ``[Q, k]`` int32, positions in the array given to `fit`.
    """

    distances: chex.Array
    indices: chex.Array


def nearest(
    reference: Reference | Streamed,
    queries: chex.Array,
    k: int = 1,
    *,
    norm: str = "l2",
    leave_out: chex.Array | None = None,
) -> Neighbors:
    """Find the k nearest points of every query, exactly. Jittable.

    The answer is that of a float64 brute force (integers between uint8 images, where distances are exact); points at
    the same distance come in the order of their index. Distances below the least normal float32 number, 1.2e-38, are 0.
    Usable under jit, where a query that is not finite gets distances NaN and indices -1; not differentiable.
    Of a reference with a linear map, distances are those of ``M x`` to the points ``M z``, in float64.

    Args:
      reference: points from `fit`, `shard` or `stream` (not under jit).
      queries: ``[Q, ...]`` with as many pixels as a point; uint8, or floats in the units of the points. Q may be 0.
      k: number of neighbours; it may be above the number of points (see `Neighbors`).
      norm: "l1", "l2" or "linf"; "l2" with a linear map.
      leave_out: index of a point that each query does not see ``[Q]``, -1 for none; or None.

    Raises:
      ValueError: unknown norm, or not l2 with a linear map; k below 1; queries of another shape or an integer dtype or
        not finite; uint8 queries for float points that lie more than 0.5 outside [0, 1]; leave_out of another shape,
        kind or range.
    """
    check_metric(reference, norm)
    k = as_count(k, "k")
    queries = lax.stop_gradient(flatten_queries(reference, queries))
    if leave_out is not None:
        leave_out = check_leave_out(reference, leave_out, len(queries))
    if isinstance(reference, Streamed):
        return _nearest_streamed(reference, queries, leave_out, k=k, norm=norm)
    return _nearest(reference, queries, leave_out, k=k, norm=norm)


def class_distances(reference: Reference | Streamed, queries: chex.Array, *, norm: str = "l2") -> jax.Array:
    """Return distances from every query to every class ``[Q, C]``: *squared* for l2, plain for l1, linf. Jittable.

    As exact as `nearest`, rounded once to float32: squares of distances below 1.1e-19 are 0, above 1.8e19 they are inf.
    A class without points is at inf. Inside jit a query that is not finite is at NaN. Arguments and errors are those of
    `nearest`.
    """
    check_metric(reference, norm)
    queries = lax.stop_gradient(flatten_queries(reference, queries))
    if not isinstance(reference, Streamed):
        return _class_distances(reference, queries, norm=norm)
    classes = [np.flatnonzero(reference.labels == label) for label in range(reference.num_classes)]
    found = [_among(reference, queries, some, k=1, norm=norm)[0][:, 0] for some in classes]
    with jax.enable_x64(True):
        return finish(jnp.stack(found, axis=1), norm, norm == "l2", _are_integers(reference, queries))


def predict(
    reference: Reference | Streamed, queries: chex.Array, *, norm: str = "l2", leave_out: chex.Array | None = None
) -> jax.Array:
    """Return the class of every query's nearest point, ``[Q]`` int32; ties go to the lowest index. Jittable.

    A uint8 image and its float32 copy get the same class, except where two points are equally far from the integers, or
    so nearly that the rounding of ``v / 255`` decides between floats. Inside jit a query that is not finite gets class
    -1. Arguments and errors are those of `nearest`.
    """
    index = nearest(reference, queries, norm=norm, leave_out=leave_out).indices[:, 0]
    return jnp.where(index < 0, -1, jnp.asarray(reference.labels)[index])


def nearest_in_class(
    reference: Reference | Streamed, queries: chex.Array, label: chex.Numeric, k: int = 1
) -> Neighbors:
    """Find the k nearest points of one class in l2, exactly; otherwise as `nearest`. Jittable.

    Args:
      reference: points from `fit`, `shard` or `stream` (not under jit).
      queries: as in `nearest`.
      label: the class, traced.
      k: number of neighbours; it may be above the number of points of the class.

    Raises:
      ValueError: as in `nearest`.
    """
    check_reference(reference)
    k = as_count(k, "k")
    if not isinstance(label, jax.core.Tracer):
        label = as_count(label, "label", low=0, high=reference.num_classes - 1)
    queries = lax.stop_gradient(flatten_queries(reference, queries))
    if isinstance(reference, Streamed):
        return _nearest_streamed(reference, queries, None, np.flatnonzero(reference.labels == label), k=k, norm="l2")
    return _nearest(reference, queries, None, jnp.asarray(label, jnp.int32), k=k, norm="l2")


@functools.partial(jax.jit, static_argnames=("k", "norm"))
def _nearest(
    reference: Reference,
    queries: chex.Array,
    leave_out: chex.Array | None = None,
    label: chex.Array | None = None,
    *,
    k: int,
    norm: str,
) -> Neighbors:
    """Search all points, or those of a class; what is not there has index -1."""
    limits = jnp.int32(0), jnp.int32(reference.blocks.shape[0])
    if label is not None:
        limits = reference.class_start[label], reference.class_start[label + 1]
    search = functools.partial(nearest_exactly, reference, limits=limits, k=k + (leave_out is not None), norm=norm)
    found = _of_finite(lambda finite: _named(reference, finite, search(finite), norm), queries)
    return found if leave_out is None else _without(found, leave_out)


def _without(found: Neighbors, leave_out: chex.Array) -> Neighbors:
    """Return the k nearest of k + 1 without the points left out."""
    k = found.indices.shape[1] - 1
    is_left_out = (found.indices == leave_out[:, None]) & (found.indices >= 0)
    order = jnp.argsort(is_left_out, axis=1, stable=True)[:, :k]
    found = Neighbors(jnp.where(is_left_out, jnp.inf, found.distances), jnp.where(is_left_out, -1, found.indices))
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), found)


def _named(reference: Reference | Streamed, queries: chex.Array, found, norm: str) -> Neighbors:
    values, indices = found
    values = finish(values, norm, False, _are_integers(reference, queries))
    return Neighbors(values, jnp.where(indices == NO_POINT, -1, indices))


def _nearest_streamed(reference: Streamed, queries, leave_out, some=None, *, k: int, norm: str) -> Neighbors:
    found = _among(reference, queries, some, k=k + (leave_out is not None), norm=norm)
    with jax.enable_x64(True):
        found = _named(reference, queries, found, norm)
    return found if leave_out is None else _without(found, leave_out)


def _among(reference: Streamed, queries: chex.Array, some: np.ndarray | None, *, k: int, norm: str):
    """Return what `nearest_exactly` does, of points on disk, or of some ``[n]`` of them."""
    shape = (len(queries), k)
    best = np.full(shape, np.inf), np.full(shape, NO_POINT, np.int32)
    for slab, _ in reference.slabs(some):
        with jax.enable_x64(True):
            best = _nearest_of_both(slab, queries, *best, norm=norm)
    return best


@functools.partial(jax.jit, static_argnames="norm")
def _nearest_of_both(slab: Reference, queries: chex.Array, values: chex.Array, indices: chex.Array, *, norm: str):
    """Return the k nearest of those found so far and of the points of a slab."""
    k = values.shape[1]
    with jax.enable_x64(False):
        found = nearest_exactly(slab, queries, (0, slab.blocks.shape[0]), k=k, norm=norm)
    values, indices = (jnp.concatenate(pair, axis=-1) for pair in zip((values, indices), found, strict=True))
    return nearest_of(values, indices, k)


def nearest_exactly(reference: Reference, queries: chex.Array, limits, *, k: int, norm: str):
    """Return the k nearest points of finite queries in the blocks between limits, nearest first, ties by the index.

    Returns:
      Distances ``[Q, k]`` as `distances.float64_distances` has them, inf for none, and indices, `NO_POINT` for none.
    """

    def local(reference, first, queries, *limits):
        width = min(k, reference.index.size + 1)  # with one more than there can be, the last is not there
        limits = tuple(jnp.clip(limit - first, 0, reference.blocks.shape[0]) for limit in limits)

        def search(block):
            return nearest_in_blocks(
                reference.searched, make_screen(reference, block, norm), limits, k=width, norm=norm
            )

        values, indices = _map_blocks(search, queries)
        with jax.enable_x64(True):
            return jnp.stack([values, indices.astype(jnp.float64)], axis=2)

    def merge(parts):
        with jax.enable_x64(True):
            pairs = jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], parts.shape[0] * parts.shape[2], 2)
            values, indices = pairs[:, :, 0], pairs[:, :, 1].astype(jnp.int32)
            if len(parts) > 1:
                values, indices = nearest_of(values, indices, min(k, values.shape[1]))
            missing = (0, 0), (0, k - values.shape[1])
            return jnp.pad(values, missing, mode="edge"), jnp.pad(indices, missing, mode="edge")

    return sharded.search(local, merge, reference, queries, *limits)


@functools.partial(jax.jit, static_argnames="norm")
def _class_distances(reference: Reference, queries: chex.Array, *, norm: str) -> jax.Array:
    in_integers = _are_integers(reference, queries)

    def local(reference, first, queries):
        starts = jnp.clip(reference.class_start - first, 0, reference.blocks.shape[0])

        def search(block):
            screen = make_screen(reference, block, norm)

            def search_class(limits):
                return nearest_in_blocks(reference.searched, screen, limits, k=1, norm=norm)[0][:, 0]

            return lax.map(search_class, (starts[:-1], starts[1:])).T

        return _map_blocks(search, queries)

    def merge(parts):
        with jax.enable_x64(True):
            return finish(parts.min(axis=0), norm, norm == "l2", in_integers)

    return _of_finite(lambda finite: sharded.search(local, merge, reference, finite), queries)


def _are_integers(reference: Reference | Streamed, queries: chex.Array) -> bool:
    return reference.mapped is None and queries.dtype == reference.dtype == jnp.uint8


def _of_finite(search: Callable, queries: chex.Array):
    """Apply ``search`` to all queries; what is not finite gets NaN and -1."""
    if queries.dtype == jnp.uint8:
        return search(queries)
    is_finite = jnp.all(jnp.isfinite(queries), axis=1)[:, None]
    results = search(jnp.where(is_finite, queries, 0))
    return jax.tree.map(
        lambda x: jnp.where(is_finite, x, jnp.asarray(jnp.nan if x.dtype == jnp.float32 else -1, x.dtype)), results
    )


def _map_blocks(search: Callable, queries: chex.Array):
    """Apply ``search`` to equal blocks of queries, one after the other."""
    count = len(queries)
    num_blocks = max(1, -(-count // _QUERY_BLOCK))
    if num_blocks == 1 and count:
        return search(queries)
    size = max(1, -(-count // num_blocks))
    padded = jnp.pad(queries, ((0, num_blocks * size - count), (0, 0)), mode="edge" if count else "constant")
    results = lax.map(search, padded.reshape(num_blocks, size, -1))
    return jax.tree.map(lambda x: x.reshape(num_blocks * size, *x.shape[2:])[:count], results)
