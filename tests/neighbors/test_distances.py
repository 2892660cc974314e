"""Kernels against float64, and the bounds that the proofs of the search stand on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import neighbors, precision
from nn_adv.neighbors import distances
from nn_adv.neighbors.screens import make_screen
from tests.neighbors import truths


def _images(seed: int, count: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size)).astype(np.uint8)


@pytest.mark.parametrize("size", [1, 1024, 1025])
def test_integer_products_are_exact(size):
    points, queries = _images(0, 16, size), _images(1, 5, size)
    points[0], queries[0], queries[1] = 0, 0, 255  # the longest sums
    norms = [np.square(x.astype(np.int32) - 128).sum(axis=1) for x in (queries, points)]
    for product in precision.INTEGERS:
        centered = precision.centered_pixels(jnp.asarray(queries), product)
        of_points = precision.centered_pixels(jnp.asarray(points), product)
        found = distances.expanded_sq_l2(*norms, precision.integer_products(centered, of_points, product))
        np.testing.assert_array_equal(found, np.round(truths.pairwise(points, queries, "l2") * 255**2))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("kind", ["pixels", "floats", "far from the origin"])
def test_no_score_exceeds_the_ceiling_of_its_distance(norm, kind):
    points = _images(0, 64, 700)
    queries = np.clip(truths.as_pixels(points[:9]) + np.linspace(0, 0.2, 9)[:, None], 0, 1).astype(np.float32)
    if kind != "pixels":
        points = truths.as_pixels(points).astype(np.float32)
    if kind == "far from the origin":
        points, queries = points + np.float32(1000), queries + np.float32(1000)
    reference = neighbors.fit(points, np.zeros(64, int), 1)
    table = truths.pairwise(points, queries, norm)[:, np.asarray(reference.index[0])]
    exact = np.sqrt(table) if norm == "l2" else table

    @jax.jit
    def scores_and_ceilings(reference, queries, exact):
        screen = make_screen(reference, queries, norm)
        return screen.tile(0), jax.vmap(screen.ceiling, in_axes=1, out_axes=1)(exact)

    scores, ceilings = map(np.asarray, scores_and_ceilings(reference, queries, exact.astype(np.float32)))
    assert (scores <= ceilings).all()
    # A bound is of use only if it is near: within 2 % of the typical score.
    assert np.median(ceilings - scores) < 0.02 * np.median(scores) or kind == "far from the origin"
