"""A multilayer perceptron on flattened images."""

from __future__ import annotations

import math

import chex
import flax.linen as nn

from nn_adv.models import layers


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
      num_classes: number of logits.
      hidden_sizes: width of each hidden layer; empty gives a linear classifier.
      mean: subtracted from the pixels, one value per channel or one for all; None for none.
      std: the pixels are divided by it, likewise.
      dtype: of the computation; None for that of the inputs and weights.
    """

    num_classes: int
    hidden_sizes: tuple[int, ...] = (256, 256)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``; ``train`` changes nothing here."""
        x = layers.normalize(images, self.mean, self.std)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for index, size in enumerate(self.hidden_sizes):
            x = nn.relu(layers.hidden_dense(size, dtype=self.dtype, name=f"dense{index + 1}")(x))
        return layers.logits_head(x, self.num_classes, dtype=self.dtype)
