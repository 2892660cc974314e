"""Two classes a gap apart: what is known of them."""

import numpy as np
import pytest

from nn_adv import data


@pytest.fixture(scope="module")
def dataset():
    return data.manifolds(dimensions=(1, 3), num_pixels=5, gap=0.2, num_train=300, num_test=50)


def test_classes_are_cubes_of_their_dimension(dataset):
    assert dataset.train_images.shape == (1200, 1, 5, 1) and dataset.test_images.shape == (200, 1, 5, 1)
    for label, dimension in enumerate((1, 1, 3, 3)):
        points = dataset.train_images[dataset.train_labels == label].reshape(300, 5)
        sides = np.ptp(points, axis=0)
        assert (sides[:dimension] > 0.24).all() and (sides[:dimension] <= 0.25001).all()
        assert (points[:, dimension:] == 0.5).all()


def test_the_gap_is_where_the_classes_end(dataset):
    first = dataset.train_images[:, 0, 0, 0]
    for low, high in ((0, 1), (2, 3)):
        below, above = (first[dataset.train_labels == label] for label in (low, high))
        assert 0.397 < below.max() <= 0.4 + 1e-6 and 0.6 - 1e-6 <= above.min() < 0.603


def test_a_seed_gives_the_same_points():
    one, same, other = (data.manifolds(num_train=5, num_test=5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.train_images, same.train_images)
    assert not np.array_equal(one.train_images, other.train_images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": (6,)}, "dimensions must be .*got 6"),
        ({"dimensions": ()}, "dimensions must hold"),
        ({"dimensions": (2, 2)}, "dimensions must hold .*none twice"),
        ({"gap": 0.0}, "gap must be above 0"),
        ({"num_train": 0}, "num_train"),
        ({"dimensions": 3}, r"dimensions must be integers \[N\], got int64 of shape \(\)"),
        ({"gap": "0.2"}, "gap must be a number >= 0, got '0.2'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        data.manifolds(**({"num_pixels": 5, "dimensions": (1,)} | changes))
