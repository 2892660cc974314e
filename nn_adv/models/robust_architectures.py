"""Wide networks whose depths, widths and blocks were searched for robustness, as published."""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers
from nn_adv.models.preact_resnet import PreActResNet
from nn_adv.models.wide_resnet import DM_FORM, ROBUST_FORM

_REDUCTION = 4


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in (0, 1) made of the means of all (Hu et al. 2018, arXiv 1709.01507)."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map features ``[B, H, W, F]`` to as many."""
        features = x.shape[-1]
        gate = jnp.mean(x, axis=(1, 2), keepdims=True)
        gate = nn.relu(layers.conv(max(features // _REDUCTION, 1), 1, bias=True, name="fc1")(gate))
        return x * nn.sigmoid(layers.conv(features, 1, bias=True, name="fc2")(gate))


WRN_A4_FORM = ROBUST_FORM._replace(shortcut="shortcut.0", last_norm="norm1", activation="silu")
RA_FORM = DM_FORM._replace(gate=SqueezeExcitation)

# WRN-A4 of Huang et al. 2023, arXiv 2212.11005.
wrn_a4: Callable[..., PreActResNet] = functools.partial(
    PreActResNet, stage_sizes=(27, 28, 13), widths=(160, 448, 384), stem_features=16, form=WRN_A4_FORM,
    mean=layers.CIFAR10_MEAN, std=layers.CIFAR10_STD,
)  # fmt: skip
# RaWRN-70-16 of Peng et al. 2023, arXiv 2308.16258: `dm_wide_resnet` with squeeze-and-excitation.
ra_wide_resnet: Callable[..., PreActResNet] = functools.partial(
    PreActResNet, stage_sizes=(30, 31, 10), widths=(216, 432, 864), stem_features=96, form=RA_FORM,
    mean=layers.CIFAR10_MEAN, std=layers.CIFAR10_STD,
)  # fmt: skip
