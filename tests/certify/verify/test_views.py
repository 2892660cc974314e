"""Distances of the recheck against whole numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nn_adv.certify.verify.views import make_base, measure, views

_PIXELS = [Fraction(float(np.float32(v) / np.float32(255))) for v in range(256)]


@pytest.mark.parametrize("size", [1, 7, 1024, 3072, 4099])
def test_distances_of_integers_and_of_pixels_lie_within_the_errors(size):
    """Also at the ends of the pixels, where float32 is the first to be wrong: every product is 2^14 there."""
    rng = np.random.default_rng(size)
    points = rng.integers(0, 256, (600, size)).astype(np.uint8)  # more than one block of points
    points[0], points[1], points[2:40] = 0, 255, rng.choice([0, 255], (38, size))
    images = np.concatenate([points[[0, 1, 3, 599]], rng.integers(0, 256, (2, size)).astype(np.uint8)])
    labels = np.arange(600) % 2
    base = make_base(points, labels, np.arange(600), "l2", None, None)
    near = [rng.choice(600, 9, replace=False) for _ in images]
    leave_out = np.full(len(images), -1)
    whole = np.sum(np.square(images[:, None].astype(int) - points.astype(int)), axis=2)
    for known in (None, near):
        measured = measure(base, images, all_points=known is None)
        for k, view in enumerate(views(base, measured, np.zeros(len(images), int), leave_out, known)):
            looked_at = np.arange(600) if known is None else near[k]
            if known is None:
                assert np.array_equal(view.distances, whole[k] / 255.0**2)
            assert np.all(view.errors[looked_at] <= 1e-6 * (1 + view.distances[looked_at]) * np.sqrt(size))
            for j in (0, 1, 3, 599) if known is None else looked_at[:3]:
                low, high = view.distances[j] - view.errors[j], view.distances[j] + view.errors[j]
                of_pixels = sum((_PIXELS[a] - _PIXELS[b]) ** 2 for a, b in zip(images[k], points[j], strict=True))
                assert low <= Fraction(int(whole[k, j]), 255**2) <= high
                assert low <= of_pixels <= high
