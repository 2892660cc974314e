"""Soft logits and their gradients against dense float64 sums."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import neighbors
from nn_adv.neighbors import soft
from tests.neighbors import truths

COTANGENT = np.random.default_rng(3).standard_normal((7, 4)).astype(np.float32)


def _setup(dtype: str = "float32"):
    rng = np.random.default_rng(0)
    points = rng.random((150, 40)).astype(np.float32)
    if dtype == "uint8":
        points = (points * 255).astype(np.uint8)
    labels = rng.integers(0, 3, 150)  # class 3 has no points
    return points, labels, neighbors.fit(points, labels, 4, block_size=16), rng.random((7, 40)).astype(np.float32)


def _value(reference, queries, temperature):
    logits = neighbors.soft_logits(reference, queries, temperature)
    return jnp.sum(COTANGENT[:, :3] * logits[:, :3])


def _true_gradients(points, labels, queries, temperature):
    """Return gradients of `_value` to queries and temperature from the softmax weights, in float64."""
    weights = truths.soft_logits(points, labels, queries, 4, temperature)[1] * COTANGENT.T[:, :, None]
    total = weights[:3].sum(axis=0)
    pixels, sq = truths.as_pixels(points), truths.pairwise(points, queries, "l2")
    by_queries = 2 / temperature * (total @ pixels - total.sum(axis=1, keepdims=True) * queries)
    return by_queries, (total * sq).sum() / temperature**2


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.05, 1e-4])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_value_and_gradients(temperature, dtype):
    points, labels, reference, queries = _setup(dtype)
    expected = truths.soft_logits(points, labels, queries, 4, temperature)[0]
    logits = neighbors.soft_logits(reference, queries, temperature)
    # Squared distances are near 6; float32 errs by 1e-6 of the squared norms, which 1 / T magnifies.
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=5e-6 / temperature)
    assert np.isneginf(logits[:, 3]).all()
    gradients = jax.grad(_value, argnums=(1, 2))(reference, queries, temperature)
    by_queries, by_temperature = _true_gradients(points, labels, queries, temperature)
    np.testing.assert_allclose(gradients[0], by_queries, rtol=1e-4, atol=1e-4 * np.abs(by_queries).max())
    np.testing.assert_allclose(gradients[1], by_temperature, rtol=1e-4, atol=1e-4 / temperature)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_block_size_changes_nothing(dtype):
    points, labels, _, queries = _setup(dtype)
    results = []
    for block_size in (16, 512):
        reference = neighbors.fit(points, labels, 4, block_size=block_size)
        results.append(jax.value_and_grad(_value, argnums=1)(reference, queries, 0.5))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)


@pytest.mark.slow
def test_cold_limit_is_the_nearest_neighbour():
    points, labels, reference, queries = _setup()
    logits, pullback = jax.vjp(lambda q: neighbors.soft_logits(reference, q, 1e-4), queries)
    np.testing.assert_array_equal(logits.argmax(axis=1), neighbors.predict(reference, queries))
    np.testing.assert_allclose(-1e-4 * logits, neighbors.class_distances(reference, queries), rtol=1e-5)
    assert np.isfinite(pullback(COTANGENT)[0]).all(), "the empty class must not spread NaN"


def test_on_a_point_and_far_away():
    points, _, reference, _ = _setup()
    for queries in (points[:3], points[:3] + 1e3):
        logits, gradient = jax.value_and_grad(_value, argnums=1)(reference, np.tile(queries[:1], (7, 1)), 1e-4)
        assert np.isfinite(logits) and np.isfinite(gradient).all()


def test_same_under_jit_and_for_image_shapes():
    points, labels, reference, queries = _setup()
    expected = jax.grad(_value, argnums=1)(reference, queries, 0.3)
    np.testing.assert_allclose(
        jax.jit(jax.grad(_value, argnums=1))(reference, queries, 0.3), expected, rtol=1e-5, atol=1e-5
    )
    images = neighbors.fit(points.reshape(-1, 4, 5, 2), labels, 4)
    gradient = jax.grad(_value, argnums=1)(images, queries.reshape(-1, 4, 5, 2), 0.3)
    np.testing.assert_allclose(gradient.reshape(7, 40), expected, rtol=1e-4, atol=1e-4)


def test_temperature_is_traced():
    _, _, reference, queries = _setup()
    neighbors.soft_logits(reference, queries, 0.1)
    start = soft._stream._cache_size()
    for temperature in (0.2, 0.3):
        neighbors.soft_logits(reference, queries, temperature)
    assert soft._stream._cache_size() == start


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, 1e-38, [0.1, 0.2], "x"])
def test_no_temperature_is_refused(temperature):
    reference = neighbors.fit(np.zeros((2, 3), np.float32), [0, 1], 2)
    with pytest.raises(ValueError, match="temperature must be "):
        neighbors.soft_logits(reference, np.zeros((1, 3), np.float32), temperature)


def test_second_derivative():
    points, labels, reference, queries = _setup()
    direction = np.random.default_rng(4).standard_normal(queries.shape)
    gradient = jax.grad(_value, argnums=1)
    product = jax.grad(lambda q: jnp.sum(gradient(reference, q, 0.5) * direction))(queries)
    ahead, behind = (_true_gradients(points, labels, queries + s * direction, 0.5)[0] for s in (1e-5, -1e-5))
    np.testing.assert_allclose(product, (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-3)


def test_memory_does_not_grow_with_the_points():
    queries = np.zeros((16, 64), np.float32)

    def temporary_bytes(count: int) -> int:
        reference = neighbors.fit(np.zeros((count, 64), np.uint8), np.arange(count) % 2, 2, block_size=64)
        gradient = jax.jit(jax.grad(lambda q, r: neighbors.soft_logits(r, q, 0.1).sum()))
        return gradient.lower(queries, reference).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(16_000) <= temporary_bytes(1_000) + 4096
