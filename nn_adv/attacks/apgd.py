"""Auto-PGD, ascent whose step sizes look after themselves (Croce & Hein 2020, arXiv 2003.01690, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks import common
from nn_adv.attacks.apgd_l1 import ascend_l1
from nn_adv.attacks.losses import cross_entropy, margin, targeted_dlr
from nn_adv.attacks.programs import run
from nn_adv.border import as_count, as_images
from nn_adv.threat import Threat, per_image, perturbation_size, project, random_start

_GAIN = 0.75  # rho of the paper: a step size must gain in more than this share of a window's iterations
_FLOOR = 1e-12  # keeps quotients finite
_SHARE_OF_STEP = 0.75  # alpha of the paper: the rest of a move repeats the move before it


def apgd(
    logits_fn: Callable[..., chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss_fn: Callable[..., chex.Array] | None = None,
    num_targets: int | None = None,
    starts: chex.Array | None = None,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> common.AttackResult:
    """Attack a classifier by ascent with momentum whose step size is halved where it stops gaining. Jittable.

    l2 and linf follow Croce & Hein 2020, arXiv 2003.01690, and the details of the authors' code; l1 follows Croce &
    Hein 2021, arXiv 2103.01208 (`nn_adv.attacks.apgd_l1`). No step size is to be chosen. Every point visited is
    scored: one that is misclassified is better than one that is not, then the higher loss is better. An image that
    is wrong from the start is returned unchanged, and one that a run breaks takes no part in the next. Results for
    an image depend on the rest of its batch only through rounding, which can grow. Wrap the call in ``jax.jit``: the
    radius is traced.

    Arguments that are not listed are those of `pgd`.

    Args:
      logits_fn: differentiable, images ``[B, ...]`` to logits ``[B, C]``; see `eot` for a random classifier.
      num_steps: gradient steps per restart; 0 only tries the starts.
      num_restarts: independent random starts, per target if there are targets; at least 1.
      loss_fn: logits and labels to losses ``[B]``, from `nn_adv.attacks.losses`; by default `cross_entropy`. With
        ``num_targets`` it takes the target classes ``[B]`` as well, by default `targeted_dlr`.
      num_targets: highest other logits of the clean image to aim at in turn, at most C - 1; None is untargeted.
      starts: where the first restart of each target starts, ``[B, ...]``, moved into ball and bounds; None draws it.

    Returns:
      An `AttackResult`. With ``num_targets`` its ``loss`` is the `margin`: losses for different targets do not compare.

    Raises:
      ValueError: ``num_targets`` outside 1 to C - 1, starts of a wrong shape; and as in `pgd`.
    """
    images, labels, keys, threat = common.check_inputs(images, labels, key, threat)
    num_steps, num_restarts = as_count(num_steps, "num_steps", low=0), as_count(num_restarts, "num_restarts")
    if starts is not None:
        starts = as_images(starts, name="starts", takes_uint8=False)
        if starts.shape != images.shape:
            raise ValueError(f"starts must have the shape of images, {images.shape}, got {starts.shape}")
    if images.shape[0] == 0:
        return common.nothing_found(images)
    clean_logits = common.check_clean_logits(run(common.logits_of, logits_fn, images), labels)
    targets = None if num_targets is None else common.highest_others(clean_logits, labels, num_targets)
    usual_loss: Callable[..., chex.Array] = cross_entropy if num_targets is None else targeted_dlr
    common.check_loss(loss_fn or usual_loss, clean_logits, labels, *(() if targets is None else (targets[:, 0],)))
    functions = (logits_fn, loss_fn or usual_loss, predict_fn)
    arrays = (images, labels, clean_logits, targets, starts, keys, threat)
    return run(_search, *functions, *arrays, num_steps=num_steps, num_restarts=num_restarts)


def _search(
    logits_fn, loss_fn, predict_fn, images, labels, clean_logits, targets, starts, keys, threat,
    *, num_steps, num_restarts,
) -> common.AttackResult:  # fmt: skip
    rank_fn = loss_fn if targets is None else margin

    def visit(points: chex.Array, logits: chex.Array) -> common.Visited:
        return common.Visited(points, common.is_wrong(logits, labels), rank_fn(logits, labels))

    def ascend(number: chex.Numeric) -> common.Visited:
        start = _random_start(threat, common.fold_in_each(common.fold_in_each(keys, 1 + number), 0), images)
        if starts is not None:
            given = project(threat, starts.astype(images.dtype), images)
            start = jnp.where(number % num_restarts == 0, given, start)
        classes = (labels,) if targets is None else (labels, targets[:, number // num_restarts])

        def evaluate(points):
            loss, gradient, logits = common.evaluate_loss(logits_fn, loss_fn, points, *classes)
            return loss, gradient, visit(points, logits)

        problem = (evaluate, start, images, threat, num_steps)
        best = ascend_l1(*problem) if threat.norm == "l1" else _ascend(*problem)[0]
        return common.rejudged(predict_fn, best, labels)

    num_runs = num_restarts * (1 if targets is None else targets.shape[1])
    best = common.attack_in_turn(ascend, num_runs, common.rejudged(predict_fn, visit(images, clean_logits), labels))
    return common.result_of(best, images, threat.norm)


class _State(NamedTuple):
    """One run: all ``[B]`` or ``[B, ...]``."""

    points: chex.Array
    previous: chex.Array
    gradient: chex.Array
    loss: chex.Array
    step_size: chex.Array
    best: common.Highest
    gains: chex.Array  # iterations of this window in which the loss rose
    was_halved: chex.Array  # at the last checkpoint
    checked_loss: chex.Array  # best loss at the last checkpoint
    visited: common.Visited


def _ascend(evaluate, start, images, threat, num_steps) -> tuple[common.Visited, jax.Array, jax.Array]:
    """Run the ascent in l2 or linf once.

    ``evaluate(points)`` returns loss ``[B]``, gradient ``[B, ...]`` and `Visited`. The start counts as visited
    and is taken as it is. Returned are the best point, and losses after and sizes of all steps ``[num_steps, B]``.
    """
    loss, gradient, visited = evaluate(start)
    step_size = jnp.broadcast_to(2 * jnp.asarray(threat.epsilon, images.dtype), loss.shape)
    state = _State(
        points=start,
        previous=start,
        gradient=gradient,
        # The authors' list of losses begins after the first step, so their first comparison is with an empty entry.
        loss=jnp.zeros_like(loss),
        step_size=step_size,
        best=common.Highest(start, gradient, loss),
        gains=jnp.zeros(loss.shape, jnp.int32),
        was_halved=jnp.ones(loss.shape, bool),
        checked_loss=loss,
        visited=visited,
    )

    def step(state, inputs):
        number, window = inputs
        moved = _move(state, evaluate, number, images, threat)
        checked = jax.lax.cond(window > 0, _checkpoint, lambda state, _: state, moved, window)
        return checked, (moved.loss, state.step_size)

    # Not unrolled: five steps at a time were no faster on a CPU, where a step costs 1.0 to 1.6 times the bare forward
    # and backward pass (convolutions of `nn_adv.models`, batch 128; a plain lax convolution is slow in any loop).
    state, (losses, step_sizes) = jax.lax.scan(step, state, (jnp.arange(num_steps), _windows(num_steps)))
    return state.visited, losses, step_sizes


def _move(state: _State, evaluate, number, images, threat) -> _State:
    """Step, mix in the move before, and evaluate (algorithm 1, lines 7 and 8)."""
    points = state.points
    step = per_image(state.step_size, images) * _direction(threat.norm, state.gradient)
    aim = _into(threat, points + step, images)
    share = jnp.where(number == 0, 1, _SHARE_OF_STEP).astype(images.dtype)
    mixed = points + share * (aim - points) + (1 - share) * (points - state.previous)
    moved = _into(threat, mixed, images)
    loss, gradient, visited = evaluate(moved)
    return state._replace(
        points=moved,
        previous=points,
        gradient=gradient,
        loss=loss,
        best=common.higher(state.best, common.Highest(moved, gradient, loss)),
        gains=state.gains + (loss > state.loss),
        visited=common.better(state.visited, visited),
    )


def _checkpoint(state: _State, window) -> _State:
    """Halve steps that gained too little and return to the best point; the point before the last step is kept."""
    gained_little = state.gains <= _GAIN * window
    no_better = ~state.was_halved & (state.checked_loss >= state.best.loss)
    halve = gained_little | no_better
    points, gradient = common.where_each(halve, state.best[:2], (state.points, state.gradient))
    return state._replace(
        points=points,
        gradient=gradient,
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        gains=jnp.zeros_like(state.gains),
        was_halved=halve,
        checked_loss=state.best.loss,
    )


def _windows(num_steps: int) -> np.ndarray:
    """Give for each step the length of the window that ends with it, or 0 (section 3.1 of the paper)."""
    lengths = np.zeros(num_steps, np.int32)
    window, shrink, least = (max(percent * num_steps // 100, 1) for percent in (22, 3, 6))
    end = window
    while end <= num_steps:
        lengths[end - 1] = window
        window = max(window - shrink, least)
        end += window
    return lengths


def _direction(norm: str, gradient: chex.Array) -> chex.Array:
    if norm == "linf":
        return jnp.sign(gradient)
    # The authors add a floor to the norm, which swallows the step where a confident model's gradient is as small.
    largest = per_image(perturbation_size("linf", gradient), gradient)
    gradient = gradient / jnp.where(largest > 0, largest, 1)
    return gradient / jnp.maximum(per_image(perturbation_size("l2", gradient), gradient), 1)


def _into(threat: Threat, points: chex.Array, images: chex.Array) -> chex.Array:
    """Move points into ball and bounds; in l2, as the authors do, scaled and then clipped, which is not nearest."""
    if threat.norm == "linf" or threat.bounds is None:
        return project(threat, points, images)
    offset = points - images
    size = per_image(perturbation_size("l2", offset), images)
    inside = offset / (size + _FLOOR) * jnp.minimum(per_image(threat.epsilon, images), size)
    return jnp.clip(images + inside, *threat.bounds)


def _random_start(threat: Threat, keys: chex.PRNGKey, images: chex.Array) -> chex.Array:
    if threat.norm != "l1":
        return random_start(threat, keys, images)
    # A point drawn from the l1 ball changes every pixel by next to nothing; projected noise changes some by much.
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    return images + noise
