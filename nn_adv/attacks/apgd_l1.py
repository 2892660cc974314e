"""The ascent of APGD in l1: sparse steps of adaptive sparsity (Croce & Hein 2021, arXiv 2103.01208, "Mind the Box")."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nn_adv.attacks.common import Highest, Visited, better, higher, where_each
from nn_adv.threat import Threat, drop_outward, per_image, project, sparse_step

_CHECK_EVERY = 0.04  # share of the steps
_FIRST_SHARE = 0.2  # of the pixels moved by the first steps
_SPARSER = 0.95  # a point with fewer changed pixels than this share of those before counts as sparser
_DIVIDE_PIXELS = 1.5  # a step moves the best point's number of changed pixels divided by this
_DIVIDE_STEP = 1.5
_SMALLEST_STEP = 0.1  # in radii, and the largest is 1


class _State(NamedTuple):
    """One run: all ``[B]`` or ``[B, ...]``."""

    points: chex.Array
    gradient: chex.Array
    step_size: chex.Array
    pixels_to_move: chex.Array
    pixels_changed: chex.Array  # in the best point, at the last checkpoint
    best: Highest
    visited: Visited


def ascend_l1(evaluate: Callable, start: chex.Array, images: chex.Array, threat: Threat, num_steps: int) -> Visited:
    """Run the ascent in l1 once; the start is projected here. Returns the best point visited.

    ``evaluate(points)`` returns loss ``[B]``, gradient ``[B, ...]`` and `Visited`. The paper starts in balls of three
    times and twice the radius; here all steps are spent in the ball itself, which is stronger with the exact projection
    (docs/benchmarks/attack_parity.md has the comparison).
    """
    points = project(threat, start, images)
    loss, gradient, visited = evaluate(points)
    num_pixels = jnp.full(loss.shape, images[0].size, images.dtype)
    state = _State(
        points=points,
        gradient=gradient,
        step_size=jnp.broadcast_to(jnp.asarray(threat.epsilon, images.dtype), loss.shape),
        pixels_to_move=_FIRST_SHARE * num_pixels,
        pixels_changed=num_pixels,
        best=Highest(points, gradient, loss),
        visited=visited,
    )
    check_every = max(int(_CHECK_EVERY * num_steps), 1)

    def step(number, state):
        moved = _move(state, evaluate, images, threat)
        is_checkpoint = (number + 1) % check_every == 0
        return jax.lax.cond(is_checkpoint, lambda s: _checkpoint(s, images, threat), lambda s: s, moved)

    return jax.lax.fori_loop(0, num_steps, step, state).visited


def _move(state: _State, evaluate, images, threat) -> _State:
    """Step along the signs of the largest components of the gradient, as many as the sparsity allows."""
    # The authors keep components that push a pixel out of the bounds, and lose sparse steps to them.
    direction = sparse_step(drop_outward(threat, state.gradient, state.points), state.pixels_to_move.astype(int))
    moved = project(threat, state.points + per_image(state.step_size, images) * direction, images)
    loss, gradient, visited = evaluate(moved)
    return state._replace(
        points=moved,
        gradient=gradient,
        best=higher(state.best, Highest(moved, gradient, loss)),
        visited=better(state.visited, visited),
    )


def _checkpoint(state: _State, images, threat) -> _State:
    """Where the best point became sparser, start again from it with the longest step; shorten the step elsewhere."""
    changed = jnp.sum((state.best.points != images).reshape(len(images), -1), axis=1).astype(images.dtype)
    sparser = changed < _SPARSER * state.pixels_changed
    longest = jnp.broadcast_to(jnp.asarray(threat.epsilon, images.dtype), sparser.shape)
    shorter = jnp.maximum(state.step_size / _DIVIDE_STEP, _SMALLEST_STEP * longest)
    points, gradient = where_each(sparser, state.best[:2], (state.points, state.gradient))
    return state._replace(
        points=points,
        gradient=gradient,
        step_size=jnp.where(sparser, longest, shorter),
        pixels_to_move=changed / _DIVIDE_PIXELS,
        pixels_changed=changed,
    )
