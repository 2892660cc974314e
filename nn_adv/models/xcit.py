"""Cross-covariance image transformers (El-Nouby et al. 2021, arXiv 2106.09681) as in Debenedetti et al. 2022, arXiv
2209.07399: a stem for 32x32 images, and class attention on normalised tokens."""

from __future__ import annotations

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.models import layers

_CLASS_BLOCKS = 2
_MLP_RATIO = 4
_FREQUENCIES = 32
_STEM_STRIDES = (1, 1, 2, 2)

_layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)
_gelu = functools.partial(nn.gelu, approximate=False)


class XCiT(nn.Module):
    """A convolutional stem, blocks of cross-covariance attention over its map, two blocks of class attention.

    Published sizes (``embed_dim``, ``num_heads``), all of depth 12: S 384, 8; M 512, 8; L 768, 16.
    """

    num_classes: int
    embed_dim: int = 384  # channels of a token, a multiple of 8 and of `num_heads`
    depth: int = 12  # number of cross-covariance blocks
    num_heads: int = 8  # of every attention
    mean: tuple[float, ...] = layers.CIFAR10_MEAN  # a state dict that has its own overrides it
    std: tuple[float, ...] = layers.CIFAR10_STD  # likewise

    def __post_init__(self) -> None:
        if self.embed_dim % 8 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of 8 and of num_heads {self.num_heads}, got {self.embed_dim}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        x = layers.Normalize(self.mean, self.std, name="normalize")(images)
        return _Transformer(self.num_classes, self.embed_dim, self.depth, self.num_heads, name="model")(x, train)


class _Transformer(nn.Module):
    num_classes: int
    embed_dim: int
    depth: int
    num_heads: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        x = _Stem(self.embed_dim, name="patch_embed")(x, train)
        batch, *grid, features = x.shape
        x = (x + _Position(features, name="pos_embed")(grid, x.dtype)).reshape(batch, math.prod(grid), features)
        for index in range(self.depth):
            x = _Block(self.num_heads, name=f"blocks.{index}")(x, tuple(grid), train)
        token = self.param("cls_token", nn.initializers.truncated_normal(0.02), (1, 1, features))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, features)).astype(x.dtype), x], axis=1)
        for index in range(_CLASS_BLOCKS):
            x = _ClassBlock(self.num_heads, name=f"cls_attn_blocks.{index}")(x)
        return nn.Dense(self.num_classes, name="head")(_layer_norm(name="norm")(x)[:, 0])


class _Stem(nn.Module):
    """Four 3x3 convolutions that double the channels, the last two with stride 2."""

    features: int

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        for index, stride in enumerate(_STEM_STRIDES):
            x = _gelu(x) if index else x
            x = layers.conv(self.features // 2 ** (3 - index), 3, stride=stride, name=f"proj.{2 * index}.0")(x)
            x = layers.batch_norm(train, name=f"proj.{2 * index}.1")(x)
        return x


class _Position(nn.Module):
    """A linear map of sines and cosines of a token's row and column."""

    features: int

    @nn.compact
    def __call__(self, grid: tuple[int, ...], dtype) -> chex.Array:
        codes = jnp.asarray(_fourier_features(*grid), dtype)
        return layers.conv(self.features, 1, bias=True, name="token_projection")(codes)


def _fourier_features(height: int, width: int) -> np.ndarray:
    """Make ``[1, height, width, 2 * 32]``: sines and cosines, in turn, of the row's and then the column's angle."""
    periods = 10_000.0 ** (2 * (np.arange(_FREQUENCIES) // 2) / _FREQUENCIES)

    def codes(size):
        angles = 2 * np.pi * np.arange(1, size + 1)[:, None] / (size + 1e-6) / periods
        return np.where(np.arange(_FREQUENCIES) % 2, np.cos(angles), np.sin(angles))

    rows = np.broadcast_to(codes(height)[:, None], (height, width, _FREQUENCIES))
    columns = np.broadcast_to(codes(width)[None], (height, width, _FREQUENCIES))
    return np.concatenate([rows, columns], axis=-1)[None]


class _Block(nn.Module):
    """Attention between channels, a local patch interaction, a perceptron, each added with a scale per channel."""

    num_heads: int

    @nn.compact
    def __call__(self, x: chex.Array, grid: tuple[int, ...], train: bool) -> chex.Array:
        x = x + _scale(
            self, "gamma1", _CrossCovarianceAttention(self.num_heads, name="attn")(_layer_norm(name="norm1")(x))
        )
        x = x + _scale(self, "gamma3", _LocalInteraction(name="local_mp")(_layer_norm(name="norm3")(x), grid, train))
        return x + _scale(self, "gamma2", _Perceptron(name="mlp")(_layer_norm(name="norm2")(x)))


class _ClassBlock(nn.Module):
    """Attention of the class token to all tokens.

    As trained, the second normalisation replaces the tokens, and the residual of all but the class token is the token
    itself.
    """

    num_heads: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        normed = _layer_norm(name="norm1")(x)
        token = _ClassAttention(self.num_heads, name="attn")(normed)
        x = x + _scale(self, "gamma1", jnp.concatenate([token, normed[:, 1:]], axis=1))
        x = _layer_norm(name="norm2")(x)
        token = _scale(self, "gamma2", _Perceptron(name="mlp")(x[:, :1]))
        return x + jnp.concatenate([token, x[:, 1:]], axis=1)


def _scale(module: nn.Module, name: str, x: chex.Array) -> chex.Array:
    return module.param(name, nn.initializers.ones, x.shape[-1:]) * x


class _CrossCovarianceAttention(nn.Module):
    """Attention whose keys are channels: ``softmax(temperature * q k^T) v`` over unit rows q, k of ``[d, tokens]``."""

    num_heads: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        batch, tokens, features = x.shape
        x = nn.Dense(3 * features, name="qkv")(x).reshape(batch, tokens, 3, self.num_heads, features // self.num_heads)
        query, key, value = jnp.moveaxis(x, (2, 1), (0, -1))  # each [batch, heads, d, tokens]
        temperature = self.param("temperature", nn.initializers.ones, (self.num_heads, 1, 1))
        scores = jnp.einsum("bhdt,bhet->bhde", layers.unit(query, -1), layers.unit(key, -1)) * temperature
        x = jnp.einsum("bhde,bhet->bthd", jax.nn.softmax(scores), value)
        return nn.Dense(features, name="proj")(x.reshape(batch, tokens, features))


class _ClassAttention(nn.Module):
    """Multi-head attention with the class token, the first, as the only query."""

    num_heads: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        batch, _, features = x.shape

        def heads(name, x):
            x = nn.Dense(features, name=name)(x)
            return x.reshape(*x.shape[:2], self.num_heads, features // self.num_heads)

        token = nn.dot_product_attention(heads("q", x[:, :1]), heads("k", x), heads("v", x))
        return nn.Dense(features, name="proj")(token.reshape(batch, 1, features))


class _LocalInteraction(nn.Module):
    """Two depthwise 3x3 convolutions on the grid of tokens."""

    @nn.compact
    def __call__(self, x: chex.Array, grid: tuple[int, ...], train: bool) -> chex.Array:
        batch, tokens, features = x.shape
        x = x.reshape(batch, *grid, features)
        x = _gelu(layers.conv(features, 3, bias=True, groups=features, name="conv1")(x))
        x = layers.batch_norm(train, name="bn")(x)
        x = layers.conv(features, 3, bias=True, groups=features, name="conv2")(x)
        return x.reshape(batch, tokens, features)


class _Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        features = x.shape[-1]
        return nn.Dense(features, name="fc2")(_gelu(nn.Dense(_MLP_RATIO * features, name="fc1")(x)))
