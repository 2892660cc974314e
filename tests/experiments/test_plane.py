import numpy as np

from experiments import plane
from nn_adv import certify, neighbors


def test_as_many_labels_are_swapped_as_asked():
    points, labels = plane.blobs(np.random.default_rng(0), 50, 0.1)
    truth = np.repeat([0, 0, 1, 1], 50)
    assert points.shape == (200, 2) and np.sum(labels != truth) == 20


def test_a_grid_finds_robust_at_least_what_is_exactly_robust():
    points, labels = plane.blobs(np.random.default_rng(0), 10, 0.1)
    reference = neighbors.fit(points, labels, 2)
    axis = np.linspace(0, 1, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    regions = np.asarray(neighbors.predict(reference, grid)).reshape(200, 200)
    found = plane.robust_on_grid(regions, points, labels)
    exact = certify.radius(reference, points, labels, norm="linf").lower >= plane._EPSILON
    assert np.all(found[exact])
    assert np.sum(found != exact) <= 3 and 0 < exact.sum() < len(points)
