"""Networks: sizes, conventions, and refusal of wrong options."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import models
from nn_adv.models import layers

# (name, options, image shape, parameters for 10 classes). MLP: 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10.
# The others are the published counts; a last normalisation adds 1,024 to PreActResNet-18, PSSiLU 2 to WRN-28-10.
_SIZES = [
    ("boosting_wide_resnet", {"depth": 34, "widen_factor": 20}, (32, 32, 3), 184_531_664),
    ("dm_preact_resnet18", {}, (32, 32, 3), 12_548_426),
    ("dm_wide_resnet", {}, (32, 32, 3), 36_479_194),
    ("dm_wide_resnet", {"depth": 70, "widen_factor": 16}, (32, 32, 3), 266_796_506),
    ("mlp", {}, (28, 28, 1), 269_322),
    ("preact_resnet18", {}, (32, 32, 3), 11_171_146),
    ("preact_resnet18", {"full_preactivation": True}, (32, 32, 3), 11_172_170),
    ("preact_resnet50_ensemble", {}, (32, 32, 3), 70_550_622),
    ("pssilu_wide_resnet", {}, (32, 32, 3), 36_479_196),
    ("resnet18", {}, (32, 32, 3), 11_173_962),
    ("resnet50", {}, (32, 32, 3), 23_520_842),
    ("robust_wide_resnet", {}, (32, 32, 3), 68_116_698),
    ("small_cnn", {}, (28, 28, 1), 312_202),
    ("strided_cnn", {}, (32, 32, 3), 35_962),
    ("wide_resnet", {}, (32, 32, 3), 36_479_194),
    ("wide_resnet", {"depth": 34}, (32, 32, 3), 46_160_474),
]
_TINY_WIDE = {"depth": 10, "widen_factor": 1}
_TINY = {
    "boosting_wide_resnet": _TINY_WIDE,
    "dm_preact_resnet18": {"width": 4},
    "dm_wide_resnet": _TINY_WIDE,
    "mlp": {"hidden_sizes": (8,)},
    "preact_resnet18": {"width": 4, "stem_features": 4, "full_preactivation": True},
    "preact_resnet50_ensemble": {"num_members": 2, "stage_sizes": (1, 1), "width": 2},
    "pssilu_wide_resnet": _TINY_WIDE,
    "resnet18": {"width": 4},
    "resnet50": {"width": 2},
    "robust_wide_resnet": {"stage_sizes": (1, 1, 1), "widths": (4, 8, 6)},
    "small_cnn": {"conv_features": (2, 2, 4, 4), "dense_features": 8},
    "strided_cnn": {"widths": (4, 4), "strides": (1, 2)},
    "wide_resnet": _TINY_WIDE,
}


def _tiny(name, **options):
    model = models.create(name, 3, **_TINY[name], **options)
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    return model, images, _init(model, images)


@functools.partial(jax.jit, static_argnums=0)
def _init(model, images):
    return model.init(jax.random.key(1), images)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, images)


_QUICK = ("mlp", "preact_resnet18", "small_cnn", "strided_cnn")
_EACH = [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in models.NAMES]


def test_whole_registry_is_tested():
    assert set(models.NAMES) == set(_TINY) == {name for name, *_ in _SIZES}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("name", "options", "shape", "count"), _SIZES)
def test_number_of_parameters(name, options, shape, count):
    model = models.create(name, 10, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", _EACH)
def test_prediction_of_an_image_ignores_its_batch(name):
    model, images, variables = _tiny(name)
    logits = _apply(model, variables, images)
    others = _apply(model, variables, images.at[1:].set(0.9))
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32
    assert jax.eval_shape(model.apply, variables, images[:0]).shape == (0, 3)
    np.testing.assert_allclose(others[0], logits[0], rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(others[1:] - logits[1:]).max(axis=1) > 1e-4)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", _EACH)
def test_normalisation_is_inside(name):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    plain, images, variables = _tiny(name, mean=None, std=None)
    model = models.create(name, 3, **_TINY[name], mean=mean, std=std)
    outside = (images - jnp.array(mean)) / jnp.array(std)
    got, want = _apply(model, variables, images), _apply(plain, variables, outside)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", _EACH)
def test_bfloat16_computes_near_float32_and_returns_float32(name):
    model, images, variables = _tiny(name)
    half = models.create(name, 3, dtype="bfloat16", **_TINY[name])
    logits, exact = _apply(half, variables, images), _apply(model, variables, images)
    assert logits.dtype == jnp.float32
    weights = jax.eval_shape(half.init, jax.random.key(1), images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(weights))
    np.testing.assert_allclose(logits, exact, atol=0.1 * max(1, np.abs(exact).max()))
    assert np.any(logits != exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in models.NAMES if "resnet" in n])
def test_training_moves_running_statistics_a_tenth_of_the_way(name):
    model, images, variables = _tiny(name)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = train(variables, images)
    if name == "resnet18":  # its first normalisation sees the stem's output
        stem = nn.Conv(4, (3, 3), padding=1, use_bias=False)
        features = stem.apply({"params": variables["params"]["conv1"]}, images)
        first = updated["batch_stats"]["bn1"]
        np.testing.assert_allclose(first["mean"], 0.1 * features.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(first["var"], 0.9 + 0.1 * features.var((0, 1, 2)), rtol=1e-5)
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updated["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_strided_convolution_pads_both_sides():
    image = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    convolution = layers.conv(1, 3, stride=2)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    result = convolution.apply({"params": {"kernel": kernel}}, image)
    np.testing.assert_array_equal(result[0, :, :, 0], [[4.0, 0.0], [0.0, 0.0]])


def test_dropout_only_in_training():
    model, images, variables = _tiny("small_cnn")
    predicted = jax.jit(model.apply)(variables, images)
    train = jax.jit(functools.partial(model.apply, train=True))
    trained = [train(variables, images, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert np.any(trained[0] != trained[1]) and np.any(trained[0] != predicted)
    without = models.create("small_cnn", 3, dropout=0.0, **_TINY["small_cnn"])
    train = jax.jit(functools.partial(without.apply, train=True))
    np.testing.assert_array_equal(train(variables, images), predicted)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3)])
def test_max_pool_equals_flax_with_ties(shape):
    x = jax.random.randint(jax.random.key(0), shape, 0, 3).astype(jnp.float32)
    cotangent = jax.random.normal(jax.random.key(1), (2, shape[1] // 2, shape[2] // 2, 3))
    results = []
    for pool in (layers.max_pool, lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))):
        value, backward = jax.vjp(pool, x)
        results.append((value, backward(cotangent)[0]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_equal_options_give_equal_networks():
    assert models.create("mlp", hidden_sizes=[8, 8], mean=0.5) == models.create("mlp", hidden_sizes=(8, 8), mean=(0.5,))
    assert hash(models.create("resnet18", dtype=jnp.bfloat16)) == hash(models.create("resnet18", dtype="bfloat16"))
    assert models.create("mlp") != models.create("mlp", hidden_sizes=(8,))
    same = {"mean": np.array([0.5, 0.25]), "std": np.float32(0.5), "hidden_sizes": np.array([8])}
    assert models.create("mlp", **same) == models.create("mlp", mean=(0.5, 0.25), std=0.5, hidden_sizes=[8])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, f"must be one of {', '.join(sorted((*models.NAMES, *models.PUBLISHED_NAMES)))}, got 'vgg'"),
        ("mlp", {"depth": 3}, "options of mlp are hidden_sizes, mean, std, dtype, got depth"),
        ("mlp", {"num_classes": 1}, "num_classes must be a whole number of at least 2, got 1"),
        ("mlp", {"num_classes": 10.0}, "num_classes must be a whole number of at least 2, got 10.0"),
        ("mlp", {"hidden_sizes": 8}, "hidden_sizes of mlp must be a list of positive whole numbers or empty, got 8"),
        ("mlp", {"mean": "grey"}, "mean of mlp must be a number or one for each channel, got 'grey'"),
        ("mlp", {"std": (0.2, 0.0)}, r"std of mlp must be a positive number or one for each channel, got \(0.2, 0.0\)"),
        ("mlp", {"dtype": "int8"}, "dtype of mlp must be the name of a floating-point type, got 'int8'"),
        ("mlp", {"dtype": "floating"}, "dtype of mlp must be the name of a floating-point type, got 'floating'"),
        ("mlp", {"dtype": "float33"}, "dtype of mlp must be the name of a floating-point type, got 'float33'"),
        ("wide_resnet", {"depth": 20}, "depth must be 6 n \\+ 4"),
        ("wide_resnet", {"depth": "28"}, "depth of wide_resnet must be a positive whole number, got '28'"),
        ("wide_resnet", {"widen_factor": 0}, "widen_factor of wide_resnet must be a positive whole number, got 0"),
        (
            "wide_resnet",
            {"standardise_images": "no"},
            "standardise_images of wide_resnet must be True or False, got 'no'",
        ),
        ("resnet18", {"width": 0}, "width of resnet18 must be a positive whole number, got 0"),
        ("small_cnn", {"conv_features": (1, 2)}, r"conv_features of small_cnn must be four positive whole .* \(1, 2\)"),
        ("small_cnn", {"dropout": "half"}, "dropout of small_cnn must be a number, got 'half'"),
        ("small_cnn", {"dropout": 1.0}, "dropout must be in \\[0, 1\\), got 1.0"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize("name", ["mlp", "dm_preact_resnet18"])
def test_normalisation_adds_no_channels(name):
    model = models.create(name, 3, mean=(0.1, 0.2, 0.3), std=0.5)
    with pytest.raises(ValueError, match="^Incompatible .* for broadcasting"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
