"""Objectives: number of evaluations, random numbers, limits, and adversarial training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import models, training
from nn_adv.threat import Threat, perturbation_size

_MODEL = models.create("mlp", 3, hidden_sizes=(16,))
_IMAGES = jax.random.uniform(jax.random.key(0), (6, 4, 4, 1))
_BATCH = training.Batch(_IMAGES, jnp.array([0, 1, 2, 0, 1, 2]))
_VARIABLES = _MODEL.init(jax.random.key(1), _IMAGES)
_LINF, _L2 = Threat("linf", 0.1), Threat("l2", 0.5)


def _trades(key=0, apply_fn=_MODEL.apply, **options):
    options = {"threats": (_LINF, _L2), "beta": 6.0, "num_steps": 3} | options
    return training.trades(apply_fn, _VARIABLES, _BATCH, key=jax.random.key(key), **options)


_jitted = jax.jit(_trades)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("threats", "budget"), [((_LINF,), 27), ((_L2,), 27), ((_LINF, _L2), 50)])
def test_forward_equivalents_of_a_step(threats, budget):
    """One matrix of 268 M operations per forward dwarfs everything else; a pass back to the images costs the same."""
    size, batch = 1024, 128
    images = jnp.full((batch, 32, 32, 1), 0.5)

    def apply_fn(variables, images, train, mutable=(), rngs=None):
        inputs = images.reshape(batch, -1) + 0.25 * train  # or the compiler finds that predicting is training
        logits = jnp.tanh(inputs @ variables["params"])[:, :4]
        return (logits, {}) if train else logits

    def cost(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    # Unrolled, because the compiler counts the body of a loop once.
    scan = jax.lax.scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "scan", lambda f, init, length: scan(f, init, length=length, unroll=length))

        def step(weights):
            def loss(weights):
                return training.trades(
                    apply_fn, {"params": weights}, training.Batch(images, jnp.zeros(batch, jnp.int32)),
                    key=jax.random.key(0), threats=threats, beta=6.0, num_steps=10,
                    noise=[training.Noise(scale * images, images) for scale in range(1, len(threats) + 1)],
                )[0]  # fmt: skip

            return jax.grad(loss)(weights)

        flops = cost(step, jnp.ones((size, size)))
    forward = 2 * batch * size * size
    # The gradient to the images is not needed in the loss: each of its backward passes counts 1 there, not 2.
    trained = 1 + len(threats)
    assert int(flops / forward) == budget - trained  # what is no product adds up to less than one


@pytest.mark.slow
def test_clean_images_are_predicted_once_and_trained_once():
    calls = []

    def apply_fn(variables, images, train, **options):
        calls.append(train)
        return _MODEL.apply(variables, images, train=train, **options)

    jax.make_jaxpr(lambda key: _trades(key, apply_fn=apply_fn)[0])(0)
    # As predictor once for the clean images, and once for the steps of each threat, a loop that is traced once.
    assert calls.count(False) == 1 + 2 and calls.count(True) == 1 + 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_epsilon_and_a_step_of_each_image_are_its_own(norm):
    epsilons = np.array([0, 0.05, 0.2, 0.1, 0.3, 0.02], np.float32)
    images = jnp.concatenate([_IMAGES] * 6, axis=3)  # as many channels as images: nothing else tells them apart
    model = models.create("mlp", 3, hidden_sizes=(16,))
    logits_fn = functools.partial(model.apply, model.init(jax.random.key(1), images))
    noise = training.draw_noise(jax.random.key(0), images)

    def moved(epsilon, some=slice(None), step_size=None):
        own = training.Noise(*(field[some] for field in noise))
        threat = Threat(norm, epsilon, None)
        found = training.inner_maximization(
            logits_fn, images[some], noise=own, threat=threat, num_steps=5, step_size=step_size
        )
        return perturbation_size(norm, found.images - images[some])

    assert np.all(moved(epsilons) <= epsilons * (1 + 1e-5) + 1e-6)
    alone = [moved(epsilon, slice(b, b + 1))[0] for b, epsilon in enumerate(epsilons.tolist())]
    np.testing.assert_allclose(moved(epsilons), alone, rtol=1e-4, atol=1e-6)
    steps = np.array([0.01, 0.02, 0.03, 0.01, 0.02, 0.03], np.float32)
    alone = [moved(0.2, slice(b, b + 1), step)[0] for b, step in enumerate(steps.tolist())]
    np.testing.assert_allclose(moved(0.2, step_size=steps), alone, rtol=1e-4, atol=1e-6)


def test_same_key_same_result_and_other_key_another():
    first, second, other = (_jitted(key)[1].adversarial for key in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.any(first != other)


def test_adversarial_images_stay_in_ball_and_bounds_and_raise_the_divergence():
    loss, aux = _jitted(0)
    for threat, images in zip((_LINF, _L2), aux.adversarial, strict=True):
        assert perturbation_size(threat.norm, images - _IMAGES).max() <= threat.epsilon * (1 + 1e-5)
        assert images.min() >= 0 and images.max() <= 1
    assert np.all(aux.divergences[:, -1] > 2 * aux.divergences[:, 0])
    np.testing.assert_allclose(loss, aux.natural_loss + 6 * aux.robust_losses.sum(), rtol=1e-6)


def test_radius_zero_and_beta_zero():
    none = (Threat("linf", 0.0), Threat("l2", 0.0))
    _, aux = _trades(threats=none)
    np.testing.assert_allclose(aux.adversarial, jnp.stack([_IMAGES] * 2), atol=1e-6)
    np.testing.assert_allclose(aux.robust_losses, 0, atol=1e-6)
    loss, _ = _trades(beta=0.0)
    plain, _ = training.standard(_MODEL.apply, _VARIABLES, _BATCH, key=jax.random.key(0))
    np.testing.assert_allclose(loss, plain, rtol=1e-6)


def test_zero_gradient_in_l2_takes_the_replacement():
    def constant(images):
        return jnp.zeros((images.shape[0], 3)) + 0 * images.sum()

    noise = training.draw_noise(jax.random.key(4), _IMAGES)
    found = training.inner_maximization(
        constant, _IMAGES, log_target=jnp.log(jnp.full((6, 3), 1 / 3)), noise=noise, threat=Threat("l2", 0.5, None),
        num_steps=1, step_size=0.25,
    )  # fmt: skip
    offset = 0.001 * noise.start - 0.25 * noise.replacement
    length = jnp.sqrt(jnp.sum(offset**2, axis=(1, 2, 3), keepdims=True))
    assert np.all(length > 0.5)
    np.testing.assert_allclose(found.images, _IMAGES + offset * 0.5 / length, rtol=1e-5, atol=1e-6)


def test_a_loop_of_ones_own_has_the_same_loss():
    def predict(images):
        return _MODEL.apply(_VARIABLES, images)

    noise = training.draw_noise(jax.random.key(4), _IMAGES)
    expected, aux = _trades(threats=(_L2,), noise=[noise])
    found = training.inner_maximization(predict, _IMAGES, noise=noise, threat=_L2, num_steps=3)
    logits = predict(_IMAGES), predict(found.images)[None]
    loss, (natural, robust) = training.trades_loss(*logits, _BATCH.labels, beta=6.0)
    np.testing.assert_allclose(found.images, aux.adversarial[0], atol=1e-6)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose([natural, robust[0]], [aux.natural_loss, aux.robust_losses[0]], rtol=1e-5)
    with pytest.raises(ValueError, match=r"must be \[B, C\] and \[T, B, C\], got \(6, 3\) and \(6, 3\)"):
        training.trades_loss(logits[0], logits[0], _BATCH.labels, beta=6.0)
    with pytest.raises(ValueError, match="beta must be a number >= 0, got -1"):
        training.trades_loss(*logits, _BATCH.labels, beta=-1)


def test_radius_is_traced():
    traces = []

    @jax.jit
    def loss(threats):
        traces.append(1)
        return _trades(threats=threats)[0]

    small, large = loss((Threat("l2", 0.1),)), loss((Threat("l2", 0.8),))
    assert len(traces) == 1 and small < large


@pytest.mark.slow
def test_adversarial_training_is_cross_entropy_on_pgd_images():
    loss, aux = training.adversarial(
        _MODEL.apply, _VARIABLES, _BATCH, key=jax.random.key(0), threats=(_LINF, Threat("l1", 1.0)), num_steps=4
    )
    clean, _ = training.standard(_MODEL.apply, _VARIABLES, _BATCH, key=jax.random.key(0))
    assert np.all(aux.robust_losses > clean)
    np.testing.assert_allclose(loss, aux.robust_losses.mean(), rtol=1e-6)
    log_probabilities = jax.nn.log_softmax(_MODEL.apply(_VARIABLES, aux.adversarial[1]))
    expected = -np.mean([row[label] for row, label in zip(log_probabilities, _BATCH.labels, strict=True)])
    np.testing.assert_allclose(aux.robust_losses[1], expected, rtol=1e-5)


def test_adversarial_training_attacks_misclassified_images_too():
    wrong = (jnp.argmax(_MODEL.apply(_VARIABLES, _IMAGES), axis=1) + 1) % 3
    batch = training.Batch(_IMAGES, wrong)
    _, aux = training.adversarial(_MODEL.apply, _VARIABLES, batch, key=jax.random.key(0), threats=(_LINF,), num_steps=3)
    clean, _ = training.standard(_MODEL.apply, _VARIABLES, batch, key=jax.random.key(0))
    assert np.all(np.any(aux.adversarial[0] != _IMAGES, axis=(1, 2, 3)))
    assert aux.robust_losses[0] > clean


def test_outside_jit_a_function_may_change_between_calls():
    gain = [1.0]

    def apply_fn(variables, images, train, mutable=(), rngs=None):
        logits = gain[0] * _MODEL.apply(_VARIABLES, images)
        return (logits, {}) if train else logits

    moved = []
    for gain[0] in (1.0, 0.0):
        _, aux = _trades(apply_fn=apply_fn, threats=(_LINF,))
        moved.append(float(jnp.max(jnp.abs(aux.adversarial - _IMAGES))))
    assert moved[0] == pytest.approx(_LINF.epsilon, rel=1e-4) and moved[1] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": ()}, "threats must be a list of one Threat or more, got none"),
        ({"threats": (Threat("l1", 1.0),)}, "TRADES takes threats in l2 or linf, got 'l1'"),
        ({"step_sizes": (0.1,)}, "step_sizes must be one per threat \\(2\\), got 1"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"beta": float("nan")}, "beta must be a number >= 0, got nan"),
        ({"step_sizes": (0.1, -0.1)}, "step_size must be a number >= 0, got -0.1"),
        ({"step_sizes": (np.ones(2), 0.1)}, r"step_size must be one, or one per image \[6\], got shape \(2,\)"),
        (
            {"threats": (Threat("l2", np.inf),)},
            "epsilon must be finite here, got inf: give the size",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        _trades(**options)


def test_losses_of_half_precision_networks_are_in_float32():
    half = models.create("mlp", 3, hidden_sizes=(16,)).clone()

    def apply_fn(variables, images, **options):
        found = half.apply(variables, images, **options)
        if isinstance(found, tuple):
            return found[0].astype(jnp.bfloat16), found[1]
        return found.astype(jnp.bfloat16)

    loss, aux = _trades(apply_fn=apply_fn)
    assert loss.dtype == aux.logits.dtype == jnp.float32


def test_gradients_that_are_no_numbers_do_not_reach_the_images():
    noise = training.draw_noise(jax.random.key(0), _IMAGES)

    def logits_fn(images):
        flat = images.reshape(len(images), -1)
        return jnp.stack([flat[:, 0], jnp.sqrt(0 * flat[:, 1]) + flat[:, 2]], axis=1)

    for threat in (_LINF, _L2):
        found = training.inner_maximization(logits_fn, _IMAGES, noise=noise, threat=threat, num_steps=2)
        assert np.isfinite(found.images).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threats": _LINF}, "threats must be a list of one Threat or more, got Threat"),
        ({"batch": tuple(_BATCH)}, r"batch must be a training.Batch\(images, labels\), got tuple"),
        ({"noise": [jax.random.key(0)]}, r"noise must be from draw_noise for images of shape \(6, 4, 4, 1\)"),
    ],
)
def test_what_does_not_fit_an_objective_is_named(change, message):
    options = {"batch": _BATCH, "threats": (_LINF,), "beta": 1.0, "num_steps": 1, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        training.trades(_MODEL.apply, _VARIABLES, **options)
