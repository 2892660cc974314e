"""A convolution that is fast on CPUs, with its gradients and inside loops too."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

# The layout of nn.Conv for images: batch, height, width, channels; kernels height, width, input, output.
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Channels of the pixels of one stride, taken together, that are too few for the routine of padded convolutions to make.
_FEW_CHANNELS = 4
# Channels, of images and of results, up to which it is faster at several pixels of a row at once, as channels, and how
# many channels these should be: more where images have only two or three.
_NARROW_CHANNELS, _WIDE, _WIDE_OF_FEW = 16, 32, 64
# Channels of images up to which a convolution that makes all pixels of a stride at once is faster than one with zeros.
_INTERLEAVED_CHANNELS = 32
# Numbers of images and results together that stay in a core's cache between one use and the next.
_CACHED = 2**17


def conv_general_dilated(
    images: chex.Array, kernel: chex.Array, strides: Any, padding: Any, **options: Any
) -> chex.Array:
    """Convolve as `jax.lax.conv_general_dilated`, for the ``conv_general_dilated`` argument of ``nn.Conv``.

    On CPUs these things differ from JAX's own; none changes a value beyond rounding. There is no forward-mode
    derivative there (``jax.jvp``).

    * The gradient with respect to the kernel is one matrix product, or one for each row of a stride, over a few images
      at a time that stay in the cache. Inside a loop the convolution that JAX makes of it takes many times as long.
    * The gradient with respect to the images is a convolution with the kernel turned round and its channel axes
      exchanged. JAX leaves the exchange to the layout, and once the turning has moved out of a loop XLA cannot hand
      such a layout to its fast routines: a step of an attack then runs an order of magnitude slower. Here the axes
      are exchanged for real. With strides and few channels, most of that convolution would be zeros: here one without
      strides makes all pixels of a stride at once, as channels. Where those of a stride have four channels at most,
      also of a stride of one, its result is too narrow for the routine: there one matrix product makes all terms, which
      are added in place.
    * From 16 channels or fewer to as few, several pixels side by side are made at once, as channels: so few results are
      too narrow for the routine.
    * An unpadded convolution goes to a library that takes several times longer than the one for padded ones. Here it
      makes one row too many, from padding, and drops it.

    Options are those of ``nn.Conv``, in its own layout; groups, dilations and padding by name go to JAX's own.
    """
    plain = images.ndim == 4 and options.get("feature_group_count", 1) == 1
    dilated = any(d != 1 for name in ("lhs_dilation", "rhs_dilation") for d in options.get(name) or ())
    if jax.default_backend() != "cpu" or not plain or dilated or isinstance(padding, str):
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)
    return _convolve(images, kernel, tuple(strides), tuple(map(tuple, padding)), options.get("precision"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(images, kernel, strides, padding, precision):
    extra = not any(map(any, padding)) and kernel.shape[0] > 1 and strides == (1, 1)
    if extra:
        padding = ((0, 1), (0, 0))
    result = _side_by_side(images, kernel, strides, padding, precision)
    return result[:, :-1] if extra else result


def _side_by_side(images, kernel, strides, padding, precision):
    """Convolve; narrow ones with copies of the kernel, each one stride further: some pixels at once, as channels."""
    (height, width, channels, features), step, (before, after) = kernel.shape, strides[1], padding[1]
    wanted = _WIDE_OF_FEW if channels in (2, 3) else _WIDE
    is_narrow = max(channels, features) <= _NARROW_CHANNELS and width > 1
    copies = wanted // max(features, 8) if is_narrow else 1
    spread = (copies - 1) * step
    edges = [((0, 0), (start, spread - start), (0, 0), (0, 0)) for start in range(0, spread + 1, step)]
    wide = jnp.stack([jnp.pad(kernel, edge) for edge in edges], axis=3)
    count = (images.shape[2] + before + after - width) // step + 1
    last = (count - 1) // copies * copies * step + width + spread  # where the last copy ends
    result = lax.conv_general_dilated(
        images, wide.reshape(height, width + spread, channels, -1), (strides[0], copies * step),
        (padding[0], (before, last - before - images.shape[2])), dimension_numbers=_LAYOUT, precision=precision,
    )  # fmt: skip
    return result.reshape(*result.shape[:2], copies * result.shape[2], features)[:, :, :count]


def _wide(array):
    """The array in the type in which long sums are taken."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _forward(images, kernel, strides, padding, precision):
    return _convolve(images, kernel, strides, padding, precision), (images, kernel)


def _backward(strides, padding, precision, saved, cotangent):
    images, kernel = saved
    count = _images_cached(images, kernel, cotangent)

    def add_kernel_gradient(total, part):
        return total + _kernel_gradient(*part, kernel.shape, strides, padding, precision), None

    zero = jnp.zeros_like(_wide(kernel))
    kernel_gradient = _over_parts(add_kernel_gradient, zero, (images, cotangent), count).astype(kernel.dtype)
    gradient = _scattered if images.shape[3] * math.prod(strides) <= _FEW_CHANNELS else _turned
    return gradient(images, kernel, cotangent, strides, padding, precision), kernel_gradient


def _turned(images, kernel, cotangent, strides, padding, precision):
    """Gradient with respect to images: the cotangent convolved with the kernel turned round."""
    dilation = strides if images.shape[3] > _INTERLEAVED_CHANNELS else (1, 1)
    steps = tuple(stride // d for stride, d in zip(strides, dilation, strict=True))
    edges, places = [], []
    for axis, (step, spread, (before, _)) in enumerate(zip(steps, dilation, padding, strict=True)):
        # An output of the convolution is `step` pixels; zeros make the kernel begin and end with such a block.
        front = -before % step
        size = front + kernel.shape[axis]
        edges.append((front, -size % step))
        taps, first = -(-size // step), (before + front) // step
        end = -(-images.shape[1 + axis] // step) + first - (cotangent.shape[1 + axis] - 1) * spread - 1
        places.append((taps - 1 - first, end))
    blocks = jnp.pad(kernel, (*edges, (0, 0), (0, 0)))
    rows, columns = (size // step for size, step in zip(blocks.shape[:2], steps, strict=True))
    blocks = blocks.reshape(rows, steps[0], columns, steps[1], *kernel.shape[2:])[::-1, :, ::-1]
    blocks = blocks.transpose(0, 2, 5, 1, 3, 4).reshape(rows, columns, kernel.shape[3], -1)
    if dilation == (1, 1):
        result = _side_by_side(cotangent, blocks, (1, 1), places, precision)
    else:
        result = lax.conv_general_dilated(
            cotangent, blocks, (1, 1), places, lhs_dilation=dilation, dimension_numbers=_LAYOUT, precision=precision
        )
    (batch, height, width, _), channels = result.shape, images.shape[3]
    result = result.reshape(batch, height, width, *steps, channels).transpose(0, 1, 3, 2, 4, 5)
    result = result.reshape(batch, height * steps[0], width * steps[1], channels)
    return result[:, : images.shape[1], : images.shape[2]]


def _scattered(images, kernel, cotangent, strides, padding, precision):
    """Gradient with respect to images: what each position of the kernel gives them, put in place and added."""
    size = kernel.shape[:2]
    terms = jnp.einsum(
        "bhwo,pio->bhwpi", _wide(cotangent), _wide(kernel).reshape(-1, *kernel.shape[2:]), precision=precision
    )
    zero = jnp.zeros((), terms.dtype)
    total = 0
    for index, position in enumerate(itertools.product(*map(range, size))):
        edges = []
        for axis, (start, (before, _), stride) in enumerate(zip(position, padding, strides, strict=True), 1):
            low = start - before
            spread = (cotangent.shape[axis] - 1) * stride + 1
            edges.append((low, images.shape[axis] - low - spread, stride - 1))
        total = total + lax.pad(terms[:, :, :, index], zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return total.astype(cotangent.dtype)


def _kernel_gradient(images, cotangent, shape, strides, padding, precision):
    """Gradient with respect to the kernel, a product for each row of a stride.

    Columns of the kernel move the images and its rows the cotangent, which makes products wide in both directions.
    """
    (height, width, channels, features), (row_step, step) = shape, strides
    images, cotangent = jnp.pad(_wide(images), ((0, 0), *padding, (0, 0))), _wide(cotangent)
    num, count = cotangent.shape[:2]
    span = (cotangent.shape[2] - 1) * step + 1
    rows = {}
    for first in range(min(row_step, height)):
        taps = range(first, height, row_step)  # which meet the same rows of the images
        more = len(taps) - 1
        end = first + (count + more - 1) * row_step + 1
        met = [
            lax.slice(images, (0, first, start, 0), (num, end, start + span, channels), (1, row_step, step, 1))
            for start in range(width)
        ]
        padded = jnp.pad(cotangent, ((0, 0), (more, more), (0, 0), (0, 0)))
        moved = [padded[:, more - tap : 2 * more - tap + count] for tap in range(len(taps))]
        pairs = (jnp.concatenate(parts, axis=3) for parts in (met, moved))
        left, right = (pixels.reshape(-1, pixels.shape[3]) for pixels in pairs)
        product = lax.dot_general(left, right, (((0,), (0,)), ((), ())), precision=precision)
        rows |= zip(taps, jnp.moveaxis(product.reshape(width, channels, len(taps), features), 2, 0), strict=True)
    return jnp.stack([rows[row] for row in range(height)])


def _images_cached(images, kernel, cotangent):
    """How many images at a time: as the cache holds, but no fewer than pay for adding up gradients of the kernel."""
    each = math.prod(images.shape[1:]) + math.prod(cotangent.shape[1:])
    return max(1, max(_CACHED, kernel.size) // max(each, 1))


def _over_parts(body, carry, arrays, count):
    """`jax.lax.scan` without outputs over parts of ``count`` along the leading axis, the last one maybe smaller."""
    num = arrays[0].shape[0]
    whole = num - num % count
    if whole == num == count:
        return body(carry, arrays)[0]
    if whole:
        parts = jax.tree.map(lambda a: a[:whole].reshape(-1, count, *a.shape[1:]), arrays)
        carry, _ = lax.scan(body, carry, parts)
    if whole < num or not num:
        carry, _ = body(carry, jax.tree.map(lambda a: a[whole:], arrays))
    return carry


_convolve.defvjp(_forward, _backward)
