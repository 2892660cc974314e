"""Big Transfer networks: pre-activation ResNets with group normalisation and weight standardisation (Kolesnikov et al.
2020, arXiv 1912.11370; Qiao et al. 2019, arXiv 1903.10520)."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from nn_adv.models import layers
from nn_adv.models.convolution import conv_general_dilated

_EXPANSION = 4


class BiT(nn.Module):
    """Resizing, a 7x7 convolution, max pooling, four stages of bottlenecks, the mean over positions, a dense layer.

    The default is R152x2.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (3, 8, 36, 3)  # each stage after the first halves the side, doubles the channels
    width: int = 128  # channels of the stem, a multiple of `groups`; stages have 4, 8, 16 and 32 times as many
    groups: int = 32  # of the group normalisations
    image_size: int = 128  # side to which images are brought first, bilinearly
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # a state dict that has its own overrides it
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # likewise

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % self.groups:
            raise ValueError(f"width must be a multiple of groups {self.groups}, got {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``; ``train`` changes nothing here."""
        return self.with_maps(images)[0]

    @nn.compact
    def with_maps(self, images: chex.Array) -> tuple[chex.Array, list[chex.Array]]:
        """Map images to logits and the outputs of the stages, ``[B, H, W, F]`` each."""
        shape = (images.shape[0], self.image_size, self.image_size, images.shape[-1])
        x = jax.image.resize(images, shape, "linear", antialias=False)
        x = layers.Normalize(self.mean, self.std, name="")(x)
        x = _StandardisedConv(self.width, 7, 2, name="root.conv")(x)
        # The border is of zeros, not of -inf: they take part in the maximum.
        x = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), strides=(2, 2))
        maps = []
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"body.block{stage + 1}.unit{block + 1:02d}"
                x = _Bottleneck(self.width * 2**stage, stride, self.groups, name=name)(x)
            maps.append(x)
        x = nn.relu(_group_norm(self.groups, "head.gn")(x))
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        return layers.conv(self.num_classes, 1, bias=True, name="head.conv")(x)[:, 0, 0], maps


class _Bottleneck(nn.Module):
    """Group normalisation and ReLU before each of three convolutions; the second is strided.

    Where the shape changes, the shortcut is a 1x1 convolution of the first activation.
    """

    features: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        active = nn.relu(_group_norm(self.groups, "gn1")(x))
        shortcut, outputs = x, _EXPANSION * self.features
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = _StandardisedConv(outputs, 1, self.stride, name="downsample")(active)
        y = _StandardisedConv(self.features, 1, name="conv1")(active)
        y = nn.relu(_group_norm(self.groups, "gn2")(y))
        y = _StandardisedConv(self.features, 3, self.stride, name="conv2")(y)
        y = nn.relu(_group_norm(self.groups, "gn3")(y))
        return _StandardisedConv(outputs, 1, name="conv3")(y) + shortcut


class _StandardisedConv(nn.Module):
    """A convolution, padded on every side, whose filters are brought to mean 0 and variance 1 at each call."""

    features: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
        kernel = kernel * jax.lax.rsqrt(jnp.mean(kernel**2, axis=(0, 1, 2)) + 1e-10)
        margin = self.size // 2
        strides, padding = (self.stride,) * 2, ((margin, margin),) * 2
        return conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _group_norm(groups: int, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name=name)
