"""Split-attention networks ResNeSt (Zhang et al. 2020, arXiv 2004.08955), with the stem for 32x32 images and SiLU."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers

_EXPANSION = 4
_RADIX = 4


class ResNeSt(nn.Module):
    """Three 3x3 convolutions, four stages of bottlenecks, the mean over positions, a dense layer."""

    num_classes: int
    stage_sizes: tuple[int, ...] = (3, 8, 36, 3)  # each stage after the first halves the side, doubles the channels
    width: int = 64  # channels of the stem and inner channels of the first stage, a multiple of 4
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % _RADIX:
            raise ValueError(f"width must be a multiple of {_RADIX}, got {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        x = layers.normalize(images, self.mean, self.std)
        for index in (0, 3):
            x = layers.conv(self.width, 3, name=f"conv1.{index}")(x)
            x = nn.silu(layers.batch_norm(train, name=f"conv1.{index + 1}")(x))
        x = layers.conv(2 * self.width, 3, name="conv1.6")(x)
        x = nn.silu(layers.batch_norm(train, name="bn1")(x))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Bottleneck(self.width * 2**stage, stride, name=f"layer{stage + 1}.{block}")(x, train)
        return nn.Dense(self.num_classes, name="fc")(jnp.mean(x, axis=(1, 2)))


class _Bottleneck(nn.Module):
    """1x1 convolution, split attention, 1x1 convolution; strides are average pools, in the shortcut too."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        shortcut, window = x, (self.stride, self.stride)
        if self.stride != 1 or x.shape[-1] != _EXPANSION * self.features:
            shortcut = nn.avg_pool(x, window, strides=window)
            shortcut = layers.conv(_EXPANSION * self.features, 1, name="downsample.1")(shortcut)
            shortcut = layers.batch_norm(train, name="downsample.2")(shortcut)
        x = nn.silu(layers.batch_norm(train, name="bn1")(layers.conv(self.features, 1, name="conv1")(x)))
        x = _SplitAttention(self.features, name="conv2")(x, train)
        if self.stride != 1:
            x = nn.avg_pool(x, (3, 3), strides=window, padding=((1, 1), (1, 1)))  # padding counts in the mean
        x = layers.batch_norm(train, name="bn3")(layers.conv(_EXPANSION * self.features, 1, name="conv3")(x))
        return nn.silu(x + shortcut)


class _SplitAttention(nn.Module):
    """A 3x3 convolution into four maps, summed with weights that depend on the mean of all."""

    features: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        x = layers.conv(_RADIX * self.features, 3, groups=_RADIX, name="conv")(x)
        x = nn.silu(layers.batch_norm(train, name="bn0")(x))
        maps = x.reshape(*x.shape[:-1], _RADIX, self.features)
        weights = jnp.mean(jnp.sum(maps, axis=-2), axis=(1, 2), keepdims=True)
        weights = layers.conv(max(self.features, 32), 1, bias=True, name="fc1")(weights)
        weights = nn.silu(layers.batch_norm(train, name="bn1")(weights))
        weights = layers.conv(_RADIX * self.features, 1, bias=True, name="fc2")(weights)
        weights = nn.softmax(weights.reshape(-1, 1, 1, _RADIX, self.features), axis=-2)
        return jnp.sum(maps * weights, axis=-2)
