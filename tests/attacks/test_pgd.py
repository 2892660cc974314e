"""PGD against classifiers whose robustness is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.attacks import losses
from nn_adv.threat import NORMS, Threat, dual_norm

DIMENSION = 24


def _linear_problem(seed, count=60):
    """A linear two-class model: the free distance to its border is |margin| / ||w||_dual."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(DIMENSION).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (count, DIMENSION)).astype(np.float32)
    offset = -np.median(images @ weights)
    margin = images @ weights + offset
    labels = (margin > 0).astype(np.int32)
    return weights, np.float32(offset), images, labels, np.abs(margin)


def _linear_logits(weights, offset, points):
    value = points @ weights + offset
    return jnp.stack([jnp.zeros_like(value), value], axis=1)


def _attack(norm, epsilon, seed=0, num_steps=20, bounds=(0.0, 1.0), **options):
    weights, offset, images, labels, margin = _linear_problem(seed)
    result = attacks.pgd(
        functools.partial(_linear_logits, weights, offset),
        images,
        labels,
        key=jax.random.key(seed),
        threat=Threat(norm, epsilon, bounds),
        num_steps=num_steps,
        step_size=2.5 * epsilon / max(num_steps, 1),
        **options,
    )
    order = {"l1": 1, "l2": 2, "linf": np.inf}
    radius = margin / np.linalg.norm(weights, ord=order[dual_norm(norm)])
    return result, images, labels, radius, order[norm]


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_finds_every_adversarial_point_of_a_linear_model(norm):
    epsilon = {"l1": 0.25, "l2": 0.1, "linf": 0.03}[norm]
    result, images, labels, radius, order = _attack(norm, epsilon, num_steps=40)
    success = np.asarray(result.success)
    assert 5 < np.sum(radius < epsilon) < len(radius) - 5
    assert not np.any(success[radius > epsilon * (1 + 1e-5)]), "broke an image outside its radius"
    slack = 0.9 if norm == "l1" else 0.999  # l1 steps share the ball between the 5 % largest components
    assert np.all(success[radius < slack * epsilon])


def test_loss_is_that_of_the_returned_point_and_never_below_the_start():
    loss_fn = losses.margin
    weights, offset, images, labels, _ = _linear_problem(0)
    logits_fn = functools.partial(_linear_logits, weights, offset)
    result, *_ = _attack("l2", 0.1, loss_fn=loss_fn)
    np.testing.assert_allclose(result.loss, loss_fn(logits_fn(result.adversarial), labels), rtol=1e-5, atol=1e-6)
    assert np.all(result.loss >= loss_fn(logits_fn(images), labels) - 1e-6)


def test_the_last_point_is_scored():
    # One huge step lands on the best point of the ball; nothing is visited after it.
    result, _, _, radius, _ = _attack("linf", 0.03, num_steps=1)
    assert np.all(np.asarray(result.success)[radius < 0.03 * 0.999])


def test_no_steps_try_the_random_starts_only():
    result, images, *_ = _attack("linf", 0.01, num_steps=0)
    assert np.all(result.distance <= 0.01 + 1e-7) and np.any(result.distance > 0)


def test_more_restarts_never_lose_a_success():
    one, *_ = _attack("linf", 0.02, num_steps=1)
    three, *_ = _attack("linf", 0.02, num_steps=1, num_restarts=3)
    assert np.all(three.success >= one.success)
    assert np.all(three.loss >= one.loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": -1}, "num_steps"),
        ({"num_restarts": 0}, "num_restarts"),
        ({"key": 0}, "key must be a key from jax.random.key, got 0"),
        ({"images": np.zeros((2, 4), np.uint8)}, "floating point"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = dict(
        images=np.zeros((2, 4), np.float32),
        labels=np.zeros(2, np.int32),
        key=jax.random.key(0),
        threat=Threat("l2", 0.1),
        num_steps=1,
        step_size=0.1,
    )
    with pytest.raises(ValueError, match=message):
        attacks.pgd(lambda x: x, **(arguments | change))


@pytest.mark.parametrize(
    ("attack", "change", "message"),
    [
        (attacks.pgd, {"step_size": np.ones(3)}, r"step_size must be one, or one per image \[4\], got shape \(3,\)"),
        (attacks.pgd, {"loss_fn": lambda *_: jnp.zeros(())}, r"loss_fn must return a loss for each image, \[4\], got"),
        (attacks.apgd, {"loss_fn": lambda *_: jnp.zeros(())}, r"loss_fn must return a loss for each image, \[4\], got"),
        (
            attacks.apgd,
            {"loss_fn": losses.margin, "num_targets": 1},
            "loss_fn must take logits, labels and targets, got",
        ),
        (
            attacks.apgd,
            {"loss_fn": losses.targeted_margin},
            "loss_fn must take logits and labels, without num_targets, got",
        ),
        (
            attacks.apgd,
            {"num_targets": 1.0},
            "num_targets must be a whole number, in 1..1, there are 2 classes, got 1.0",
        ),
        (attacks.square, {"initial_share": "0.8"}, "initial_share must be a number >= 0, got '0.8'"),
    ],
)
def test_losses_and_sizes_that_do_not_fit_are_named(attack, change, message):
    images = np.full((4, 2, 3, 4), 0.5, np.float32)
    logits_fn = functools.partial(_linear_logits, np.ones(DIMENSION, np.float32), -12.0)
    options = {"key": jax.random.key(0), "threat": Threat("linf", 0.1)} | change
    with pytest.raises(ValueError, match=message):
        attack(lambda points: logits_fn(points.reshape(4, -1)), images, np.zeros(4, int), **options)
