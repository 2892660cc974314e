"""Residual networks with the stem for 32x32 images (He et al. 2016, arXiv 1512.03385, sections 4.1 and 4.2)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers

_EXPANSION = 4


class _Block(nn.Module):
    """Convolutions with batch normalisation, and a shortcut; ReLU comes between them and after the addition.

    Two 3x3 ones, or a bottleneck: a 3x3 one between two 1x1 ones, the last four times as wide. The first 3x3 one is
    strided.
    """

    features: int
    stride: int
    bottleneck: bool
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        features, outputs = self.features, _EXPANSION * self.features if self.bottleneck else self.features
        sizes = [(features, 3, self.stride), (features, 3, 1)]
        if self.bottleneck:
            sizes = [(features, 1, 1), (features, 3, self.stride), (outputs, 1, 1)]
        shortcut = x
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = layers.conv(outputs, 1, stride=self.stride, dtype=self.dtype, name="shortcut.0")(x)
            shortcut = layers.batch_norm(train, dtype=self.dtype, name="shortcut.1")(shortcut)
        for number, (features, kernel, stride) in enumerate(sizes, start=1):
            x = nn.relu(x) if number > 1 else x
            x = layers.conv(features, kernel, stride=stride, dtype=self.dtype, name=f"conv{number}")(x)
            x = layers.batch_norm(train, dtype=self.dtype, name=f"bn{number}")(x)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, the mean over all positions, and a dense layer.

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks per stage; each stage after the first halves the side and doubles the channels.
      bottleneck: whether blocks are bottlenecks, as from ResNet-50 on: a 3x3 convolution between two 1x1 ones, the
        last four times as wide.
      width: channels of the stem and of the first stage, within its blocks.
      mean, std, dtype: as in `MLP`.
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
        x = layers.Normalize(self.mean, self.std, ("mu", "sigma"), name="")(images)
        x = layers.conv(self.width, 3, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(x))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = self._block(self.width * 2**stage, stride, f"layer{stage + 1}.{block}")(x, train)
        return layers.logits_head(jnp.mean(x, axis=(1, 2)), self.num_classes, dtype=self.dtype, name="linear")

    def _block(self, features: int, stride: int, name: str) -> nn.Module:
        return _Block(features, stride, self.bottleneck, self.dtype, name=name)
