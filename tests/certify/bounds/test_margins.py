"""Tests of margin bounds and of the separation of classes, against brute force and against perturbations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nn_adv import data, neighbors
from nn_adv.certify.bounds import margins
from nn_adv.threat import NORMS

ORDER = {"l1": 1, "l2": 2, "linf": np.inf}
PAIRS = list(itertools.product(NORMS, NORMS))


def _values(points):
    return (points.astype(np.float32) / np.float32(255) if points.dtype == np.uint8 else points).astype(np.float64)


def _table(points, queries, norm):
    return np.linalg.norm(_values(queries)[:, None] - _values(points)[None], ORDER[norm], axis=-1)


def _sphere(rng, count, size, norm):
    """Draw perturbations of size 1 in a norm, corners and axes among them: they are the extreme ones."""
    signs = rng.choice([-1.0, 1.0], (count, size))
    axes = np.eye(size)[rng.integers(size, size=count)] * signs
    drawn = np.concatenate([rng.normal(size=(count, size)), signs, axes])
    return drawn / np.linalg.norm(drawn, ORDER[norm], axis=1, keepdims=True)


def _problem(rng, dtype, size=5, count=40, num_classes=3):
    points = rng.integers(0, 256, (count, size)).astype(np.uint8)
    return points if dtype == np.uint8 else _values(points).astype(np.float32), rng.integers(0, num_classes, count)


@pytest.mark.parametrize(("norm", "other"), PAIRS)
def test_norm_ratio_is_the_smallest_constant(norm, other):
    sphere = _sphere(np.random.default_rng(0), 200, 7, other)
    largest = np.linalg.norm(sphere, ORDER[norm], axis=1).max()
    assert largest == pytest.approx(margins.norm_ratio(norm, other, 7), rel=1e-12)


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("distance_norm", "threat_norm"), PAIRS)
def test_margin_bound_is_half_the_margin_rounded_down(distance_norm, threat_norm, dtype):
    rng = np.random.default_rng(1)
    points, labels = _problem(rng, dtype)
    images, image_labels = _problem(rng, dtype)
    reference = neighbors.fit(points, labels, 3)
    bound = margins.margin_bound(reference, images, image_labels, distance_norm=distance_norm, threat_norm=threat_norm)
    table = _table(points, images, distance_norm)
    own = np.where(labels == image_labels[:, None], table, np.inf).min(axis=1)
    other = np.where(labels == image_labels[:, None], np.inf, table).min(axis=1)
    truth = np.maximum(0, other - own) / 2 / margins.norm_ratio(distance_norm, threat_norm, 5)
    assert (truth > 0).sum() > 5
    assert np.all(bound <= truth)
    np.testing.assert_allclose(bound, truth, rtol=0, atol=2e-6)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(("distance_norm", "threat_norm"), PAIRS)
def test_no_perturbation_within_the_bound_changes_the_neighbour(distance_norm, threat_norm):
    rng = np.random.default_rng(2)
    points, labels = _problem(rng, np.float32)
    reference = neighbors.fit(points, labels, 3)
    bound = margins.margin_bound(reference, points, labels, distance_norm=distance_norm, threat_norm=threat_norm)
    assert np.all(bound > 0)
    for direction in _sphere(rng, 100, 5, threat_norm):
        moved = _values(points) + bound[:, None] * direction
        assert np.array_equal(labels[_table(points, moved, distance_norm).argmin(axis=1)], labels)


def test_the_bound_is_attained_on_a_line():
    reference = neighbors.fit(np.array([[0.0], [1.0]], np.float32), np.array([0, 1]), 2)
    image = np.array([[0.25]], np.float32)
    bound = margins.margin_bound(reference, image, np.array([0]), distance_norm="l2", threat_norm="l1")
    assert bound[0] == pytest.approx(0.25, rel=1e-6)
    assert bound[0] < 0.25


@pytest.mark.parametrize("norm", NORMS)
def test_rounded_pixels_never_lift_the_bound_above_the_truth(norm):
    # As integers the margin is 2 - 1. Rounded, 128 / 255 is a little further from 127 / 255 than others are apart.
    points = np.repeat(np.array([[128], [125]], np.uint8), 3, axis=1)
    image = np.full((1, 3), 127, np.uint8)
    reference = neighbors.fit(points, np.array([0, 1]), 2)
    bound = margins.margin_bound(reference, image, np.array([0]), distance_norm=norm, threat_norm=norm)
    own, other = _table(points, image, norm)[0]
    assert bound[0] <= (other - own) / 2
    assert bound[0] == pytest.approx((other - own) / 2, rel=1e-3)


@pytest.mark.slow
def test_wrong_ties_and_missing_classes():
    points = np.array([[0.0], [0.5], [1.0]], np.float32)
    images = np.array([[0.1], [0.25], [0.4]], np.float32)  # right, tie, wrong
    reference = neighbors.fit(points, np.array([0, 1, 1]), 3)
    bound = margins.margin_bound(reference, images, np.array([0, 0, 0]), distance_norm="l2", threat_norm="l2")
    assert bound[0] == pytest.approx(0.15, rel=1e-5)
    assert np.array_equal(bound[1:], [0, 0])
    # A label whose class has no point is never predicted; without another class nothing else ever is.
    assert margins.margin_bound(reference, images[:1], np.array([2]), distance_norm="l1", threat_norm="l2") == [0]
    alone = neighbors.fit(points, np.zeros(3, int), 3)
    assert margins.margin_bound(alone, images[:1], np.array([0]), distance_norm="l1", threat_norm="l2") == [np.inf]
    assert margins.margin_bound(alone, images[:1], np.array([1]), distance_norm="l1", threat_norm="l2") == [0]


def test_distances_beyond_float32_do_not_read_as_safe():
    points = np.array([[0.0], [1e20], [2e20]], np.float32)
    reference = neighbors.fit(points, np.array([0, 1, 1]), 2)
    bound = margins.margin_bound(reference, points[:1], np.array([0]), distance_norm="l2", threat_norm="l2")
    assert 0 < bound[0] < 0.5e20


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("norm", NORMS)
def test_separation_is_the_smallest_distance_between_classes(norm, dtype):
    points, labels = _problem(np.random.default_rng(3), dtype, count=70)
    labels = labels * 2  # classes 1 and 3 have no point
    result = margins.separation(points, labels, norm=norm)
    table = np.where(labels[:, None] == labels, np.inf, _table(points, points, norm))
    assert result.distance == pytest.approx(table.min(), rel=1e-12)
    assert table[result.pair] == pytest.approx(table.min(), rel=1e-12)
    assert labels[result.pair[0]] < labels[result.pair[1]]
    assert result.guaranteed_radius <= table.min() / 2
    assert result.guaranteed_radius == pytest.approx(table.min() / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("norm", NORMS)
def test_separation_leaves_out_only_points_that_cannot_be_closest(norm, dtype, monkeypatch):
    monkeypatch.setattr(margins, "_PER_SEARCH", 4)
    searched = []
    closest_pair = margins._closest_pair
    monkeypatch.setattr(margins, "_closest_pair", lambda *given: searched.append(len(given[1])) or closest_pair(*given))
    rng = np.random.default_rng(5)
    # Neighbouring pixels are alike, as in images, so that means tell points apart; 40 is no multiple of a group.
    smooth = np.repeat(rng.uniform(size=(120, 3)), 16, axis=1)[:, :40] + rng.uniform(0, 0.1, size=(120, 40))
    points = (smooth * 200).astype(np.uint8) if dtype == np.uint8 else smooth.astype(np.float32)
    labels = rng.integers(0, 3, 120)
    result = margins.separation(points, labels, norm=norm)
    table = np.where(labels[:, None] == labels, np.inf, _table(points, points, norm))
    assert result.distance == pytest.approx(table.min(), rel=1e-12)
    assert table[result.pair] == pytest.approx(table.min(), rel=1e-12)
    if norm != "l2":
        assert sum(searched) < np.sum(labels < 2) / 2


def test_separation_of_one_class_and_of_duplicates():
    points = np.array([[[3]], [[7]], [[7]]], np.uint8)
    assert margins.separation(points, np.zeros(3, int)) == (math.inf, math.inf, (-1, -1))
    assert margins.separation(points, np.array([0, 0, 1])) == (0, 0, (1, 2))


@pytest.mark.slow
def test_digits_keep_the_guaranteed_radius_on_every_training_image():
    dataset = data.load("digits")
    kept = np.isin(dataset.train_labels, [1, 7])
    images, labels = dataset.train_images[kept], (dataset.train_labels[kept] == 7).astype(int)
    reference = neighbors.fit(images, labels, 2)
    for norm in NORMS:
        result = margins.separation(images, labels, norm=norm)
        bound = margins.margin_bound(reference, images, labels, distance_norm=norm, threat_norm=norm)
        # The least of the images' own bounds is the theorem's.
        assert bound.min() == pytest.approx(result.guaranteed_radius, rel=1e-5)
        assert bound.min() <= result.distance / 2


def test_refuses_what_it_cannot_use():
    points, labels = _problem(np.random.default_rng(4), np.float32)
    reference = neighbors.fit(points, labels, 3)
    options = {"distance_norm": "l2", "threat_norm": "l2"}
    with pytest.raises(ValueError, match="labels"):
        margins.margin_bound(reference, points, labels[:-1], **options)
    with pytest.raises(ValueError, match="labels"):
        margins.margin_bound(reference, points, labels + 1, **options)
    with pytest.raises(ValueError, match="norm must be one of"):
        margins.margin_bound(reference, points, labels, distance_norm="l3", threat_norm="l2")
    with pytest.raises(ValueError, match="norm must be one of"):
        margins.margin_bound(reference, points, labels, distance_norm="l2", threat_norm="l0")
    with pytest.raises(ValueError, match="norm must be one of"):
        margins.separation(points, labels, norm="l3")
    with pytest.raises(ValueError, match="labels must be"):
        margins.separation(points, labels[:-1])
    with pytest.raises(ValueError, match=r"points must be .* with at least one image, got shape \(0, 5\)"):
        margins.separation(points[:0], labels[:0])
    with pytest.raises(ValueError, match="finite"):
        margins.separation(np.where(points > 0.9, np.nan, points), labels)
