"""The inner maximisation of TRADES: find images near the clean ones on which the prediction differs most."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks.common import finite_or_zero, logits_of
from nn_adv.attacks.programs import run
from nn_adv.border import as_count, as_images, as_key, check_sizes
from nn_adv.threat import Threat, as_threat, check_threat, per_image, perturbation_size

# Standard deviation of the start around the clean images, where the divergence itself has no gradient.
_START_SCALE = 0.001
# Keeps the l2 ball's radius out of reach of rounding.
_RADIUS_MARGIN = 1e-7

NORMS = ("l2", "linf")


class Noise(NamedTuple):
    """The random numbers one inner maximisation uses, all standard normal.

    Attributes:
      start: ``[B, ...]``, 0.001 of it is added to the clean images.
      replacement: ``[B, ...]``, taken (not normalised) for an l2 direction where the squares of an image's gradient add
        up to zero. The published loss draws it anew in each step; here one draw serves all steps.
    """

    start: chex.Array
    replacement: chex.Array


class InnerMaximum(NamedTuple):
    """Images on which the prediction differs much from that of the clean ones.

    Attributes:
      images: ``[B, ...]`` inside ball and bounds.
      divergences: ``[num_steps]`` the KL divergence summed over the batch, before each step.
    """

    images: chex.Array
    divergences: chex.Array


def draw_noise(key: chex.PRNGKey, images: chex.Array) -> Noise:
    """Draw the noise for a batch of the shape and type of ``images``; the key is consumed. Jittable."""
    images = as_images(images, takes_uint8=False)
    start, replacement = jax.random.split(as_key(key))
    return Noise(
        jax.random.normal(start, images.shape, images.dtype), jax.random.normal(replacement, images.shape, images.dtype)
    )


def kl_divergence(log_target: chex.Array, log_predicted: chex.Array) -> chex.Array:
    """Compute ``KL(target || predicted)`` summed over the batch, from log probabilities ``[B, C]``."""
    return jnp.sum(jnp.exp(log_target) * (log_target - log_predicted))


def inner_maximization(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    *,
    noise: Noise,
    threat: Threat,
    num_steps: int,
    log_target: chex.Array | None = None,
    step_size: chex.Numeric | None = None,
) -> InnerMaximum:
    """Ascend ``KL(p(x) || p(x'))`` over x' from ``x + 0.001 noise`` (arXiv 1901.08573, equation 5). Jittable.

    linf: add ``step_size`` times the sign of the gradient, clip to the ball, then to the bounds.
    l2: move by ``step_size`` along the normalised gradient (one without length is replaced by noise), clip to the
    bounds, and then scale what is longer than epsilon back to epsilon; shrinking towards x cannot leave the bounds.

    Give a ``logits_fn`` that predicts (running statistics, no dropout). The start itself is not projected, so
    with ``num_steps=0`` the result may lie outside a tiny ball.

    Args:
      logits_fn: images to logits ``[B, C]``, differentiable.
      images: clean images ``[B, ...]`` inside the bounds.
      noise: from `draw_noise`.
      threat: the perturbations allowed, "l2" or "linf", of finite size.
      num_steps: number of steps.
      log_target: log p(x) ``[B, C]``; None computes it.
      step_size: pixel units, one or one per image; None for ``2 epsilon / num_steps``.

    Returns:
      A `InnerMaximum`; gradients do not flow through it.

    Raises:
      ValueError: another norm, an infinite radius, negative ``num_steps`` or ``step_size``, another number of these
        than of images, or noise for others.
    """
    check_threat(threat, finite=True)
    images = as_images(images, bounds=threat.bounds, takes_uint8=False)
    if threat.norm not in NORMS:
        raise ValueError(f"TRADES takes threats in {' or '.join(NORMS)}, got {threat.norm!r}")
    num_steps = as_count(num_steps, "num_steps", low=0)
    if not isinstance(noise, Noise) or any(np.shape(part) != images.shape for part in noise):
        raise ValueError(f"noise must be from draw_noise for images of shape {images.shape}, got other numbers")
    if step_size is None:
        step_size = 2 * threat.epsilon / max(num_steps, 1)
    check_sizes(step_size, "step_size", len(images))
    threat, step_size = as_threat(threat, images), per_image(step_size, images)
    if log_target is None:
        log_target = jax.nn.log_softmax(run(logits_of, logits_fn, images))
    return run(_ascend, logits_fn, images, log_target, noise, threat, step_size, num_steps=num_steps)


def _ascend(logits_fn, images, log_target, noise, threat, step_size, *, num_steps):
    move = _step_linf if threat.norm == "linf" else _step_l2

    def divergence(adversarial):
        return kl_divergence(log_target, jax.nn.log_softmax(logits_of(logits_fn, adversarial)))

    def step(adversarial, _):
        value, gradient = jax.value_and_grad(divergence)(adversarial)
        gradient = finite_or_zero(gradient)
        return move(threat, adversarial, gradient, images, noise.replacement, step_size), value

    start = images + _START_SCALE * noise.start
    adversarial, divergences = jax.lax.scan(step, start, length=num_steps)
    return jax.lax.stop_gradient(InnerMaximum(threat.clip(adversarial), divergences))


def _step_linf(threat, adversarial, gradient, images, replacement, step_size):
    del replacement
    epsilon = per_image(threat.epsilon, images)
    adversarial = adversarial + step_size * jnp.sign(gradient)
    return threat.clip(jnp.clip(adversarial, images - epsilon, images + epsilon))


def _step_l2(threat, adversarial, gradient, images, replacement, step_size):
    size = per_image(perturbation_size("l2", gradient), images)
    # The published loss descends on minus the divergence, so its replacement enters with the other sign.
    direction = jnp.where(size > 0, gradient / jnp.where(size > 0, size, 1), -replacement)
    offset = threat.clip(adversarial + step_size * direction) - images
    length = per_image(perturbation_size("l2", offset), images)
    epsilon = per_image(threat.epsilon, images)
    return images + offset * jnp.where(length > epsilon, epsilon / (length + _RADIUS_MARGIN), 1)
