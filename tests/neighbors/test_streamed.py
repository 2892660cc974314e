"""Points on disk beside the same points in memory."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from nn_adv import certify, neighbors
from tests.neighbors.test_sharded import DTYPES, images, mesh


def _both(tmp_path, dtype: str, count: int = 2500, **options):
    points, labels = images(0, count, dtype), np.random.default_rng(7).integers(0, 3, count)
    np.save(tmp_path / "points.npy", points.reshape(count, 3, 3))
    streamed = neighbors.stream(
        tmp_path / "points.npy", labels, 4, rows=1, **options
    )  # slabs of 1024; class 3 is empty
    return neighbors.fit(points.reshape(count, 3, 3), labels, 4), streamed


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_are_those_of_points_in_memory(tmp_path, norm, dtype):
    fitted, streamed = _both(tmp_path, dtype)
    queries, leave_out = images(1, 7, dtype).reshape(7, 3, 3), np.array([0, -1, 1024, 2499, -1, 5, 6])

    def answers(reference):
        return (
            neighbors.nearest(reference, queries, 3, norm=norm, leave_out=leave_out),
            neighbors.class_distances(reference, queries, norm=norm),
            neighbors.predict(reference, queries, norm=norm),
            neighbors.nearest_in_class(reference, queries, 1, 2),
        )

    jax.tree.map(np.testing.assert_array_equal, answers(fitted), answers(streamed))


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_over_a_mesh(tmp_path):
    fitted, streamed = _both(tmp_path, "uint8", mesh=mesh((4, 2)))
    queries = images(1, 7, "uint8").reshape(7, 3, 3)
    jax.tree.map(np.testing.assert_array_equal, *(neighbors.nearest(some, queries, 3) for some in (fitted, streamed)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_and_votes_of_points_on_disk(tmp_path, dtype):
    fitted, streamed = _both(tmp_path, dtype)
    queries = images(1, 7, dtype).reshape(7, 3, 3)
    labels = np.asarray(neighbors.predict(fitted, queries))

    def answers(reference):
        bound = certify.margin_bound(reference, queries, labels, distance_norm="l2", threat_norm="linf")
        return bound, certify.vote(reference, queries, 5)

    jax.tree.map(np.testing.assert_array_equal, answers(fitted), answers(streamed))
    assert np.any(answers(streamed)[0] > 0)


def test_a_file_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "points.npy", np.zeros((3, 2), np.uint8))
    assert neighbors.stream("~/points.npy", [0, 0, 0], 1).num_points == 3


def test_wrong_points(tmp_path):
    with pytest.raises(ValueError, match="points must be uint8 or float32, as they are on disk, got dtype float64"):
        neighbors.stream(np.zeros((3, 2)), [0, 0, 0], 1)
    with pytest.raises(ValueError, match="points must be uint8 or float32, as they are on disk, got dtype >f4"):
        neighbors.stream(np.zeros((3, 2), ">f4"), [0, 0, 0], 1)
    np.savez(tmp_path / "points.npz", np.zeros((3, 2), np.uint8))
    (tmp_path / "points.csv").write_text("1,2\n")
    (tmp_path / "empty.npy").touch()
    for name in ("points.npz", "points.csv", "empty.npy"):
        with pytest.raises(ValueError, match=f"points must be a .npy file of one array, .*{name} is none"):
            neighbors.stream(tmp_path / name, [0, 0, 0], 1)
    with pytest.raises(ValueError, match="reference must be from fit: give stream the mesh"):
        neighbors.shard(neighbors.stream(np.zeros((3, 2), np.uint8), [0, 0, 0], 1), mesh((1, 1)))
    with pytest.raises(ValueError, match="reference must be from neighbors.fit or shard here, got points on disk"):
        neighbors.soft_logits(
            neighbors.stream(np.zeros((3, 2), np.uint8), [0, 0, 0], 1), np.zeros((1, 2), np.uint8), 1.0
        )
