"""Losses that make a network robust, or do not try to: TRADES, adversarial training, plain cross entropy.

All but `trades_loss` take ``apply_fn(variables, images, train=..., mutable=..., rngs=...)`` as a Linen module's
``apply`` does, attack the network as it predicts (running statistics, no dropout) and take the loss with the network
as it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import Partial

from nn_adv import attacks
from nn_adv.attacks.common import logits_of
from nn_adv.border import as_images, as_key, as_labels, check_size
from nn_adv.threat import Threat, check_threat
from nn_adv.training.inner_maximization import Noise, draw_noise, inner_maximization, kl_divergence

Variables = Mapping[str, Any]


class Batch(NamedTuple):
    """Training images ``[B, H, W, C]``, floating point in [0, 1], and their class indices ``[B]``."""

    images: chex.Array
    labels: chex.Array


class Aux(NamedTuple):
    """What an objective saw on the way.

    Attributes:
      batch_stats: running statistics after the step; an empty mapping where the network has none.
      natural_loss: mean cross entropy on the clean images; 0 where they were not evaluated.
      robust_losses: ``[T]`` for each threat: TRADES, the mean KL divergence (without beta); adversarial training, the
        mean cross entropy on the adversarial images.
      adversarial: ``[T, B, ...]`` the adversarial images.
      divergences: ``[T, num_steps]`` TRADES only: the summed KL divergence before each step of the inner maximisation.
      logits: ``[1 + T, B, C]`` of the training forwards: clean (if evaluated), then one per threat.
    """

    batch_stats: Any
    natural_loss: chex.Array
    robust_losses: chex.Array
    adversarial: chex.Array
    divergences: chex.Array
    logits: chex.Array


def trades(
    apply_fn: Callable[..., Any],
    variables: Variables,
    batch: Batch,
    *,
    key: chex.PRNGKey,
    threats: Sequence[Threat],
    beta: chex.Numeric,
    num_steps: int,
    step_sizes: Sequence[chex.Numeric | None] | None = None,
    noise: Sequence[Noise] | None = None,
    momentum: float = 0.9,
) -> tuple[chex.Array, Aux]:
    """Compute the TRADES loss (Zhang et al. 2019, arXiv 1901.08573, equation 5), over all threats. Jittable.

      CE(f(x), y) + beta / B * sum over threats and images of KL( p(x) || p(x_adv) )

    The gradient flows through p(x) as well. Each inner maximisation and each training forward evaluates p(x)
    anew in the published loss; here it is evaluated once for all of the former and once for all terms of the loss. At
    10 steps that is 27 forward-equivalents for one threat (the published loss: 39 in linf, 69 in l2) and 50 for two
    (105), a backward pass to the images counting 1 and one to images and weights 2. Nothing else changes:

    * Running statistics move as if the forwards had been clean, adversarial, clean (then adversarial, clean for each
      further threat). A forward takes r to m r + (1 - m) s; the (1 - m) s of the clean batch is known after the first.
    * With dropout, the clean forward has one mask for both terms, where the published loss draws two.

    Args:
      apply_fn: a Linen module's ``apply``.
      variables: "params", and "batch_stats" where the network has them.
      batch: images and labels.
      key: for the start noise and dropout; consumed.
      threats: one or more, in "l2" or "linf".
      beta: weight of the divergence.
      num_steps: steps of the inner maximisation, per threat.
      step_sizes: one per threat, None for ``2 epsilon / num_steps``.
      noise: one per threat instead of drawing it.
      momentum: m above, the share of a running statistic that a forward keeps.

    Returns:
      The loss (a scalar) and an `Aux`.

    Raises:
      ValueError: no threat, an unsuitable norm, or a number of step sizes other than that of threats.
    """
    step_sizes = _per_threat(threats, step_sizes)
    batch, key = _as_batch(batch, threats[0].bounds), as_key(key)
    noise_key, loss_key = jax.random.split(key)
    if noise is None:
        noise = [draw_noise(k, batch.images) for k in jax.random.split(noise_key, len(threats))]
    predict = _prediction_fn(apply_fn, variables)
    log_target = jax.nn.log_softmax(logits_of(predict, batch.images))
    maxima = [
        inner_maximization(
            predict, batch.images, log_target=log_target, noise=n, threat=t, num_steps=num_steps, step_size=s
        )
        for t, s, n in zip(threats, step_sizes, noise, strict=True)
    ]

    images, divergences = (jnp.stack(field) for field in zip(*maxima, strict=True))
    loss, aux = trades_on(apply_fn, variables, batch, images, key=loss_key, beta=beta, momentum=momentum)
    return loss, aux._replace(divergences=divergences)


def trades_loss(
    clean_logits: chex.Array, adversarial_logits: chex.Array, labels: chex.Array, *, beta: chex.Numeric
) -> tuple[chex.Array, tuple[chex.Array, chex.Array]]:
    """Compute the TRADES loss (equation 5 there) from logits, for training loops of your own. Jittable.

    Args:
      clean_logits: ``[B, C]``.
      adversarial_logits: ``[T, B, C]`` those of the images of each `inner_maximization`.
      labels: ``[B]`` class indices.
      beta: weight of the divergence.

    Returns:
      The loss, and its parts: the mean cross entropy and ``[T]`` the mean divergence for each threat.

    Raises:
      ValueError: logits of shapes that do not fit, labels that are none of their classes, or a negative beta.
    """
    if clean_logits.ndim != 2 or adversarial_logits.shape[1:] != clean_logits.shape:
        raise ValueError(
            "clean_logits and adversarial_logits must be [B, C] and [T, B, C], "
            f"got {clean_logits.shape} and {adversarial_logits.shape}"
        )
    check_size(beta, "beta")
    natural = _cross_entropy(clean_logits, labels)
    log_clean = jax.nn.log_softmax(clean_logits)
    divergences = [kl_divergence(log_clean, jax.nn.log_softmax(logits)) for logits in adversarial_logits]
    robust = jnp.stack([divergence / clean_logits.shape[0] for divergence in divergences])
    return natural + beta * jnp.sum(robust), (natural, robust)


def trades_on(
    apply_fn: Callable[..., Any],
    variables: Variables,
    batch: Batch,
    adversarial_images: chex.Array,
    *,
    key: chex.PRNGKey,
    beta: chex.Numeric,
    momentum: float = 0.9,
) -> tuple[chex.Array, Aux]:
    """Compute the TRADES loss on adversarial images ``[T, B, ...]`` that are given, otherwise as `trades`."""
    num_threats = adversarial_images.shape[0]
    clean_key, *keys = jax.random.split(key, 1 + num_threats)
    before = variables.get("batch_stats", {})
    clean_logits, stats = _train_forward(apply_fn, variables, before, batch.images, clean_key)
    clean_share = jax.tree.map(lambda new, old: new - momentum * old, stats, before)
    logits = []
    for images, dropout_key in zip(adversarial_images, keys, strict=True):
        adversarial_logits, stats = _train_forward(apply_fn, variables, stats, images, dropout_key)
        stats = jax.tree.map(lambda new, share: momentum * new + share, stats, clean_share)
        logits.append(adversarial_logits)
    loss, (natural, robust) = trades_loss(clean_logits, jnp.stack(logits), batch.labels, beta=beta)
    none = jnp.zeros((num_threats, 0))
    return loss, Aux(stats, natural, robust, adversarial_images, none, jnp.stack([clean_logits, *logits]))


def adversarial(
    apply_fn: Callable[..., Any],
    variables: Variables,
    batch: Batch,
    *,
    key: chex.PRNGKey,
    threats: Sequence[Threat],
    num_steps: int,
    step_sizes: Sequence[chex.Numeric | None] | None = None,
) -> tuple[chex.Array, Aux]:
    """Compute the cross entropy on PGD examples (Madry et al. 2018, arXiv 1706.06083, 2.1). Jittable.

    With several threats it is the mean over them (Tramer & Boneh 2019, arXiv 1904.13000, section 3, "avg"). Each PGD
    starts at a random point, also where the image is misclassified, and keeps its best iterate as `attacks.pgd` does:
    a misclassified one before others, then the one of the highest loss.

    Arguments that are not listed are those of `trades`.

    Args:
      key: for random starts and dropout; consumed.
      threats: one or more, in any norm.
      num_steps: PGD steps per threat.

    Returns:
      The loss (a scalar) and an `Aux`.

    Raises:
      ValueError: no threat, or a number of step sizes other than that of threats.
    """
    step_sizes = _per_threat(threats, step_sizes)
    batch, key = _as_batch(batch, threats[0].bounds), as_key(key)
    predict = _prediction_fn(apply_fn, variables)
    stats = variables.get("batch_stats", {})
    images, logits, losses = [], [], []
    for threat, step_size, threat_key in zip(threats, step_sizes, jax.random.split(key, len(threats)), strict=True):
        attack_key, dropout_key = jax.random.split(threat_key)
        step_size = 2 * threat.epsilon / max(num_steps, 1) if step_size is None else step_size
        # No image counts as broken from the start: its loss is to rise, whether the prediction is wrong or not.
        found = attacks.pgd(
            predict, *batch, key=attack_key, threat=threat, num_steps=num_steps, step_size=step_size,
            predict_fn=Partial(_as_labelled, batch.labels),
        ).adversarial  # fmt: skip
        images.append(jax.lax.stop_gradient(found))
        threat_logits, stats = _train_forward(apply_fn, variables, stats, images[-1], dropout_key)
        logits.append(threat_logits)
        losses.append(_cross_entropy(threat_logits, batch.labels))
    robust = jnp.stack(losses)
    empty = jnp.zeros((len(threats), 0))
    return jnp.mean(robust), Aux(stats, jnp.zeros(()), robust, jnp.stack(images), empty, jnp.stack(logits))


def standard(
    apply_fn: Callable[..., Any], variables: Variables, batch: Batch, *, key: chex.PRNGKey
) -> tuple[chex.Array, Aux]:
    """Compute the mean cross entropy on the clean images; ``key`` is for dropout and is consumed. Jittable."""
    batch = _as_batch(batch, (0.0, 1.0))
    logits, stats = _train_forward(apply_fn, variables, variables.get("batch_stats", {}), batch.images, as_key(key))
    loss = _cross_entropy(logits, batch.labels)
    none = jnp.zeros((0,))
    return loss, Aux(stats, loss, none, none, none, logits[None])


def _as_batch(batch, bounds):
    if not isinstance(batch, Batch):
        raise ValueError(f"batch must be a training.Batch(images, labels), got {type(batch).__name__}")
    images = as_images(batch.images, bounds=bounds, takes_uint8=False)
    return Batch(images, as_labels(batch.labels, count=images.shape[0]))


def _per_threat(threats, step_sizes):
    if isinstance(threats, Threat) or not threats:
        raise ValueError(f"threats must be a list of one Threat or more, got {threats or 'none'}")
    for threat in threats:
        check_threat(threat)
    if step_sizes is None:
        return [None] * len(threats)
    if len(step_sizes) != len(threats):
        raise ValueError(f"step_sizes must be one per threat ({len(threats)}), got {len(step_sizes)}")
    return step_sizes


def _prediction_fn(apply_fn, variables):
    """Logits of the network as it predicts; the inner maximisation never differentiates the weights."""
    variables = jax.lax.stop_gradient(variables)
    if isinstance(getattr(apply_fn, "__self__", None), nn.Module):  # depends on its arguments alone: see `programs.run`
        return Partial(_predict, Partial(apply_fn), variables)
    return lambda images: _predict(apply_fn, variables, images)


def _as_labelled(labels, images):
    del images
    return labels


def _predict(apply_fn, variables, images):
    return apply_fn(variables, images, train=False)


def _train_forward(apply_fn, variables, batch_stats, images, dropout_key):
    """Logits of the network as it trains, and its running statistics afterwards."""
    variables = {**variables, "batch_stats": batch_stats} if batch_stats else variables
    logits, updated = apply_fn(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key})
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))  # half precisions would round the loss
    return logits, jax.lax.stop_gradient(updated.get("batch_stats", {}))


def _cross_entropy(logits, labels):
    labels = as_labels(labels, logits.shape[1], count=logits.shape[0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
