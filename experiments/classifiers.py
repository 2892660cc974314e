"""The classifiers an experiment attacks: networks and 1NN, as pure functions with their arrays bound to them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nn_adv import attacks, neighbors
from nn_adv.threat import Threat

LOSSES = {"cross-entropy": attacks.cross_entropy, "margin": attacks.margin}


class Classifier(NamedTuple):
    """A classifier, a pytree of its arrays: one compilation serves all whose arrays have the same shapes.

    Attributes:
      logits_fn: differentiable, images to logits ``[B, C]``; what an attack climbs.
      predict_fn: images to labels ``[B]``, what decides. None: the argmax of the logits.
    """

    logits_fn: Partial
    predict_fn: Partial | None = None


def soft_nearest_neighbor(reference: neighbors.Reference, temperature: float) -> Classifier:
    """1NN over ``reference``, attacked through the soft 1NN of ``temperature`` and judged as it is."""
    return Classifier(Partial(_soft_logits, reference, jnp.float32(temperature)), Partial(neighbors.predict, reference))


def network(model: nn.Module, variables: Any) -> Classifier:
    """A trained network in evaluation mode."""
    return Classifier(Partial(model.apply, variables))


@jax.jit
def predict(classifier: Classifier, images: chex.Array) -> chex.Array:
    """Classify images ``[B, ...]``; returns labels ``[B]``."""
    if classifier.predict_fn is not None:
        return classifier.predict_fn(images)
    return jnp.argmax(classifier.logits_fn(images), axis=1)


@functools.partial(jax.jit, static_argnames=("num_steps", "num_restarts", "loss"))
def pgd_attack(
    classifier: Classifier,
    images: chex.Array,
    labels: chex.Array,
    keys: chex.PRNGKey,
    threat: Threat,
    *,
    num_steps: int,
    num_restarts: int,
    step_share: float,
    loss: str,
) -> attacks.AttackResult:
    """Attack with PGD at step size ``step_share * epsilon / num_steps``, climbing one of `LOSSES`.

    Between two classes the margin's gradient has the direction of the cross-entropy's, but it does not vanish where
    the classifier is sure, as the soft 1NN of a low temperature is nearly everywhere.
    """
    return attacks.pgd(
        classifier.logits_fn,
        images,
        labels,
        key=keys,
        threat=threat,
        num_steps=num_steps,
        step_size=step_share / max(num_steps, 1) * threat.epsilon,
        num_restarts=num_restarts,
        loss_fn=LOSSES[loss],
        predict_fn=classifier.predict_fn,
    )


def _soft_logits(reference, temperature, images):
    return neighbors.soft_logits(reference, images, temperature)
