"""Residual networks with the stem for 32x32 images (He et al. 2016, arXiv 1512.03385, sections 4.1 and 4.2)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers

_EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut; ReLU comes after the addition."""

    features: int
    stride: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        """Map features ``[B, H, W, F]`` to ``[B, H / stride, W / stride, features]``."""
        shortcut = _shortcut(x, self.features, self.stride, train, self.dtype)
        x = layers.conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        x = layers.conv(self.features, 3, dtype=self.dtype, name="conv2")(x)
        x = layers.batch_norm(train, dtype=self.dtype, name="bn2")(x)
        return nn.relu(x + shortcut)


class BottleneckBlock(nn.Module):
    """A 3x3 convolution, strided, between two 1x1 ones, the last four times as wide; otherwise as `BasicBlock`."""

    features: int
    stride: int
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        """Map features ``[B, H, W, F]`` to ``[B, H / stride, W / stride, 4 * features]``."""
        outputs = _EXPANSION * self.features
        shortcut = _shortcut(x, outputs, self.stride, train, self.dtype)
        x = layers.conv(self.features, 1, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        x = layers.conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv2")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn2")(x))
        x = layers.conv(outputs, 1, dtype=self.dtype, name="conv3")(x)
        x = layers.batch_norm(train, dtype=self.dtype, name="bn3")(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, the mean over all positions, and a dense layer.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage; each stage after the first halves the side and doubles the channels.
      bottleneck: whether blocks are `BottleneckBlock`, as from ResNet-50 on, or `BasicBlock`.
      width: channels of the stem and of the first stage, within its blocks.
      mean: subtracted from the pixels, one value per channel or one for all; None for none.
      std: the pixels are divided by it, likewise.
      dtype: of the computation; None for that of the inputs and weights.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        block_class = BottleneckBlock if self.bottleneck else BasicBlock
        x = layers.Normalize(self.mean, self.std, ("mu", "sigma"), name="")(images)
        x = layers.conv(self.width, 3, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}.{block}"
                x = block_class(self.width * 2**stage, stride, self.dtype, name=name)(x, train)
        return layers.logits_head(jnp.mean(x, axis=(1, 2)), self.num_classes, dtype=self.dtype, name="linear")


def _shortcut(x, features, stride, train, dtype):
    """Bring the input of a block into the shape of its output."""
    if stride == 1 and x.shape[-1] == features:
        return x
    x = layers.conv(features, 1, stride=stride, dtype=dtype, name="shortcut.0")(x)
    return layers.batch_norm(train, dtype=dtype, name="shortcut.1")(x)
