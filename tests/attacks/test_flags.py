"""Flags of classifiers that hide their gradients or are random, and none of one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.threat import Threat
from tests.attacks import small_networks

PROBLEM = small_networks.network(20)


def _random(images):
    noise = jax.pure_callback(
        lambda x: np.random.default_rng().normal(size=(len(x), 4)).astype(np.float32),
        jax.ShapeDtypeStruct((len(images), 4), np.float32),
        jax.lax.stop_gradient(images),
    )
    return PROBLEM.logits_fn(images) + 0.1 * noise


def _quantised(images):
    return PROBLEM.logits_fn(jnp.round(images * 16) / 16)


@pytest.mark.parametrize(
    ("logits_fn", "wanted"),
    [
        (PROBLEM.logits_fn, []),
        (_random, ["random outputs"]),
        (lambda images: 1e5 * PROBLEM.logits_fn(images), ["zero gradient: that of the cross-entropy"]),
        (
            _quantised,
            ["zero gradient: that of the cross-entropy is zero for 20 of 20", "zero gradient: that of the margin"],
        ),
        (lambda images: jax.nn.softmax(PROBLEM.logits_fn(images)), ["probabilities"]),
    ],
    ids=["honest", "random", "saturated", "quantised", "softmax"],
)
def test_each_defect_has_its_flag_and_an_honest_network_none(logits_fn, wanted):
    found = attacks.flags(logits_fn, PROBLEM.images, PROBLEM.labels)
    assert len(found) == len(wanted)
    assert all(text.startswith(start) for text, start in zip(found, wanted, strict=True))


def test_a_few_zero_gradients_are_none():
    def logits_fn(images):
        is_hidden = jnp.arange(len(images)) < 2  # a tenth, no more
        return jnp.where(is_hidden[:, None], _quantised(images), PROBLEM.logits_fn(images))

    assert attacks.flags(logits_fn, PROBLEM.images, PROBLEM.labels) == ()


@pytest.mark.parametrize("no_images", [PROBLEM.images[:0]])
def test_of_no_images_there_is_nothing_to_say(no_images):
    assert attacks.flags(PROBLEM.logits_fn, no_images, PROBLEM.labels[:0]) == ()


@pytest.mark.parametrize(
    ("left", "is_flagged"),
    [
        ({"clean": 100, "apgd-ce": 60, "square": 50}, True),
        ({"clean": 100, "apgd-ce": 60, "square": 59}, False),  # 1 %
        ({"clean": 100, "apgd-ce": 60, "square": 58}, True),
        ({"clean": 100, "square": 50, "apgd-ce": 40}, False),  # before any gradient
        ({"clean": 100, "apgd-ce": 60}, False),
        ({}, False),
    ],
)
def test_square_is_flagged_for_what_it_adds_alone(left, is_flagged):
    found = attacks.square_flag(left)
    assert (found is not None) == is_flagged
    assert found is None or found.startswith(f"Square broke {left['apgd-ce'] - left['square']} of the 60 images")


@pytest.mark.slow
@pytest.mark.parametrize(("logits_fn", "is_flagged"), [(PROBLEM.logits_fn, False), (_quantised, True)])
def test_square_breaks_what_hides_its_gradient(logits_fn, is_flagged):
    named = [
        attacks.named_attack("apgd-margin", 4, num_steps=20),
        attacks.named_attack("square", 4, num_queries=300),
    ]
    run = {"key": jax.random.key(0), "threat": Threat("linf", 0.1), "attacks": named, "batch_size": 20}
    found = attacks.ensemble(logits_fn, PROBLEM.images, PROBLEM.labels, **run)
    left = dict(zip(("clean", *found.names), found.num_unbroken, strict=True))
    assert (attacks.square_flag(left) is not None) == is_flagged, left


def _shifted(images, key):
    return PROBLEM.logits_fn(images + 0.2 * jax.random.normal(key, images.shape[1:]))


def test_eot_is_the_mean_of_samples_and_so_is_its_gradient():
    logits_fn = attacks.eot(_shifted, key=jax.random.key(3), num_samples=5)
    keys = attacks.example_keys(jax.random.key(3), np.arange(5))
    images = jnp.asarray(PROBLEM.images)
    samples = np.array([_shifted(images, key) for key in keys], np.float64)
    assert samples.std(axis=0).max() > 0.1
    np.testing.assert_allclose(logits_fn(images), samples.mean(axis=0), rtol=0, atol=1e-5)
    slopes = [jax.grad(lambda x, key=key: jnp.sum(_shifted(x, key)[:, 0]))(images) for key in keys]
    found = jax.grad(lambda x: jnp.sum(logits_fn(x)[:, 0]))(images)
    np.testing.assert_allclose(found, np.mean(slopes, axis=0), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_eot_breaks_a_random_network_that_one_sample_does_not():
    def random(images, key):  # each call sees every eighth pixel
        return PROBLEM.logits_fn(0.5 + 8 * (images - 0.5) * jax.random.bernoulli(key, 1 / 8, images.shape[1:]))

    judge = attacks.eot(random, key=jax.random.key(9), num_samples=500)
    labels = np.argmax(judge(PROBLEM.images), axis=1)

    def left(num_samples):
        logits_fn = attacks.eot(random, key=jax.random.key(0), num_samples=num_samples)
        found = attacks.pgd(
            *(logits_fn, PROBLEM.images, labels),
            key=jax.random.key(1),
            threat=Threat("linf", 0.05),
            num_steps=20,
            step_size=0.01,
        )
        return int(np.sum(np.argmax(judge(found.adversarial), axis=1) == labels))

    assert left(100) < left(1), (left(100), left(1))


def test_a_random_classifier_that_changes_is_noticed():
    sign = 1.0

    def random_logits(images, key):
        return sign * PROBLEM.logits_fn(images) + 0.01 * jax.random.normal(key, (len(images), 1))

    mean = attacks.eot(random_logits, key=jax.random.key(0), num_samples=2)
    options = {"key": jax.random.key(0), "threat": Threat("linf", 0.0), "num_steps": 1}
    before = attacks.pgd(mean, PROBLEM.images, PROBLEM.labels, **options).success
    sign = -1.0
    assert not np.array_equal(attacks.pgd(mean, PROBLEM.images, PROBLEM.labels, **options).success, before)


@pytest.mark.filterwarnings("error")
def test_logits_that_are_infinite_hide_nothing():
    def vanished(images):
        return PROBLEM.logits_fn(images).at[:, 0].set(-jnp.inf)

    assert not any("random" in found for found in attacks.flags(vanished, PROBLEM.images, np.ones(20, int)))
