"""Pruning against the truth: every set of points, tried one after the other."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from nn_adv import neighbors

METRICS = {"l1": "cityblock", "l2": "euclidean", "linf": "chebyshev"}


def _conflicts(points, labels, radius, norm):
    flat = points.reshape(len(points), -1).astype(float)
    flat = flat / 255 if points.dtype == np.uint8 else flat
    return (cdist(flat, flat, METRICS[norm]) < 2 * radius) & (labels[:, None] != labels)


@pytest.mark.parametrize("norm", METRICS)
@pytest.mark.parametrize("seed", range(6))
def test_the_fewest_points_are_left_out(seed, norm):
    rng = np.random.default_rng(seed)
    points, labels = rng.integers(0, 6, (11, 2, 2, 1)).astype(np.float32) / 8, rng.integers(0, 2, 11)
    radius = {"l1": 0.45, "l2": 0.3, "linf": 0.2}[norm]
    conflicts = _conflicts(points, labels, radius, norm)
    kept = neighbors.prune(points, labels, radius=radius, norm=norm)
    assert not conflicts[np.ix_(kept, kept)].any()
    most = next(
        size
        for size in range(11, -1, -1)
        if any(not conflicts[np.ix_(rows, rows)].any() for rows in itertools.combinations(range(11), size))
    )
    assert len(kept) == most < 11


def test_many_points_are_cut_into_blocks_of_rows():
    rng = np.random.default_rng(0)
    points, labels = rng.integers(0, 256, (1300, 1, 3, 1), np.uint8), np.arange(1300) % 2
    kept = neighbors.prune(points, labels, radius=0.1)
    conflicts = _conflicts(points, labels, 0.1, "l2")
    assert not conflicts[np.ix_(kept, kept)].any() and 0 < len(kept) < 1300
    # No point that was left out fits: the set is not only smallest but also cannot grow.
    assert conflicts[np.ix_(np.setdiff1d(np.arange(1300), kept), kept)].any(axis=1).all()


def test_nothing_is_left_out_where_nothing_is_close():
    points = np.array([0.0, 0.25, 0.75, 1.0], np.float32).reshape(4, 1, 1, 1)
    assert neighbors.prune(points, [0, 0, 1, 1], radius=0.25).tolist() == [0, 1, 2, 3]  # just 2 radius apart
    assert neighbors.prune(points, [0, 0, 0, 0], radius=9.0).tolist() == [0, 1, 2, 3]
    assert neighbors.prune(points, [0, 1, 0, 1], radius=0).tolist() == [0, 1, 2, 3]


def test_duplicates_of_two_classes_cannot_both_stay():
    points = np.zeros((3, 1, 1, 1), np.uint8)
    assert neighbors.prune(points, [1, 0, 1], radius=0.01).tolist() == [0, 2]


@pytest.mark.parametrize(("labels", "radius"), [([0, 1, 2], 0.1), ([0, 1, 1], -1.0), ([0, 1, 1], np.array([0.1]))])
def test_more_than_two_classes_and_no_radius_are_refused(labels, radius):
    with pytest.raises(ValueError, match=r"labels must be in 0..1|radius must be (a number >= 0|one finite number)"):
        neighbors.prune(np.zeros((3, 1, 1, 1), np.float32), labels, radius=radius)
