"""Networks that are here for their published weights: gradients against finite differences, and what is refused.

Their outputs are held against the published ones in tests/zoo/test_parity.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv.models.bit import BiT
from nn_adv.models.resnest import ResNeSt
from nn_adv.models.xcit import XCiT

_SMALL = {
    "bit": BiT(3, stage_sizes=(1, 1), width=4, groups=2, image_size=16),
    "resnest": ResNeSt(3, stage_sizes=(1, 1), width=4),
    "xcit": XCiT(3, embed_dim=16, depth=1, num_heads=2),
}


def _double(model, shape=(2, 8, 8, 3)):
    """Make images and variables in float64, none of them at an initial value such as 0."""
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.uniform(size=shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)

    def draw(path, leaf):
        if path[-1].key == "var":
            return jnp.asarray(generator.uniform(0.5, 1.5, leaf.shape))
        if path[0].key == "constants":
            return jnp.asarray(generator.uniform(0.2, 0.8, leaf.shape))
        return jnp.asarray(generator.normal(size=leaf.shape) * (0.4 if leaf.ndim > 1 else 1.0))

    return jax.tree_util.tree_map_with_path(draw, shapes), images


def _check_gradient(function, images, tolerance=1e-6):
    """Compare the gradient of a weighted sum of outputs with central differences along a direction."""
    generator = np.random.default_rng(1)
    weights = jnp.asarray(generator.normal(size=jax.eval_shape(function, images).shape))
    direction, step = jnp.asarray(generator.normal(size=images.shape)), 1e-6
    value = jax.jit(lambda images: jnp.vdot(weights, function(images)))
    got = jnp.vdot(direction, jax.jit(jax.grad(value))(images))
    want = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    assert abs(want) > 1e-4
    np.testing.assert_allclose(got, want, rtol=tolerance)


@pytest.mark.parametrize("name", _SMALL)
def test_gradient_equals_finite_differences(name):
    with jax.enable_x64(True):
        variables, images = _double(_SMALL[name])
        _check_gradient(lambda images: _SMALL[name].apply(variables, images), images)


@pytest.mark.parametrize("name", _SMALL)
def test_a_prediction_ignores_the_other_images(name):
    variables, images = _double(_SMALL[name])
    predict = jax.jit(_SMALL[name].apply)
    both, changed = predict(variables, images), predict(variables, images.at[1].set(0.9))
    np.testing.assert_allclose(changed[0], both[0], rtol=1e-5, atol=1e-5)
    assert np.abs(changed[1] - both[1]).max() > 1e-3


def test_without_constants_a_network_normalises_by_its_options():
    model = BiT(3, stage_sizes=(1, 1), width=4, groups=2, image_size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    variables, images = _double(model)
    own = model.apply(variables, images)
    bare = {name: collection for name, collection in variables.items() if name != "constants"}
    plain = model.clone(mean=(0.0,), std=(1.0,))
    outside = (images - jnp.array(model.mean)) / jnp.array(model.std)
    got = model.apply(bare, images)
    np.testing.assert_allclose(got, plain.apply(bare, outside), rtol=1e-4, atol=1e-5)
    assert np.abs(got - own).max() > 1e-3


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (XCiT, {"embed_dim": 12}, "embed_dim must be a multiple of 8 and of num_heads 8, got 12"),
        (XCiT, {"embed_dim": 16, "num_heads": 3}, "embed_dim must be a multiple of 8 and of num_heads 3, got 16"),
        (ResNeSt, {"width": 6}, "width must be a multiple of 4, got 6"),
        (BiT, {"width": 48}, "width must be a multiple of groups 32, got 48"),
    ],
)
def test_wrong_options(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(10, **options)
