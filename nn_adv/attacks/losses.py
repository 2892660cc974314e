"""Losses an attack climbs, one value per image; larger means closer to (or further into) misclassification."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from nn_adv.border import as_labels

# Keeps the quotient finite where the largest logits are equal; the value of the published code.
_DLR_FLOOR = 1e-12


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute ``-log softmax(logits)[label]``; its gradient vanishes late in float32. Jittable.

    Written as ``softplus(logsumexp_{j != y}(z_j - z_y))``, mathematically the same. The usual form has an exactly
    zero gradient in ``z_y`` once the probability of the label rounds to 1 (a margin of about 17 in float32), and an
    attack that climbs it overstates robustness on confident models. This one's is zero beyond a margin of about 87,
    where float32 ends; the `margin` and `dlr` have no such limit.

    Args:
      logits: ``[B, C]``, C >= 2.
      labels: class indices ``[B]``.

    Returns:
      Losses ``[B]``, at least 0.
    """
    return jax.nn.softplus(jax.nn.logsumexp(_others_minus_label(logits, labels), axis=1))


def cross_entropy_plain(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute ``-log softmax(logits)[label]`` in the usual form, as published code does. Jittable.

    Not for evaluations: see `cross_entropy` for what its float32 gradient loses.

    Arguments that are not listed are those of `cross_entropy`.
    """
    labels = _check(logits, labels, 2)
    return -_pick(jax.nn.log_softmax(logits, axis=1), labels)


def margin(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute ``max_{j != y} z_j - z_y``, ``[B]``: positive only where the prediction is wrong. Jittable.

    Arguments that are not listed are those of `cross_entropy`.
    """
    return jnp.max(_others_minus_label(logits, labels), axis=1)


def targeted_margin(logits: chex.Array, labels: chex.Array, targets: chex.Array) -> chex.Array:
    """Compute ``z_t - z_y``, ``[B]``: where it is positive the prediction is wrong. Jittable.

    Arguments that are not listed are those of `cross_entropy`.

    Args:
      targets: class indices ``[B]``, other than the labels.
    """
    labels, targets = _check(logits, labels, 2), _check(logits, targets, 2, name="targets")
    return _pick(logits, targets) - _pick(logits, labels)


def dlr(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Compute the difference of logits ratio: the margin over the spread ``z_(1) - z_(3)``. Jittable.

    It changes neither with the scale nor with the offset of the logits (Croce & Hein 2020, arXiv 2003.01690,
    equation 6). Values of different points have different denominators: as a measure of closeness take the margin. C is
    3 or more.

    Arguments that are not listed are those of `cross_entropy`.

    Returns:
      Losses ``[B]``, positive only where the prediction is wrong, and there at least 0.

    Raises:
      ValueError: fewer than 3 classes.
    """
    labels = _check(logits, labels, 3, "; with 2 classes take the loss margin")
    largest = jnp.sort(logits, axis=1)
    return margin(logits, labels) / (largest[:, -1] - largest[:, -3] + _DLR_FLOOR)


def targeted_dlr(logits: chex.Array, labels: chex.Array, targets: chex.Array) -> chex.Array:
    """Compute ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)``, ``[B]`` (arXiv 2003.01690, eq. 7). Jittable.

    C is 4 or more. Values are not to be compared between targets. Arguments that are not listed are those of
    `cross_entropy`.

    Args:
      targets: class indices ``[B]``, other than the labels.

    Raises:
      ValueError: fewer than 4 classes.
    """
    labels = _check(logits, labels, 4, "; with 2 or 3 classes take the loss targeted_margin")
    largest = jnp.sort(logits, axis=1)
    spread = largest[:, -1] - (largest[:, -3] + largest[:, -4]) / 2
    return targeted_margin(logits, labels, targets) / (spread + _DLR_FLOOR)


def _others_minus_label(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """``z_j - z_y`` for every other class j, and -inf in the label's own place."""
    labels = _check(logits, labels, 2)
    own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jnp.where(own, -jnp.inf, logits - _pick(logits, labels)[:, None])


def _pick(values: chex.Array, classes: chex.Array) -> chex.Array:
    return jnp.take_along_axis(values, classes[:, None], axis=1)[:, 0]


def _check(logits: chex.Array, labels: chex.Array, least: int, remedy: str = "", *, name: str = "labels") -> chex.Array:
    """Return the labels ``[B]``; raise ValueError for other ones, and for fewer than ``least`` classes."""
    chex.assert_rank(logits, 2)
    if logits.shape[1] < least:
        raise ValueError(f"logits must have at least {least} classes, got shape {logits.shape}{remedy}")
    return as_labels(labels, logits.shape[1], count=logits.shape[0], name=name)
