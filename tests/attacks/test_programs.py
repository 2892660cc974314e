"""Attacks that are called outside jit again and again: what is compiled for them does not pile up."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from nn_adv import attacks, training
from nn_adv.attacks import programs
from nn_adv.threat import Threat

pytestmark = pytest.mark.usefixtures("quickly_compiled")

_IMAGES = np.random.default_rng(0).uniform(0.2, 0.8, (4, 3, 3, 1)).astype(np.float32)
_WEIGHTS = np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)
_LABELS = np.argmax(_IMAGES.reshape(4, -1) @ _WEIGHTS, axis=1)
_THREAT = Threat("linf", 0.1)


def _linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


def _pgd(logits_fn):
    options = {"key": jax.random.key(0), "threat": _THREAT, "num_steps": 1, "step_size": 0.1}
    return attacks.pgd(logits_fn, _IMAGES, _LABELS, **options).adversarial


def _perturb(logits_fn):
    return attacks.perturb(
        logits_fn, np.moveaxis(_IMAGES, -1, 1), _LABELS, eps=0.1, norm=np.inf, attack="pgd", n_iter=1
    )


def _maximize(logits_fn):
    noise = training.draw_noise(jax.random.key(0), jnp.asarray(_IMAGES))
    return training.inner_maximization(logits_fn, _IMAGES, noise=noise, threat=_THREAT, num_steps=1)


def _num_maps() -> int:
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def _megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "calls", "warm_up", "most_kept"),
    [
        (_pgd, 14, 5, 4),
        *(pytest.param(attack, 200, 40, 32, marks=pytest.mark.slow) for attack in (_pgd, _perturb, _maximize)),
    ],
)
def test_new_functions_leave_memory_as_it_was(attack, calls, warm_up, most_kept, monkeypatch):
    monkeypatch.setattr(programs, "_MOST_KEPT", most_kept)
    maps, megabytes = [], []
    for _ in range(calls):
        attack(lambda images: _linear(_WEIGHTS, images))
        gc.collect()
        maps.append(_num_maps())
        megabytes.append(_megabytes())
    # Each program that stayed would have 140 maps or more, and take 5 megabytes or more.
    assert max(maps[warm_up:]) <= max(maps[:warm_up]) + 300
    assert megabytes[-1] <= max(megabytes[:warm_up]) + 10


def test_a_function_that_changed_is_asked_anew():
    scale = 1.0

    def logits_fn(images):
        return scale * _linear(_WEIGHTS, images)

    before = _pgd(logits_fn)
    scale = -1.0
    wrong = _pgd(logits_fn)
    np.testing.assert_array_equal(wrong, _IMAGES)  # all were wrong from the start
    assert not np.array_equal(before, wrong)


def test_a_partial_is_compiled_once_for_all_its_arrays():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return _linear(weights, images)

    first = _pgd(Partial(counted, jnp.asarray(_WEIGHTS)))
    count = len(traces)
    other = _pgd(Partial(counted, jnp.asarray(-_WEIGHTS)))
    assert len(traces) == count
    assert not np.array_equal(first, other)


def test_functions_that_do_the_same_share_a_program():
    programs._of_texts.clear()
    results = [_pgd(lambda images, weights=weights: _linear(weights, images)) for weights in (_WEIGHTS, -_WEIGHTS)]
    count = len(programs._of_texts)
    assert not np.array_equal(*results)
    np.testing.assert_array_equal(_pgd(lambda images: _linear(_WEIGHTS, images)), results[0])
    assert len(programs._of_texts) == count > 0
    _pgd(lambda images: 2 * _linear(_WEIGHTS, images))
    assert len(programs._of_texts) > count


def test_an_objective_outside_jit_is_compiled_once():
    def apply_fn(variables, images, train, mutable=(), rngs=None):
        logits = _linear(variables["params"], images)
        return (logits, {}) if train else logits

    def trades(scale):
        batch = training.Batch(jnp.asarray(_IMAGES), jnp.asarray(_LABELS))
        threats, variables = (_THREAT,), {"params": scale * _WEIGHTS}
        training.trades(apply_fn, variables, batch, key=jax.random.key(0), threats=threats, beta=1.0, num_steps=1)

    trades(1)
    kept = programs._of_functions._cache_size(), len(programs._of_texts)
    trades(2)
    assert (programs._of_functions._cache_size(), len(programs._of_texts)) == kept


def test_which_argument_is_used_tells_programs_apart():
    one, other = jnp.float32(1), jnp.float32(2)
    first = lambda a, b: a  # noqa: E731
    second = lambda a, b: b  # noqa: E731
    assert programs.run(lambda fn, a, b: fn(a, b), first, one, other) == 1
    assert programs.run(lambda fn, a, b: fn(a, b), second, one, other) == 2
    assert programs.run(lambda fn, a: fn(a, a), second, other) == 2


@pytest.mark.slow
def test_functions_of_the_host_are_not_mistaken_for_each_other():
    def through_the_host(weights):
        shape = jax.ShapeDtypeStruct((len(_IMAGES), 3), np.float32)
        return lambda images: jax.pure_callback(lambda images: _linear(weights, images), shape, images)

    def attack(weights):
        options = {"key": jax.random.key(0), "threat": _THREAT, "num_queries": 3}
        return attacks.square(through_the_host(weights), _IMAGES, _LABELS, **options).success

    assert not attack(_WEIGHTS).all() and attack(-_WEIGHTS).all()


def test_modules_of_flax_nnx_are_classifiers_with_their_weights_traced():
    module = nnx.Linear(9, 3, use_bias=False, rngs=nnx.Rngs(0))
    classifier = nnx.Sequential(lambda images: images.reshape(images.shape[0], -1), module)
    module.kernel[...] = jnp.asarray(_WEIGHTS)
    expected = _pgd(lambda images: _linear(_WEIGHTS, images))
    np.testing.assert_allclose(_pgd(classifier), expected, atol=1e-6)
    count = programs._of_functions._cache_size()
    module.kernel[...] = -jnp.asarray(_WEIGHTS)
    np.testing.assert_array_equal(_pgd(classifier), _IMAGES)  # all are wrong from the start
    assert programs._of_functions._cache_size() == count
    found = attacks.ensemble(
        classifier, _IMAGES, _LABELS, key=jax.random.key(0), threat=_THREAT,
        attacks=[attacks.named_attack("pgd", 3, num_steps=1)], batch_size=8,
    )  # fmt: skip
    assert found.success.all()


def test_inside_a_program_nothing_else_is_compiled():
    def inner(x):
        assert isinstance(x, jax.core.Tracer)
        return programs.run(jnp.sin, x)

    assert "jit" not in str(jax.make_jaxpr(inner)(1.0))
    assert programs.run(lambda x, *, power: x**power, jnp.float32(3), power=2) == 9


def test_functions_of_a_call_are_let_go():
    def logits_fn(images):
        return _linear(_WEIGHTS, images)

    _pgd(logits_fn)
    alive = weakref.ref(logits_fn)
    del logits_fn
    gc.collect()
    assert alive() is None


def test_a_partial_that_binds_a_truth_value_is_refused():
    def logits_fn(weights, images, train):
        return _linear(weights, images) if not train else images

    with pytest.raises(ValueError, match="^a Partial must not bind True or False, which would be traced: bind it in"):
        _pgd(Partial(logits_fn, _WEIGHTS, train=False))
    bound = Partial(functools.partial(logits_fn, train=False), _WEIGHTS)
    np.testing.assert_array_equal(_pgd(bound), _pgd(Partial(_linear, _WEIGHTS)))


def test_a_plain_function_runs_where_its_images_are(eight_devices):
    del eight_devices
    first, second = jax.devices()[:2]
    for device in (first, second):
        images = jax.device_put(_IMAGES, device)
        found = attacks.pgd(
            lambda images: 3 * _linear(_WEIGHTS, images),
            images,
            _LABELS,
            key=jax.random.key(0),
            threat=_THREAT,
            num_steps=1,
        )
        assert found.adversarial.devices() == {device}


def test_a_callable_that_cannot_be_hashed_is_a_classifier():
    class Scaled:
        __hash__ = None

        def __call__(self, images):
            return _linear(_WEIGHTS, images)

    np.testing.assert_array_equal(_pgd(Scaled()), _pgd(Partial(_linear, _WEIGHTS)))
