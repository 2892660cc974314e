"""Every attack on classifiers that are none, and with labels and images that are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.threat import Threat
from tests.attacks import small_networks

THREAT = Threat("linf", 0.3)
ATTACKS = {
    "apgd": functools.partial(attacks.apgd, threat=THREAT, num_steps=5),
    "apgd, l1": functools.partial(attacks.apgd, threat=Threat("l1", 3.0), num_steps=5),
    "pgd": functools.partial(attacks.pgd, threat=THREAT, num_steps=5, step_size=0.1),
    "fab": functools.partial(attacks.fab, threat=THREAT, num_steps=5),
    "square": functools.partial(attacks.square, threat=THREAT, num_queries=20),
    "fmn": functools.partial(attacks.fmn, norm="linf", num_steps=5),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ATTACKS)
def test_nan_breaks_nothing(name):
    problem = small_networks.network(12)

    def nan_elsewhere(points):
        is_clean = jnp.all(points == problem.images, axis=(1, 2, 3))
        return jnp.where(is_clean[:, None], problem.logits_fn(points), jnp.nan)

    run = jax.jit(lambda images, labels: ATTACKS[name](nan_elsewhere, images, labels, key=jax.random.key(0)))
    result = run(problem.images, problem.labels)
    assert not np.any(result.success)
    np.testing.assert_array_equal(result.adversarial, problem.images)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(4, 4), r"labels must be in 0\.\.3, got 4 at index 0"),
        (np.full(4, -1), r"labels must be in 0\.\..*, got -1 at index 0"),
        (np.zeros(4), r"labels must be integers \[4\], got 0.0 at index 0 of dtype float64"),
    ],
)
def test_labels_that_are_none_are_refused(name, labels, message):
    problem = small_networks.network(4)
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](problem.logits_fn, problem.images, labels, key=jax.random.key(0))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("wrong", [255.0, -0.1, np.nan, np.inf])
def test_images_outside_the_bounds_are_refused(name, wrong):
    problem = small_networks.network(4)
    images = np.array(problem.images)
    images[2, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=rf"images must be finite and inside \(0.0, 1.0\), got {wrong} at index 2"):
        ATTACKS[name](problem.logits_fn, images, problem.labels, key=jax.random.key(0))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("reduce", [lambda x: x[:1], lambda x: x[:, 0], jnp.sum, lambda x: x[:, :1]])
def test_logits_of_a_wrong_shape_are_refused(name, reduce):
    problem = small_networks.network(4)
    with pytest.raises(ValueError, match=r"logits_fn must return \[4, C\] with C >= 2, got shape"):
        ATTACKS[name](lambda x: reduce(problem.logits_fn(x)), problem.images, problem.labels, key=jax.random.key(0))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda x: (x, x), "a tuple: let it return the array of logits alone"),
        (lambda x: {"logits": x}, "a dict: let it return the array of logits alone"),
        (lambda x: x.astype(int), "dtype int.*: let it return floating-point logits"),
    ],
)
def test_networks_that_return_something_else_are_refused(name, pack, message):
    problem = small_networks.network(4)
    with pytest.raises(ValueError, match=rf"^logits_fn must return \[4, C\] with C >= 2, got {message}"):
        ATTACKS[name](lambda x: pack(problem.logits_fn(x)), problem.images, problem.labels, key=jax.random.key(0))


@pytest.mark.parametrize("name", ATTACKS)
def test_judges_of_a_wrong_shape_are_refused(name):
    problem = small_networks.network(4)
    options = {"key": jax.random.key(0), "predict_fn": problem.logits_fn}
    with pytest.raises(ValueError, match=r"predict_fn must return a class per image, \[4\], got shape \(4, 4\)"):
        ATTACKS[name](*problem, **options)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ATTACKS)
def test_probabilities_are_warned_of_and_nan_is_refused(name):
    problem = small_networks.network(4)
    options = {"key": jax.random.key(0)}
    with pytest.warns(UserWarning, match="logits_fn seems to return probabilities"):
        ATTACKS[name](lambda x: jax.nn.softmax(problem.logits_fn(x)), problem.images, problem.labels, **options)

    def nan_for_one(x):
        return problem.logits_fn(x) + jnp.where(jnp.arange(len(x)) == 2, jnp.nan, 0)[:, None]

    with pytest.raises(ValueError, match="logits_fn must return numbers, for image 2 it returned NaN"):
        ATTACKS[name](nan_for_one, problem.images, problem.labels, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "square"])
def test_pixels_without_a_gradient_hinder_no_other(name):
    problem = small_networks.network(4)

    def with_root(points):  # adds nothing, with a slope that is NaN
        return problem.logits_fn(points) + jnp.sqrt(0 * points[:, 0, 0, :1])

    runs = [
        ATTACKS[name](fn, problem.images, problem.labels, key=jax.random.key(0))
        for fn in (with_root, problem.logits_fn)
    ]
    assert np.sum(runs[0].success) == np.sum(runs[1].success) > 0
