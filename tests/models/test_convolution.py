"""The convolution made for CPUs against JAX's own, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nn_adv.models.convolution import conv_general_dilated

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "margin"), [(1, 0), (3, 0), (3, 1), (5, 2)])
@pytest.mark.parametrize("sides", [(8, 8), (9, 6)])
def test_equals_jax_with_gradients(sides, size, margin, stride, mapped):
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        images = jnp.asarray(generator.normal(size=(2, 3, *sides, 2)))
        kernels = jnp.asarray(generator.normal(size=(2, size, size, 2, 4)))
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
