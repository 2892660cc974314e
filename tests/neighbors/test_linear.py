"""1NN in the metric of a linear map against float64 brute force on mapped points."""

import jax
import numpy as np
import pytest

from nn_adv import neighbors
from tests.neighbors import truths

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def _problem(dtype=np.uint8):
    rng = np.random.default_rng(0)
    points, queries = (rng.integers(0, 256, (n, 4, 3)).astype(np.uint8) for n in (90, 12))
    if dtype != np.uint8:
        points, queries = (array.astype(dtype) / dtype(255) for array in (points, queries))
    points[7] = points[50]
    linear_map = (rng.normal(size=(5, 12)) @ np.diag(10.0 ** rng.integers(-2, 3, 12))).astype(np.float32)
    labels = np.concatenate([rng.integers(0, 3, 50), [2], rng.integers(0, 3, 39)])
    mapped = (truths.as_pixels(points) @ linear_map.T.astype(float)).astype(np.float32)
    exact = truths.as_pixels(queries) @ linear_map.T.astype(float)
    return neighbors.fit(points, labels, 4, linear_map=linear_map), queries, labels, mapped, exact


@pytest.mark.parametrize("dtype", [np.uint8, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_finds_what_brute_force_finds_among_mapped_points(dtype):
    reference, queries, labels, mapped, exact = _problem(dtype)
    distances, indices = truths.nearest(mapped, exact, 3, "l2")
    found = neighbors.nearest(reference, queries, k=3)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    np.testing.assert_array_equal(neighbors.predict(reference, queries), labels[indices[:, 0]])
    without = neighbors.nearest(reference, queries, leave_out=indices[:, 0])
    np.testing.assert_array_equal(without.indices[:, 0], indices[:, 1])
    by_class = truths.class_distances(mapped, labels, exact, 4, "l2")
    np.testing.assert_allclose(neighbors.class_distances(reference, queries), by_class, rtol=1e-6)
    in_class = neighbors.nearest_in_class(reference, queries, 2)
    np.testing.assert_allclose(np.square(in_class.distances[:, 0]), by_class[:, 2], rtol=1e-6)


def test_soft_logits_are_those_of_mapped_points_and_their_gradient_is_in_pixels():
    reference, queries, labels, mapped, exact = _problem(np.float32)
    plain = neighbors.fit(mapped, labels, 4)
    temperature = np.float32(mapped.var() * 5)
    found, pull_back = jax.vjp(lambda x: neighbors.soft_logits(reference, x, temperature), queries)
    expected, pull_back_mapped = jax.vjp(
        lambda y: neighbors.soft_logits(plain, y, temperature), exact.astype(np.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    weights = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    in_pixels = np.asarray(pull_back_mapped(weights)[0]) @ np.asarray(reference.linear_map)
    gradient = np.asarray(pull_back(weights)[0]).reshape(12, -1)
    np.testing.assert_allclose(gradient, in_pixels, rtol=1e-3, atol=1e-3 * np.abs(in_pixels).max())
