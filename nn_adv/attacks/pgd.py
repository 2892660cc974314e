"""Projected gradient ascent on the loss of a classifier (Madry et al. 2018, arXiv 1706.06083, equation 2)."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from nn_adv.attacks import common
from nn_adv.attacks.losses import cross_entropy
from nn_adv.attacks.programs import run
from nn_adv.border import as_count, check_sizes
from nn_adv.threat import Threat, check_threat, per_image, project, random_start, steepest_step


def pgd(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    num_steps: int = 40,
    step_size: chex.Numeric | None = None,
    num_restarts: int = 1,
    loss_fn: Callable[[chex.Array, chex.Array], chex.Array] = cross_entropy,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> common.AttackResult:
    """Attack a classifier by steepest ascent steps, each projected back onto ball and bounds. Jittable.

    Every point visited is scored, the last one and the clean image included. A point that ``logits_fn`` gets wrong
    is better than one it gets right, then the higher loss is better. An image that is wrong from the start is
    returned unchanged. Wrap the call in ``jax.jit``: the radius and the step size are traced.

    Args:
      logits_fn: differentiable, images ``[B, ...]`` to logits ``[B, C]``.
      images: clean images ``[B, ...]``, floating point, inside the bounds.
      labels: class indices ``[B]``.
      key: one typed key, or one per image ``[B]`` from `example_keys`; it is consumed here.
      threat: the perturbations allowed.
      num_steps: gradient steps per restart; 0 only tries the random starts.
      step_size: length of a step in the threat's norm, pixel units; one, or one per image ``[B]``. None for ``2.5
        epsilon / num_steps``, which reaches any point of the ball from any other (Madry et al. 2018, arXiv 1706.06083).
      num_restarts: independent random starts, at least 1.
      loss_fn: logits and labels to losses ``[B]``, from `nn_adv.attacks.losses`.
      predict_fn: the classifier that decides success, images to labels, where it is not the argmax of ``logits_fn``
        (a smooth surrogate is attacked, the true classifier judges). It is asked once per restart.

    Raises:
      ValueError: negative ``num_steps`` or ``step_size``, ``num_restarts`` below 1, an infinite radius, images or
        labels of a wrong type, logits, losses or predictions of a wrong shape, and outside jit images not inside the
        bounds, labels out of range or NaN for a clean image. Probabilities are warned of there.
    """
    check_threat(threat)
    num_steps = as_count(num_steps, "num_steps", low=0)
    num_restarts = as_count(num_restarts, "num_restarts")
    if step_size is None:
        step_size = 2.5 * threat.epsilon / max(num_steps, 1)
    images, labels, keys, threat = common.check_inputs(images, labels, key, threat)
    check_sizes(step_size, "step_size", len(images))
    if images.shape[0] == 0:
        return common.nothing_found(images)
    clean_logits = common.check_clean_logits(run(common.logits_of, logits_fn, images), labels)
    common.check_loss(loss_fn, clean_logits, labels)
    functions = (logits_fn, loss_fn, predict_fn)
    arrays = (images, labels, clean_logits, keys, threat, step_size)
    return run(_search, *functions, *arrays, num_steps=num_steps, num_restarts=num_restarts)


def _search(
    logits_fn, loss_fn, predict_fn, images, labels, clean_logits, keys, threat, step_size, *, num_steps, num_restarts
) -> common.AttackResult:
    def visit(points, logits, loss):
        return common.Visited(points, common.is_wrong(logits, labels), loss)

    clean = common.rejudged(predict_fn, visit(images, clean_logits, loss_fn(clean_logits, labels)), labels)

    def ascend(points):
        def step(_, carry):
            points, best = carry
            loss, gradient, logits = common.evaluate_loss(logits_fn, loss_fn, points, labels)
            moved = points + per_image(step_size, images) * steepest_step(threat, gradient, points)
            return project(threat, moved, images), common.better(best, visit(points, logits, loss))

        nothing = common.Visited(points, jnp.zeros(labels.shape, bool), jnp.full_like(clean.loss, -jnp.inf))
        points, best = jax.lax.fori_loop(0, num_steps, step, (points, nothing))
        logits = common.logits_of(logits_fn, points)
        return common.rejudged(predict_fn, common.better(best, visit(points, logits, loss_fn(logits, labels))), labels)

    def restart(index, best):
        start = random_start(threat, common.fold_in_each(keys, index), images)
        return common.better(best, ascend(start))

    best = jax.lax.fori_loop(0, num_restarts, restart, clean)
    best = common.where_each(clean.success, clean, best)
    return common.result_of(best, images, threat.norm)
