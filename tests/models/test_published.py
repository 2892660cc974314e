"""Networks that are here for their published weights: gradients against finite differences, and what is refused.

Their outputs are held against the published ones in tests/zoo/test_parity.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from nn_adv import models
from nn_adv.models import mixed
from nn_adv.models.bit import BiT
from nn_adv.models.meansparse import MeanSparse
from nn_adv.models.sodef import _Orthogonal
from nn_adv.models.wide_resnet import dm_wide_resnet
from tests.models.differences import check_gradient, double

_WIDE = {"depth": 10, "widen_factor": 1}
_STAGES = {"stage_sizes": (1, 1, 1), "widths": (4, 8, 6)}
_BIT = {"stage_sizes": (1, 1), "width": 4, "groups": 2, "image_size": 32}
# A small one of each, `models.PUBLISHED_NAMES` among them.
_SMALL = {
    "bit": BiT(3, stage_sizes=(1, 1), width=4, groups=2, image_size=16),
    "composite": mixed.Composite(
        3,
        BiT(3, name="_comp_model.models.0", **_BIT),
        dm_wide_resnet(3, name="_comp_model.models.1", **_WIDE),
        mixer_widths=(6, 5, 4),
    ),
    "meansparse_dm_wide_resnet": models.create("meansparse_dm_wide_resnet", 3, **_WIDE),
    "meansparse_ra_wide_resnet": models.create("meansparse_ra_wide_resnet", 3, **_STAGES),
    "mixednuts": mixed.MixedNUTS(
        3, BiT(3, name="std_model", **_BIT), models.create("ra_wide_resnet", 3, **_STAGES).clone(name="rob_model")
    ),
    "ra_wide_resnet": models.create("ra_wide_resnet", 3, **_STAGES),
    "resnest152": models.create("resnest152", 3, stage_sizes=(1, 1), width=4),
    "sodef": models.create("sodef", 3, features=4, **_WIDE),
    "wrn_a4": models.create("wrn_a4", 3, **_STAGES),
    "xcit": models.create("xcit", 3, embed_dim=16, depth=1, num_heads=2),
}
# Parameters of the published networks for 10 classes. Normalisation constants and weights of mixtures are none.
_SIZES = {
    "composite": 566_924_388,
    "meansparse_dm_wide_resnet": 365_915_610,
    "meansparse_ra_wide_resnet": 267_240_802,
    "mixednuts": 499_519_980,
    "ra_wide_resnet": 267_240_802,
    "resnest152": 74_889_098,
    "sodef": 266_856_602,
    "wrn_a4": 147_291_738,
    "xcit": 25_872_154,
}


def _each(names, quick):
    """The names as parameters, all but a few of them slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_all_published_networks_are_tested():
    assert set(models.PUBLISHED_NAMES) == set(_SIZES) <= set(_SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", _each(models.PUBLISHED_NAMES, ("resnest152", "xcit")))
def test_number_of_parameters(name):
    variables = jax.eval_shape(models.create(name, 10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == _SIZES[name]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", _each(_SMALL, ("bit", "ra_wide_resnet", "xcit")))
def test_gradient_equals_finite_differences(name):
    model = _SMALL[name].clone(tolerance=1e-10) if name == "sodef" else _SMALL[name]
    with jax.enable_x64(True):
        variables, images = double(model)
        check_gradient(lambda images: model.apply(variables, images), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", _each(_SMALL, ("bit", "ra_wide_resnet", "xcit")))
def test_a_prediction_ignores_the_other_images(name):
    variables, images = double(_SMALL[name])
    predict = jax.jit(_SMALL[name].apply)
    both, changed = predict(variables, images), predict(variables, images.at[1].set(0.9))
    assert jax.eval_shape(predict, variables, images[:0]).shape == (0, *both.shape[1:])
    np.testing.assert_allclose(changed[0], both[0], rtol=1e-5, atol=1e-5)
    assert np.abs(changed[1] - both[1]).max() > 1e-4


@pytest.mark.slow
def test_without_constants_a_network_normalises_by_its_options():
    model = BiT(3, stage_sizes=(1, 1), width=4, groups=2, image_size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    variables, images = double(model)
    own = model.apply(variables, images)
    bare = {name: collection for name, collection in variables.items() if name != "constants"}
    plain = model.clone(mean=(0.0,), std=(1.0,))
    outside = (images - jnp.array(model.mean)) / jnp.array(model.std)
    got = model.apply(bare, images)
    np.testing.assert_allclose(got, plain.apply(bare, outside), rtol=1e-4, atol=1e-5)
    assert np.abs(got - own).max() > 1e-4


def test_mean_sparse_replaces_what_is_near_the_mean_and_stops_its_gradient():
    x = jnp.array([0.9, 1.0, 1.3, 1.5, 1.6, 2.4]).reshape(6, 1, 1, 1)
    statistics = {"mean": jnp.array([1.0]), "var": jnp.array([0.25]), "threshold": jnp.array(1.0)}
    values, pullback = jax.vjp(lambda x: MeanSparse().apply({"batch_stats": statistics}, x), x)
    np.testing.assert_array_equal(values.ravel(), np.array([1.0, 1.0, 1.0, 1.5, 1.6, 2.4], np.float32))
    np.testing.assert_array_equal(pullback(jnp.ones_like(x))[0].ravel(), [0, 0, 0, 1, 1, 1])


def test_new_mean_sparse_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    np.testing.assert_array_equal(MeanSparse().apply(MeanSparse().init(jax.random.key(0), x), x), x)


def test_orthogonal_map_equals_the_definition():
    generator = np.random.default_rng(0)
    original = generator.normal(size=(12, 3))
    base = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    lower = np.zeros((12, 12))
    lower[:, :3] = np.tril(original, -1)
    want = base @ scipy.linalg.expm(lower - lower.T)[:, :3]
    with jax.enable_x64(True):
        variables = {"params": {"original": original}, "batch_stats": {"0.base": base}}
        got = _Orthogonal(3).apply(jax.tree.map(jnp.asarray, variables), jnp.eye(12))
    np.testing.assert_allclose(got, want, atol=1e-13)
    np.testing.assert_allclose(want.T @ want, np.eye(3), atol=1e-13)


@pytest.mark.slow
def test_flow_does_not_depend_on_how_it_is_batched():
    variables, images = double(_SMALL["sodef"], (5, 8, 8, 3))
    predict = jax.jit(_SMALL["sodef"].apply)
    alone = jnp.concatenate([predict(variables, images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(predict(variables, images), alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def _map_indouble(logits):
    """The maps and the mixture of MixedNUTS as published, in float64 NumPy."""
    standard, robust = np.asarray(logits, np.float64)
    normed = (robust - robust.mean(1, keepdims=True)) / np.sqrt(robust.var(1, ddof=1, keepdims=True) + 1e-8)
    clamped = (normed - 1.1) * scipy.stats.norm.cdf(normed - 1.1)
    weights = scipy.special.softmax(5 * np.sign(clamped) * np.abs(clamped) ** 4, axis=1)
    share = np.float64(np.float32(0.9987500602493457))
    return np.log((1 - share) * np.eye(10)[standard.argmax(1)] + share * weights)


class _Fixed(nn.Module):
    """Logits that do not look at the images."""

    logits: tuple

    def __call__(self, images):
        return jnp.asarray(self.logits, jnp.float32) + 0 * images.sum()


def test_mixednuts_in_float32_is_near_its_map_in_float64():
    logits = np.random.default_rng(0).normal(size=(2, 500, 10)).astype(np.float32) * 3
    standard, robust = (_Fixed(tuple(map(tuple, rows.tolist()))) for rows in logits)
    got = mixed.MixedNUTS(10, standard, robust).apply({}, jnp.zeros((500, 2, 2, 3)))
    np.testing.assert_allclose(got, _map_indouble(logits), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_mixednuts_differentiates_the_largest_logit_only_where_two_almost_tie():
    def probabilities(gap):
        logits = jnp.stack([jnp.asarray([1.0 + gap, 1.0, 0.0])])
        return mixed._one_hot_of_largest(logits, 1e6)[0]

    with jax.enable_x64(True):
        np.testing.assert_array_equal(probabilities(1e-7), [1, 0, 0])
        near, far = (jax.jacobian(probabilities)(gap) for gap in (1e-7, 1e-2))
        step = 1e-3
        scale = 1e6 / np.sqrt(np.var([1, 1, 0], ddof=1))
        sharpness = scale * scipy.special.expit(scale * 1e-7) * scipy.special.expit(-scale * 1e-7)
    np.testing.assert_allclose(near, [sharpness, -sharpness, 0], rtol=step)
    np.testing.assert_array_equal(far, [0, 0, 0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xcit", {"embed_dim": 12}, "embed_dim must be a multiple of 8 and of num_heads 8, got 12"),
        ("xcit", {"embed_dim": 16, "num_heads": 3}, "embed_dim must be a multiple of 8 and of num_heads 3, got 16"),
        ("xcit", {"num_heads": 0}, "num_heads of xcit must be a positive whole number, got 0"),
        ("meansparse_dm_wide_resnet", {"dtype": "bfloat16"}, "options of meansparse_dm_wide_resnet are .*, got dtype"),
        ("resnest152", {"width": 6}, "width must be a multiple of 4, got 6"),
        ("sodef", {"tolerance": 0.0}, "tolerance must be positive, got 0.0"),
        ("composite", {"depth": 28}, "options of composite are none, got depth"),
        ("wrn_a4", {"dtype": "bfloat16"}, "options of wrn_a4 are stage_sizes, widths, mean, std, got dtype"),
        ("wrn_a4", {"widths": (8, 8)}, "stage_sizes and widths must have a number for each of the 3 stages"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, 10, **options)


def test_wrong_groups():
    with pytest.raises(ValueError, match="width must be a multiple of groups 32, got 48"):
        BiT(10, width=48)


def test_equal_published_networks_are_equal():
    for name in models.PUBLISHED_NAMES:
        assert models.create(name, 10) == models.create(name, 10)
        assert hash(models.create(name, 10)) == hash(models.create(name, 10))
