"""Networks whose features are set to their mean where they are near it (Amini et al. 2024, arXiv 2406.05927)."""

from __future__ import annotations

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models.preact_resnet import PreActResNet
from nn_adv.models.robust_architectures import RA_FORM, ra_wide_resnet
from nn_adv.models.wide_resnet import DM_FORM, dm_wide_resnet


class MeanSparse(nn.Module):
    """Set what is less than ``threshold`` standard deviations from the mean of its channel to that mean.

    Mean, variance and threshold are statistics in the collection "batch_stats", as published; they do not move in
    training, and a new network has threshold 0, with which nothing changes. Where a value is replaced the gradient is
    zero. The function is discontinuous: a value at the edge may fall on either side of it by rounding.
    """

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map features ``[B, H, W, F]`` to as many."""

        def statistic(name, initial, *shape):
            return self.variable("batch_stats", name, initial, shape).value.astype(x.dtype)

        mean, variance = statistic("mean", jnp.zeros, x.shape[-1]), statistic("var", jnp.ones, x.shape[-1])
        near = jnp.abs(x - mean) < statistic("threshold", jnp.zeros) * jnp.sqrt(variance)
        return jnp.where(near, mean, x)


def meansparse_dm_wide_resnet(
    num_classes: int, *, depth: int = 94, widen_factor: int = 16, **options: Any
) -> PreActResNet:
    """Build `dm_wide_resnet`, by default WRN-94-16, with `MeanSparse` after each normalisation and addition.

    Args:
      num_classes: number of logits.
      depth: as of `wide_resnet`.
      widen_factor: likewise.
      **options: ``mean``, ``std`` and ``dtype`` of `dm_wide_resnet`.
    """
    dense = dm_wide_resnet(num_classes, depth=depth, widen_factor=widen_factor, **options)
    return dense.clone(form=DM_FORM._replace(sparsify=MeanSparse))


def meansparse_ra_wide_resnet(num_classes: int, **options: Any) -> PreActResNet:
    """Build `ra_wide_resnet` with `MeanSparse` after each normalisation and addition.

    Args:
      num_classes: number of logits.
      **options: ``stage_sizes``, ``widths``, ``stem_features``, ``mean`` and ``std`` of `ra_wide_resnet`.
    """
    return ra_wide_resnet(num_classes, form=RA_FORM._replace(sparsify=MeanSparse), **options)
