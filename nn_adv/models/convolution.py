"""A convolution whose gradient is fast on CPUs, inside loops too."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
from jax import lax

# The layout of nn.Conv for images: batch, height, width, channels; kernels height, width, input, output.
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    images: chex.Array, kernel: chex.Array, strides: Any, padding: Any, **options: Any
) -> chex.Array:
    """Convolve as `jax.lax.conv_general_dilated`, for the ``conv_general_dilated`` argument of ``nn.Conv``.

    On CPUs two things differ from JAX's own; neither changes a value beyond rounding.

    * The gradient with respect to the images is a convolution with the kernel turned round and its channel axes
      exchanged. JAX leaves the exchange to the layout, and once the turning has moved out of a loop XLA cannot hand
      such a layout to its fast routines: a step of an attack then runs an order of magnitude slower. Here the axes
      are exchanged for real.
    * An unpadded convolution goes to a library that takes several times longer than the one for padded ones. Here it
      makes one row too many, from padding, and drops it.

    Args:
      images: ``[B, H, W, I]``.
      kernel: ``[K, K, I, O]``.
      strides: of both axes.
      padding: (before, after) for both axes.
      **options: what ``nn.Conv`` passes besides; only its defaults are taken here, anything else goes to JAX's own.

    Returns:
      ``[B, H', W', O]``.
    """
    plain = images.ndim == 4 and options.get("feature_group_count", 1) == 1
    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in options.get(name) or ())
    if jax.default_backend() != "cpu" or not plain or dilated or isinstance(padding, str):
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)
    return _convolve(images, kernel, tuple(strides), tuple(map(tuple, padding)), options.get("precision"))


def _in_fast_layout(images, kernel, strides, padding, precision):
    extra = not any(map(any, padding)) and kernel.shape[0] > 1 and strides == (1, 1)
    if extra:
        padding = ((0, 1), (0, 0))
    result = lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT, precision=precision)
    return result[:, :-1] if extra else result


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images, kernel, strides, padding, precision):
    return _in_fast_layout(images, kernel, strides, padding, precision)


def _forward(images, kernel, strides, padding, precision):
    return _convolve(images, kernel, strides, padding, precision), (images, kernel)


def _backward(strides, padding, precision, saved, cotangent):
    images, kernel = saved
    back_padding = []
    for axis, (stride, (before, _)) in enumerate(zip(strides, padding, strict=True)):
        size, spread = kernel.shape[axis], (cotangent.shape[1 + axis] - 1) * stride + 1
        low = size - 1 - before
        back_padding.append((low, images.shape[1 + axis] + size - 1 - spread - low))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    images_gradient = lax.conv_general_dilated(
        cotangent, turned, (1, 1), back_padding, lhs_dilation=strides, dimension_numbers=_LAYOUT, precision=precision
    )
    _, kernel_pullback = jax.vjp(lambda kernel: _in_fast_layout(images, kernel, strides, padding, precision), kernel)
    return images_gradient, *kernel_pullback(cotangent)


_convolve.defvjp(_forward, _backward)
