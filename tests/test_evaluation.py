"""Batched evaluation against the plain computation on all rows at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import evaluation

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


def test_no_images_have_results_of_the_right_shape():
    assert evaluation.correct(_bright, IMAGES[:0], LABELS[:0]).shape == (0,)
    rows = evaluation.map_batches(lambda x: np.stack([x, x], axis=1), IMAGES[:0], batch_size=3)
    assert rows.shape == (0, 2, 4, 4, 1) and rows.dtype == np.uint8


def test_no_batch_is_refused():
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
