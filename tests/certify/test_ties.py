"""Radii of images on ties and beside copies of points: 0 where integers tie, and witnesses as near as float32 has."""

import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.certify.inputs import SEVERAL, host_points
from nn_adv.certify.verify.views import make_base
from nn_adv.threat import NORMS, Threat
from tests.certify.test_radius import ONE_NORM


@pytest.mark.slow
def test_a_query_on_a_point_of_another_class_and_copies_across_classes():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]], np.float32)
    reference = neighbors.fit(points, np.array([0, 1, 0, 0]), 2)
    # The copy of lower index wins the tie: the point of class 0 at (1, 1) is never predicted.
    found = certify.radius(reference, points[[1, 1, 0]], np.array([0, 1, 0]), norm="l2")
    np.testing.assert_array_equal(found.correct, [False, True, True])
    np.testing.assert_allclose(found.upper, [0, 0.5, np.sqrt(0.5)], rtol=1e-6)
    # Here no point of class 1 can ever win.
    hidden = neighbors.fit(points, np.array([0, 0, 1, 0]), 2)
    found = certify.radius(hidden, points[:1], np.array([0]), norm="linf")
    assert np.isinf(found.lower[0]) and np.isinf(found.upper[0])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ONE_NORM)
def test_an_image_on_a_tie_of_the_integers_has_radius_zero_and_a_witness_beside_it(norm):
    # 2 is midway between 1 and 3, but 2 / 255 in float32 is nearer to 3 / 255.
    reference = neighbors.fit(np.array([[1] * 4, [3] * 4], np.uint8), np.array([0, 1]), 2)
    image = np.full((1, 4), 2, np.uint8)
    for recheck_all in (True, False):
        found = certify.radius(reference, image, np.array([0]), norm=norm, recheck_all=recheck_all)
        assert found.correct[0] and found.status[0] == "exact" and found.opponent[0] == 1
        assert found.lower[0] == 0 and 0 < found.upper[0] < 2e-9
        assert np.asarray(neighbors.predict(reference, found.adversarial))[0] == 1
    decision = certify.decide(reference, image, np.array([0]), threat=Threat(norm, 1e-6))
    assert decision.status[0] == "broken"
    wrong = certify.radius(reference, image, np.array([1]), norm=norm)
    assert not wrong.correct[0] and wrong.upper[0] == 0 and wrong.opponent[0] == -1
    np.testing.assert_array_equal(wrong.adversarial, image / np.float32(255))


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
def test_a_tie_between_far_points_is_radius_zero_too(norm, bounds):
    # In float32 the opponent is nearer: every constraint is broken at the image, and there are fewer than asked for.
    reference = neighbors.fit(np.array([[1] * 4, [255] * 4], np.uint8), np.array([0, 1]), 2)
    image = np.full((1, 4), 128, np.uint8)
    for recheck_all in (True, False):
        found = certify.radius(reference, image, np.array([0]), norm=norm, bounds=bounds, recheck_all=recheck_all)
        assert found.correct[0] and found.status[0] == "exact" and found.opponent[0] == 1
        assert found.lower[0] == 0 and 0 < found.upper[0] < 1e-7
    decision = certify.decide(reference, image, np.array([0]), threat=Threat(norm, 0.1, bounds))
    assert decision.status[0] == "broken"


@pytest.mark.slow
@pytest.mark.parametrize("norm", ONE_NORM)
def test_an_image_on_a_tie_of_many_pixels_has_a_witness_as_near(norm):
    rng = np.random.default_rng(0)
    image, offset = rng.integers(64, 192, (1, 784)), rng.integers(-60, 60, (3, 784))
    images = image.astype(np.uint8)
    for sign in (1, -1):  # rounding to float32 makes either the own class nearer or the other
        points = np.concatenate([image + sign * offset, image - sign * offset]).astype(np.uint8)
        reference = neighbors.fit(points, np.array([0, 0, 0, 1, 1, 1]), 2)
        found = certify.radius(reference, images, np.array([0]), norm=norm)
        assert found.correct[0] and found.status[0] == "exact" and 0 < found.upper[0] < 1e-6


@pytest.mark.slow
def test_large_images_have_the_ties_of_the_integers():
    # 75 x 75 x 3: squares of distances may not fit int32. Rounding to float32 makes either class nearer.
    rng = np.random.default_rng(0)
    images, offsets = rng.integers(64, 192, (2, 16_875)), rng.integers(-60, 60, (2, 16_875))
    points = np.concatenate([images + offsets, images - offsets]).astype(np.uint8)
    reference = neighbors.fit(points, np.array([0, 0, 1, 1]), 2)
    pairs = np.repeat(images, 2, axis=0).astype(np.uint8)
    found = certify.radius(reference, pairs, np.array([0, 1, 0, 1]), norm="linf")
    np.testing.assert_array_equal(found.correct, [True, False, True, False])
    np.testing.assert_array_equal(found.status, "exact")
    assert np.all(found.lower < 1e-9) and np.all(found.upper < 1e-7) and np.all(found.upper[::2] > 0)


@pytest.mark.slow
def test_hundreds_of_copies_are_solved_as_one_point():
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, (540, 16)).astype(np.uint8)
    points[40:] = points[40]
    images = (0.55 * points[:5] + 0.45 * points[40]).astype(np.uint8)
    for late in (rng.integers(0, 2, 499), np.ones(499, int)):
        labels = np.concatenate([np.zeros(40, int), [1], late])
        few, many = (neighbors.fit(points[:n], labels[:n], 2) for n in (41, 540))
        predicted = np.asarray(neighbors.predict(few, images))
        expected, found = (certify.radius(reference, images, predicted, norm="linf") for reference in (few, many))
        np.testing.assert_array_equal(found.status, "exact")
        np.testing.assert_array_equal(found.opponent, expected.opponent)
        np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-6)
        assert len(found.certificate.image) <= len(expected.certificate.image)


def test_copies_across_classes_are_told_apart_from_two_points_only():
    points = np.array([[0.5], [0.0], [-0.0], [0.0], [0.5], [0.0]], np.float32)
    reference = neighbors.fit(points, np.array([0, 1, 0, 1, 1, 0]), 2)
    found = host_points(reference)
    positions = found.positions
    np.testing.assert_array_equal(found.copies[positions], [-1, -1, positions[1], SEVERAL, positions[0], SEVERAL])


@pytest.mark.parametrize("size", [8, 9])
def test_copies_of_bytes_are_those_of_floats(size):
    rng = np.random.default_rng(size)
    points = rng.integers(0, 256, (30, size)).astype(np.uint8)
    points[10:20], points[25:28] = points[:10], points[3]
    points[29] = points[28, ::-1]
    labels, indices = np.arange(30) % 3, rng.permutation(30)
    as_fortran = np.asfortranarray(points)
    expected = make_base(points.astype(np.float32), labels, indices, "l2", None, None).copies
    assert set(expected) > {-1, -2}
    for some in (points, as_fortran):
        np.testing.assert_array_equal(make_base(some, labels, indices, "l2", None, None).copies, expected)
    of_bytes, of_floats = (neighbors.fit(some, labels, 3) for some in (points, points.astype(np.float32)))
    np.testing.assert_array_equal(host_points(of_bytes).copies, host_points(of_floats).copies)


@pytest.mark.slow
def test_of_copies_the_lowest_index_present_is_the_opponent():
    points = np.array([[0, 0], [1, 1], [1, 1], [1, 1]], np.float32)
    reference = neighbors.fit(points, np.array([0, 2, 1, 0]), 3)
    found = certify.radius(reference, points[[0, 0]], np.array([0, 0]), norm="l2", leave_out=np.array([-1, 1]))
    np.testing.assert_array_equal(found.opponent, [1, 2])
    # With the copies of other classes behind one of its own, an own point hides them, unless it is left out.
    reference = neighbors.fit(points, np.array([0, 0, 1, 2]), 3)
    found = certify.radius(reference, points[[0, 0]], np.array([0, 0]), norm="l2", leave_out=np.array([-1, 1]))
    np.testing.assert_array_equal(found.opponent, [-1, 2])
    np.testing.assert_array_equal(np.isinf(found.lower), [True, False])
