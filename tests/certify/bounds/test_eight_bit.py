"""Radii among 8-bit images against a search of all of them, and witnesses that were written as PNG."""

from __future__ import annotations

import io
import itertools

import numpy as np
import PIL.Image
import pytest

from nn_adv import certify, neighbors

ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}


def _nearest_labels(points, labels, images):
    """Brute force in integers; ties go to the lowest index."""
    apart = ((images[:, None].astype(np.int64) - points.astype(np.int64)) ** 2).sum(axis=2)
    return labels[np.argmin(apart, axis=1)]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_bounds_hold_among_all_images_of_two_pixels(norm):
    """Two pixels leave 65,536 images: each is classified."""
    rng = np.random.default_rng(3)
    points, labels = rng.integers(0, 256, (12, 2), dtype=np.uint8), np.arange(12) % 3
    images = np.concatenate([points[:4], rng.integers(0, 256, (28, 2), dtype=np.uint8)])
    images_labels = _nearest_labels(points, labels, images)
    images_labels[-1] = (images_labels[-1] + 1) % 3  # a misclassified one
    reference = neighbors.fit(points, labels, 3)
    found = certify.radius(reference, images, images_labels, norm=norm)
    saved = certify.eight_bit_radius(reference, images, images_labels, found, norm=norm)
    grid = np.array(list(itertools.product(range(256), repeat=2)), np.uint8)
    predicted = _nearest_labels(points, labels, grid)
    for b, image in enumerate(images):
        apart = np.linalg.norm(grid.astype(float) - image, ORDERS[norm], axis=1) / 255
        truth = apart[predicted != images_labels[b]].min()
        assert saved.lower[b] <= truth + 1e-12 and truth <= saved.upper[b] + 1e-12
        size = np.linalg.norm(saved.adversarial[b].astype(float) - image, ORDERS[norm]) / 255
        assert found.correct[b] == (b < 31) and size == pytest.approx(saved.upper[b], abs=1e-12)
    assert np.all(saved.lower[:31] >= found.lower[:31] - 1e-7) and saved.lower[31] == saved.upper[31] == 0
    apart = saved.upper - saved.lower
    assert np.median(apart) == 0 if norm == "linf" else np.median(apart) < 1.5 / 255
    np.testing.assert_array_equal(saved.adversarial[31], images[31])


@pytest.mark.parametrize(("norm", "truth"), [("l2", 2**0.5), ("linf", 1), ("l1", 2)])
def test_a_border_that_rounded_pixels_move_is_proved_among_whole_numbers(norm, truth):
    """A border along the diagonal: rounding each v / 255 to float32 moves it by much more than the pixels."""
    points, image = np.array([[128, 145], [127, 146]], np.uint8), np.array([[0, 20]], np.uint8)
    reference = neighbors.fit(points, [1, 0], 2)
    found = certify.radius(reference, image, [0], norm=norm)
    saved = certify.eight_bit_radius(reference, image, [0], found, norm=norm)
    assert saved.lower * 255 == saved.upper * 255 == pytest.approx(truth, abs=1e-12)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_witness_read_from_a_png_is_still_broken(norm):
    rng = np.random.default_rng(0)
    points, labels = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8), np.arange(30) % 2
    reference = neighbors.fit(points, labels, 2)
    found = certify.radius(reference, points, labels, norm=norm)
    saved = certify.eight_bit_radius(reference, points, labels, found, norm=norm)
    read = []
    for image in saved.adversarial:
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "png")
        read.append(np.asarray(PIL.Image.open(file)))
    assert np.all(np.asarray(neighbors.predict(reference, np.stack(read))) != labels)
    assert np.all(found.lower - 1e-7 <= saved.lower) and np.all(saved.lower <= saved.upper)
    # Rounding costs less than half a level a pixel, and what the witness is lengthened for it.
    assert np.all(saved.upper <= 1.1 * found.upper + 1 / 255)


def test_left_out_points_do_not_judge_and_one_class_has_no_witness():
    points, labels = np.array([[10, 10], [20, 10], [90, 10]], np.uint8), np.array([0, 0, 1])
    reference, left_out = neighbors.fit(points, labels, 2), [0]
    found = certify.radius(reference, points[:1], [0], norm="linf", leave_out=left_out)
    saved = certify.eight_bit_radius(reference, points[:1], [0], found, norm="linf", leave_out=left_out)
    assert (saved.lower, saved.upper) == (45 / 255, 46 / 255)  # 55 is as far from 20 as from 90: the lowest index wins
    alone = neighbors.fit(points[:2], labels[:2], 1)
    found = certify.radius(alone, points[:1], [0], norm="l2")
    saved = certify.eight_bit_radius(alone, points[:1], [0], found, norm="l2")
    assert saved.lower == saved.upper == np.inf
    np.testing.assert_array_equal(saved.adversarial, points[:1])


def test_what_is_no_eight_bit_image_is_refused():
    points = np.array([[10, 10], [20, 10]], np.uint8)
    reference, floats = neighbors.fit(points, [0, 1], 2), neighbors.fit(points / np.float32(255), [0, 1], 2)
    found = certify.radius(reference, points, [0, 1], norm="l2")
    with pytest.raises(ValueError, match="images must be uint8, got float32"):
        certify.eight_bit_radius(reference, points / np.float32(255), [0, 1], found, norm="l2")
    with pytest.raises(ValueError, match="points of the reference must be uint8, got float32"):
        certify.eight_bit_radius(floats, points, [0, 1], found, norm="l2")
    with pytest.raises(ValueError, match="found must be what certify.radius returned, got NoneType"):
        certify.eight_bit_radius(reference, points[:1], [0], None, norm="l2")
    with pytest.raises(ValueError, match="found must hold 1 radii, one per image, got 2"):
        certify.eight_bit_radius(reference, points[:1], [0], found, norm="l2")


@pytest.mark.parametrize(("norm", "other"), [("l2", "linf"), ("linf", "l1")])
def test_radii_of_another_norm_are_noticed(norm, other):
    points, labels = np.array([[10, 10], [20, 30], [90, 70]], np.uint8), np.array([0, 0, 1])
    reference = neighbors.fit(points, labels, 2)
    found = certify.radius(reference, points, labels, norm=norm)
    certify.eight_bit_radius(reference, points, labels, found, norm=norm)
    with pytest.raises(ValueError, match=f"^norm must be that of the radii, got '{other}', in which .* of image 0 is"):
        certify.eight_bit_radius(reference, points, labels, found, norm=other)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radii_with_other_points_left_out_are_noticed(norm):
    points, labels = np.random.default_rng(3).integers(0, 256, (12, 6)).astype(np.uint8), np.arange(12) % 2
    reference = neighbors.fit(points, labels, 2)
    images, own = points[:4], np.arange(4)
    with_all = certify.radius(reference, images, labels[:4], norm=norm, bounds=(0, 1))
    without = certify.radius(reference, images, labels[:4], norm=norm, bounds=(0, 1), leave_out=own)
    assert with_all.correct.all() and not without.correct.all()
    first = int(np.argmin(without.correct))
    with pytest.raises(ValueError, match=f"^found must be the radii .*: image {first} is classified correctly in them"):
        certify.eight_bit_radius(reference, images, labels[:4], with_all, norm=norm, leave_out=own)
    with pytest.raises(ValueError, match=f"^found must be the radii .*: image {first} is classified wrongly in them"):
        certify.eight_bit_radius(reference, images, labels[:4], without, norm=norm)
