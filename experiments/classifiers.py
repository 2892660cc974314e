"""The networks an experiment attacks, as pure functions with their arrays bound to them."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial


def network(model: nn.Module, variables: Any) -> Partial:
    """A trained network in evaluation mode: differentiable, images ``[B, ...]`` to logits ``[B, C]``.

    A pytree of its arrays: one compilation serves all whose arrays have the same shapes.
    """
    return Partial(model.apply, variables)


@jax.jit
def predict(logits_fn: Partial, images: chex.Array) -> chex.Array:
    """Classify images ``[B, ...]``; returns labels ``[B]``."""
    return jnp.argmax(logits_fn(images), axis=1)
