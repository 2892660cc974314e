"""The unit of images: uint8 pixels v stand for v / 255, floats are in [0, 1] already."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax


def as_float(images: chex.Array) -> chex.Array:
    """Return images ``[...]`` as floats in [0, 1]: uint8 pixels correctly rounded to float32, floats as they are.

    Under jit XLA turns ``x / 255`` into a product with a rounded reciprocal, one ulp off for half of the values. The
    sum here equals NumPy's ``images.astype(float32) / 255`` for each of the 256 values, and needs no float64: the first
    term is exact, and the second so small that its rounding does not matter, with a fused multiplication or without.
    """
    if images.dtype != jnp.uint8:
        return images
    # v / 255 is v 257 / 65536 and a little. Times 257 as integers: from v a + v b compilers make v (a + b).
    most = (images.astype(jnp.int32) * 257).astype(jnp.float32) * 2.0**-16
    return most + jnp.asarray(images, jnp.float32) * (1 / 255 - 257 / 65536)


def float64_pixels(images: chex.Array) -> jax.Array:
    """Return `as_float` of images as float64 numbers; call under ``jax.enable_x64(True)``."""
    if images.dtype == jnp.float64:
        return images
    if images.dtype == jnp.uint8:
        return as_float(images).astype(jnp.float64)
    # XLA reads float32 numbers below the least normal one as 0: their bits tell what they are.
    bits = lax.bitcast_convert_type(images, jnp.int32)
    size = (bits & 0x7FFFFFFF).astype(jnp.float64) * 2.0**-149
    denormal = jnp.where(bits < 0, -size, size)
    return jnp.where(bits & 0x7F800000 == 0, denormal, images.astype(jnp.float64))
