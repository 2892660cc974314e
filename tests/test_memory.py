"""Bounds on the temporary memory of a device, in bytes, as docs/scale.md states them: read from what is compiled."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from nn_adv import neighbors
from nn_adv.certify import screening
from nn_adv.neighbors import search, soft

_CLASSES, _K = 2, 3
# Queries, points, pixels, block size: each is changed alone.
_SHAPES = (
    (64, 1024, 256, 128),
    (256, 1024, 256, 128),
    (64, 4096, 256, 128),
    (64, 1024, 768, 128),
    (64, 1024, 256, 512),
)


def _search_bound(q: int, n: int, d: int, b: int) -> int:
    return 16 * q * b + 12 * (q + b) * d + 768 * (_K + 4) * d


BOUNDS = {
    "nearest l2": _search_bound,
    "nearest linf": _search_bound,
    "class_distances": _search_bound,
    "soft_logits": lambda q, n, d, b: 16 * q * b + 12 * (q + b) * d,
    "gradient of soft_logits": lambda q, n, d, b: 16 * q * b + 12 * (q + b) * d + 8 * _CLASSES * q * d,
    "scores": lambda q, n, d, b: 16 * q * b + 12 * (q + b) * d + 4 * q * n,
}


def _lower(operation: str, reference: neighbors.Reference, queries: np.ndarray):
    def value(queries, reference):
        return soft.soft_logits(reference, queries, 0.1).sum()

    match operation:
        case "nearest l2" | "nearest linf":
            return search._nearest.lower(reference, queries, k=_K, norm=operation.split()[1])
        case "class_distances":
            return search._class_distances.lower(reference, queries, norm="l2")
        case "soft_logits":
            return jax.jit(value).lower(queries, reference)
        case "gradient of soft_logits":
            return jax.jit(jax.grad(value)).lower(queries, reference)
    return screening._score.lower(reference, queries)


def _task(shape: tuple[int, int, int, int], is_integer: bool) -> tuple[neighbors.Reference, np.ndarray]:
    q, n, d, b = shape
    rng = np.random.default_rng(0)
    points, queries = (rng.integers(0, 256, (count, d)).astype(np.uint8) for count in (n, q))
    queries = queries if is_integer else queries / np.float32(255)
    products = neighbors.Products("float32", "float32")  # the largest operands
    return neighbors.fit(points, np.arange(n) % _CLASSES, _CLASSES, block_size=b, products=products), queries


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("operation", "shape"), [*itertools.product(BOUNDS, _SHAPES)])
def test_temporary_memory_is_below_its_bound(operation, shape):
    for is_integer in {False, "soft" not in operation}:
        compiled = _lower(operation, *_task(shape, is_integer)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= BOUNDS[operation](*shape)


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_a_device_of_a_mesh_needs_what_its_share_does():
    q, n, d, b = 128, 4096, 256, 128
    reference, queries = _task((q, n, d, b), False)
    sharded = neighbors.shard(reference, jax.make_mesh((4, 2), ("points", "queries")))
    compiled = _lower("nearest l2", sharded, queries).compile()
    gathered = 4 * 16 * q * _K * 4  # from four shares, with what picks the nearest of them
    assert compiled.memory_analysis().temp_size_in_bytes <= _search_bound(q // 2, n // 4, d, b) + gathered
