"""The ascent of APGD in l1: sparse steps of adaptive sparsity (Croce & Hein 2021, arXiv 2103.01208, "Mind the Box")."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks.common import Visited, better, where_each
from nn_adv.threat import Threat, per_image, perturbation_size, project

_RADII = np.array([3.0, 2.0, 1.0])  # of the balls of the three phases, in radii
_CHECK_EVERY = 0.04  # share of a phase's steps
_SPARSER = 0.95  # a point with fewer changed pixels than this share of those before counts as sparser
_DIVIDE_PIXELS = 1.5  # a step moves the best point's number of changed pixels divided by this
_DIVIDE_STEP = 1.5
_SMALLEST_STEP = 0.1  # in radii, and the largest is 1


class _State(NamedTuple):
    """One phase: all ``[B]`` or ``[B, ...]``."""

    points: chex.Array
    gradient: chex.Array
    step_size: chex.Array
    pixels_to_move: chex.Array
    pixels_changed: chex.Array  # in the best point, at the last checkpoint
    best_points: chex.Array
    best_gradient: chex.Array
    best_loss: chex.Array
    visited: Visited


def ascend_l1(evaluate: Callable, start: chex.Array, images: chex.Array, threat: Threat, num_steps: int) -> Visited:
    """Run the ascent in l1 once, in balls of three times, twice and once the radius.

    Each phase starts from the best point of the one before, projected; what is visited outside the ball is not
    reported. Projections are those of `project`, exact for ball and bounds together.

    Args:
      evaluate: points ``[B, ...]`` and number of the step to loss ``[B]``, gradient ``[B, ...]`` and `Visited`.
      start: points ``[B, ...]``.
      images: clean images ``[B, ...]``.
      threat: the perturbations allowed, in l1.
      num_steps: steps of the three phases together.

    Returns:
      The best point visited within the last ball.
    """
    wide = 3 * num_steps // 10
    lengths = np.array([wide, wide, num_steps - 2 * wide])
    first_steps = np.array([0, wide, 2 * wide]) + np.arange(3)  # every phase evaluates its start too

    def phase(number, carry):
        points, _ = carry
        ball = threat.replace(epsilon=threat.epsilon * jnp.asarray(_RADII, images.dtype)[number])
        return _phase(
            lambda points, step: evaluate(points, jnp.asarray(first_steps)[number] + step),
            points,
            images,
            ball,
            jnp.asarray(lengths)[number],
        )

    nothing = Visited(start, jnp.zeros(start.shape[0], bool), jnp.zeros(start.shape[0], images.dtype))
    return jax.lax.fori_loop(0, len(_RADII), phase, (start, nothing))[1]


def _phase(evaluate, start, images, threat, num_steps) -> tuple[chex.Array, Visited]:
    """Return the point of the highest loss and the best one visited; ``num_steps`` is traced."""
    points = project(threat, start, images)
    loss, gradient, visited = evaluate(points, 0)
    changed = _pixels_changed(points, images)
    state = _State(
        points=points,
        gradient=gradient,
        step_size=jnp.broadcast_to(jnp.asarray(threat.epsilon, images.dtype), loss.shape),
        pixels_to_move=changed / _DIVIDE_PIXELS,
        pixels_changed=changed,
        best_points=points,
        best_gradient=gradient,
        best_loss=loss,
        visited=visited,
    )
    check_every = jnp.maximum((_CHECK_EVERY * num_steps).astype(int), 1)

    def step(number, state):
        moved = _move(state, evaluate, number, images, threat)
        return jax.lax.cond(
            (number + 1) % check_every == 0, lambda s: _checkpoint(s, images, threat), lambda s: s, moved
        )

    state = jax.lax.fori_loop(0, num_steps, step, state)
    return state.best_points, state.visited


def _move(state: _State, evaluate, number, images, threat) -> _State:
    """Step along the signs of the largest components of the gradient, as many as the sparsity allows."""
    direction = _sparse_signs(state.gradient, state.pixels_to_move)
    moved = project(threat, state.points + per_image(state.step_size, images) * direction, images)
    loss, gradient, visited = evaluate(moved, number + 1)
    best = where_each(
        loss > state.best_loss,
        (moved, gradient, loss),
        (state.best_points, state.best_gradient, state.best_loss),
    )
    return state._replace(
        points=moved,
        gradient=gradient,
        best_points=best[0],
        best_gradient=best[1],
        best_loss=best[2],
        visited=better(state.visited, visited),
    )


def _checkpoint(state: _State, images, threat) -> _State:
    """Where the best point became sparser, start again from it with the longest step; shorten the step elsewhere."""
    changed = _pixels_changed(state.best_points, images)
    sparser = changed < _SPARSER * state.pixels_changed
    longest = jnp.broadcast_to(jnp.asarray(threat.epsilon, images.dtype), sparser.shape)
    shorter = jnp.maximum(state.step_size / _DIVIDE_STEP, _SMALLEST_STEP * longest)
    points, gradient = where_each(sparser, (state.best_points, state.best_gradient), (state.points, state.gradient))
    return state._replace(
        points=points,
        gradient=gradient,
        step_size=jnp.where(sparser, longest, shorter),
        pixels_to_move=changed / _DIVIDE_PIXELS,
        pixels_changed=changed,
    )


def _sparse_signs(gradient: chex.Array, count: chex.Array) -> chex.Array:
    """Give the signs of the ``count [B]`` largest components (at least one), scaled to an l1 size of 1."""
    sizes = jnp.sort(jnp.abs(gradient.reshape(gradient.shape[0], -1)), axis=1)
    last = jnp.clip(sizes.shape[1] - count.astype(int), 0, sizes.shape[1] - 1)
    threshold = per_image(jnp.take_along_axis(sizes, last[:, None], axis=1)[:, 0], gradient)
    signs = jnp.where(jnp.abs(gradient) >= threshold, jnp.sign(gradient), 0)
    return signs / jnp.maximum(per_image(perturbation_size("l1", signs), gradient), 1)


def _pixels_changed(points: chex.Array, images: chex.Array) -> chex.Array:
    return jnp.sum((points != images).reshape(len(points), -1), axis=1).astype(images.dtype)
