"""Classifiers that mix the probabilities of an accurate network and of a robust one."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nn_adv.models import layers
from nn_adv.models.bit import BiT
from nn_adv.models.preact_resnet import PreActResNet
from nn_adv.models.robust_architectures import ra_wide_resnet
from nn_adv.models.wide_resnet import dm_wide_resnet

_ROOT = "_comp_model"


class Composite(nn.Module):
    """Two networks, and a third that sets the share of each from their features (Bai et al. 2023, arXiv 2301.12554)."""

    num_classes: int
    standard: BiT  # the accurate network, with the module name "_comp_model.models.0"
    robust: PreActResNet  # "_comp_model.models.1"
    mixer_widths: tuple[int, ...] = (512, 768, 1024)  # channels of the three stages of the mixing network

    preserve_adopted_names = True

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to log-probabilities ``[B, num_classes]``; ``train`` is ignored."""
        standard, standard_maps = self.standard.with_maps(images)
        robust, robust_maps = self.robust.with_maps(images)
        first, second = (
            jnp.concatenate(maps, axis=-1) for maps in zip(standard_maps[:2], robust_maps[:2], strict=True)
        )
        gamma = _Mixer(self.mixer_widths, name=f"{_ROOT}.policy_net")(first, second)
        gamma = nn.BatchNorm(
            use_running_average=True,
            epsilon=layers.BATCH_NORM_EPSILON,
            use_scale=False,
            use_bias=False,
            name=f"{_ROOT}.bn",
        )(gamma)
        gamma = gamma * self._constant("gamma_scale", 2.0) + self._constant("gamma_bias", 1.05)
        share = nn.sigmoid(gamma) * self._constant("alpha_scale", 0.04) + self._constant("alpha_bias", 0.96)
        standard = nn.softmax(self._constant("std_scale", 1.2) * standard)
        robust = nn.softmax(self._constant("rob_scale", 0.3) * robust)
        return jnp.log((1 - share) * standard + share * robust)

    def _constant(self, name, default):
        return _constant(self, f"{_ROOT}.{name}", default)


class _Mixer(nn.Module):
    """Map the features of two depths to one number per image."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, first: chex.Array, second: chex.Array) -> chex.Array:
        x = first
        for stage, width in enumerate(self.widths):
            for block, stride in enumerate((2, 1)):
                x = _MixerBlock(width, stride, name=f"layers.{stage}.{block}")(x)
            if stage == 0:
                x = x + layers.conv(width, 1, name="conv1x1")(second)
        return nn.Dense(1, use_bias=False, name="linear")(jnp.mean(x, axis=(1, 2)))


class _MixerBlock(nn.Module):
    """Normalisation and ReLU before each of two convolutions; the first activation is what is added, as it is too."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        shortcut = active = nn.relu(layers.batch_norm(False, name="bn1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            shortcut = layers.conv(self.features, 1, stride=self.stride, name="shortcut.0")(active)
        y = layers.conv(self.features, 3, stride=self.stride, name="conv1")(active)
        y = nn.relu(layers.batch_norm(False, name="bn2")(y))
        return layers.conv(self.features, 3, name="conv2")(y) + shortcut


class MixedNUTS(nn.Module):
    """Two networks mixed after a nonlinear map of their logits (Bai et al. 2024, arXiv 2402.02263).

    The accurate network contributes the one-hot vector of its largest logit. Its gradient is, as published, that of a
    softmax with a scale of 10^6, which is zero but where two logits almost tie. That of the robust network goes through
    its map, which sharpens confident predictions: attacks that stop at small gradients overrate this network.

    The published code maps in float64. So does this where JAX has it enabled (``jax_enable_x64``); in float32, of
    200,000 random logits, no log-probability was more than 4e-5 off, and the gradient of the cross-entropy was within
    1e-4 of its size where that was at least 1e-4. Below 1e-6 rounding takes over.
    """

    num_classes: int
    standard: BiT  # the accurate network, with the module name "std_model"
    robust: PreActResNet  # "rob_model"

    preserve_adopted_names = True

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to log-probabilities ``[B, num_classes]``; ``train`` is ignored."""
        standard, robust = self.standard(images), self.robust(images)
        widest = jax.dtypes.canonicalize_dtype(np.float64)
        standard_probabilities = _one_hot_of_largest(
            standard.astype(widest), _constant(self, "std_map.approx.scale", 1e6)
        )
        robust_probabilities = _sharpened(
            robust.astype(widest),
            bias=_constant(self, "rob_map.clamp_bias", -1.1),
            power=_constant(self, "rob_map.power", 4.0),
            scale=_constant(self, "rob_map.scale", 5.0),
        )
        share = _constant(self, "_alpha", 0.9987500602493457)
        mixed = jnp.log((1 - share) * standard_probabilities + share * robust_probabilities)
        return mixed.astype(robust.dtype)


def _standardised(logits: chex.Array) -> chex.Array:
    logits = jnp.clip(logits, -1e15, 1e15)
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.var(logits, axis=-1, keepdims=True, ddof=1) + 1e-8)


def _one_hot_of_largest(logits: chex.Array, scale: chex.Array) -> chex.Array:
    soft = nn.softmax(scale * _standardised(logits))
    exact = nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=soft.dtype)
    return soft + lax.stop_gradient(exact - soft)


def _sharpened(logits: chex.Array, *, bias: chex.Array, power: chex.Array, scale: chex.Array) -> chex.Array:
    clamped = nn.gelu(_standardised(logits) + bias, approximate=False)
    return nn.softmax(scale * jnp.sign(clamped) * jnp.abs(clamped) ** power)


def _constant(module: nn.Module, name: str, default: float) -> chex.Array:
    """Give a number that a published state dict may hold another value of."""
    number = jnp.asarray(default, jnp.float32)
    if module.is_initializing():
        module.variable("constants", name, lambda: number)
    return module.get_variable("constants", name, number)


def composite(num_classes: int) -> Composite:
    """Build `Composite` of BiT-R152x2 and WRN-70-16 as published."""
    standard = BiT(num_classes, name=f"{_ROOT}.models.0")
    robust = dm_wide_resnet(num_classes, depth=70, widen_factor=16, name=f"{_ROOT}.models.1")
    return Composite(num_classes, standard, robust)


def mixednuts(num_classes: int) -> MixedNUTS:
    """Build `MixedNUTS` of BiT-R152x2 and RaWRN-70-16 as published."""
    return MixedNUTS(num_classes, BiT(num_classes, name="std_model"), ra_wide_resnet(num_classes, name="rob_model"))
