"""The networks an experiment attacks, as pure functions with their arrays bound to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial


class Classifier(NamedTuple):
    """A classifier, a pytree of its arrays: one compilation serves all whose arrays have the same shapes.

    Attributes:
      logits_fn: differentiable, images to logits ``[B, C]``: what an attack climbs, and whose argmax decides.
    """

    logits_fn: Partial


def network(model: nn.Module, variables: Any) -> Classifier:
    """A trained network in evaluation mode."""
    return Classifier(Partial(model.apply, variables))


@jax.jit
def predict(classifier: Classifier, images: chex.Array) -> chex.Array:
    """Classify images ``[B, ...]``; returns labels ``[B]``."""
    return jnp.argmax(classifier.logits_fn(images), axis=1)
