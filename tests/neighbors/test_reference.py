"""How points are stored: order, padding, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nn_adv import neighbors
from nn_adv.neighbors.reference import NO_POINT

POINTS = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
LABELS = np.array([2, 0, 2, 0, 0, 2, 2, 0, 2, 2])


def test_blocks_hold_one_class_in_the_order_of_the_points():
    reference = neighbors.fit(POINTS, LABELS, 4, block_size=16)
    np.testing.assert_array_equal(reference.class_start, [0, 1, 1, 2, 2])
    assert reference.num_points == 10 and reference.image_shape == (2, 2)
    for block, label in ((0, 0), (1, 2)):
        members = np.flatnonzero(label == LABELS)
        np.testing.assert_array_equal(reference.index[block][: len(members)], members)
        assert (np.asarray(reference.index[block])[len(members) :] == NO_POINT).all()
        np.testing.assert_array_equal(reference.blocks[block][: len(members)], POINTS[members].reshape(-1, 4))
    np.testing.assert_array_equal(reference.labels[:10], LABELS)


@pytest.mark.parametrize(
    ("counts", "rows"), [((120, 120), 256), ((5000, 5000), 10_240), ((120, 1080), 1280), ((3,), 8)]
)
def test_padding_is_small(counts, rows):
    labels = np.repeat(np.arange(len(counts)), counts)
    reference = neighbors.fit(np.zeros((len(labels), 1), np.uint8), labels, len(counts))
    assert reference.index.size == rows


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("size", [20_000, 140_000])
def test_distances_of_large_images_do_not_overflow(size):
    # Squared distances of more than 16,512 uint8 pixels may not fit int32; nor do squared norms of 131,072.
    points = np.zeros((2, size), np.uint8)
    points[1] = 255
    reference = neighbors.fit(points, [0, 1], 2)
    found = neighbors.nearest(reference, np.full((1, size), 255, np.uint8), 2)
    np.testing.assert_array_equal(found.indices, [[1, 0]])
    np.testing.assert_allclose(found.distances, [[0, np.sqrt(size)]], rtol=1e-7)


def test_padding_never_comes_near():
    # The largest integers that fit: the only point is farther than padding of zeros would be.
    reference = neighbors.fit(np.full((1, 16_000), 255, np.uint8), [0], 2)
    found = neighbors.nearest(reference, np.zeros((1, 16_000), np.uint8))
    np.testing.assert_array_equal(found.indices, [[0]])
    np.testing.assert_allclose(found.distances, [[np.sqrt(16_000)]], rtol=1e-7)
    assert np.isinf(neighbors.class_distances(reference, np.zeros((1, 16_000), np.uint8))[0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": POINTS[:0], "labels": LABELS[:0]}, "points must be .* at least one image"),
        ({"points": POINTS[:, 0, 0]}, r"points must be \[N, ...\]"),
        ({"points": POINTS.astype(np.int32)}, "points must be uint8 or floating point, got dtype int32"),
        (
            {"points": np.where(POINTS == 21, np.nan, 0.0)},
            "points must be finite, got nan at index 5",
        ),
        ({"points": np.full((10, 1), 1e300)}, "points must be finite, got inf at index 0"),
        ({"labels": LABELS[:9]}, r"labels must be integers \[10\], got int64 of shape \(9,\)"),
        ({"labels": LABELS + 0.5}, "labels must be integers"),
        ({"labels": LABELS - 1}, r"labels must be in 0\.\.2, got -1 at index 1"),
        ({"num_classes": 2}, r"labels must be in 0\.\.1, got 2 at index 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
    ],
)
def test_bad_points(change, message):
    arguments = {"points": POINTS, "labels": LABELS, "num_classes": 3, "block_size": None} | change
    with pytest.raises(ValueError, match=message):
        neighbors.fit(**arguments)
