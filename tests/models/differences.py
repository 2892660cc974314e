"""Gradients with respect to images against finite differences, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def double(model, shape=(2, 8, 8, 3)):
    """Make images and variables in float64, none of them at an initial value such as 0."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.uniform(size=shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def draw(path, leaf):
        if path[-1].key == "threshold":
            return jnp.full(leaf.shape, 0.3)
        if path[-1].key == "var":
            return jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape))
        if path[0].key == "constants" and leaf.ndim:
            return jnp.asarray(generator.uniform(0.2, 0.8, leaf.shape))
        scale = 2 * np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 1.0
        return jnp.asarray(generator.normal(size=leaf.shape) * scale)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    # Scalars, such as the weights of a mixture, keep their published values: without an entry, the model's.
    constants = {name: value for name, value in variables.get("constants", {}).items() if isinstance(value, dict)}
    return {**variables, "constants": constants}, images


def check_gradient(function, images, tolerance=1e-6):
    """Compare the gradient of a weighted sum of outputs with central differences along a direction."""
    generator = np.random.default_rng(1)
    weights = jnp.asarray(generator.normal(size=jax.eval_shape(function, images).shape))
    direction, step = jnp.asarray(generator.normal(size=images.shape)), 1e-6
    value = jax.jit(lambda images: jnp.vdot(weights, function(images)))
    got = jnp.vdot(direction, jax.jit(jax.grad(value))(images))
    want = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    assert abs(want) > 1e-4
    np.testing.assert_allclose(got, want, rtol=tolerance)
