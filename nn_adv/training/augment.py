"""Random changes to training images that keep their class."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

_PAD = 4


def crop_flip(key: chex.PRNGKey, images: chex.Array) -> chex.Array:
    """Pad by 4 black pixels, crop back at a random place, and mirror half of the images; per image.

    Args:
      key: consumed.
      images: ``[B, H, W, C]``.

    Returns:
      Images ``[B, H, W, C]``.
    """
    chex.assert_rank(images, 4)
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * _PAD + 1)
    cropped = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))(
        padded, corners
    )
    flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    return jnp.where(flip, cropped[:, :, ::-1], cropped)
