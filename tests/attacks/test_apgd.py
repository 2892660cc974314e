"""APGD against classifiers whose robustness is known in closed form, and against PGD."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nn_adv import attacks, data
from nn_adv.attacks import losses
from nn_adv.threat import NORMS, Threat, dual_norm
from tests.attacks import reference_models

apgd_module = importlib.import_module("nn_adv.attacks.apgd")
DIMENSION = 24
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}


def _linear_problem(seed=0, count=60):
    """A linear two-class model: the free distance to its border is |margin| / ||w||_dual."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(DIMENSION).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (count, DIMENSION)).astype(np.float32)
    offset = np.float32(-np.median(images @ weights))
    margin = images @ weights + offset

    def logits_fn(points):
        value = points @ weights + offset
        return jnp.stack([jnp.zeros_like(value), value], axis=1)

    return logits_fn, images, (margin > 0).astype(np.int32), margin, weights


def _three_classes(seed=0, count=64):
    """A small smooth network; each image is computed on its own, so that no rounding depends on the batch."""
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((DIMENSION, 16)) / 2, rng.standard_normal((16, 3))
    first, second = first.astype(np.float32), second.astype(np.float32)
    images = rng.uniform(0, 1, (count, DIMENSION)).astype(np.float32)

    def logits_of_one(image):
        return jnp.tanh((image - 0.5) @ first) @ second

    def logits_fn(points):
        return jax.lax.map(logits_of_one, points)

    return logits_fn, images, np.asarray(jnp.argmax(logits_fn(images), axis=1))


def _attack(norm, epsilon, problem=None, **options):
    logits_fn, images, labels, *_ = problem or _linear_problem()
    arguments = dict(key=jax.random.key(0), num_steps=20) | options
    return attacks.apgd(logits_fn, images, labels, threat=Threat(norm, epsilon), **arguments)


# Confident logits (scale 15) have gradients below 1e-12, which must still lead.
@pytest.mark.slow
@pytest.mark.parametrize(("norm", "scale"), [("l1", 1), ("l2", 1), ("linf", 1), ("l2", 15)])
def test_finds_every_adversarial_point_of_a_linear_model(norm, scale):
    epsilon = {"l1": 0.25, "l2": 0.1, "linf": 0.03}[norm]
    logits_fn, images, labels, margin, weights = _linear_problem()
    scaled = (lambda points: scale * logits_fn(points)), images, labels
    success = np.asarray(_attack(norm, epsilon, scaled, num_steps=40).success)
    radius = np.abs(margin) / np.linalg.norm(weights, ord=ORDER[dual_norm(norm)])
    assert 5 < np.sum(radius < epsilon) < len(radius) - 5
    assert not np.any(success[radius > epsilon * (1 + 1e-5)]), "broke an image outside its radius"
    assert np.all(success[radius < 0.999 * epsilon])


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_points_stay_inside_ball_and_bounds_wherever_they_start(norm):
    _, images, *_ = problem = _linear_problem()
    result = _attack(norm, 0.6, problem, starts=np.full_like(images, 3), num_steps=3)
    sizes = np.linalg.norm(np.asarray(result.adversarial, np.float64) - images, ord=ORDER[norm], axis=1)
    assert sizes.max() <= 0.6 + 2e-6
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    np.testing.assert_allclose(result.distance, sizes, atol=1e-6)


@pytest.mark.slow
def test_loss_is_that_of_the_returned_point_and_never_below_the_start():
    loss_fn = losses.dlr
    logits_fn, images, labels = problem = _three_classes()
    result = _attack("l2", 0.3, problem, loss_fn=loss_fn)
    logits = logits_fn(result.adversarial)
    np.testing.assert_allclose(result.loss, loss_fn(logits, labels), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.success, jnp.argmax(logits, axis=1) != labels)
    assert 0 < np.mean(result.success) < 1
    assert np.all(result.loss >= loss_fn(logits_fn(images), labels) - 1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_no_steps_try_the_starts_only(norm):
    result = _attack(norm, 0.05, num_steps=0)
    assert np.all(result.distance <= 0.05 + 1e-6) and np.any(result.distance > 0)


def _attack_in_batches(norm, dtype):
    """Yields the results of images in batches of 1 and 7, and those of the same images in a batch of 64."""
    logits_fn, images, labels = _three_classes()
    keys = attacks.example_keys(jax.random.key(5), np.arange(64))
    images = images.astype(dtype)
    epsilons = np.linspace(0.05, 0.5, 64).astype(dtype) * {"l1": 4, "l2": 1, "linf": 0.2}[norm]

    @jax.jit
    def attack(images, labels, keys, epsilon):
        options = dict(key=keys, threat=Threat(norm, epsilon), num_steps=12, num_restarts=2)
        return attacks.apgd(logits_fn, images, labels, **options)

    whole = attack(images, labels, keys, epsilons)
    assert 0 < np.mean(whole.success) < 1
    for rows in (slice(0, 1), slice(35, 36), slice(0, 7), slice(35, 42)):
        part = attack(images[rows], labels[rows], keys[rows], epsilons[rows])
        yield part, attacks.AttackResult(*(values[rows] for values in whole))


@pytest.mark.slow
def test_linf_results_are_the_same_to_the_bit_whatever_the_batch():
    for part, whole in _attack_in_batches("linf", np.float32):
        for one, other in zip(part, whole, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_l1_and_l2_results_are_the_same_up_to_rounding_whatever_the_batch(norm):
    # XLA may add up the pixels of an image in an order that depends on the batch.
    with jax.enable_x64(True):
        for part, whole in _attack_in_batches(norm, np.float64):
            np.testing.assert_array_equal(part.success, whole.success)
            np.testing.assert_allclose(part.adversarial, whole.adversarial, atol=1e-9)


@pytest.mark.slow
def test_restarts_only_add_and_leave_what_is_broken():
    problem = _three_classes()
    one, three = (_attack("linf", 0.06, problem, num_steps=2, num_restarts=count) for count in (1, 3))
    broken = np.asarray(one.success)
    assert 0 < broken.sum() < broken.size
    np.testing.assert_array_equal(np.asarray(three.adversarial)[broken], np.asarray(one.adversarial)[broken])
    assert np.all(three.success >= one.success)
    assert np.all(three.loss >= one.loss)
    assert np.any(three.loss > one.loss)


@pytest.mark.slow
def test_targets_are_tried_in_turn_and_compared_by_the_margin():
    # Class 1 comes closest, but nothing moves it towards class 0; class 2 can be reached.
    def logits_fn(points):
        value = jnp.sum(points, axis=1)
        return jnp.stack([value, value - 1, jnp.full_like(value, 0.5)], axis=1)

    images, labels = np.full((5, 4), 0.5, np.float32), np.zeros(5, np.int32)
    problem = logits_fn, images, labels
    one, two = (_attack("linf", 0.45, problem, num_targets=count, loss_fn=losses.targeted_margin) for count in (1, 2))
    assert not np.any(one.success)
    assert np.all(two.success)
    for result in (one, two):
        np.testing.assert_allclose(result.loss, losses.margin(logits_fn(result.adversarial), labels), rtol=1e-5)


def test_windows_shrink_as_published():
    ends = np.flatnonzero(apgd_module._windows(100)) + 1
    np.testing.assert_array_equal(ends, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_array_equal(apgd_module._windows(100)[ends - 1], [22, 19, 16, 13, 10, 7, 6, 6])
    np.testing.assert_array_equal(apgd_module._windows(10), [0, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    assert apgd_module._windows(0).size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": -1}, "num_steps"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"num_targets": 0}, "num_targets must be in 1..3"),
        ({"num_targets": 4}, "num_targets must be in 1..3, there are 4 classes, got 4"),
        ({"key": 0}, "key must be a key from jax.random.key, got 0"),
        ({"images": np.zeros((2, 4), np.uint8)}, "floating point"),
        ({"labels": np.array([0, 4])}, r"labels must be in 0\.\.3, got 4 at index 1"),
        ({"labels": np.array([-1, 0])}, r"labels must be in 0\.\..*, got -1 at index 0"),
        ({"labels": np.zeros(2, np.float32)}, "labels must be integers"),
        ({"starts": np.zeros((2, 5), np.float32)}, "starts must have the shape of images"),
        ({"images": np.zeros((2, 2), np.float32), "loss_fn": losses.dlr}, "at least 3 classes"),
        ({"images": np.zeros((2, 3), np.float32), "num_targets": 2}, "at least 4 classes"),
        ({"logits_fn": lambda x: x[0]}, r"logits_fn must return \[2, C\]"),
        ({"logits_fn": lambda x: x[:, :1]}, r"logits_fn must return \[2, C\]"),
        ({"logits_fn": lambda x: x[:1]}, r"logits_fn must return \[2, C\]"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = dict(
        logits_fn=lambda x: x,
        images=np.zeros((2, 4), np.float32),
        labels=np.zeros(2, np.int32),
        key=jax.random.key(0),
        threat=Threat("l2", 0.1),
        num_steps=1,
    )
    with pytest.raises(ValueError, match=message):
        attacks.apgd(**(arguments | change))


def _digits_problem():
    """A network with one hidden layer trained on the digits, and the first test images that it gets right."""
    digits = data.load("digits")
    images, more = ((x / 255).astype(np.float32).reshape(-1, 64) for x in (digits.train_images, digits.test_images))
    keys = jax.random.split(jax.random.key(0))
    parameters = [0.15 * jax.random.normal(key, (64, width)) for key, width in zip(keys, (64, 10), strict=True)]
    optimiser = optax.adam(1e-2)

    def network(parameters, x):
        return jax.nn.relu(x @ parameters[0]) @ parameters[1]

    def step(_, carry):
        parameters, state = carry
        loss = lambda p: jnp.mean(losses.cross_entropy(network(p, images), digits.train_labels))  # noqa: E731
        updates, state = optimiser.update(jax.grad(loss)(parameters), state)
        return optax.apply_updates(parameters, updates), state

    parameters, _ = jax.lax.fori_loop(0, 200, step, (parameters, optimiser.init(parameters)))
    logits_fn = functools.partial(network, parameters)
    right = np.flatnonzero(jnp.argmax(logits_fn(more), axis=1) == digits.test_labels)[:200]
    return logits_fn, more[right], digits.test_labels[right]


def _unbroken_in_l1(problem, epsilons, num_steps):
    """Returns how many images APGD, and PGD with the better of two step sizes, leave unbroken at each radius."""
    logits_fn, images, labels = problem

    @jax.jit
    def adaptive(epsilon):
        threat = Threat("l1", epsilon)
        return attacks.apgd(logits_fn, images, labels, key=jax.random.key(0), threat=threat, num_steps=num_steps)

    @jax.jit
    def fixed(epsilon, share):
        options = dict(key=jax.random.key(0), threat=Threat("l1", epsilon), step_size=share * epsilon)
        return attacks.pgd(logits_fn, images, labels, num_steps=num_steps, **options).success

    counts = []
    for epsilon in epsilons:
        result = adaptive(epsilon)
        offset = np.asarray(result.adversarial, np.float64) - images
        assert np.abs(offset).reshape(len(images), -1).sum(axis=1).max() <= epsilon * (1 + 1e-5)
        assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
        counts.append((np.sum(~result.success), min(np.sum(~fixed(epsilon, share)) for share in (0.05, 0.2))))
    return np.array(counts), len(images)


def _check_not_weaker(problem, epsilons, num_steps):
    counts, total = _unbroken_in_l1(problem, epsilons, num_steps)
    assert np.all(counts[:, 0] < total) and np.any(counts[:, 0] > 0.1 * total), "these radii test nothing"
    assert np.all(counts[:, 0] <= counts[:, 1] + 0.02 * total), counts


@pytest.mark.slow
def test_l1_on_digits_is_not_weaker_than_pgd():
    _check_not_weaker(_digits_problem(), (0.5, 1.0, 1.5, 2.0), 100)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "num_steps"), [(8, 30), pytest.param(1, 100, marks=pytest.mark.slow)])
def test_l1_on_a_convolutional_network_is_not_weaker_than_pgd(shared_dir, every, num_steps):
    model = reference_models.load(shared_dir / "reference" / "apgd", "c10", every=every)
    _check_not_weaker((model.logits_fn, model.images, model.labels), (5.0, 7.0, 9.0), num_steps)
