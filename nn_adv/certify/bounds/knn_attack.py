"""An attack on the vote of the k nearest points: few steps over the points near each image, as small as it gets."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from nn_adv.threat import Threat, per_image, perturbation_size, project, steepest_step

# Shares of the way towards the mean of a few points of another class that are tried as a start.
_WAYS = 48
# Width of the soft vote, relative to the squared distance at which points stop voting.
_WIDTHS = (0.02, 0.1)
# Step length as a share of the current radius, and change of the radius per step, at the first and the last step.
_STEP = (0.1, 0.01)
_RADIUS_STEP = (0.02, 0.005)


@functools.partial(jax.jit, static_argnames="num_classes")
def winner(labels: chex.Array, num_classes: int) -> jax.Array:
    """Return the class with most votes ``[Q]``, of equals the one that votes first; ``labels [Q, k]`` in that order."""
    is_vote = labels[:, :, None] == jnp.arange(num_classes)
    k = labels.shape[1]
    first = jnp.where(is_vote, jnp.arange(k)[:, None], k).min(axis=1)
    counts = is_vote.sum(axis=1)
    is_most = counts == counts.max(axis=1, keepdims=True)
    return jnp.argmin(jnp.where(is_most, first, k), axis=1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("k", "norm", "bounds", "num_classes", "num_steps"))
def attack(
    images: chex.Array,
    labels: chex.Array,
    points: chex.Array,
    point_labels: chex.Array,
    *,
    k: int,
    norm: str,
    bounds: tuple[float, float] | None,
    num_classes: int,
    num_steps: int,
) -> jax.Array:
    """Look for a small perturbation that changes the vote among a few points near each image.

    A step of steepest ascent on a soft count of votes, projected into a ball that shrinks when the vote is wrong and
    grows when it is right (as Rony et al. 2019, "Decoupling direction and norm", for networks), from the best place
    on the way to the mean of the nearest points of any other class.

    Images ``[B, d]`` are float32, inside the bounds; points ``[B, m, d]``, k or more, vote, with labels -1 for padding.
    Returns the best point found ``[B, d]``, NaN where none that was visited changes the vote.
    """
    offsets = points - images[:, None]
    sq_distances = jnp.where(point_labels < 0, jnp.inf, jnp.sum(jnp.square(offsets), axis=-1))

    def relative(moves):
        """Squared distances to the points less ``||v||^2``: all that matters for their order."""
        return sq_distances - 2 * jnp.einsum("bmd,bd->bm", offsets, moves)

    def is_wrong(values):
        nearest = jax.lax.top_k(-values, k)[1]
        return winner(jnp.take_along_axis(point_labels, nearest, axis=1), num_classes) != labels

    start = _start(offsets, sq_distances, point_labels, labels, k, norm, num_classes, is_wrong)

    def walk(width):
        margin = functools.partial(_soft_margin, point_labels, labels, k, num_classes, width)
        return _shrink(images, start, relative, is_wrong, margin, norm, bounds, num_steps)

    # Each walk keeps its start, so no start is lost.
    size, moves = functools.reduce(_smaller, zip(*jax.lax.map(walk, jnp.array(_WIDTHS)), strict=True))
    return jnp.where(jnp.isfinite(size)[:, None], images + moves, jnp.nan)


def _smaller(one, other):
    """Choose per image between two (size, move)."""
    better = other[0] < one[0]
    return jnp.where(better, other[0], one[0]), jnp.where(better[:, None], other[1], one[1])


def _start(offsets, sq_distances, point_labels, labels, k, norm, num_classes, is_wrong):
    """Return size and move of the smallest wrong vote on the way to a mean of other points; size inf if none is."""
    shares = jnp.linspace(0, 1, _WAYS + 1)[1:]
    count = k // 2 + 1  # a majority

    def towards(label):
        members = jnp.where(point_labels == label, sq_distances, jnp.inf)
        values, nearest = jax.lax.top_k(-members, min(count, members.shape[1]))
        weights = jnp.isfinite(values) / jnp.maximum(jnp.isfinite(values).sum(axis=1, keepdims=True), 1)
        picked = jnp.take_along_axis(offsets, nearest[:, :, None], axis=1)
        mean = jnp.einsum("bm,bmd->bd", weights, picked)
        slope = -2 * jnp.einsum("bmd,bd->bm", offsets, mean)
        wrong = jax.lax.map(lambda share: is_wrong(sq_distances + share * slope), shares)
        share = jnp.min(jnp.where(wrong, shares[:, None], jnp.inf), axis=0)
        move = jnp.where(jnp.isfinite(share), share, 1)[:, None] * mean
        can_win = (label != labels) & (weights.sum(axis=1) > 0)
        return jnp.isfinite(share) & can_win, can_win, perturbation_size(norm, move), move

    is_wrong_there, can_win, sizes, moves = jax.lax.map(towards, jnp.arange(num_classes))
    # The smallest wrong one; where no mean wins, the nearest mean, to walk on from.
    rank = jnp.where(is_wrong_there, sizes, jnp.where(can_win, sizes + jnp.max(sizes), jnp.inf))
    best, rows = jnp.argmin(rank, axis=0), jnp.arange(len(labels))
    return jnp.where(is_wrong_there[best, rows], sizes[best, rows], jnp.inf), moves[best, rows]


def _soft_margin(point_labels, labels, k, num_classes, width, values):
    """Return the soft votes of the strongest other class less those of the own ``[B]``."""
    cut = jax.lax.stop_gradient(-jax.lax.top_k(-values, k)[0][:, -1:])
    votes = jax.nn.sigmoid((cut - values) / (width * jnp.abs(cut) + 1e-12))
    counts = jnp.einsum("bm,bmc->bc", votes, jax.nn.one_hot(point_labels, num_classes))
    own = jax.nn.one_hot(labels, num_classes, dtype=bool)
    others = jnp.max(jnp.where(own, -jnp.inf, counts), axis=1)
    return others - jnp.sum(jnp.where(own, counts, 0), axis=1)


def _shrink(images, start, relative, is_wrong, margin, norm, bounds, num_steps):
    """Return size and move of the smallest wrong vote met on a walk from ``start``."""
    radius = perturbation_size(norm, start[1])

    def schedule(limits, step):
        return limits[0] * (limits[1] / limits[0]) ** (step / max(num_steps - 1, 1))

    def walk(step, state):
        radius, moves, best = state
        gradient = jax.grad(lambda m: jnp.sum(margin(relative(m))))(moves)
        ball = Threat(norm, radius, bounds)
        direction = steepest_step(ball, gradient, images + moves)
        moves = moves + per_image(schedule(_STEP, step) * radius, images) * direction
        moves = project(ball, images + moves, images) - images
        wrong = is_wrong(relative(moves))
        size = jnp.where(wrong, perturbation_size(norm, moves), jnp.inf)
        best = _smaller(best, (size, moves))
        change = schedule(_RADIUS_STEP, step)
        radius = jnp.where(wrong, jnp.minimum(radius, best[0]) * (1 - change), radius * (1 + change))
        return radius, moves, best

    return jax.lax.fori_loop(0, num_steps, walk, (radius, start[1], start))[2]
