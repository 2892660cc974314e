"""Searches over a mesh of devices beside those of one: the same bits, and one small all-gather."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import neighbors
from nn_adv.neighbors import search

NORMS = ("l1", "l2", "linf")
DTYPES = ("uint8", "float32")
SHAPES = ((4, 2), (8, 1), (1, 8))
pytestmark = [
    pytest.mark.usefixtures("eight_devices"),
    pytest.mark.filterwarnings("ignore:queries must be in the units"),
]


def mesh(shape: tuple[int, int]) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("points", "queries"))


def images(seed: int, count: int, dtype: str, size: int = 9) -> np.ndarray:
    """Return images of few levels: many ties."""
    values = np.random.default_rng(seed).integers(0, 4, (count, size)).astype(np.uint8)
    return values if dtype == "uint8" else (values / 4).astype(np.float32)


def _fit(dtype: str, count: int = 203) -> tuple[neighbors.Reference, np.ndarray]:
    labels = np.random.default_rng(7).integers(0, 4, count)
    labels[labels == 2] = 1  # a class without points
    return neighbors.fit(images(0, count, dtype), labels, 4, block_size=16), images(1, 13, dtype)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("shape", "norm", "dtype"),
    [(SHAPES[0], "l2", "uint8"), (SHAPES[0], "linf", "float32"), *itertools.product(SHAPES, NORMS, DTYPES)],
)
def test_searches_are_those_of_one_device_to_the_bit(shape, norm, dtype):
    reference, queries = _fit(dtype)
    sharded = neighbors.shard(reference, mesh(shape))
    leave_out = np.where(np.arange(13) % 2, np.arange(13), -1)

    def answers(reference):
        return (
            neighbors.nearest(reference, queries, 5, norm=norm, leave_out=leave_out),
            neighbors.class_distances(reference, queries, norm=norm),
            neighbors.predict(reference, queries, norm=norm),
        )

    jax.tree.map(np.testing.assert_array_equal, answers(reference), answers(sharded))


@pytest.mark.slow
def test_more_neighbours_than_a_device_or_all_have():
    reference, queries = _fit("uint8")
    sharded = neighbors.shard(reference, mesh((8, 1)))
    for k in (40, 203, 210):
        jax.tree.map(
            np.testing.assert_array_equal,
            neighbors.nearest(reference, queries, k),
            neighbors.nearest(sharded, queries, k),
        )
    one, other = (neighbors.nearest_in_class(r, queries, 1, 3) for r in (reference, sharded))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_soft_logits_and_their_gradients():
    reference, queries = _fit("float32")
    sharded = neighbors.shard(reference, mesh((4, 2)))
    weights = np.random.default_rng(3).random((13, 4)).astype(np.float32) * [1, 1, 0, 1]

    def value(queries, temperature, reference):
        logits = neighbors.soft_logits(reference, queries, temperature)
        return jnp.sum(jnp.where(weights > 0, weights * logits, 0)), logits

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
    (_, expected), gradients = step(queries, 0.3, reference)
    (_, found), sharded_gradients = step(queries, 0.3, sharded)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, sharded_gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5)


def test_a_search_gathers_pairs_once_and_no_points():
    reference, queries = _fit("uint8")
    sharded = neighbors.shard(reference, mesh((4, 2)))
    text = search._nearest.lower(sharded, jnp.asarray(queries[:8]), k=3, norm="l2").compile().as_text()
    found = [line for line in text.splitlines() if any(f" {name}(" in line for name in COLLECTIVES)]
    assert len(found) == 1
    assert "f64[8,4,3,2]" in found[0] and " all-gather(" in found[0], found  # devices, queries of each, k, a pair


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter", "all-gather-start")


def test_a_mesh_of_other_axes():
    reference, _ = _fit("uint8")
    for mesh, got in ((jax.make_mesh((8,), ("x",)), r"\('x',\)"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"mesh must be a Mesh of the axes \('points', 'queries'\), got {got}"):
            neighbors.shard(reference, mesh)
