"""Losses an attack climbs, one value per image; larger means closer to (or further into) misclassification."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute ``-log softmax(logits)[label]`` in a form whose gradient does not vanish in float32.

    Written as ``softplus(logsumexp_{j != y}(z_j - z_y))``, mathematically the same. The usual form has an exactly
    zero gradient in ``z_y`` once the probability of the label rounds to 1 (a margin of about 17 in float32), and an
    attack that climbs it overstates robustness on confident models.

    Args:
      logits: ``[B, C]``, C >= 2.
      labels: class indices ``[B]``.

    Returns:
      Losses ``[B]``, at least 0.
    """
    return jax.nn.softplus(jax.nn.logsumexp(_others_minus_label(logits, labels), axis=1))


def margin(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute ``max_{j != y} z_j - z_y``: positive exactly where the prediction is wrong.

    Args:
      logits: ``[B, C]``, C >= 2.
      labels: class indices ``[B]``.

    Returns:
      Losses ``[B]``.
    """
    return jnp.max(_others_minus_label(logits, labels), axis=1)


def _others_minus_label(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """``z_j - z_y`` for every other class j, and -inf in the label's own place."""
    chex.assert_rank([logits, labels], [2, 1])
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have at least 2 classes, got shape {logits.shape}")
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    label_logit = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return jnp.where(own, -jnp.inf, logits - label_logit)
