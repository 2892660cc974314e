"""Building blocks the networks share: the conventions of PyTorch spelled out in Flax."""

from __future__ import annotations

import math

import chex
import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from nn_adv.models.convolution import conv_general_dilated

# The share of a running statistic that one training forward keeps. PyTorch writes the same as momentum = 0.1.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# The usual normalisation of CIFAR-10, in units of [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

_HE_NORMAL = nn.initializers.he_normal()


def conv(
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
    bias: bool = False,
    dtype=None,
    name=None,
):
    """Build a square convolution that pads (before, after) pixels of both axes, ``kernel // 2`` where none are given.

    Flax's automatic "SAME" padding is not symmetric at stride 2, and most networks trained elsewhere are.
    """
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=(padding or (kernel // 2, kernel // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=_HE_NORMAL,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def hidden_dense(features: int, *, dtype=None, name=None):
    """Build a dense layer with He initialisation, for use before a ReLU."""
    return nn.Dense(features, kernel_init=_HE_NORMAL, dtype=dtype, name=name)


def batch_norm(train: bool, *, dtype=None, name=None):
    """Build a batch normalisation with momentum 0.9 and epsilon 1e-5.

    It normalises with the biased batch variance and, as Flax does, keeps a running average of that *biased* variance;
    PyTorch averages the unbiased one, larger by n / (n - 1) for n = batch * height * width.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


def max_pool(x: chex.Array) -> chex.Array:
    """Take the maximum of each 2x2 window of ``[B, H, W, F]``; the gradient of tied pixels goes to the first.

    The same as ``flax.linen.max_pool`` with strides (2, 2), whose gradient takes 30 times as long on a CPU.
    """
    chex.assert_rank(x, 4)
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    rows = _first_maximum(x[:, :, 0::2], x[:, :, 1::2])
    return _first_maximum(rows[:, 0::2], rows[:, 1::2])


def _first_maximum(a, b):
    return jnp.where(a >= b, a, b)


class Normalize(nn.Module):
    """Subtract ``mean`` and divide by ``std``, of which a published state dict may hold values of its own.

    Those stand in the collection "constants", in any shape with one value per channel; without them ``mean`` and
    ``std`` do. With the name "" they belong to the module that normalises.
    """

    mean: tuple[float, ...] | None  # one value per channel or one for all; None for none
    std: tuple[float, ...] | None  # likewise
    names: tuple[str, str] = ("mean", "std")  # of the two constants

    @nn.compact
    def __call__(self, images: chex.Array) -> chex.Array:
        """Normalise images ``[B, H, W, C]``."""
        mean = self._constant(self.names[0], self.mean, images)
        std = self._constant(self.names[1], self.std, images)
        return normalize(images, mean, std)

    def _constant(self, name, default, images):
        if default is None:
            return None
        default = jnp.broadcast_to(jnp.asarray(default, images.dtype), images.shape[-1:])
        if self.is_initializing():
            # In the shape in which they are published: channels second.
            self.variable("constants", name, lambda: default.reshape(1, -1, 1, 1))
        return self.get_variable("constants", name, default).reshape(-1).astype(images.dtype)


def normalize(images: chex.Array, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> chex.Array:
    """Subtract ``mean`` and divide by ``std``, one value per channel or one for all; None leaves that part out."""

    def of_channels(values):  # an array of another length would make channels
        return jnp.broadcast_to(jnp.asarray(values, images.dtype), images.shape[-1:])

    centred = images if mean is None else images - of_channels(mean)
    return centred if std is None else centred / of_channels(std)


def standardise(images: chex.Array) -> chex.Array:
    """Bring each image ``[B, H, W, C]`` to mean 0 and standard deviation 1 over all its n values.

    The deviation is the unbiased one, and at least 1 / sqrt(n), so that the gradient of a flat image is finite.
    """
    axes, count = (1, 2, 3), math.prod(images.shape[1:])
    centred = images - jnp.mean(images, axes, keepdims=True)
    variance = jnp.sum(centred**2, axes, keepdims=True) / (count - 1)
    return centred / jnp.sqrt(jnp.maximum(variance, 1 / count))


def unit(x: chex.Array, axis: int) -> chex.Array:
    """Divide by the norm along ``axis``, or by 1e-12 where that is less; the gradient at zero is finite."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis, keepdims=True), 1e-24))


def logits_head(features: chex.Array, num_classes: int, *, dtype=None, name: str = "head") -> chex.Array:
    """Map features ``[B, F]`` to logits ``[B, num_classes]``, at least in float32."""
    logits = nn.Dense(num_classes, dtype=dtype, name=name)(features)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
