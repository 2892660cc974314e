"""Exact k-nearest search in l1, l2 and linf: a fast screen over blocks, then a decision in full precision.

Queries and reference points go through in blocks, so no array grows with queries times points. Every block's scores
are reduced to the minima of groups of 8 points and a query keeps its best few groups. Between uint8 images scores are
exact integers and the k nearest points lie in the k best groups. For floats the points of the best groups are measured
again in float64, and a bound on the error of the screen proves that no other group holds a nearer point; queries whose
proof fails are searched in float64 from end to end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv.border import as_count
from nn_adv.neighbors import distances, sharded
from nn_adv.neighbors.inputs import check_leave_out, check_metric, flatten_queries
from nn_adv.neighbors.reference import GROUP_SIZE, NO_POINT, PADDING_SQ_NORM, Reference
from nn_adv.neighbors.screens import Screen, largest, make_screen
from nn_adv.neighbors.streamed import Streamed

_QUERY_BLOCK = 1024
# Groups measured again in float64 beside the k needed: points closer than the error of the screen rarely fill them.
_SPARE_GROUPS = 4
# Queries measured again at a time: enough to occupy the cores, few enough for the cache.
_RERANK_BATCH = 8
# Fills the list of a query that has met fewer groups than it asked for.
_NO_GROUP = -1


class Neighbors(NamedTuple):
    """The k nearest points of every query, nearest first; beyond the points there are, distance inf and index -1.

    Attributes:
      distances: ``[Q, k]`` float32, true distances (not squared) in the units of the points ([0, 1] for uint8).
      indices: ``[Q, k]`` int32, positions in the array given to `fit`.
    """

    distances: chex.Array
    indices: chex.Array


class _Candidates(NamedTuple):
    """Best groups of every query ``[Q, m]``: lowest score, what breaks its ties, and which group it is."""

    scores: chex.Array
    keys: chex.Array
    groups: chex.Array


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
        not finite; uint8 queries for float points that do not lie in [0, 1]; leave_out of another shape, kind or range.
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
    A class without points is at inf. Inside jit a query that is not finite is at NaN.

    Args:
      reference: points from `fit`, `shard` or `stream` (not under jit).
      queries: as in `nearest`.
      norm: as in `nearest`.

    Raises:
      ValueError: as in `nearest`.
    """
    check_metric(reference, norm)
    queries = lax.stop_gradient(flatten_queries(reference, queries))
    if not isinstance(reference, Streamed):
        return _class_distances(reference, queries, norm=norm)
    classes = [np.flatnonzero(reference.labels == label) for label in range(reference.num_classes)]
    found = [_among(reference, queries, some, k=1, norm=norm)[0][:, 0] for some in classes]
    with jax.enable_x64(True):
        return _finish_float64(jnp.stack(found, axis=1), norm, norm == "l2", _are_integers(reference, queries))


def predict(reference: Reference | Streamed, queries: chex.Array, *, norm: str = "l2") -> jax.Array:
    """Return the class of every query's nearest point, ``[Q]`` int32; ties go to the lowest index. Jittable.

    A uint8 image and its float32 copy get the same class, except where points are exactly equally far from the
    integers: rounding 1/255 decides such a tie between floats. Inside jit a query that is not finite gets class -1.

    Args:
      reference: points from `fit`, `shard` or `stream` (not under jit).
      queries: as in `nearest`.
      norm: as in `nearest`.

    Raises:
      ValueError: as in `nearest`.
    """
    index = nearest(reference, queries, norm=norm).indices[:, 0]
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
    k = as_count(k, "k")
    if not isinstance(label, jax.core.Tracer):
        label = as_count(label, "label", low=0, high=reference.num_classes - 1)
    if isinstance(reference, Streamed):
        mine = np.flatnonzero(reference.labels == label)
        return _nearest_streamed(reference, flatten_queries(reference, queries), None, mine, k=k, norm="l2")
    return _nearest_in_class(reference, flatten_queries(reference, queries), jnp.asarray(label, jnp.int32), k=k)


@functools.partial(jax.jit, static_argnames=("k", "norm"))
def _nearest(
    reference: Reference, queries: chex.Array, leave_out: chex.Array | None = None, *, k: int, norm: str
) -> Neighbors:
    limits = jnp.int32(0), jnp.int32(reference.blocks.shape[0])
    if leave_out is None:
        return _nearest_between(reference, queries, limits, k=k, norm=norm)
    return _without(_nearest_between(reference, queries, limits, k=k + 1, norm=norm), leave_out)


def _without(found: Neighbors, leave_out: chex.Array) -> Neighbors:
    """Return the k nearest of k + 1 without the points left out."""
    k = found.indices.shape[1] - 1
    is_left_out = (found.indices == leave_out[:, None]) & (found.indices >= 0)
    order = jnp.argsort(is_left_out, axis=1, stable=True)[:, :k]
    found = Neighbors(jnp.where(is_left_out, jnp.inf, found.distances), jnp.where(is_left_out, -1, found.indices))
    return jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=1), found)


@functools.partial(jax.jit, static_argnames="k")
def _nearest_in_class(reference: Reference, queries: chex.Array, label: chex.Array, *, k: int) -> Neighbors:
    limits = reference.class_start[label], reference.class_start[label + 1]
    return _nearest_between(reference, queries, limits, k=k, norm="l2")


def _nearest_between(reference: Reference, queries: chex.Array, limits, *, k: int, norm: str) -> Neighbors:
    """Search the blocks between limits; what is not there has index -1."""
    in_integers = _are_integers(reference, queries)

    def finish(values, indices):
        return _finish_float64(values, norm, False, in_integers), jnp.where(indices == NO_POINT, -1, indices)

    return Neighbors(*_of_finite(lambda q: finish(*nearest_exactly(reference, q, limits, k=k, norm=norm)), queries))


def _nearest_streamed(reference: Streamed, queries, leave_out, some=None, *, k: int, norm: str) -> Neighbors:
    """Search points on disk, or some of them."""
    values, indices = _among(reference, queries, some, k=k + (leave_out is not None), norm=norm)
    with jax.enable_x64(True):
        values = _finish_float64(values, norm, False, _are_integers(reference, queries))
    found = Neighbors(values, jnp.where(indices == NO_POINT, -1, indices))
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
    with jax.enable_x64(False):
        found = nearest_exactly(slab, queries, (0, slab.blocks.shape[0]), k=values.shape[1], norm=norm)
    return _nearest_of(_concatenate(values, found[0]), _concatenate(indices, found[1]), values.shape[1])[:2]


def nearest_exactly(reference: Reference, queries: chex.Array, limits, *, k: int, norm: str):
    """Return the k nearest points of finite queries in the blocks between limits, nearest first, ties by the index.

    Returns:
      Distances ``[Q, k]`` as `distances.float64_distances` has them, inf for none, and indices, `NO_POINT` for none.
    """

    def local(reference, first, queries, *limits):
        width = min(k, reference.index.size + 1)  # with one more than there can be, the last is not there
        limits = tuple(jnp.clip(limit - first, 0, reference.blocks.shape[0]) for limit in limits)

        def search(block):
            return _search(reference.searched, make_screen(reference, block, norm), limits, k=width, norm=norm)

        values, indices = _map_blocks(search, queries)
        with jax.enable_x64(True):
            return jnp.stack([values, indices.astype(jnp.float64)], axis=2)

    def merge(parts):
        with jax.enable_x64(True):
            pairs = jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], parts.shape[0] * parts.shape[2], 2)
            values, indices = pairs[:, :, 0], pairs[:, :, 1].astype(jnp.int32)
            if len(parts) > 1:
                values, indices = _nearest_of(values, indices, min(k, values.shape[1]))[:2]
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
                return _search(reference.searched, screen, limits, k=1, norm=norm)[0][:, 0]

            return lax.map(search_class, (starts[:-1], starts[1:])).T

        return _map_blocks(search, queries)

    def merge(parts):
        with jax.enable_x64(True):
            return _finish_float64(parts.min(axis=0), norm, norm == "l2", in_integers)

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


def _search(reference: Reference, screen: Screen, limits: tuple[Any, Any], *, k: int, norm: str):
    """Return exact distances (see `nearest_exactly`) and indices ``[Q, k]`` of the nearest points in blocks."""
    if screen.ceiling is None:
        found = _screen_blocks(reference, screen, *limits, k)
        if k > 1:  # the k nearest are in the k best groups, but two of them may share one
            return _measure_again(reference, screen.queries, found.groups, k, norm)
        return _integers_as_float64(found.scores), found.keys
    # The last group is not measured: its score bounds all that was left out.
    found = _screen_blocks(reference, screen, *limits, k + _SPARE_GROUPS + 1)
    values, indices = _measure_again(reference, screen.queries, found.groups[:, :-1], k, norm)
    farthest = _finish_float64(values[:, -1], norm, False, screen.queries.dtype == jnp.uint8)
    bound = found.scores[:, -1]
    # Either the list has room left, or what it left out is farther. Overflow and NaN count as unproven.
    proven = (bound > screen.ceiling(farthest)) | (jnp.isinf(bound) & (found.keys[:, -1] == NO_POINT))
    return _search_unproven(reference, screen.queries, ~proven, values, indices, limits, norm)


def _screen_blocks(reference: Reference, screen: Screen, first, last, num_groups: int) -> _Candidates:
    """Return the best groups of every query over a range of blocks."""
    is_integer = screen.ceiling is None
    groups_per_block = reference.blocks.shape[1] // GROUP_SIZE
    shape = (len(screen.queries), num_groups)
    start = _Candidates(
        scores=jnp.full(shape, largest(jnp.int32 if is_integer else jnp.float32)),
        keys=jnp.full(shape, NO_POINT, jnp.int32),
        groups=jnp.full(shape, _NO_GROUP, jnp.int32),
    )

    def visit(number, best):
        # A group is every groups_per_block-th point: minima then run across vector lanes, not along them.
        scores = screen.tile(number).reshape(-1, GROUP_SIZE, groups_per_block)
        minima = scores.min(axis=1)
        groups = jnp.broadcast_to(number * groups_per_block + jnp.arange(groups_per_block), minima.shape)
        groups = groups.astype(jnp.int32)
        if is_integer:
            index = reference.index[number].reshape(1, GROUP_SIZE, groups_per_block)
            keys = jnp.where(scores == minima[:, None], index, NO_POINT).min(axis=1)
        else:
            keys = groups
        return _smallest(_Candidates(*map(_concatenate, best, (minima, keys, groups))), num_groups)

    return lax.fori_loop(first, last, visit, start)


def _concatenate(a: chex.Array, b: chex.Array) -> jax.Array:
    return jnp.concatenate([a, b], axis=-1)


def _smallest(candidates: _Candidates, count: int) -> _Candidates:
    """Return the ``count`` smallest by (score, key), in order; passes of minima beat a sort for the few asked for."""

    def take(left, _):
        score = left.scores.min(axis=-1, keepdims=True)
        key = jnp.where(left.scores == score, left.keys, NO_POINT).min(axis=-1, keepdims=True)
        chosen = (left.scores == score) & (left.keys == key)
        group = jnp.where(chosen, left.groups, NO_POINT).min(axis=-1, keepdims=True)
        scores = jnp.where(chosen, largest(left.scores.dtype), left.scores)
        left = _Candidates(scores, jnp.where(chosen, NO_POINT, left.keys), left.groups)
        return left, _Candidates(score[..., 0], key[..., 0], group[..., 0])

    taken = lax.scan(take, candidates, length=count)[1]
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), taken)


def _measure_again(reference: Reference, queries, groups, k: int, norm: str):
    """Return the k nearest among the points of the given groups ``[Q, m]``, measured exactly."""
    size = reference.blocks.shape[1]
    groups_per_block = size // GROUP_SIZE
    points, index = reference.blocks.reshape(-1, reference.blocks.shape[-1]), reference.index.reshape(-1)

    def measure(inputs):
        query, group = inputs
        first = group // groups_per_block * size + group % groups_per_block
        rows = (first[:, None] + groups_per_block * jnp.arange(GROUP_SIZE, dtype=jnp.int32)).reshape(-1)
        known = jnp.where(jnp.repeat(group, GROUP_SIZE) == _NO_GROUP, NO_POINT, index[rows])
        return _exact_nearest(query, points[rows], known, k, norm)

    return lax.map(measure, (queries, groups), batch_size=_RERANK_BATCH)


def _exact_nearest(query, points, index, k: int, norm: str):
    """Return exact distances and indices ``[k]`` of one query among points ``[m, d]``."""
    with jax.enable_x64(True):
        best = _nearest_of(distances.float64_distances(norm, query, points), index, k)
        return best.scores, best.keys


def _nearest_of(values, index, k: int) -> _Candidates:
    values = jnp.where(index == NO_POINT, largest(values.dtype), values)
    return _smallest(_Candidates(values, index, index), k)


def _search_unproven(reference: Reference, queries, unproven, values, indices, limits, norm: str):
    """Replace the answers of ``unproven`` queries, one at a time, by a float64 scan of all blocks."""
    k = values.shape[-1]

    def scan(query):
        with jax.enable_x64(True):
            start = _Candidates(*(jnp.full(k, x) for x in (jnp.float64(jnp.inf), jnp.int32(NO_POINT), jnp.int32(0))))

            def visit(number, best):
                block, index = reference.blocks[number], reference.index[number]
                found = _nearest_of(distances.float64_distances(norm, query, block), index, k)
                return _smallest(_Candidates(*map(_concatenate, best, found)), k)

            best = lax.fori_loop(*limits, visit, start)
            return best.scores, best.keys

    def replace(state):
        unproven, values, indices = state
        row = jnp.argmax(unproven).astype(jnp.int32)
        value, index = scan(queries[row])
        return unproven.at[row].set(False), values.at[row].set(value), indices.at[row].set(index)

    return lax.while_loop(lambda state: jnp.any(state[0]), replace, (unproven, values, indices))[1:]


def _integers_as_float64(scores: chex.Array) -> jax.Array:
    with jax.enable_x64(True):
        return jnp.where(scores >= PADDING_SQ_NORM, jnp.inf, scores.astype(jnp.float64))


def _finish_float64(values: chex.Array, norm: str, squared: bool, in_integers: bool) -> jax.Array:
    """Return exact distances as float32 ones in the units of the points, squared or not."""
    with jax.enable_x64(True):
        if in_integers:
            values = values * (1 / 255**2 if norm == "l2" else 1 / 255)
        root = norm == "l2" and not squared
        return (jnp.sqrt(values) if root else values).astype(jnp.float32)
