"""The network of the TRADES paper for MNIST (Zhang et al. 2019, arXiv 1901.08573, section 5)."""

from __future__ import annotations

import math

import chex
import flax.linen as nn

from nn_adv.models import layers


class SmallCNN(nn.Module):
    """Two pairs of unpadded 3x3 convolutions, each followed by 2x2 max pooling, and three dense layers.

    In training a ``dropout`` share of the first dense layer's outputs is dropped, which takes a "dropout" key.

    Attributes:
      num_classes: number of logits.
      conv_features: channels of the four convolutions.
      dense_features: width of the two hidden dense layers.
      dropout: share of units dropped in training, 0 for none.
      mean, std, dtype: as in `MLP`.

    Raises:
      ValueError: dropout outside [0, 1).
    """

    num_classes: int
    conv_features: tuple[int, int, int, int] = (32, 32, 64, 64)
    dense_features: int = 200
    dropout: float = 0.5
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1], H and W at least 16, to logits ``[B, num_classes]``."""
        x = layers.normalize(images, self.mean, self.std)
        for index, features in enumerate(self.conv_features):
            x = layers.conv(features, 3, bias=True, padding=(0, 0), dtype=self.dtype, name=f"conv{index + 1}")(x)
            x = nn.relu(x)
            if index % 2:
                x = layers.max_pool(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.relu(layers.hidden_dense(self.dense_features, dtype=self.dtype, name="dense1")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.relu(layers.hidden_dense(self.dense_features, dtype=self.dtype, name="dense2")(x))
        return layers.logits_head(x, self.num_classes, dtype=self.dtype)
