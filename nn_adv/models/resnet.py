"""Residual networks with the stem for 32x32 images (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut; ReLU comes after the addition."""

    features: int
    stride: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        """Map features ``[B, H, W, F]`` to ``[B, H / stride, W / stride, features]``."""
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = layers.conv(self.features, 1, stride=self.stride, dtype=self.dtype, name="shortcut_conv")(x)
            shortcut = layers.batch_norm(train, dtype=self.dtype, name="shortcut_bn")(shortcut)
        x = layers.conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        x = layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(x)
        x = layers.batch_norm(train, dtype=self.dtype, name="bn2")(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of basic blocks, the mean over all positions, and a dense layer.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage; each stage after the first halves the side and doubles the channels.
      width: channels of the first stage.
      mean: subtracted from the pixels, one value per channel or one for all; None for none.
      std: the pixels are divided by it, likewise.
      dtype: of the computation; None for that of the inputs and weights.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        x = layers.normalize(images, self.mean, self.std)
        x = layers.conv(self.width, 3, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage{stage + 1}_block{block + 1}"
                x = BasicBlock(self.width * 2**stage, stride, self.dtype, name=name)(x, train)
        return layers.logits_head(jnp.mean(x, axis=(1, 2)), self.num_classes, dtype=self.dtype)
