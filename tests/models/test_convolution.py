"""The convolution made for CPUs against JAX's own, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nn_adv.models.convolution import conv_general_dilated

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "margin"), [(3, 1), (3, 0), (1, 0), (5, 2), (7, 3)])
@pytest.mark.parametrize(
    ("sides", "channels", "features"), [((8, 8), 2, 4), ((9, 6), 2, 10), ((6, 9), 5, 13), ((9, 7), 5, 17)]
)
def test_equals_jax_with_gradients(sides, channels, features, size, margin, stride, mapped):
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        images = jnp.asarray(generator.normal(size=(2, 3, *sides, channels)))
        kernels = jnp.asarray(generator.normal(size=(2, size, size, channels, features)))
        options = {"dimension_numbers": _LAYOUT, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}

        def results(convolve):
            def one(images, kernel):
                def value(images, kernel):
                    return convolve(images, kernel, (stride, stride), ((margin, margin),) * 2, **options)

                result, pullback = jax.vjp(value, images, kernel)
                return result, pullback(jnp.cos(3 * result))

            return jax.vmap(one)(images, kernels) if mapped else one(images[0], kernels[0])

        got, want = jax.jit(results, static_argnums=0)(conv_general_dilated), results(lax.conv_general_dilated)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, want)


@pytest.mark.parametrize("channels", [2, 20])
def test_axes_may_differ_and_a_batch_may_be_empty(channels):
    generator = np.random.default_rng(0)
    kernel = jnp.asarray(generator.normal(size=(5, 2, channels, 6)), jnp.float32)
    for count in (3, 0):
        images = jnp.asarray(generator.normal(size=(count, 9, 8, channels)), jnp.float32)

        def results(convolve, images, kernel):
            def value(images, kernel):
                return convolve(images, kernel, (3, 1), ((3, 0), (1, 2)), dimension_numbers=_LAYOUT)

            result, pullback = jax.vjp(value, images, kernel)
            return result, *pullback(jnp.cos(3 * result))

        got = results(conv_general_dilated, images, kernel)
        for ours, exact in zip(got, results(lax.conv_general_dilated, images, kernel), strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "padding", "channels", "batch"),
    [
        (3, ((0, 1), (2, 0)), 4, 3),
        (1, ((0, 0), (0, 0)), 40, 2),
        (3, ((1, 1), (1, 1)), 1, 300),
        (3, ((1, 1), (1, 1)), 40, 3),
        (5, ((2, 2), (2, 1)), 3, 2),
        (7, ((3, 3), (3, 2)), 3, 2),
        (7, ((1, 3), (3, 4)), 5, 2),
    ],
)
def test_half_precision_equals_jax_to_its_own_rounding(size, padding, channels, batch, stride):
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.normal(size=(batch, 11, 8, channels)), jnp.bfloat16)
    kernel = jnp.asarray(generator.normal(size=(size, size, channels, 3)), jnp.bfloat16)

    def results(convolve, images, kernel):
        def value(images, kernel):
            return convolve(images, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)

        result, pullback = jax.vjp(value, images, kernel)
        weights = jnp.cos(jnp.arange(result.size, dtype=jnp.float32)).astype(jnp.bfloat16).astype(result.dtype)
        return result, *pullback(weights.reshape(result.shape))

    got = jax.jit(results, static_argnums=0)(conv_general_dilated, images, kernel)
    want = results(lax.conv_general_dilated, images.astype(jnp.float32), kernel.astype(jnp.float32))
    for ours, exact in zip(got, want, strict=True):
        assert ours.dtype == jnp.bfloat16
        # Sums are taken in single precision and rounded once.
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4 * float(jnp.abs(exact).max()))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("count", [1, 7, 23])
def test_parts_of_the_batch_add_up(count):
    with jax.enable_x64(True):
        # Some nine of these images are taken at a time: the batch is one part, and several with a remainder.
        generator = np.random.default_rng(0)
        images = jnp.asarray(generator.normal(size=(count, 64, 64, 3)))
        kernel = jnp.asarray(generator.normal(size=(3, 3, 3, 2)))

        def total(convolve, kernel):
            result = convolve(images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)
            return jnp.sum(jnp.sin(result))

        got = jax.jit(jax.grad(total, argnums=1), static_argnums=0)(conv_general_dilated, kernel)
        want = jax.grad(total, argnums=1)(lax.conv_general_dilated, kernel)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-10)
