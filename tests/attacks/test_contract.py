"""What every attack inside a ball owes its caller: one table, one program for each attack and norm."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.threat import NORMS, Threat
from tests.attacks import small_networks

pytestmark = pytest.mark.usefixtures("quickly_compiled")

EPSILON = {"l1": 1.0, "l2": 0.3, "linf": 0.05}
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
NUM_IMAGES, NUM_CLASSES = 40, 4
OWN_CLASS = NUM_CLASSES  # a judge that lets the network judge


class Case(NamedTuple):
    """An attack, the loss that its results tell, and the norms of the quick tests: a program each."""

    attack: Callable
    loss_fn: Callable
    quick_norms: tuple[str, ...]


CASES = {
    "apgd": Case(functools.partial(attacks.apgd, num_steps=8, num_restarts=2), attacks.cross_entropy, ("linf", "l1")),
    "fab": Case(functools.partial(attacks.fab, num_steps=8, num_restarts=2, num_targets=2), attacks.margin, ("l2",)),
    "pgd": Case(functools.partial(attacks.pgd, num_steps=8, num_restarts=2), attacks.cross_entropy, ("l2",)),
    "square": Case(functools.partial(attacks.square, num_queries=60), attacks.margin, ("linf",)),
}
traces: collections.Counter = collections.Counter()


def each(test):
    """Run a test on every attack in every norm."""
    pairs = [
        pytest.param(name, norm, marks=() if norm in case.quick_norms else pytest.mark.slow)
        for name, case in CASES.items()
        for norm in NORMS
    ]
    return pytest.mark.parametrize(("name", "norm"), pairs)(test)


def _judged(judge, logits_fn, points):
    """The network's classes, or one for all."""
    return jnp.where(judge == OWN_CLASS, jnp.argmax(logits_fn(points), axis=1), judge)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_an_infinite_radius_is_refused(name):
    with pytest.raises(ValueError, match="epsilon must be finite here, got inf"):
        CASES[name].attack(
            lambda x: x, np.zeros((1, 2), np.float32), [0], key=jax.random.key(0), threat=Threat("l2", np.inf)
        )


@functools.cache
def program(name, norm):
    """Return ``(labels, epsilon, judge) -> AttackResult`` on images of a small network, compiled once."""
    problem = small_networks.network(NUM_IMAGES)
    keys = attacks.example_keys(jax.random.key(0), np.arange(NUM_IMAGES))

    def attack(labels, epsilon, judge):
        traces[name, norm] += 1
        return CASES[name].attack(
            problem.logits_fn, problem.images, labels, key=keys, threat=Threat(norm, epsilon),
            predict_fn=functools.partial(_judged, judge, problem.logits_fn),
        )  # fmt: skip

    return jax.jit(attack)


def run(name, norm, *, share=1.0, labels=None, judge=OWN_CLASS):
    """Attack at a share of the norm's epsilon; returns the problem and the result."""
    problem = small_networks.network(NUM_IMAGES)
    labels = problem.labels if labels is None else labels
    return problem, program(name, norm)(labels, np.float32(share * EPSILON[norm]), judge)


@pytest.mark.slow
@each
def test_results_say_what_their_points_are(name, norm):
    problem, result = run(name, norm)
    success, offset = np.asarray(result.success), np.asarray(result.adversarial, np.float64) - problem.images
    assert 3 < success.sum() < NUM_IMAGES - 3
    assert np.all((result.adversarial >= 0) & (result.adversarial <= 1))
    sizes = np.linalg.norm(offset.reshape(NUM_IMAGES, -1), ord=ORDER[norm], axis=1)
    assert np.max(sizes) <= EPSILON[norm] * (1 + 2e-6) + 1e-7
    known = success if name == "fab" else slice(None)  # FAB tells how far away what it found outside the ball is
    np.testing.assert_allclose(np.asarray(result.distance)[known], sizes[known], rtol=2e-6, atol=1e-6)
    logits = problem.logits_fn(result.adversarial)
    np.testing.assert_array_equal(np.argmax(logits, axis=1) != problem.labels, success)
    np.testing.assert_allclose(result.loss, CASES[name].loss_fn(logits, problem.labels), rtol=1e-5, atol=1e-5)


@each
def test_the_loss_is_never_below_that_of_the_images(name, norm):
    problem, result = run(name, norm)
    clean = CASES[name].loss_fn(problem.logits_fn(problem.images), problem.labels)
    assert np.all(result.loss >= clean - 1e-6) and np.any(result.loss > clean)


@each
def test_epsilon_zero_returns_the_images(name, norm):
    problem, result = run(name, norm, share=0.0)
    np.testing.assert_array_equal(result.adversarial, problem.images)
    assert not np.any(result.success)
    if name != "fab":
        np.testing.assert_array_equal(result.distance, 0)


@each
def test_wrong_from_the_start_is_returned_unchanged(name, norm):
    problem = small_networks.network(NUM_IMAGES)
    _, result = run(name, norm, labels=(problem.labels + 1) % NUM_CLASSES)
    assert np.all(result.success)
    np.testing.assert_array_equal(result.adversarial, problem.images)
    np.testing.assert_array_equal(result.distance, 0)


@each
def test_another_classifier_may_judge(name, norm):
    problem, result = run(name, norm, judge=2)
    is_wrong = problem.labels != 2
    np.testing.assert_array_equal(result.success, is_wrong)
    np.testing.assert_array_equal(np.asarray(result.adversarial)[is_wrong], problem.images[is_wrong])
    if name != "fab":  # which returns what it broke, else the image
        clean = CASES[name].loss_fn(problem.logits_fn(problem.images), problem.labels)
        assert np.any(result.loss[~is_wrong] > clean[~is_wrong]), "it climbs all the same"


@each
def test_one_program_serves_all_radii_labels_and_judges(name, norm):
    broken = [np.sum(run(name, norm, share=share)[1].success) for share in (0.0, 0.5, 1.0, 40.0)]
    assert broken == sorted(broken) and broken[0] == 0 and broken[-1] == NUM_IMAGES
    run(name, norm, labels=(small_networks.network(NUM_IMAGES).labels + 1) % NUM_CLASSES, judge=1)
    assert traces[name, norm] == 1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", CASES)
def test_inside_jit_and_outside_it_finds_the_same(name):
    problem, norm = small_networks.network(NUM_IMAGES), CASES[name].quick_norms[0]
    _, jitted = run(name, norm)
    keys = attacks.example_keys(jax.random.key(0), np.arange(NUM_IMAGES))
    plain = CASES[name].attack(*problem, key=keys, threat=Threat(norm, EPSILON[norm]))
    np.testing.assert_array_equal(jitted.success, plain.success)
    np.testing.assert_allclose(jitted.loss, plain.loss, atol=1e-4)
    np.testing.assert_allclose(jitted.adversarial, plain.adversarial, atol=1e-5)


@pytest.mark.slow
@each
def test_result_does_not_depend_on_the_batch(name, norm):
    attack = functools.partial(CASES[name].attack, threat=Threat(norm, EPSILON[norm]))
    small_networks.check_that_batches_do_not_matter(attack, to_the_bit=norm == "linf" and name == "square")
