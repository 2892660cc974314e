"""Prototypes: centres of clusters, and the bound that learning pushes up against the truth in float64."""

import jax
import numpy as np
import pytest

from nn_adv import training
from nn_adv.threat import Threat
from nn_adv.training import prototypes

ORDERS = {"l1": np.inf, "l2": 2, "linf": 1}  # dual to the norm of the threat


def _blobs(count=60):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    points = 0.3 + 0.4 * labels[:, None] * np.array([1.0, 0.0]) + 0.04 * rng.standard_normal((count, 2))
    return np.clip(points, 0, 1).astype(np.float32).reshape(count, 1, 2, 1), labels


def test_centres_are_means_of_clusters_and_small_classes_stay():
    points, labels = _blobs()
    found, of = training.cluster_prototypes(points, labels, key=jax.random.key(0), per_class=1)
    assert of.tolist() == [0, 1]
    means = [points[labels == label].mean(axis=0) for label in (0, 1)]
    np.testing.assert_allclose(found, means, atol=1e-6)
    found, of = training.cluster_prototypes(points, labels, key=jax.random.key(0), per_class=30)
    assert np.array_equal(found, np.concatenate([points[labels == label] for label in (0, 1)]))


def test_names_of_classes_do_not_matter():
    """Nor how large they are, which memory does not grow with."""
    points, labels = _blobs()
    options = {"key": jax.random.key(0), "per_class": 5}
    found, of = training.cluster_prototypes(points, labels, **options)
    renamed, of_renamed = training.cluster_prototypes(points, labels * 50_000_000, **options)
    np.testing.assert_array_equal(renamed, found)
    np.testing.assert_array_equal(of_renamed, of * 50_000_000)


def _truth(weights, image, label, classes, norm):
    weights, image = weights.astype(float), image.astype(float)
    squares = np.sum((weights - image) ** 2, axis=1)
    others, own = np.flatnonzero(classes != label), np.flatnonzero(classes == label)
    return min(
        max(
            (squares[j] - squares[i]) / (2 * np.linalg.norm(weights[j] - weights[i], ORDERS[norm]))
            for i in own
        )
        for j in others
    )  # fmt: skip


@pytest.mark.parametrize("norm", ORDERS)
def test_the_loss_is_that_of_the_bound(norm):
    rng = np.random.default_rng(1)
    weights, images = rng.random((7, 4)).astype(np.float32), rng.random((9, 4)).astype(np.float32)
    labels, classes = rng.integers(0, 3, 9), np.array([0, 0, 1, 1, 1, 2, 2])
    bounds = [_truth(weights, image, label, classes, norm) for image, label in zip(images, labels, strict=True)]
    loss = prototypes._loss(weights, images, labels, classes, ((norm, 0.2),))
    np.testing.assert_allclose(loss, np.mean(np.maximum(0, 1 - np.array(bounds) / 0.2)), rtol=1e-4)


def test_learning_lowers_the_loss():
    points, labels = _blobs()
    threats = [Threat("linf", 0.18), Threat("l2", 0.18)]
    sizes = tuple((threat.norm, threat.epsilon) for threat in threats)
    flat = points.reshape(len(points), -1)

    def loss(steps):
        options = {"key": jax.random.key(0), "per_class": 2, "threats": threats, "batch_size": 16}
        found, of = training.learn_prototypes(points, labels, num_steps=steps, **options)
        assert found.min() >= 0 and found.max() <= 1 and found.shape[1:] == (1, 2, 1)
        return float(prototypes._loss(found.reshape(len(found), -1), flat, labels, of, sizes))

    assert loss(60) < 0.8 * loss(1)


@pytest.mark.parametrize("epsilons", [(), (0.0,), (np.inf,), (np.array([0.1, 0.2]),)])
def test_threats_that_are_none_are_refused(epsilons):
    points, labels = _blobs()
    threats = [Threat("l2", epsilon) for epsilon in epsilons]
    message = "threats must hold at least one Threat, each of one finite epsilon above 0"
    with pytest.raises(ValueError, match=message):
        training.learn_prototypes(points, labels, key=jax.random.key(0), per_class=2, threats=threats)


@pytest.mark.parametrize(
    ("learning_rate", "message"),
    [
        (np.nan, "learning_rate must be a number >= 0, got nan"),
        (-1, "learning_rate must be a number >= 0, got -1"),
        ("0.1", "learning_rate must be a number >= 0, got '0.1'"),
        (np.inf, "learning_rate must be one finite number >= 0, got inf"),
        (np.array([0.1, 0.2]), r"learning_rate must be one finite number >= 0, got \[0.1, 0.2\]"),
    ],
)
def test_a_learning_rate_that_is_none_is_refused(learning_rate, message):
    options = {"key": jax.random.key(0), "per_class": 2, "threats": [Threat("l2", 0.1)]}
    with pytest.raises(ValueError, match=f"^{message}$"):
        training.learn_prototypes(*_blobs(), learning_rate=learning_rate, **options)


def test_one_class_has_nothing_to_learn():
    points, labels = _blobs()
    options = {"key": jax.random.key(0), "per_class": 2, "threats": [Threat("l2", 0.1)]}
    with pytest.raises(ValueError, match="labels must be of two classes or more, got 60 of class 3 alone"):
        training.learn_prototypes(points, np.full(60, 3), **options)
