"""The smallest perturbation that meets a few linear constraints inside a box, by Newton's method on its dual.

For one opponent z_j and own-class points z_i the problem is

  r = min ||v||_p   subject to   G v >= h,   low <= v <= high,      G_i = z_j - z_i,  h_i = (D_j - D_i) / 2.

All norms run through one method. Around a centre c, the proximal problem ``min f(v) + delta/2 ||v - c||^2`` has a dual
in the few multipliers only,

  q(lambda) = h.lambda - max_v { w.v - f(v) - delta/2 ||v - c||^2 },      w = G' lambda >= 0,

which is concave, has one derivative, and whose inner maximum is closed or one-dimensional because the box is separable:

  l2:   f = 0, c = 0, delta = 1          v = clip(w)                              (no outer steps: 1/2 ||v||^2 is the goal)
  l1:   f = ||v||_1                      v = clip(soft(c + w / delta, 1 / delta))
  linf: f = t, |v_k| <= t                v = clip(clip(c + w / delta, -t, t)),    t from a scalar equation

For l1 and linf the centre moves to the last v and the problem is solved again (proximal point method, Rockafellar 1976;
with Newton inside as in Li, Sun & Toh 2020, "An asymptotically superlinearly convergent semismooth Newton augmented
Lagrangian method for linear programming"); a linear program is solved exactly after finitely many such steps.

Whatever the multipliers, they prove a lower bound (`bound`), so an early stop or a rounding error costs time, never
soundness. Everything is float64: call under ``jax.enable_x64(True)``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

_TOLERANCE = 1e-8  # of the largest h, by which a constraint may be missed
_GAP = 1e-7  # relative, between v and the bound
# Steps of the centre per call, and how near it keeps v: from first to last, in units of the scaled problem.
_OUTER_STEPS = 5
_FIRST_PROXIMITY, _SHRINK, _LAST_PROXIMITY = 0.1, 0.1, 0.003
_MAX_NEWTON_STEPS = 40
_MAX_HALVINGS = 30
_MAX_ROOT_STEPS = 150
# Share of the largest curvature added to the diagonal: keeps a singular Newton system solvable.
_DAMPING = 1e-10


class Problems(NamedTuple):
    """S problems with up to M constraints each, in d variables.

    Attributes:
      gaps: G ``[S, M, d]``; zero in unused rows.
      heights: h ``[S, M]``; zero in unused rows.
      is_row: ``[S, M]``, False in unused rows.
      low: ``[S, d]``, at most 0; -inf without a box.
      high: ``[S, d]``, at least 0; inf without a box.
    """

    gaps: chex.Array
    heights: chex.Array
    is_row: chex.Array
    low: chex.Array
    high: chex.Array


class Solution(NamedTuple):
    """What was reached for S problems.

    Attributes:
      multipliers: not negative, ``[S, M]``.
      perturbation: v ``[S, d]``; within the box, and near feasible where converged.
      bound: lower bound on the radius that the multipliers prove ``[S]``.
      is_converged: whether v and bound agree to the tolerance ``[S]``.
    """

    multipliers: chex.Array
    perturbation: chex.Array
    bound: chex.Array
    is_converged: chex.Array


class _Inner(NamedTuple):
    """The inner maximum: v, its value, and dv/dw = (diag(free) + ridge ridge') / delta."""

    perturbation: chex.Array
    value: chex.Array
    free: chex.Array
    ridge: chex.Array | None
    cap: chex.Array


def _rows_times(gaps, vectors):
    return jnp.einsum("smd,sd->sm", gaps, vectors)


def _combine(gaps, multipliers):
    return jnp.einsum("smd,sm->sd", gaps, multipliers)


def bound(norm: str, problems: Problems, multipliers: chex.Array) -> jax.Array:
    """Return the lower bound on the radius that any multipliers >= 0 prove, ``[S]``; weak duality."""
    w = _combine(problems.gaps, multipliers)
    target = jnp.sum(problems.heights * multipliers, axis=1)
    room = jnp.where(w > 0, problems.high, -problems.low)
    size = jnp.abs(w)
    if norm == "l2":
        v = jnp.clip(w, problems.low, problems.high)
        return jnp.sqrt(2 * jnp.maximum(target - jnp.sum(w * v - v**2 / 2, axis=1), 0))
    if norm == "l1":
        return jnp.maximum(_l1_value(1.0, target, size, room), _l1_value(jnp.max(size, axis=1), target, size, room))
    return _linf_root(target, size, room)


def _l1_value(threshold, target, size, room):
    """min {||v||_1 : w.v >= target} >= (target - sum room (|w| - mu)^+) / mu for every mu > 0."""
    threshold = jnp.broadcast_to(threshold, target.shape)
    excess = jnp.maximum(size - threshold[:, None], 0)
    held_back = jnp.sum(jnp.where(excess > 0, room, 0) * excess, axis=1)
    return jnp.where(threshold > 0, (target - held_back) / jnp.where(threshold > 0, threshold, 1), 0)


def _linf_root(target, size, room):
    """Root of sum |w| min(eps, room) = target: concave in eps, so Newton's steps rise to it from 0."""

    def rise(state):
        eps, _, count = state
        is_open = room > eps[:, None]
        slope = jnp.sum(jnp.where(is_open, size, 0), axis=1)
        fixed = jnp.sum(jnp.where(is_open, 0, jnp.where(jnp.isinf(room), 0, room) * size), axis=1)
        risen = jnp.where(slope > 0, (target - fixed) / jnp.where(slope > 0, slope, 1), eps)
        risen = jnp.maximum(risen, eps)
        return risen, jnp.any(risen > eps * (1 + 1e-15)), count + 1

    start = jnp.zeros_like(target)
    return lax.while_loop(lambda state: state[1] & (state[2] < _MAX_ROOT_STEPS), rise, (start, True, 0))[0]


def _inner_l2(w, cap, center, delta, low, high) -> _Inner:
    del center, delta
    v = jnp.clip(w, low, high)
    return _Inner(v, jnp.sum(w * v - v**2 / 2, axis=1), (v == w).astype(w.dtype), None, cap)


def _inner_l1(w, cap, center, delta, low, high) -> _Inner:
    target = center + w / delta
    shrunk = jnp.sign(target) * jnp.maximum(jnp.abs(target) - 1 / delta, 0)
    v = jnp.clip(shrunk, low, high)
    value = jnp.sum(w * v - jnp.abs(v) - delta / 2 * (v - center) ** 2, axis=1)
    return _Inner(v, value, ((v == shrunk) & (v != 0)).astype(w.dtype), None, cap)


def _inner_linf(w, cap, center, delta, low, high) -> _Inner:
    target = center + w / delta
    room = jnp.where(target > 0, high, -low)
    reach = jnp.abs(target)
    cap = _find_cap(reach, room, 1 / delta[:, 0], cap)
    t = cap[:, None]
    v = jnp.clip(jnp.clip(target, -t, t), low, high)
    value = jnp.sum(w * v - delta / 2 * (v - center) ** 2, axis=1) - t[:, 0]
    capped = (reach > t) & (room > t)
    count = jnp.sum(capped, axis=1, keepdims=True)
    total = jnp.sum(jnp.where(capped, reach - t, 0), axis=1, keepdims=True)
    # Where the room of some variable ends at t, t stays there for all nearby w.
    moves = capped & (jnp.abs(total * delta - 1) < 1e-6)
    ridge = jnp.where(moves, jnp.sign(target), 0) / jnp.sqrt(jnp.maximum(count, 1))
    return _Inner(v, value, ((reach <= t) & (reach <= room)).astype(w.dtype), ridge, cap)


def _find_cap(reach, room, target, guess):
    """Find t with sum over room > t of (reach - t)^+ = target, or where that sum, which falls in t, jumps past target.

    Newton's steps inside a bracket; every third step halves it, so the jumps (where t meets the room of a variable)
    cost a few steps more.
    """

    def step(state):
        low, high, t, is_open, count = state
        is_on = (reach > t[:, None]) & (room > t[:, None])
        excess = jnp.sum(jnp.where(is_on, reach - t[:, None], 0), axis=1) - target
        newton = t + excess / jnp.maximum(jnp.sum(is_on, axis=1), 1)
        low, high = jnp.where(is_open & (excess >= 0), t, low), jnp.where(is_open & (excess < 0), t, high)
        is_open = is_open & (jnp.abs(excess) > 1e-11 * target) & (high - low > 1e-14 * high)
        inside = (newton > low) & (newton < high) & (count % 3 != 2)
        following = jnp.where(inside, newton, (low + high) / 2)
        return low, high, jnp.where(is_open, following, t), is_open, count + 1

    top = jnp.max(reach, axis=1)
    start = (jnp.zeros_like(guess), top, jnp.minimum(guess, top), top > 0, 0)
    return lax.while_loop(lambda s: jnp.any(s[3]) & (s[4] < _MAX_ROOT_STEPS), step, start)[2]


_INNER = {"l1": _inner_l1, "l2": _inner_l2, "linf": _inner_linf}


def _newton_direction(problems: Problems, inner: _Inner, delta, gradient, working):
    """Solve (H + damping) step = gradient on the working rows; other rows stay."""
    gaps = problems.gaps
    num_rows = gaps.shape[1]
    columns = [_rows_times(gaps, inner.free * gaps[:, row]) for row in range(num_rows)]
    hessian = jnp.stack(columns, axis=1)
    if inner.ridge is not None:
        along = _rows_times(gaps, inner.ridge)
        hessian = hessian + along[:, :, None] * along[:, None, :]
    hessian = hessian / delta[:, :, None]
    both = working[:, :, None] & working[:, None, :]
    full = jnp.max(jnp.sum(gaps**2, axis=2), axis=1) / delta[:, 0]  # curvature if every variable were free
    hessian = jnp.where(both, hessian, 0)
    diagonal = jnp.where(working, _DAMPING * full[:, None], 1.0)
    system = hessian + jnp.eye(num_rows) * diagonal[:, :, None]
    return jnp.linalg.solve(system, jnp.where(working, gradient, 0)[..., None])[..., 0]


def _maximize(norm, problems: Problems, multipliers, cap, center, delta):
    """Climb q by projected Newton steps with backtracking; returns multipliers, the inner maximum and the error left."""
    delta = jnp.broadcast_to(jnp.asarray(delta, multipliers.dtype), (len(multipliers),))[:, None]
    inner_of = functools.partial(_INNER[norm], center=center, delta=delta, low=problems.low, high=problems.high)
    scale = jnp.max(jnp.abs(problems.heights), axis=1) + 1e-300

    def evaluate(multipliers, cap):
        inner = inner_of(_combine(problems.gaps, multipliers), cap)
        return inner, jnp.sum(problems.heights * multipliers, axis=1) - inner.value

    def residual(multipliers, inner):
        gradient = jnp.where(problems.is_row, problems.heights - _rows_times(problems.gaps, inner.perturbation), 0)
        working = problems.is_row & ((multipliers > 0) | (gradient > 0))
        return gradient, working, jnp.max(jnp.where(working, jnp.abs(gradient), 0), axis=1) / scale

    def backtrack(multipliers, step, gradient, inner, value, is_open):
        def halve(state):
            share, _, last, *_, count = state
            trial = jnp.where(is_open[:, None], jnp.maximum(multipliers + share[:, None] * step, 0), multipliers)
            inner, reached = evaluate(trial, last.cap)
            gain = jnp.sum(gradient * (trial - multipliers), axis=1)
            good = ~is_open | (reached >= value + 1e-4 * gain - 1e-12 * jnp.abs(value))
            return jnp.where(good, share, share / 4), trial, inner, reached, ~jnp.all(good), count + 1

        start = (jnp.ones_like(value), multipliers, inner, value, True, 0)
        _, trial, inner, reached, _, _ = lax.while_loop(lambda s: s[4] & (s[5] < _MAX_HALVINGS), halve, start)
        return trial, inner, reached

    def climb(state):
        multipliers, inner, value, _, count = state
        gradient, working, error = residual(multipliers, inner)
        is_open = error > _TOLERANCE
        step = _newton_direction(problems, inner, delta, gradient, working)
        trial, inner, value = backtrack(multipliers, step, gradient, inner, value, is_open)
        error = residual(trial, inner)[2]
        return trial, inner, value, jnp.any(error > _TOLERANCE), count + 1

    inner, value = evaluate(multipliers, cap)
    error = residual(multipliers, inner)[2]
    start = (multipliers, inner, value, jnp.any(error > _TOLERANCE), 0)
    multipliers, inner, *_ = lax.while_loop(lambda s: s[3] & (s[4] < _MAX_NEWTON_STEPS), climb, start)
    return multipliers, inner, residual(multipliers, inner)[2]


def start(norm: str, problems: Problems) -> jax.Array:
    """Return the multipliers ``[S, M]`` that are best for one constraint alone, in l1 or linf without a box."""
    lengths = jnp.max(jnp.abs(problems.gaps), axis=2) if norm == "l1" else jnp.sum(jnp.abs(problems.gaps), axis=2)
    lengths = jnp.where(lengths > 0, lengths, 1)
    best = jnp.argmax(jnp.where(problems.is_row, problems.heights / lengths, -jnp.inf), axis=1)
    return jax.nn.one_hot(best, lengths.shape[1], dtype=lengths.dtype) / lengths


def solve(
    norm: str,
    problems: Problems,
    multipliers: chex.Array,
    size: chex.Array,
    *,
    center: chex.Array | None = None,
    rounds: chex.Array | None = None,
) -> Solution:
    """Solve S problems together, as far as a bounded number of steps goes.

    Args:
      norm: of the perturbation.
      problems: as above.
      multipliers: to start from, ``[S, M]``; in l1 and linf those of an earlier call, or zeros.
      size: a positive number near the radius ``[S]``; sets the units.
      center: v of an earlier call ``[S, d]``; unused in l2.
      rounds: number of earlier calls ``[S]``: the steps of the centre grow with it.
    """
    size = size[:, None]
    scaled = problems._replace(heights=problems.heights / size, low=problems.low / size, high=problems.high / size)
    if norm == "l2":
        multipliers, inner, error = _maximize(norm, scaled, multipliers / size, size[:, 0], 0.0, 1.0)
        multipliers = multipliers * size
        return Solution(multipliers, inner.perturbation * size, bound(norm, problems, multipliers), error <= _TOLERANCE)
    spread = problems.gaps.shape[2] if norm == "linf" else 1

    def outer(state):
        multipliers, center, cap, *_, count = state
        share = jnp.maximum(_FIRST_PROXIMITY * _SHRINK ** (count + _OUTER_STEPS * rounds), _LAST_PROXIMITY)
        multipliers, inner, error = _maximize(norm, scaled, multipliers, cap, center, share / spread)
        v = inner.perturbation
        reached = jnp.sum(jnp.abs(v), axis=1) if norm == "l1" else jnp.max(jnp.abs(v), axis=1)
        lower = bound(norm, scaled, multipliers)
        is_converged = (error <= _TOLERANCE) & (reached - lower <= _GAP * reached)
        return multipliers, v, inner.cap, lower, is_converged, count + 1

    zeros = jnp.zeros_like(size[:, 0])
    start = (multipliers, center / size, zeros + 1, zeros, zeros > 0, 0)
    state = lax.while_loop(lambda s: ~jnp.all(s[4]) & (s[5] < _OUTER_STEPS), outer, start)
    multipliers, v, _, lower, is_converged, _ = state
    return Solution(multipliers, v * size, lower * size[:, 0], is_converged)
