"""Projected gradient ascent on the loss of a classifier (Madry et al. 2018, arXiv 1706.06083, equation 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nn_adv.attacks.losses import cross_entropy
from nn_adv.threat import Threat, per_image, perturbation_size, project, random_start, steepest_step


class AttackResult(NamedTuple):
    """What an attack found for each image.

    Attributes:
      adversarial: ``[B, ...]`` the best point visited, inside ball and bounds; the image itself if nothing is better.
      success: ``[B]`` whether the classifier gets ``adversarial`` wrong. False proves nothing.
      loss: ``[B]`` loss at ``adversarial``.
      distance: ``[B]`` size of the perturbation in the threat's norm.
    """

    adversarial: chex.Array
    success: chex.Array
    loss: chex.Array
    distance: chex.Array


class _Best(NamedTuple):
    images: chex.Array
    success: chex.Array
    loss: chex.Array


def example_keys(key: chex.PRNGKey, indices: chex.Array) -> chex.PRNGKey:
    """Derive one key per example from its index in the dataset.

    Given such keys an attack's result for an example depends neither on the batch it is in nor on its place there.

    Args:
      key: a typed key (``jax.random.key``).
      indices: integers ``[B]``.

    Returns:
      Keys ``[B]``.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(indices))


def pgd(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    num_steps: int,
    step_size: chex.Numeric,
    num_restarts: int = 1,
    loss_fn: Callable[[chex.Array, chex.Array], chex.Array] = cross_entropy,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> AttackResult:
    """Attack a classifier by steepest ascent steps, each projected back onto ball and bounds.

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
      step_size: length of a step in the threat's norm, pixel units; a scalar or one per image ``[B]``.
      num_restarts: independent random starts, at least 1.
      loss_fn: logits and labels to losses ``[B]``, from `nn_adv.attacks.losses`.
      predict_fn: the classifier that decides success, images to labels, where it is not the argmax of ``logits_fn``
        (a smooth surrogate is attacked, the true classifier judges). It is asked once per restart.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: negative ``num_steps``, ``num_restarts`` below 1, integer images, or an old-style integer key.
    """
    _check(images, key, num_steps, num_restarts)
    chex.assert_equal_shape_prefix([images, labels], 1)
    keys = key if key.ndim else example_keys(key, jnp.arange(images.shape[0]))

    def score(points):
        logits = logits_fn(points)
        loss = loss_fn(logits, labels)
        return jnp.sum(loss), (loss, jnp.argmax(logits, axis=1) != labels)

    def judge(best: _Best) -> _Best:
        return best if predict_fn is None else best._replace(success=predict_fn(best.images) != labels)

    def visit(best, points):
        _, (loss, success) = score(points)
        return _better(best, _Best(points, success, loss))

    def ascend(points):
        def step(_, carry):
            points, best = carry
            (_, (loss, success)), gradient = jax.value_and_grad(score, has_aux=True)(points)
            best = _better(best, _Best(points, success, loss))
            moved = points + per_image(step_size, images) * steepest_step(threat, gradient, points)
            return project(threat, moved, images), best

        nothing = _Best(points, jnp.zeros(labels.shape, bool), jnp.full(labels.shape, -jnp.inf, images.dtype))
        points, best = jax.lax.fori_loop(0, num_steps, step, (points, nothing))
        return judge(visit(best, points))

    def restart(index, best):
        start = random_start(threat, _fold_in_each(keys, index), images)
        return _better(best, ascend(start))

    _, (loss, success) = score(images)
    clean = judge(_Best(images, success, loss))
    best = jax.lax.fori_loop(0, num_restarts, restart, clean)
    best = _where(clean.success, clean, best)
    return AttackResult(best.images, best.success, best.loss, perturbation_size(threat.norm, best.images - images))


def _check(images, key, num_steps, num_restarts):
    if num_steps < 0:
        raise ValueError(f"num_steps must be at least 0, got {num_steps}")
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}; divide uint8 images by 255")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key from jax.random.key, got an array of {key.dtype}")


def _fold_in_each(keys: chex.PRNGKey, index: chex.Numeric) -> chex.PRNGKey:
    """Fold one number, the restart's, into every image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def _better(best: _Best, other: _Best) -> _Best:
    wins = (other.success & ~best.success) | ((other.success == best.success) & (other.loss > best.loss))
    return _where(wins, other, best)


def _where(condition, yes, no):
    """Choose per image, field by field."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b), yes, no)
