"""Networks whose features are set to their mean where they are near it (Amini et al. 2024, arXiv 2406.05927)."""

from __future__ import annotations

import functools

import chex
import flax.linen as nn
import jax.numpy as jnp

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


# Both with `MeanSparse` after each normalisation and addition.
meansparse_dm_wide_resnet = functools.partial(
    dm_wide_resnet, depth=94, widen_factor=16, form=DM_FORM._replace(sparsify=MeanSparse)
)
meansparse_ra_wide_resnet = functools.partial(ra_wide_resnet, form=RA_FORM._replace(sparsify=MeanSparse))
