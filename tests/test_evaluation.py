"""Batched evaluation against the plain computation on all rows at once."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, sparse

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


@pytest.mark.parametrize("counts", [(23, 22), (3, 0), (0, 3), ()])
def test_rows_that_do_not_belong_together_are_refused(counts):
    with pytest.raises(ValueError, match=r"arrays must be one or more, equally long, got shapes \["):
        evaluation.map_batches(lambda *x: x[0], *(IMAGES[:count] for count in counts), batch_size=10)


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
        ([0.1, np.nan], [True, True], [0.1], "radii must be a number >= 0, got array"),
        ([0.1, -0.1], [True, True], [0.1], "radii must be a number >= 0, got array"),
        (["a"], [True], [0.1], "radii must be a number >= 0, got array"),
        ([0.1], [True], 0.1, r"epsilons must be \[E\], got shape \(\)"),
        ([0.1], [True], [np.nan], "epsilons must be a number >= 0"),
    ],
)
def test_what_is_no_radius_is_refused(radii, correct, epsilons, message):
    with pytest.raises(ValueError, match=message):
        evaluation.robust_curve(np.array(radii), np.array(correct), epsilons)


def _truth_of_ceiling(images, labels, epsilon, order):
    """Try every set of images, the largest first: can all its images be robust?"""
    flat = images.reshape(len(images), -1).astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    pairs = list(itertools.combinations(range(len(flat)), 2))
    apart = {(i, j): np.linalg.norm(flat[i] - flat[j], order) for i, j in pairs}
    conflicts = [(i, j) for i, j in pairs if labels[i] != labels[j] and (apart[i, j] < 2 * epsilon or not apart[i, j])]
    subsets = (
        set(chosen) for size in range(len(flat), -1, -1) for chosen in itertools.combinations(range(len(flat)), size)
    )
    best = next(chosen for chosen in subsets if not any(i in chosen and j in chosen for i, j in conflicts))
    return len(best) / len(flat), conflicts


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("linf", np.inf)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_ceiling_of_two_classes_is_the_best_of_all_subsets(norm, order, dtype):
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (9, 2, 1, 1), dtype=np.uint8), rng.integers(0, 2, 9)
    images = images if dtype == np.uint8 else images.astype(np.float32) / 256
    epsilons = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.6]
    expected = [_truth_of_ceiling(images, labels, epsilon, order)[0] for epsilon in epsilons]
    found = evaluation.ceiling(images, labels, epsilons, norm=norm)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert len(set(found)) > 2 and np.all(np.diff(found) <= 0)


def test_ceiling_of_three_classes_is_that_of_fractions():
    rng = np.random.default_rng(2)
    images, labels = rng.uniform(size=(8, 2)).astype(np.float32), np.arange(8) % 3
    for epsilon in (0.05, 0.15, 0.25, 0.5):
        best, conflicts = _truth_of_ceiling(images, labels, epsilon, 2)
        cover = 0.0
        if conflicts:
            rows, columns = np.repeat(np.arange(len(conflicts)), 2), np.ravel(conflicts)
            matrix = sparse.csr_matrix((np.full(len(rows), -1.0), (rows, columns)), shape=(len(conflicts), 8))
            cover = optimize.linprog(np.ones(8), matrix, -np.ones(len(conflicts)), bounds=(0, 1)).fun
        (found,) = evaluation.ceiling(images, labels, [epsilon], norm="l2")
        assert found == pytest.approx(1 - cover / 8) and found >= best - 1e-12
    triangle = evaluation.ceiling(np.array([[0.0], [0.1], [0.2]]), [0, 1, 2], [0.15], norm="linf")
    assert triangle == 0.5  # each image half the time; one of three without chance


def test_ceiling_counts_what_touches_as_apart_and_copies_as_conflicts_at_any_radius():
    images = np.array([[0], [16], [100], [100], [101]], np.uint8)
    labels = [0, 1, 0, 1, 1]
    found = evaluation.ceiling(images, labels, [0, 0.4 / 255, 8 / 255, 8.1 / 255], norm="linf")
    np.testing.assert_allclose(found, [0.8, 0.8, 0.8, 0.6])
    assert evaluation.ceiling(images[:2], [1, 1], [1.0], norm="l2") == 1


def test_blocks_of_distances_do_not_change_the_ceiling(monkeypatch):
    whole = evaluation.ceiling(IMAGES, LABELS, [0.5, 0.7, 0.8], norm="l2")
    monkeypatch.setattr("nn_adv.conflicts._MEASURED_AT_A_TIME", 30)
    np.testing.assert_array_equal(evaluation.ceiling(IMAGES, LABELS, [0.5, 0.7, 0.8], norm="l2"), whole)
    assert 0 < whole.min() < 1


@pytest.mark.parametrize("epsilons", [[-0.1], [np.nan], ["0.1"]])
def test_a_ceiling_at_what_is_no_radius_is_refused(epsilons):
    with pytest.raises(ValueError, match="epsilons must be a number >= 0"):
        evaluation.ceiling(IMAGES, LABELS, epsilons, norm="l2")


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


@pytest.mark.parametrize(
    ("successes", "count", "message"),
    [
        (0, 0, "count must be at least 1, got 0"),
        (-1, 5, "successes must be in 0..5, got -1"),
        (6, 5, "successes must be in 0..5, got 6"),
        (1.5, 3, "successes must be a whole number, in 0..3, got 1.5"),
        (1, 3.9, "count must be a whole number, at least 1, got 3.9"),
    ],
)
def test_shares_that_are_none_have_no_interval(successes, count, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        evaluation.wilson_interval(successes, count)


def test_lists_are_arrays():
    assert evaluation.map_batches(lambda x: x * 2, [1, 2, 3], batch_size=2).tolist() == [2, 4, 6]
    with pytest.raises(ValueError, match="arrays must be one or more, equally long"):
        evaluation.map_batches(lambda x: x, np.float32(1), batch_size=2)
