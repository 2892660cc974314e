"""The smallest perturbation under a few linear constraints: what multipliers prove of it, and its linear programs.

  r = min ||v||_p   subject to   G v >= h,   low <= v <= high,      G_i = z_j - z_i,  h_i = (D_j - D_i) / 2

for one opponent z_j and own-class points z_i. By weak duality any multipliers >= 0 prove a lower bound on r, however
they were found. `dual` finds them; what it leaves open in l1 and linf goes to HiGHS (`solve_linear`), which is slow.
Everything is float64: call under ``jax.enable_x64(True)``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # whose parts are imported when they are first used
from jax import lax

_MAX_ROOT_STEPS = 150
_LEAST_THRESHOLD, _NUM_HALVINGS = 2.0**-12, 14  # where the best threshold of l1 is looked for
# Without what is done before: it takes longer than solving for a few constraints.
_HIGHS_OPTIONS = {"presolve": False, "primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class Problems(NamedTuple):
    """S problems with up to M constraints each, in d variables."""

    gaps: chex.Array  # G [S, M, d]; zero where there is no constraint
    heights: chex.Array  # h [S, M]; zero there
    is_constraint: chex.Array  # [S, M]; False there
    low: chex.Array  # [S, d], at most 0; -inf without a box
    high: chex.Array  # [S, d], at least 0; inf without a box


def combine(gaps: chex.Array, multipliers: chex.Array) -> jax.Array:
    """Return w = G' lambda, ``[S, d]``."""
    return jnp.einsum("smd,sm->sd", gaps, multipliers)


@functools.partial(jax.jit, static_argnames="norm")  # for calls outside jit: there the search below compiled each time
def lower_bound(norm: str, problems: Problems, multipliers: chex.Array) -> jax.Array:
    """Return the lower bound on the radius that any multipliers >= 0 prove, ``[S]``; weak duality."""
    w = combine(problems.gaps, multipliers)
    target = jnp.sum(problems.heights * multipliers, axis=1)
    room = jnp.where(w > 0, problems.high, -problems.low)
    size = jnp.abs(w)
    if norm == "l2":
        v = jnp.clip(w, problems.low, problems.high)
        return jnp.sqrt(2 * jnp.maximum(target - jnp.sum(w * v - v**2 / 2, axis=1), 0))
    if norm == "l1":
        return jnp.maximum(_l1_value(1.0, target, size, room), l1_maximum(target, size, room))
    return linf_root(target, size, room)


def _l1_value(threshold, target, size, room):
    """min {||v||_1 : w.v >= target} >= (target - sum room (|w| - mu)^+) / mu for every mu > 0."""
    threshold = jnp.broadcast_to(threshold, target.shape)
    excess = jnp.maximum(size - threshold[:, None], 0)
    held_back = jnp.sum(jnp.where(excess > 0, room, 0) * excess, axis=1)
    return jnp.where(threshold > 0, (target - held_back) / jnp.where(threshold > 0, threshold, 1), 0)


def l1_maximum(target, size, room):
    """Return a bound ``[S]``, near the best, on the least l1 size of v with w.v >= target; arguments as in `linf_root`.

    The bound of `_l1_value` is concave in 1 / mu: its derivative tells on which side of mu the best one lies. It is
    looked for in single precision, since any mu proves a bound.
    """
    largest = jnp.max(size, axis=1)
    single, products = size.astype(jnp.float32), (room * size).astype(jnp.float32)

    def halve(_, ends):
        low, high = ends
        middle = jnp.sqrt(low * high)
        held = jnp.sum(jnp.where(single > middle[:, None].astype(jnp.float32), products, 0), axis=1)
        return jnp.where(target > held, low, middle), jnp.where(target > held, middle, high)

    low, _ = lax.fori_loop(0, _NUM_HALVINGS, halve, (largest * _LEAST_THRESHOLD, largest))
    # At the largest |w| nothing is held back.
    return jnp.maximum(_l1_value(low, target, size, room), target / jnp.where(largest > 0, largest, jnp.inf))


def linf_root(target, size, room):
    """Return the eps ``[S]`` at which sum |w| min(eps, room) = target: the least linf size of v with w.v >= target.

    The sum is concave in eps, so Newton's steps rise to the root from 0. The target is ``[S]``, the size |w|
    ``[S, d]``; the room ``[S, d]``, how far each variable may move in the direction of w, may be inf.
    """

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


def solve_linear(
    norm: str, gaps: np.ndarray, heights: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Minimise ``||v||`` in l1 or linf subject to ``gaps v >= heights`` and ``low <= v <= high``.

    Gaps are ``[M, d]`` float64, ends of the box may be infinite. Returns the multipliers ``[M]`` and the perturbation
    ``[d]``, or None if HiGHS finds none.
    """
    size = gaps.shape[1]
    if norm == "l1":  # v = up - down
        cost = np.ones(2 * size)
        rows, right = np.concatenate([-gaps, gaps], axis=1), -heights
        box = np.stack([np.zeros(2 * size), np.concatenate([high, -low])], axis=1)
    else:  # |v_k| <= t
        cost = np.append(np.zeros(size), 1.0)
        identity, ones = scipy.sparse.identity(size, format="csr"), np.ones((size, 1))
        blocks = [[scipy.sparse.csr_matrix(-gaps), None], [identity, -ones], [-identity, -ones]]
        rows, right = scipy.sparse.bmat(blocks, format="csr"), np.append(-heights, np.zeros(2 * size))
        box = np.stack([np.append(low, 0), np.append(high, np.inf)], axis=1)
    result = scipy.optimize.linprog(cost, rows, right, bounds=box, method="highs-ds", options=_HIGHS_OPTIONS)
    if result.x is None or result.status != 0:
        return None
    multipliers = np.maximum(-result.ineqlin.marginals[: len(heights)], 0)
    return multipliers, result.x[:size] - result.x[size:] if norm == "l1" else result.x[:size]
