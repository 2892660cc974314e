"""Wide networks whose depths, widths and blocks were searched for robustness, as published."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers
from nn_adv.models.preact_resnet import Form, PreActResNet
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


def wrn_a4(
    num_classes: int,
    *,
    stage_sizes: tuple[int, ...] = (27, 28, 13),
    widths: tuple[int, ...] = (160, 448, 384),
    mean: tuple[float, ...] | None = layers.CIFAR10_MEAN,
    std: tuple[float, ...] | None = layers.CIFAR10_STD,
) -> PreActResNet:
    """Build WRN-A4 of Huang et al. 2023, arXiv 2212.11005.

    Args:
      num_classes: number of logits.
      stage_sizes: blocks of each of the three stages.
      widths: their channels.
      mean: as of `PreActResNet`.
      std: likewise.
    """
    return PreActResNet(num_classes, stage_sizes, widths, 16, WRN_A4_FORM, mean=mean, std=std)


def ra_wide_resnet(
    num_classes: int,
    *,
    stage_sizes: tuple[int, ...] = (30, 31, 10),
    widths: tuple[int, ...] = (216, 432, 864),
    stem_features: int = 96,
    form: Form = RA_FORM,
    mean: tuple[float, ...] | None = layers.CIFAR10_MEAN,
    std: tuple[float, ...] | None = layers.CIFAR10_STD,
    **options: Any,
) -> PreActResNet:
    """Build RaWRN-70-16 of Peng et al. 2023, arXiv 2308.16258: `dm_wide_resnet` with squeeze-and-excitation.

    Args:
      num_classes: number of logits.
      stage_sizes: blocks of each of the three stages.
      widths: their channels.
      stem_features: channels of the first convolution.
      form: `RA_FORM`, or one made of it.
      mean: as of `PreActResNet`.
      std: likewise.
      **options: ``name`` of the module.
    """
    return PreActResNet(num_classes, stage_sizes, widths, stem_features, form, mean=mean, std=std, **options)
