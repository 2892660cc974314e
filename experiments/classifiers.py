"""The classifiers an experiment attacks: networks and 1NN, as arrays with pure functions beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from nn_adv import attacks, neighbors
from nn_adv.threat import Threat

LOSSES = {"cross-entropy": attacks.cross_entropy, "margin": attacks.margin}


class Classifier(NamedTuple):
    """A classifier that jitted code takes apart: one compilation serves all states of equal shapes.

    Attributes:
      state: arrays.
      logits: differentiable, ``(state, images) -> [B, C]``; what an attack climbs.
      predict: ``(state, images) -> [B]``; what decides. None: the argmax of ``logits``.
    """

    state: Any
    logits: Callable[[Any, chex.Array], chex.Array]
    predict: Callable[[Any, chex.Array], chex.Array] | None = None


def soft_nearest_neighbor(reference: neighbors.Reference, temperature: float) -> Classifier:
    """1NN over ``reference``, attacked through the soft 1NN of ``temperature`` and judged as it is."""
    return Classifier((reference, jnp.float32(temperature)), _soft_neighbor_logits, _neighbor_prediction)


def network(model: nn.Module, variables: Any) -> Classifier:
    """A trained network in evaluation mode."""
    return Classifier(variables, _network_logits(model))


def predict(classifier: Classifier, images: chex.Array) -> chex.Array:
    """Classify images ``[B, ...]``; returns labels ``[B]``."""
    return _predict(classifier.state, images, classifier.logits, classifier.predict)


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
    loss: str = "margin",
) -> attacks.AttackResult:
    """Attack with PGD at step size ``step_share * epsilon / num_steps``, climbing one of `LOSSES`.

    Between two classes the margin's gradient has the direction of the cross-entropy's, but it does not vanish where
    the classifier is sure, as the soft 1NN of a low temperature is nearly everywhere.
    """
    return _pgd(
        classifier.state,
        images,
        labels,
        keys,
        threat,
        step_share / max(num_steps, 1),
        logits=classifier.logits,
        judge=classifier.predict,
        num_steps=num_steps,
        num_restarts=num_restarts,
        loss=LOSSES[loss],
    )


def _soft_neighbor_logits(state, images):
    reference, temperature = state
    return neighbors.soft_logits(reference, images, temperature)


def _neighbor_prediction(state, images):
    return neighbors.predict(state[0], images)


@functools.cache  # one function per network, so that jit recognises it
def _network_logits(model):
    return lambda variables, images: model.apply(variables, images)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _predict(state, images, logits, judge):
    return jnp.argmax(logits(state, images), axis=1) if judge is None else judge(state, images)


@functools.partial(jax.jit, static_argnames=("logits", "judge", "num_steps", "num_restarts", "loss"))
def _pgd(state, images, labels, keys, threat, step_share, *, logits, judge, num_steps, num_restarts, loss):
    return attacks.pgd(
        functools.partial(logits, state),
        images,
        labels,
        key=keys,
        threat=threat,
        num_steps=num_steps,
        step_size=step_share * threat.epsilon,
        num_restarts=num_restarts,
        loss_fn=loss,
        predict_fn=None if judge is None else functools.partial(judge, state),
    )
