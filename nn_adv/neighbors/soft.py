"""Soft 1NN: a differentiable stand-in for the 1-nearest-neighbour classifier, to steer attacks with.

Value and gradient are streamed over the reference blocks with a running maximum, sum and weighted sum per class, so
memory does not grow with the number of points. Whether an attack succeeded is for `predict` to say.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nn_adv import precision
from nn_adv.border import as_number
from nn_adv.neighbors import sharded
from nn_adv.neighbors.distances import expanded_sq_l2
from nn_adv.neighbors.inputs import check_reference, flatten_queries
from nn_adv.neighbors.reference import Reference
from nn_adv.pixels import as_float

_LEAST_TEMPERATURE = 1e-30  # squared distances over it stay within float32, up to 1e8


class _Moments(NamedTuple):
    """Sums over the points of every class ``[C, Q]``, weighted by ``exp(-D / T - peak)``."""

    peak: chex.Array  # largest exponent so far
    weight: chex.Array
    distance: chex.Array  # of D
    point: chex.Array | None  # of the centred points [C, Q, d]; None where no gradient is wanted


def soft_logits(reference: Reference, queries: chex.Array, temperature: chex.Numeric) -> jax.Array:
    """Return ``l_c = logsumexp_{i in c}(-||q - z_i||^2 / T)``, ``[Q, C]``, distances of pixels in [0, 1]. Jittable.

    As T goes to 0, ``-T l_c`` tends to the squared distance to class c and the argmax to the 1NN prediction.
    The gradient with respect to queries, ``(2 / T) (E_c[z] - q)`` with softmax weights, and to the temperature,
    ``E_c[D] / T^2``, is exact up to float32 rounding; it keeps ``[C, Q, d]`` floats for the backward pass, whatever
    the number of points. The reference is a constant. A second derivative is right, but its memory grows with the
    points. Distances are expanded around the mean of the points in float32: their absolute error, about 1e-7 of the
    squared norms, is divided by T; squares of distances below 1.1e-19 are 0, and where the
    nearest point of a class has a D / T above 3e38 its logit is NaN. Of a reference with a linear map, q and z
    are the mapped ones, and the gradient is that in pixels.

    Args:
      reference: points from `fit` or `shard`.
      queries: ``[Q, ...]`` with as many pixels as a point; float in the units of the points, or uint8.
      temperature: T, a scalar in squared units of distance, from 1e-30 on and finite; traced.

    Returns:
      ``[Q, C]`` float32; -inf, with gradient 0, for a class without points.

    Raises:
      ValueError: queries as in `nearest`, points on disk, or outside jit a temperature out of range.
    """
    check_reference(reference, on_disk=False)
    if not isinstance(temperature, jax.core.Tracer) and as_number(temperature, "temperature") < _LEAST_TEMPERATURE:
        raise ValueError(f"temperature must be {_LEAST_TEMPERATURE} or more, got {temperature}")
    queries = as_float(flatten_queries(reference, queries))
    if reference.mapped is not None:
        queries = precision.matmul_t(queries, reference.linear_map)
        reference = reference.mapped
    temperature = jnp.asarray(temperature, jnp.float32)
    if reference.mesh is None:
        return _soft_logits(reference, queries - reference.center, temperature)
    return _over_mesh(reference, queries - reference.center, temperature)


@jax.jit
def _over_mesh(reference: Reference, queries: chex.Array, temperature: chex.Array) -> jax.Array:
    together = functools.partial(jax.nn.logsumexp, axis=0)
    return sharded.search(_logits_of_part, together, reference, queries, temperature)


def _logits_of_part(reference: Reference, first: chex.Array, queries: chex.Array, temperature: chex.Array):
    """Return the logits of some blocks, of which the first is number ``first`` of all."""
    part = dataclasses.replace(reference, class_start=reference.class_start - first)
    return _soft_logits(part, queries, temperature)


@jax.custom_vjp
def _soft_logits(reference: Reference, queries: chex.Array, temperature: chex.Array) -> jax.Array:
    return _logits(_stream(reference, queries, temperature, want_points=False))


def _forward(reference: Reference, queries: chex.Array, temperature: chex.Array):
    moments = _stream(reference, queries, temperature, want_points=True)
    return _logits(moments), (moments, queries, temperature)


def _backward(residuals, cotangent: chex.Array):
    moments, queries, temperature = residuals
    # An empty class has weight 0 and gradient 0.
    share = jnp.where(moments.weight > 0, cotangent.T / jnp.where(moments.weight > 0, moments.weight, 1), 0)
    toward_points = jnp.einsum("cq,cqd->qd", share, moments.point, precision=lax.Precision.HIGHEST)
    pulls = jnp.sum(share * moments.weight, axis=0)[:, None] * queries
    by_queries = 2 / temperature * (toward_points - pulls)
    by_temperature = jnp.sum(share * moments.distance) / temperature**2
    return None, by_queries, by_temperature


_soft_logits.defvjp(_forward, _backward)


def _logits(moments: _Moments) -> jax.Array:
    return (moments.peak + jnp.log(moments.weight)).T


@functools.partial(jax.jit, static_argnames="want_points")
def _stream(reference: Reference, queries: chex.Array, temperature: chex.Array, *, want_points: bool) -> _Moments:
    """Accumulate the moments over all blocks; ``queries [Q, d]`` are centred."""
    shape = (reference.num_classes, len(queries))
    start = _Moments(
        peak=jnp.full(shape, -jnp.inf, jnp.float32),
        weight=jnp.zeros(shape, jnp.float32),
        distance=jnp.zeros(shape, jnp.float32),
        point=jnp.zeros((*shape, queries.shape[-1]), jnp.float32) if want_points else None,
    )
    query_sq_norms = jnp.sum(jnp.square(queries), axis=-1)
    block_class = jnp.searchsorted(reference.class_start, jnp.arange(reference.blocks.shape[0]), side="right") - 1

    def visit(number, moments):
        points = as_float(reference.blocks[number]) - reference.center
        products = precision.matmul_t(queries, points)
        sq = jnp.maximum(expanded_sq_l2(query_sq_norms, reference.centered_sq_norms[number], products), 0)
        label = block_class[number]
        old = jax.tree.map(lambda x: x[label], moments)
        new = _add_block(old, sq, points, temperature)
        return jax.tree.map(lambda x, y: x.at[label].set(y), moments, new)

    return lax.fori_loop(0, reference.blocks.shape[0], visit, start)


def _add_block(old: _Moments, sq: chex.Array, points: chex.Array, temperature: chex.Array) -> _Moments:
    """Add one block ``[b, d]`` with squared distances ``[Q, b]`` to the moments of its class (online softmax)."""
    exponents = -sq / temperature
    peak = jnp.maximum(old.peak, exponents.max(axis=-1))
    keep = jnp.exp(old.peak - peak)
    weights = jnp.exp(exponents - peak[:, None])
    finite_sq = jnp.where(jnp.isinf(sq), 0, sq)  # padding has weight 0 at distance inf
    point = None
    if old.point is not None:
        point = old.point * keep[:, None] + precision.matmul(weights, points)
    return _Moments(
        peak=peak,
        weight=old.weight * keep + weights.sum(axis=-1),
        distance=old.distance * keep + (weights * finite_sq).sum(axis=-1),
        point=point,
    )
