"""The smallest perturbation that meets a few linear constraints inside a box, by Newton's method on its dual.

The dual of a problem (`Problems`) has only the few multipliers. Around a centre c, ``min f(v) + delta/2 ||v - c||^2``
has the dual

  q(lambda) = h.lambda - max_v { w.v - f(v) - delta/2 ||v - c||^2 },      w = G' lambda,   lambda >= 0,

which is concave, has one derivative, and whose inner maximum is closed because the box is separable. So one projected
Newton method (`_maximize`) serves all norms:

  l2:   f = 0, c = 0, delta = 1:  v = clip(w).  This is the problem itself, 1/2 ||v||^2.
  l1:   f = ||v||_1:  v = clip(soft(c + w / delta, 1 / delta)); then the centre moves to v, and again (proximal point
        method, Rockafellar 1976; with Newton inside as in Li, Sun & Toh 2020, "An asymptotically superlinearly
        convergent semismooth Newton augmented Lagrangian method for linear programming"). A linear program is solved
        exactly after finitely many such steps.
  linf: f = 0 in the box cut to |v_k| <= epsilon, for a growing epsilon (`_solve_linf`).

Whatever the multipliers, they prove a lower bound (`lower_bound`), so an early stop or a rounding error costs time,
never soundness. Everything is float64: call under ``jax.enable_x64(True)``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from nn_adv.certify.problems import Problems, combine, lower_bound

_TOLERANCE = 1e-8  # of the largest h, by which a constraint may be missed
_GAP = 1e-7  # relative, between v and the bound
# Steps of the centre per call, and how near it keeps v: from first to last, in units of the scaled problem.
_OUTER_STEPS = 8
_FIRST_PROXIMITY, _SHRINK, _LAST_PROXIMITY = 0.1, 0.1, 0.003
_MAX_NEWTON_STEPS = 40
_MAX_HALVINGS = 30
# Share of the largest curvature added to the diagonal: keeps a singular Newton system solvable.
_DAMPING = 1e-10


class Solution(NamedTuple):
    """What was reached for S problems."""

    multipliers: chex.Array  # not negative [S, M]
    perturbation: chex.Array  # v [S, d]; within the box, and near feasible where converged
    lower: chex.Array  # lower bound on the radius that the multipliers prove [S]
    is_converged: chex.Array  # whether v and it agree to the tolerance [S]


class _Inner(NamedTuple):
    """The inner maximum: v, its value, and dv/dw = diag(free) / delta."""

    perturbation: chex.Array
    value: chex.Array
    free: chex.Array


def _products(gaps, vectors):
    return jnp.einsum("smd,sd->sm", gaps, vectors)


def _inner_box(w, center, delta, low, high) -> _Inner:
    target = center + w / delta
    v = jnp.clip(target, low, high)
    value = jnp.sum(w * v - delta / 2 * (v - center) ** 2, axis=1)
    return _Inner(v, value, (v == target).astype(w.dtype))


def _inner_l1(w, center, delta, low, high) -> _Inner:
    target = center + w / delta
    shrunk = jnp.sign(target) * jnp.maximum(jnp.abs(target) - 1 / delta, 0)
    v = jnp.clip(shrunk, low, high)
    value = jnp.sum(w * v - jnp.abs(v) - delta / 2 * (v - center) ** 2, axis=1)
    return _Inner(v, value, ((v == shrunk) & (v != 0)).astype(w.dtype))


def off_border(problems: Problems, multipliers: chex.Array, perturbation: chex.Array, margin: chex.Array) -> jax.Array:
    """Return the shortest change ``[S, d]`` of moved, free pixels that overfulfils the active constraints by a margin.

    At an optimum in l1 few pixels are neither at rest nor at a bound, and no other way of gaining a margin is cheaper.
    Where they are fewer than the active constraints (of positive multipliers) it is a compromise, which may gain
    nothing. Arguments as in `Solution`, and the margin ``[S]``.
    """
    is_free = (perturbation != 0) & (perturbation > problems.low) & (perturbation < problems.high)
    gaps = problems.gaps * (is_free[:, None] & (multipliers > 0)[:, :, None])
    gram = jnp.einsum("smd,snd->smn", gaps, gaps)
    size = jnp.max(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)[:, None, None]
    system = gram + jnp.eye(gaps.shape[1]) * (_DAMPING * size + 1e-300)
    wanted = jnp.broadcast_to(margin[:, None], multipliers.shape) * jnp.any(gaps != 0, axis=2)
    return combine(gaps, _solve_positive(system, wanted))


def _newton_direction(problems: Problems, inner: _Inner, delta, give, gradient, working):
    """Solve (H + give + damping) step = gradient for the working constraints; the others stay."""
    gaps = problems.gaps
    hessian = jnp.einsum("smd,snd->smn", inner.free[:, None] * gaps, gaps) / delta[:, :, None]
    both = working[:, :, None] & working[:, None, :]
    full = jnp.max(jnp.sum(gaps**2, axis=2), axis=1, keepdims=True) / delta  # curvature if every variable were free
    diagonal = jnp.where(working, give + _DAMPING * full, 1.0)
    system = jnp.where(both, hessian, 0) + jnp.eye(gaps.shape[1]) * diagonal[:, :, None]
    return _solve_positive(system, jnp.where(working, gradient, 0))


def _solve_positive(systems, right):
    """Solve positive definite systems ``[S, M, M]`` for right-hand sides ``[S, M]``: Gauss-Jordan without pivoting.

    JAX's own goes to LAPACK, whose first use on a CPU imports a part of SciPy; products of d numbers cost more than
    either.
    """

    def eliminate(k, rows):
        pivot = rows[:, k] / rows[:, k, k, None]
        return (rows - rows[:, :, k, None] * pivot[:, None]).at[:, k].set(pivot)

    rows = jnp.concatenate([systems, right[:, :, None]], axis=2)
    return lax.fori_loop(0, rows.shape[1], eliminate, rows)[:, :, -1]


def _maximize(inner_fn, problems: Problems, multipliers, center, delta, give):
    """Climb q(lambda) - give/2 ||lambda||^2 by projected Newton steps with backtracking, from multipliers ``[S, M]``.

    ``give [S, 1]`` is how far a constraint is missed per unit of its multiplier, 0 for hard ones. Returns multipliers,
    the inner maximum (that of ``inner_fn``), and the largest derivative left over the largest h ``[S]``.
    """
    inner_of = functools.partial(inner_fn, center=center, delta=delta, low=problems.low, high=problems.high)
    scale = jnp.max(jnp.abs(problems.heights), axis=1) + 1e-300

    def evaluate(multipliers):
        inner = inner_of(combine(problems.gaps, multipliers))
        return inner, jnp.sum(problems.heights * multipliers - give / 2 * multipliers**2, axis=1) - inner.value

    def residual(multipliers, inner):
        gradient = problems.heights - _products(problems.gaps, inner.perturbation) - give * multipliers
        working = problems.is_constraint & ((multipliers > 0) | (gradient > 0))
        return gradient, working, jnp.max(jnp.where(working, jnp.abs(gradient), 0), axis=1) / scale

    def backtrack(multipliers, step, gradient, inner, value, is_open):
        def halve(state):
            share, *_, count = state
            trial = jnp.where(is_open[:, None], jnp.maximum(multipliers + share[:, None] * step, 0), multipliers)
            inner, reached = evaluate(trial)
            gain = jnp.sum(gradient * (trial - multipliers), axis=1)
            good = ~is_open | (reached >= value + 1e-4 * gain - 1e-12 * jnp.abs(value))
            return jnp.where(good, share, share / 4), trial, inner, reached, ~jnp.all(good), count + 1

        start = (jnp.ones_like(value), multipliers, inner, value, True, 0)
        return lax.while_loop(lambda s: s[4] & (s[5] < _MAX_HALVINGS), halve, start)[1:4]

    def climb(state):
        multipliers, inner, value, (gradient, working, error), count = state
        step = _newton_direction(problems, inner, delta, give, gradient, working)
        trial, inner, value = backtrack(multipliers, step, gradient, inner, value, error > _TOLERANCE)
        return trial, inner, value, residual(trial, inner), count + 1

    def is_open(state):
        *_, (_, _, error), count = state
        return jnp.any(error > _TOLERANCE) & (count < _MAX_NEWTON_STEPS)

    inner, value = evaluate(multipliers)
    start = (multipliers, inner, value, residual(multipliers, inner), 0)
    multipliers, inner, _, (_, _, error), _ = lax.while_loop(is_open, climb, start)
    return multipliers, inner, error


def start(norm: str, problems: Problems) -> jax.Array:
    """Return the multipliers ``[S, M]`` that are best for one constraint alone, in l1 or linf without a box."""
    lengths = jnp.max(jnp.abs(problems.gaps), axis=2) if norm == "l1" else jnp.sum(jnp.abs(problems.gaps), axis=2)
    lengths = jnp.where(lengths > 0, lengths, 1)
    best = jnp.argmax(jnp.where(problems.is_constraint, problems.heights / lengths, -jnp.inf), axis=1)
    return jax.nn.one_hot(best, lengths.shape[1], dtype=lengths.dtype) / lengths


def solve(
    norm: str,
    problems: Problems,
    multipliers: chex.Array,
    size: chex.Array,
    *,
    center: chex.Array,
    rounds: chex.Array,
    enough: chex.Array | float = jnp.inf,
) -> Solution:
    """Solve S problems together, as far as a bounded number of steps goes.

    Args:
      norm: of the perturbation.
      problems: S of them.
      multipliers: to start from, ``[S, M]``; in l1 and linf those of an earlier call, or zeros.
      size: a positive number near the radius ``[S]``; sets the units.
      center: v of an earlier call ``[S, d]``; unused in l2.
      rounds: number of earlier calls ``[S]``: the steps of the centre grow with it.
      enough: in l1 and linf a problem is left once its lower bound has reached this ``[S]``.
    """
    size = size[:, None]
    scaled = problems._replace(heights=problems.heights / size, low=problems.low / size, high=problems.high / size)
    if norm == "l2":
        one = jnp.ones_like(size)
        multipliers, inner, error = _maximize(_inner_box, scaled, multipliers / size, 0.0, one, 0 * one)
        multipliers = multipliers * size
        proved = lower_bound(norm, problems, multipliers)
        return Solution(multipliers, inner.perturbation * size, proved, error <= _TOLERANCE)
    solve_scaled = _solve_l1 if norm == "l1" else _solve_linf
    solved = solve_scaled(scaled, multipliers, center / size, rounds, enough / size[:, 0])
    return solved._replace(perturbation=solved.perturbation * size, lower=solved.lower * size[:, 0])


def _solve_l1(problems: Problems, multipliers, center, rounds, enough) -> Solution:
    """Proximal point steps: the centre moves to the last v."""

    def outer(state):
        multipliers, center, *_, count = state
        share = jnp.maximum(_FIRST_PROXIMITY * _SHRINK ** (count + _OUTER_STEPS * rounds), _LAST_PROXIMITY)[:, None]
        multipliers, inner, error = _maximize(_inner_l1, problems, multipliers, center, share, 0 * share)
        reached = jnp.sum(jnp.abs(inner.perturbation), axis=1)
        lower = lower_bound("l1", problems, multipliers)
        is_converged = (error <= _TOLERANCE) & (reached - lower <= _GAP * reached)
        return multipliers, inner.perturbation, lower, is_converged, count + 1

    zeros = jnp.zeros_like(problems.heights[:, 0])
    start = (multipliers, center, zeros, zeros > 0, 0)
    state = lax.while_loop(lambda s: ~jnp.all(s[3] | (s[2] >= enough)) & (s[4] < _OUTER_STEPS), outer, start)
    return Solution(*state[:4])


def _solve_linf(problems: Problems, multipliers, center, rounds, enough) -> Solution:
    """Raise epsilon until the constraints can be met within it.

    At each epsilon the constraints may be missed at a price. What is missed, mu = C (h - G v)^+, separates the box of
    epsilon from the constraints, so the bound it proves is above epsilon: that is the next epsilon.
    """
    lengths = jnp.sum(jnp.abs(problems.gaps), axis=2)
    lengths = jnp.where(lengths > 0, lengths, 1)
    unit = problems._replace(gaps=problems.gaps / lengths[:, :, None], heights=problems.heights / lengths)
    num_variables = problems.gaps.shape[2]

    def outer(state):
        best, price, center, lower, _, count = state
        epsilon = lower[:, None] * (1 + 1e-9)
        boxed = unit._replace(low=jnp.maximum(unit.low, -epsilon), high=jnp.minimum(unit.high, epsilon))
        stage = (count + _OUTER_STEPS * rounds)[:, None]
        delta = jnp.maximum(1e-3 * 0.3**stage, 1e-6) / num_variables
        give = jnp.maximum(0.1**stage, 1e-5)
        price, inner, _ = _maximize(_inner_box, boxed, price, center, delta, give)
        proved = lower_bound("linf", unit, price)
        best = jnp.where((proved > lower)[:, None], price, best)
        missed = jnp.max(
            jnp.where(unit.is_constraint, unit.heights - _products(unit.gaps, inner.perturbation), 0), axis=1
        )
        is_converged = missed <= _TOLERANCE * lower
        return best, price, inner.perturbation, jnp.maximum(proved, lower), is_converged, count + 1

    best = multipliers * lengths
    lower = lower_bound("linf", unit, best)
    start = (best, jnp.zeros_like(best), center, lower, lower < 0, 0)
    state = lax.while_loop(lambda s: ~jnp.all(s[4] | (s[3] >= enough)) & (s[5] < _OUTER_STEPS), outer, start)
    best, _, v, lower, is_converged, _ = state
    return Solution(best / lengths, v, lower, is_converged)
