"""Tests of the k-nearest vote and of the bounds on its radius, against brute force and against perturbations."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_adv import data, neighbors
from nn_adv.certify.bounds import knn, knn_attack
from nn_adv.certify.bounds.knn_counting import lower_bound, near_points
from nn_adv.certify.inputs import host_points
from nn_adv.threat import NORMS

ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
DUAL = {"l1": np.inf, "l2": 2, "linf": 1}


def _values(points):
    points = points.astype(np.float32) / np.float32(255) if points.dtype == np.uint8 else points
    return points.reshape(len(points), -1).astype(np.float64)


def _vote(points, labels, queries, k, leave_out=None):
    """Vote by brute force in float64; of equals the class whose nearest point comes first."""
    table = np.square(_values(queries)[:, None] - _values(points)).sum(axis=2)
    order = np.argsort(table, axis=1, kind="stable")
    if leave_out is not None:
        order = [row[row != out] for row, out in zip(order, leave_out, strict=True)]
    voters = [labels[row[:k]].tolist() for row in order]
    return np.array([max(some, key=lambda c: (some.count(c), -some.index(c))) for some in voters])


def _problem(seed, num_classes, count=14, size=3, num_images=12, levels=None):
    """Draw points, labels and images in [0, 1]; few levels make ties and duplicates."""
    rng = np.random.default_rng(seed)
    points, images = rng.random((count, size)), rng.random((num_images, size))
    if levels:
        points, images = np.round(points * levels) / levels, np.round(images * levels) / levels
    return points.astype(np.float32), rng.integers(0, num_classes, count), images.astype(np.float32)


def _lower(reference, images, labels, k, norm, leave_out=None, num_near=256):
    """Return the lower bounds alone: no attack to compile."""
    points = host_points(reference)
    leave_out = np.full(len(images), -1) if leave_out is None else leave_out
    near = near_points(reference, points, images, labels, leave_out, k=k, count=num_near)
    entries = zip(images, labels, near, strict=True)
    options = {"k": k, "norm": norm, "num_classes": reference.num_classes}
    return np.array([lower_bound(points, *entry, **options) for entry in entries])


def _directions(rng, points, image, norm):
    """Draw directions of size 1: random ones, corners, axes, and those to every point."""
    size = points.shape[1]
    some = [rng.normal(size=(60, size)), rng.choice([-1, 1], (20, size)), np.eye(size), -np.eye(size), points - image]
    drawn = np.concatenate(some)
    drawn = drawn[np.abs(drawn).max(axis=1) > 0]
    return drawn / np.linalg.norm(drawn, ORDER[norm], axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("k", [1, 2, 4, 14])
def test_vote_equals_brute_force_with_ties_and_duplicates(k, levels):
    points, labels, images = _problem(k, 3, levels=levels, num_images=40)
    reference = neighbors.fit(points, labels, 3)
    assert np.array_equal(knn.vote(reference, images, k), _vote(points, labels, images, k))
    if k <= 2:
        assert np.array_equal(knn.vote(reference, images, k), neighbors.predict(reference, images))


def test_votes_of_many_points_are_counted_as_they_are():
    """49,000 to 1,000, in whichever order they come: times their number they exceed an int32."""
    labels = np.repeat([0, 1], [49_000, 1_000]).astype(np.int32)
    found = knn_attack.winner(np.stack([labels, labels[::-1], 1 - labels]), 2)
    assert found.tolist() == [0, 0, 1]


def test_vote_without_the_point_itself():
    points, labels, _ = _problem(1, 3, levels=2)
    leave_out = np.where(np.arange(14) % 3, np.arange(14), -1)
    found = knn.vote(neighbors.fit(points, labels, 3), points, 3, leave_out=leave_out)
    assert np.array_equal(found, _vote(points, labels, points, 3, leave_out))
    assert not np.array_equal(found, _vote(points, labels, points, 3))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.sampled_from([2, 4]),
    k=st.sampled_from([1, 2, 3, 4, 5, 8]),
    norm=st.sampled_from(NORMS),
    levels=st.sampled_from([None, 3]),
    num_near=st.sampled_from([2, 5, 256]),
    leaves_out=st.booleans(),
)
def test_nothing_within_the_lower_bound_changes_the_vote(seed, num_classes, k, norm, levels, num_near, leaves_out):
    points, labels, images = _problem(seed, num_classes, levels=levels)
    leave_out = np.arange(len(images)) if leaves_out else np.full(len(images), -1)
    clean = _vote(points, labels, images, k, leave_out)
    reference = neighbors.fit(points, labels, num_classes, block_size=8)
    lower = _lower(reference, images, clean, k, norm, leave_out, num_near)
    rng = np.random.default_rng(seed)
    for row, image in enumerate(_values(images)):
        if not 0 < lower[row] < np.inf:
            continue
        directions = _directions(rng, _values(points), image, norm)
        for share in (0.3, 0.9, 1 - 1e-9):
            moved = image + share * lower[row] * directions
            assert np.all(_vote(points, labels, moved, k, np.full(len(moved), leave_out[row])) == clean[row])


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "bounds"), [(norm, (0.0, 1.0)) for norm in NORMS] + [("l2", None)])
def test_witness_is_wrong_and_of_the_stated_size(norm, bounds):
    points, labels, images = _problem(5, 3, count=30, num_images=40)
    clean = _vote(points, labels, images, 5)
    image_labels = np.where(np.arange(40) < 5, (clean + 1) % 3, clean)
    reference = neighbors.fit(points, labels, 3)
    result = knn.vote_bounds(reference, images, image_labels, k=5, norm=norm, bounds=bounds, batch_size=16)
    assert np.array_equal(result.correct, np.arange(40) >= 5)
    assert np.all(result.lower[:5] == 0) and np.all(result.upper[:5] == 0)
    found = result.correct & np.isfinite(result.upper)
    assert found.sum() > 25
    sizes = np.linalg.norm(_values(result.adversarial) - _values(images), ORDER[norm], axis=1)
    np.testing.assert_allclose(sizes[found], result.upper[found], rtol=1e-12)
    assert np.all(_vote(points, labels, result.adversarial, 5)[found] != image_labels[found])
    assert np.array_equal(result.adversarial[~found], images[~found])
    if bounds is not None:
        assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("k", [3, 4])
def test_bounds_enclose_the_radius_found_by_dense_search(k):
    points, labels, images = _problem(k, 3, count=15, size=1, num_images=30)
    clean = _vote(points, labels, images, k)
    grid = np.linspace(0, 1, 20001)[:, None]
    votes = _vote(points, labels, grid, k)
    # Distance to the nearest grid point with another vote: the radius to within the grid's spacing.
    truth = np.array([np.abs(grid[votes != c, 0] - x).min() for x, c in zip(_values(images)[:, 0], clean, strict=True)])
    result = knn.vote_bounds(neighbors.fit(points, labels, 3), images, clean, k=k, norm="l2", num_near=14)
    assert np.all(result.lower <= truth + 1e-9)
    assert np.all(result.upper >= truth - 5e-5)
    assert np.all(result.lower > 0)
    found = np.isfinite(result.upper)
    assert np.mean(found) > 0.8
    assert np.median(result.upper[found] / truth[found]) < 1.1


@pytest.mark.parametrize("norm", NORMS)
def test_one_vote_gives_the_bound_by_single_constraints(norm):
    points, labels, images = _problem(2, 3, count=16)
    clean = _vote(points, labels, images, 1)
    lower = _lower(neighbors.fit(points, labels, 3), images, clean, 1, norm)
    points = _values(points)
    for row, image in enumerate(_values(images)):
        own, others = (points[mask] for mask in (labels == clean[row], labels != clean[row]))
        sq = [np.square(some - image).sum(axis=1) for some in (own, others)]
        gaps = np.linalg.norm(others[None] - own[:, None], DUAL[norm], axis=-1)
        truth = ((sq[1] - sq[0][:, None]) / 2 / gaps).max(axis=0).min()
        assert lower[row] <= truth
        # Only the 9 nearest own points are asked.
        assert lower[row] == pytest.approx(truth, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    [("digits_3v8", "l2")]
    + [
        pytest.param(*one, marks=pytest.mark.slow)
        for one in (("digits_3v8", "l1"), ("digits_3v8", "linf"), ("mnist_1v7", "l2"))
    ],
)
def test_one_vote_encloses_the_exact_radius(shared_dir, name, norm):
    with np.load(shared_dir / "reference" / "nn_radius" / f"{name}.npz") as file:
        oracle = dict(file)
    points, images = (
        x if x.dtype == np.uint8 else x.astype(np.float32) for x in (oracle["reference"], oracle["queries"])
    )
    classes, labels = np.unique(oracle["labels"], return_inverse=True)
    image_labels = np.searchsorted(classes, oracle["query_labels"])
    reference = neighbors.fit(points, labels, 2)
    boxed = oracle[f"radius_{norm}_box"]
    count = len(boxed)
    result = knn.vote_bounds(reference, images[:count], image_labels[:count], k=1, norm=norm)
    # The lower bound does not know the box, so it is below the radius without it too.
    assert np.all(result.lower <= oracle[f"radius_{norm}_free"][:count] * (1 + 1e-6))
    assert np.all(result.upper >= boxed * (1 - 1e-6))
    assert np.mean(result.upper) < 1.3 * np.mean(boxed)


@pytest.mark.slow
def test_digits_of_ten_classes():
    dataset = data.load("digits")
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, 10)
    images, labels = dataset.test_images[:64], dataset.test_labels[:64]
    result = knn.vote_bounds(reference, images, labels, k=5, norm="l2", num_steps=30)
    assert result.correct.mean() > 0.9
    assert result.adversarial.shape == images.shape
    assert np.all(result.lower <= result.upper)
    assert np.all(result.lower[result.correct] > 0)
    # Far opponents are bounded together: fewer listed ones never prove more.
    flat = images.reshape(64, -1).astype(np.float32) / np.float32(255)
    fewer, more = (_lower(reference, flat, labels, 5, "l2", num_near=number) for number in (16, 512))
    assert np.all(fewer <= more * (1 + 1e-9))


@pytest.mark.slow
def test_classes_without_points_and_single_points():
    points = np.array([[0.0], [0.1], [0.2]], np.float32)
    alone = knn.vote_bounds(neighbors.fit(points, np.zeros(3, int), 2), points, np.array([0, 0, 1]), k=3, norm="l2")
    assert np.array_equal(alone.lower, [np.inf, np.inf, 0])
    assert np.array_equal(alone.upper, [np.inf, np.inf, 0])
    assert np.array_equal(alone.adversarial, points)
    # The one opponent can never have a majority of three votes.
    reference = neighbors.fit(points, np.array([0, 0, 1]), 2)
    result = knn.vote_bounds(reference, points[:1], np.array([0]), k=3, norm="linf")
    assert result.lower == [np.inf] and result.upper == [np.inf]


@pytest.mark.slow
def test_ties_of_integers_are_voted_on_as_they_are():
    # 2 is midway between 1 and 3, but 2 / 255 in float32 is nearer to 3 / 255.
    reference = neighbors.fit(np.array([[1] * 4, [3] * 4], np.uint8), np.array([0, 1]), 2)
    found = knn.vote_bounds(reference, np.full((1, 4), 2, np.uint8), np.array([0]), k=1, norm="l2")
    assert found.correct[0] and found.lower[0] == 0


@pytest.mark.slow
def test_no_point_is_lost_where_none_is_left_out():
    points = np.array([[0.0], [1.0]], np.float32)
    reference = neighbors.fit(points, np.array([0, 1]), 2)
    arguments = (reference, points[:1], np.array([0]))
    found, without = (
        knn.vote_bounds(*arguments, k=2, norm="l2", leave_out=leave_out) for leave_out in (np.array([-1]), None)
    )
    np.testing.assert_array_equal(found.upper, without.upper)


def test_refuses_what_it_cannot_use():
    points, labels, images = _problem(3, 2)
    reference = neighbors.fit(points, labels, 2)
    clean = _vote(points, labels, images, 3)

    def bounds_of(images=images, labels=clean, k=3, norm="l2", **options):
        return knn.vote_bounds(reference, images, labels, k=k, norm=norm, **options)

    with pytest.raises(ValueError, match="norm must be one of"):
        bounds_of(norm="l3")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        knn.vote(reference, images, 0)
    for name in ("k", "num_near", "num_steps", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            bounds_of(**{name: 0})
    with pytest.raises(ValueError, match="labels must be"):
        bounds_of(labels=clean[:-1])
    with pytest.raises(ValueError, match="labels must be"):
        bounds_of(labels=clean + 5)
    with pytest.raises(ValueError, match="images must be finite"):
        bounds_of(images=images * np.float32(np.nan), bounds=None)


@pytest.mark.slow
def test_above_the_number_of_points_all_of_them_vote():
    points, labels, images = _problem(0, 3)
    reference = neighbors.fit(points, labels, 3)
    leave_out = np.maximum(np.arange(12) - 3, -1)
    for k in (15, 10**9):
        np.testing.assert_array_equal(knn.vote(reference, images, k), _vote(points, labels, images, 14))
        without = knn.vote(reference, images, k, leave_out=leave_out)
        np.testing.assert_array_equal(without, _vote(points, labels, images, 14, leave_out))
    # Seven votes against seven: the nearest point decides, and an image without one of them has a majority for ever.
    labels, leave_out = np.arange(14) % 2, np.where(np.arange(12) == 4, -1, np.arange(12))
    reference, clean = neighbors.fit(points, labels, 2), _vote(points, labels, images, 14, leave_out)
    found = knn.vote_bounds(reference, images, clean, k=10**9, norm="l2", leave_out=leave_out, num_steps=20)
    assert found.correct.all() and 0 <= found.lower[4] <= found.upper[4] < np.inf
    is_decided = np.arange(12) != 4
    assert np.isposinf(found.lower[is_decided]).all() and np.isposinf(found.upper[is_decided]).all()


def test_where_no_point_may_vote_there_is_no_class():
    reference = neighbors.fit(np.array([[0.5]], np.float32), np.array([0]), 2)
    image, leave_out = np.array([[0.1]], np.float32), np.array([0])
    np.testing.assert_array_equal(knn.vote(reference, image, 3, leave_out=leave_out), [-1])
    found = knn.vote_bounds(reference, image, np.array([0]), k=3, norm="l2", leave_out=leave_out)
    assert not found.correct[0] and found.lower[0] == found.upper[0] == 0
    np.testing.assert_array_equal(found.adversarial, image)


@pytest.mark.slow
def test_inside_jit_who_is_missing_does_not_vote():
    points, labels, images = _problem(0, 3)
    reference = neighbors.fit(points, labels, 3)
    voted = jax.jit(knn.vote, static_argnums=2)(reference, images, 20)
    np.testing.assert_array_equal(voted, _vote(points, labels, images, 14))
    leave_out = np.arange(12)
    without = jax.jit(lambda out: knn.vote(reference, images, 14, leave_out=out))(leave_out)
    np.testing.assert_array_equal(without, _vote(points, labels, images, 13, leave_out))
    images[[2, 5], 0] = np.nan, np.inf
    voted = jax.jit(knn.vote, static_argnums=2)(reference, images, 3)
    np.testing.assert_array_equal(np.asarray(voted)[[2, 5]], -1)
    with pytest.raises(ValueError, match="queries must be finite, got nan at index 2"):
        knn.vote(reference, images, 3)
