"""Batched evaluation against the plain computation on all rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import evaluation
from nn_adv.threat import Threat

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(23) % 2


def _bright(images):
    return (jnp.mean(images, axis=(1, 2, 3)) > 0.5).astype(np.int32)


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_last_batch_counts_and_filling_does_not(batch_size):
    flags = evaluation.correct(_bright, IMAGES, LABELS, batch_size=batch_size)
    expected = (IMAGES.mean(axis=(1, 2, 3)) / 255 > 0.5) == LABELS
    np.testing.assert_array_equal(flags, expected)
    assert flags.any() and not flags.all()


def test_one_batch_shape_reaches_the_device_however_many_images():
    shapes = set()

    def spy(images):
        shapes.add(images.shape)
        return _bright(images)

    for count in (3, 10, 23):
        evaluation.correct(spy, IMAGES[:count], LABELS[:count], batch_size=10)
    assert shapes == {(10, 4, 4, 1)}


def _attack_that_breaks(radii):
    """Break image i where epsilon >= radii[i]; images carry their own number in their first pixel."""
    return lambda images, labels, keys, threat: (
        jnp.asarray(radii)[(images[:, 0] * 255 + 0.5).astype(int)] <= threat.epsilon
    )


def _curve(radii, epsilons, start_from, batch_size=4):
    images = np.arange(len(radii), dtype=np.uint8)[:, None]
    return evaluation.unbroken_curve(
        _attack_that_breaks(radii),
        images,
        np.zeros(len(radii), np.int32),
        threats=[Threat("l2", epsilon) for epsilon in epsilons],
        key=jax.random.key(0),
        start_from=start_from,
        batch_size=batch_size,
    )


def test_curve_gives_each_image_its_radius():
    radii = np.linspace(0.05, 1.05, 11)
    epsilons = [0.0, 0.3, 0.6, 2.0]
    curve = _curve(radii, epsilons, np.ones(11, bool))
    np.testing.assert_array_equal(curve, radii[None] > np.array(epsilons)[:, None])


def test_misclassified_images_are_broken_from_the_start():
    start = np.arange(11) % 3 > 0
    curve = _curve(np.full(11, 9.0), [0.0, 1.0], start)
    np.testing.assert_array_equal(curve, [start, start])


def test_once_broken_stays_broken():
    calls = []

    def fickle(images, labels, keys, threat):
        calls.append(threat.epsilon)
        return np.full(len(images), len(calls) == 1)

    curve = evaluation.unbroken_curve(
        fickle,
        IMAGES,
        LABELS,
        threats=[Threat("l2", 0.1), Threat("l2", 0.2)],
        key=jax.random.key(0),
        start_from=np.ones(23, bool),
        batch_size=23,
    )
    assert not curve.any() and len(calls) == 1


def test_randomness_belongs_to_the_image_not_to_the_batch():
    def by_luck(images, labels, keys, threat):
        return jax.vmap(jax.random.uniform)(keys) < threat.epsilon

    curves = [
        evaluation.unbroken_curve(
            by_luck,
            IMAGES,
            LABELS,
            threats=[Threat("l2", 0.3), Threat("l2", 0.6)],
            key=jax.random.key(1),
            start_from=np.ones(23, bool),
            batch_size=batch_size,
        )
        for batch_size in (1, 5, 64)
    ]
    np.testing.assert_array_equal(curves[0], curves[1])
    np.testing.assert_array_equal(curves[0], curves[2])
    assert 0 < curves[0][0].sum() < 23


@pytest.mark.parametrize("epsilons", [[0.2, 0.1], [0.1, 0.1, 0.05]])
def test_falling_radii_are_refused(epsilons):
    with pytest.raises(ValueError, match="growing radii"):
        _curve(np.ones(3), epsilons, np.ones(3, bool))


def test_no_images_and_no_batch_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        evaluation.correct(_bright, IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="batch_size"):
        evaluation.correct(_bright, IMAGES, LABELS, batch_size=0)


def _truth(radius, correct, epsilon):
    return correct if epsilon == 0 else correct and radius >= epsilon


def test_robust_curve_looks_each_radius_up():
    radii = np.array([0.0, 0.1, 0.2, np.inf, 0.3, 0.0])
    correct = np.array([True, True, True, True, False, False])
    epsilons = [0.0, 0.2, 0.1, np.nextafter(0.2, 1), 5.0]
    flags = evaluation.robust_curve(radii, correct, epsilons)
    expected = [[_truth(*image, epsilon) for image in zip(radii, correct, strict=True)] for epsilon in epsilons]
    np.testing.assert_array_equal(flags, expected)
    assert flags.sum(axis=1).tolist() == [4, 2, 3, 1, 1]


@pytest.mark.parametrize(
    ("radii", "correct", "epsilons", "message"),
    [
        ([0.1], [True, False], [0.1], "shapes"),
        ([0.1, np.nan], [True, True], [0.1], "radii must be at least 0, got nan"),
        ([0.1, -0.1], [True, True], [0.1], "radii must be at least 0, got -0.1"),
        ([0.1], [True], [np.nan], "epsilons must be at least 0"),
    ],
)
def test_what_is_no_radius_is_refused(radii, correct, epsilons, message):
    with pytest.raises(ValueError, match=message):
        evaluation.robust_curve(np.array(radii), np.array(correct), epsilons)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.27754), (10, 10, 0.72246, 1.0), (5, 10, 0.23659, 0.76341), (81, 263, 0.25530, 0.36619)],
)
def test_wilson_interval_matches_published_values(successes, count, low, high):
    found = evaluation.wilson_interval(successes, count)
    assert found == pytest.approx((low, high), abs=5e-5)
    share, z = successes / count, 1.959963984540054
    for bound in found:  # By definition: where the score test is just rejected.
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / count, abs=1e-12)


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_shares_that_are_none_have_no_interval(successes, count):
    with pytest.raises(ValueError, match="successes must be"):
        evaluation.wilson_interval(successes, count)
