"""The nearest points of a block of queries: a fast screen over blocks of points, then a decision in full precision.

Every block's scores are reduced to the minima of groups of 8 points and a query keeps its best few groups. Between
uint8 images scores are exact integers and the k nearest points lie in the k best groups. For floats the points of the
best groups are measured again in float64, and a bound on the error of the screen proves that no other group holds a
nearer point; queries whose proof fails are searched in float64 from end to end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nn_adv.neighbors import distances
from nn_adv.neighbors.reference import GROUP_SIZE, NO_POINT, PADDING_SQ_NORM, Reference
from nn_adv.neighbors.screens import Screen, largest

# Groups measured again in float64 beside the k needed: points closer than the error of the screen rarely fill them.
_SPARE_GROUPS = 4
# Queries measured again at a time: enough to occupy the cores, few enough for the cache.
_RERANK_BATCH = 8
# Fills the list of a query that has met fewer groups than it asked for.
_NO_GROUP = -1


class _Candidates(NamedTuple):
    """Best groups of every query ``[Q, m]``: lowest score, what breaks its ties, and which group it is."""

    scores: chex.Array
    keys: chex.Array
    groups: chex.Array


def nearest_in_blocks(reference: Reference, screen: Screen, limits: tuple[Any, Any], *, k: int, norm: str):
    """Return exact distances (see `nearest_exactly`) and indices ``[Q, k]`` of the nearest points in blocks."""
    if screen.ceiling is None:
        found = _screen_blocks(reference, screen, *limits, k)
        if k > 1:  # the k nearest are in the k best groups, but two of them may share one
            return _measure_again(reference, screen.queries, found.groups, k, norm)
        with jax.enable_x64(True):
            return jnp.where(found.scores >= PADDING_SQ_NORM, jnp.inf, found.scores.astype(jnp.float64)), found.keys
    # The last group is not measured: its score bounds all that was left out.
    found = _screen_blocks(reference, screen, *limits, k + _SPARE_GROUPS + 1)
    values, indices = _measure_again(reference, screen.queries, found.groups[:, :-1], k, norm)
    farthest = finish(values[:, -1], norm, False, screen.queries.dtype == jnp.uint8)
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
        with jax.enable_x64(True):
            return nearest_of(distances.float64_distances(norm, query, points[rows]), known, k)

    return lax.map(measure, (queries, groups), batch_size=_RERANK_BATCH)


def nearest_of(values: chex.Array, index: chex.Array, k: int) -> tuple[chex.Array, chex.Array]:
    """Return the k smallest distances of ``[..., m]`` with their indices, ties by the index; `NO_POINT` is no point."""
    values = jnp.where(index == NO_POINT, jnp.inf, values)
    return _smallest(_Candidates(values, index, index), k)[:2]


def _search_unproven(reference: Reference, queries, unproven, values, indices, limits, norm: str):
    """Replace the answers of ``unproven`` queries, one at a time, by a float64 scan of all blocks."""
    k = values.shape[-1]

    def scan(query):
        def visit(number, best):
            found = distances.float64_distances(norm, query, reference.blocks[number]), reference.index[number]
            return nearest_of(*map(_concatenate, best, found), k)

        with jax.enable_x64(True):
            start = jnp.full(k, jnp.inf, jnp.float64), jnp.full(k, NO_POINT, jnp.int32)
            return lax.fori_loop(*limits, visit, start)

    def replace(state):
        unproven, values, indices = state
        row = jnp.argmax(unproven).astype(jnp.int32)
        value, index = scan(queries[row])
        return unproven.at[row].set(False), values.at[row].set(value), indices.at[row].set(index)

    return lax.while_loop(lambda state: jnp.any(state[0]), replace, (unproven, values, indices))[1:]


def finish(values: chex.Array, norm: str, squared: bool, in_integers: bool) -> jax.Array:
    """Return exact distances as float32 ones in the units of the points, squared or not."""
    with jax.enable_x64(True):
        if in_integers:
            values = values * (1 / 255**2 if norm == "l2" else 1 / 255)
        root = norm == "l2" and not squared
        return (jnp.sqrt(values) if root else values).astype(jnp.float32)
