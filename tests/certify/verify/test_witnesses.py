"""What a witness is held against: its distance to the own class, whichever points are left out of sight."""

from __future__ import annotations

import numpy as np
import pytest

from nn_adv.certify.verify import witnesses as module
from nn_adv.certify.verify.linear import make_map
from nn_adv.certify.verify.rounding import pixel_values
from nn_adv.certify.verify.views import make_base, measure
from nn_adv.certify.verify.witnesses import own_ranges


@pytest.mark.parametrize("kind", ["uint8", "float32", "mapped"])
@pytest.mark.parametrize("length", [1e-6, 0.1, 3.0])
def test_own_points_that_the_way_rules_out_are_not_the_nearest(kind, length, monkeypatch):
    """Short and long ways; one image's nearest own point is left out, one witness is not real."""
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, (1300, 30)).astype(np.uint8)
    images = rng.integers(0, 256, (40, 30)).astype(np.uint8)
    linear_map = None
    if kind != "uint8":
        points, images = (values.astype(np.float32) / 255 for values in (points, images))
    if kind == "mapped":
        linear_map = rng.normal(size=(20, 30)).astype(np.float32)
        points = points @ linear_map.T
    labels, image_labels = np.arange(1300) % 3, np.arange(40) % 2
    starts, values = pixel_values(images), pixel_values(points)
    witnesses = (starts + length * rng.normal(size=images.shape) / np.sqrt(30)).astype(np.float32)
    starts = starts if linear_map is None else starts @ linear_map.T.astype(float)
    base = make_base(points, labels, np.arange(1300), "l2", None, linear_map)
    leave_out = np.full(40, -1)
    own = [np.flatnonzero(labels == label) for label in image_labels]
    leave_out[5] = own[5][np.argmin(np.sum((values[own[5]] - starts[5]) ** 2, axis=1))]
    is_real = np.arange(40) != 7
    arguments = (witnesses, is_real, image_labels, leave_out)
    everything = own_ranges(base, measure(base, images, all_points=False), *arguments)
    measured, looked_at = measure(base, images, all_points=True), []
    distances_of = module.point_distances
    monkeypatch.setattr(
        module, "point_distances", lambda some, *rest: looked_at.append(len(some)) or distances_of(some, *rest)
    )
    found = own_ranges(base, measured, *arguments)
    assert (sum(looked_at) < 100) if length == 1e-6 else (sum(looked_at) > 100)
    assert np.all(np.isinf(found[7])) and np.all(found[is_real, 0] <= found[is_real, 1])
    np.testing.assert_allclose(found, everything, rtol=1e-10)
    for k in np.flatnonzero(is_real):
        mapped = witnesses[k].astype(float) if linear_map is None else linear_map.astype(float) @ witnesses[k]
        rows = own[k][own[k] != leave_out[k]]
        nearest = np.sum((values[rows] - mapped) ** 2, axis=1).min()
        assert found[k, 0] <= nearest * (1 + 1e-12) and nearest <= found[k, 1] * (1 + 1e-12)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_what_is_beyond_reach_of_an_image_is_not_near_its_witness(is_sparse):
    """Where few pixels move far the ends of the pixels say more than the length of the way."""
    rng = np.random.default_rng(0)
    images, points = rng.random((20, 30)), rng.random((3000, 30)).astype(np.float32)
    witnesses = images + 0 if is_sparse else images.clip(0.02, 0.98) + rng.uniform(-0.02, 0.02, (20, 30))
    if is_sparse:
        witnesses[:, 0] = np.round(witnesses[:, 0])
    images, witnesses, values = (pixel_values(some) for some in (images, witnesses, points))
    base = make_base(points, np.zeros(3000, int), np.arange(3000), "l1", None, None)
    from_images, from_witnesses = (np.sum((some[:, None] - values) ** 2, axis=2) for some in (images, witnesses))
    for rank in (0, 50):
        ceilings = np.sort(from_witnesses, axis=1)[:, rank]
        reaches = module._reaches(base, images, np.zeros(20), witnesses, np.zeros(20), ceilings)
        assert np.all((from_witnesses > ceilings[:, None]) | (from_images <= reaches[:, None]))
        ways = np.sqrt(ceilings) + np.sqrt(np.sum((witnesses - images) ** 2, axis=1))
        assert np.mean(reaches < ways**2 * 0.99) == is_sparse


def test_a_point_behind_a_witness_and_what_rounding_hides_are_kept():
    """On a line: the own point behind a witness is farther from the image than the one on the other side."""
    points = np.array([[1.0], [-1.45]], np.float32)
    base = make_base(points, np.zeros(2, int), np.arange(2), "l2", None, None)
    measured = measure(base, np.zeros((1, 1), np.float32), all_points=True)
    asked = np.array([[-0.3]], np.float32), np.array([True]), np.zeros(1, int), np.array([-1])
    (low, high), nearest = own_ranges(base, measured, *asked)[0], (float(points[1, 0]) - float(asked[0][0, 0])) ** 2
    assert low <= nearest <= high
    # Where distances to the image may be off, the point that only seems too far away is kept.
    for squared, changed in ((2.6, {"lengths": np.array([1e7])}), (7.0, {"moved": np.array([0.5])})):
        doubtful = measured._replace(distances=np.array([[1.0, squared]]), **changed)
        linear = base._replace(linear_map=make_map(np.eye(1, dtype=np.float32), "l2"))
        low, high = own_ranges(linear, doubtful, *asked)[0]
        assert low <= nearest <= high


def test_a_class_without_points_is_infinitely_far_from_a_witness():
    points = np.array([[0], [255]], np.uint8)
    base = make_base(points, np.zeros(2, int), np.arange(2), "l2", None, None)
    measured = measure(base, np.array([[100]], np.uint8), all_points=True)
    asked = np.array([[0.3]], np.float32), np.array([True]), np.ones(1, int), np.array([-1])
    np.testing.assert_array_equal(own_ranges(base, measured, *asked), [[np.inf, np.inf]])
