"""Radii of points that are split over devices, or stay on disk, beside those of points in memory."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from nn_adv import Threat, certify, neighbors

NORMS = ("l1", "l2", "linf")
pytestmark = pytest.mark.usefixtures("eight_devices")


def _task(dtype: str):
    rng = np.random.default_rng(0)
    points, images = (rng.integers(0, 256, (count, 5, 5)).astype(np.uint8) for count in (150, 9))
    labels, of_images = rng.integers(0, 3, 150), rng.integers(0, 3, 9)
    points[10] = points[3]  # a copy
    images[0], of_images[0] = points[3], labels[3]
    if dtype == "float32":
        points, images = (x / np.float32(255) for x in (points, images))
    return points, labels, images, of_images


def _bounds(found: certify.Radius) -> list[np.ndarray]:
    return [found.lower, found.upper, found.adversarial, found.correct, found.opponent]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("norm", "dtype"), [("l2", "uint8"), *itertools.product(NORMS, ("uint8", "float32"))])
def test_radii_over_a_mesh_are_those_of_one_device_to_the_bit(norm, dtype):
    points, labels, images, of_images = _task(dtype)
    reference = neighbors.fit(points, labels, 3, block_size=16)
    mesh = jax.make_mesh((4, 2), ("points", "queries"))
    found = [
        certify.radius(some, images, of_images, norm=norm) for some in (reference, neighbors.shard(reference, mesh))
    ]
    for one, other in zip(*map(_bounds, found), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("norm", "dtype"), [("linf", "uint8"), *itertools.product(NORMS, ("uint8", "float32"))])
def test_radii_among_points_on_disk(norm, dtype, tmp_path):
    points, labels, images, of_images = _task(dtype)
    points, labels = np.tile(points, (8, 1, 1)), np.tile(labels, 8)  # 1200: two slabs
    points[150:] = np.random.default_rng(1).permuted(points[150:], axis=0)
    np.save(tmp_path / "points.npy", points)
    streamed = neighbors.stream(tmp_path / "points.npy", labels, 3, rows=1024)
    fitted = neighbors.fit(points, labels, 3)
    leave_out = np.where(np.arange(9) % 2, -1, 3)
    expected, found = (
        certify.radius(some, images, of_images, norm=norm, leave_out=leave_out) for some in (fitted, streamed)
    )
    assert found.is_exact.all()
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.upper, expected.upper, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.correct, expected.correct)


@pytest.mark.slow
def test_decisions_over_a_mesh():
    points, labels, images, of_images = _task("uint8")
    reference = neighbors.fit(points, labels, 3, block_size=16)
    sharded = neighbors.shard(reference, jax.make_mesh((2, 4), ("points", "queries")))
    threat = Threat(norm="linf", epsilon=0.02)
    one, other = (certify.decide(some, images, of_images, threat=threat) for some in (reference, sharded))
    np.testing.assert_array_equal(one.status, other.status)
