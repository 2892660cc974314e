"""A small convolutional network whose strides keep it cheap enough to train adversarially on a CPU."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers


class StridedCNN(nn.Module):
    """Padded 3x3 convolutions, each with batch normalisation and ReLU, then the mean over the image and a dense layer.

    Attributes:
      num_classes: number of logits.
      widths: channels of each convolution.
      strides: of each convolution, as many as ``widths``.
      mean, std, dtype: as in `MLP`.

    Raises:
      ValueError: another number of strides than of widths.
    """

    num_classes: int
    widths: tuple[int, ...] = (16, 16, 32, 32, 64)
    strides: tuple[int, ...] = (2, 1, 2, 1, 2)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if len(self.strides) != len(self.widths):
            raise ValueError(f"strides must be one per convolution ({len(self.widths)}), got {len(self.strides)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        x = layers.normalize(images, self.mean, self.std)
        for index, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True), start=1):
            x = layers.conv(width, 3, stride=stride, dtype=self.dtype, name=f"conv{index}")(x)
            x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name=f"bn{index}")(x))
        return layers.logits_head(jnp.mean(x, axis=(1, 2)), self.num_classes, dtype=self.dtype)
