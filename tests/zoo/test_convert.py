"""State dicts to variables and back, and refusal of what does not fit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import models
from nn_adv.zoo import convert

_WIDE = {"depth": 10, "widen_factor": 1}
_NORM = {"mean": (0.4, 0.5, 0.6), "std": 0.25}
_NETWORKS = [
    ("mlp", {"hidden_sizes": (4,)}),
    ("resnet18", {"width": 2, **_NORM}),
    ("resnet50", {"width": 2}),
    ("preact_resnet18", {"width": 4, "full_preactivation": True}),
    ("preact_resnet50_ensemble", {"num_members": 2, "stage_sizes": (1, 1), "width": 2}),
    ("wide_resnet", {**_WIDE, **_NORM}),
    ("boosting_wide_resnet", _WIDE),
    ("pssilu_wide_resnet", _WIDE),
    ("dm_wide_resnet", _WIDE),
]


def _network(name="wide_resnet", num_classes=3, **options):
    return models.create(name, num_classes, **(options or {**_WIDE, **_NORM}))


@functools.cache
def _shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def _variables(model, seed=0):
    """Draw every leaf, with variances and standard deviations above 0."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.uniform(0.5, 1, leaf.shape), leaf.dtype), _shapes(model))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("name", "options"), _NETWORKS)
def test_round_trip_is_the_identity(name, options):
    model = _network(name, **options)
    variables = _variables(model)
    state = convert.to_state_dict(variables)
    back = convert.from_state_dict(model, state)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    again = convert.to_state_dict(back)
    assert list(again) == list(state)
    for key, value in state.items():
        assert again[key].dtype == value.dtype
        np.testing.assert_array_equal(again[key], value)


def test_leaves_are_named_and_laid_out_as_in_pytorch():
    state = convert.to_state_dict(_variables(_network()))
    shapes = {key: value.shape for key, value in state.items()}
    assert shapes["mu"] == (1, 3, 1, 1) and shapes["fc.weight"] == (3, 64) and shapes["fc.bias"] == (3,)
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    assert shapes["block2.layer.0.convShortcut.weight"] == (32, 16, 1, 1)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        assert shapes[f"block3.layer.0.bn1.{leaf}"] == (32,)


@pytest.mark.slow
def test_constants_may_be_missing_or_in_another_shape_and_override_the_options():
    model, images = _network(), jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    state = convert.to_state_dict(_variables(model))
    standard = {key: value for key, value in state.items() if key not in ("mu", "sigma")}
    as_published = {**standard, "mu": np.full((3, 1, 1), 0.3, np.float32), "sigma": np.full(3, 0.2, np.float32)}
    for given in (standard, as_published):
        back = convert.to_state_dict(convert.from_state_dict(model, given))
        assert {key: value.shape for key, value in back.items()} == {key: v.shape for key, v in given.items()}
    apply = lambda given: jax.jit(model.apply)(convert.from_state_dict(model, given), images)  # noqa: E731
    own = _network(**_WIDE, mean=0.3, std=0.2)
    expected = own.apply(convert.from_state_dict(own, standard), images)
    np.testing.assert_allclose(apply(as_published), expected, rtol=1e-5)
    assert np.abs(apply(standard) - expected).max() > 1e-3


def test_other_precisions_become_the_models_and_counters_are_ignored():
    model = _network()
    state = {key: value.astype(np.float64) for key, value in convert.to_state_dict(_variables(model)).items()}
    state |= {"bn1.num_batches_tracked": np.array(3), "num_batches_tracked": np.array(3)}
    assert {leaf.dtype for leaf in jax.tree.leaves(convert.from_state_dict(model, state))} == {jnp.dtype("float32")}


def _without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


def _with(**arrays):
    return lambda state: {**state, **{key.replace("_", "."): value for key, value in arrays.items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("bn1.weight"), r"does not fit PreActResNet; of its keys, 1 missing \(bn1.weight\)"),
        (_with(a_b=np.zeros(1)), r"does not fit PreActResNet; of its keys, 1 left over \(a.b\)"),
        (
            lambda state: {f"module.{key}": value for key, value in state.items()},
            r"39 missing \(\S+, \S+, \S+, \.\.\.\); 41 left over \(module\.\S+, \S+, \S+, \.\.\.\)",
        ),
        (_with(fc_weight=np.zeros((3, 32))), r"1 of another shape \(fc.weight: \[3, 32\] instead of \[3, 64\]\)"),
        (_with(bn1_weight=np.zeros(())), r"1 of another shape \(bn1.weight: \[\] instead of \[64\]\)"),
        (_with(mu=np.zeros((1, 4, 1, 1))), r"1 of another shape \(mu: \[1, 4, 1, 1\] instead of \[1, 3, 1, 1\]\)"),
        (
            _with(fc_weight=np.zeros((10, 64)), fc_bias=np.zeros(10)),
            "^the state dict is of a network for 10 classes, PreActResNet was made for 3$",
        ),
        (
            _with(fc_weight=np.zeros((10, 64)), fc_bias=np.zeros(10), bn1_bias=np.zeros(3)),
            r"3 of another shape \(bn1.bias",
        ),
        (lambda state: {}, r"39 missing"),
        (_with(bn1_weight=np.full(64, np.nan)), "the state dict has NaN as 'bn1.weight'"),
        (_with(bn1_weight=np.ones(64, complex)), "the state dict has no real numbers as 'bn1.weight', but complex128"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(change, message):
    model = _network()
    state = change(convert.to_state_dict(_variables(model)))
    with pytest.raises(ValueError, match=message) as caught:
        convert.from_state_dict(model, state)
    assert "\n" not in str(caught.value)


def test_keys_are_unused_only_if_the_whole_of_them_matches():
    model = _network()
    state = _with(sub_block1=np.zeros(1), extra=np.zeros(1))(convert.to_state_dict(_variables(model)))
    convert.from_state_dict(model, state, unused=(r"sub\..*", "extra"))
    with pytest.raises(ValueError, match=r"1 left over \(sub.block1\)"):
        convert.from_state_dict(model, state, unused=("sub", "extra"))
    with pytest.raises(ValueError, match="unused must be a list of regular expressions, got the text 'extra'"):
        convert.from_state_dict(model, state, unused="extra")


def test_leaves_of_one_key_are_refused():
    tree = {"params": {"a": {"b": {"kernel": np.zeros((1, 1))}}, "a.b": {"kernel": np.zeros((1, 1))}}}
    with pytest.raises(ValueError, match=r"two leaves with the key 'a\.b\.weight'"):
        convert.to_state_dict(tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet18", "PreActResNet18", "WideResNet"])
def test_exported_networks_run_in_pytorch(name):
    torch = pytest.importorskip("torch")
    torch_models = pytest.importorskip("benchmarks.torch_models")
    ours, options = {
        "ResNet18": ("resnet18", {"width": 4}),
        "PreActResNet18": ("preact_resnet18", {"width": 4, "stem_features": 4}),
        "WideResNet": ("wide_resnet", _WIDE),
    }[name]
    model = _network(ours, **options)
    generator = np.random.default_rng(0)
    variables = _variables(model)
    variables["params"] = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(size=leaf.shape) / np.sqrt(leaf[..., 0].size), leaf.dtype),
        variables["params"],
    )
    module = getattr(torch_models, name)(3, **options).eval()
    module.load_state_dict({key: torch.from_numpy(value) for key, value in convert.to_state_dict(variables).items()})
    images = generator.random((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images), expected, rtol=1e-4, atol=1e-5)
