"""Attacks on one network at growing radii: what they count, and that they go on from where they were stopped."""

import numpy as np
import pytest
from jax.tree_util import Partial

from configs import binary_tasks as config_file
from experiments import attacked, classifiers, plan, results
from nn_adv import attacks

NUM_IMAGES = 30


def _config():
    config = config_file.get_config("digits")
    config.evaluation.update(attacks=("apgd-margin", "square"), num_steps=3, num_queries=3, batch_size=8)
    config.radii.update(linf=0.1, l2=0.3)
    config.curve = (0.5, 2.0)
    return config


@pytest.fixture(scope="module")
def problem():
    """A linear classifier of two classes on [4, 4, 1] images, some of which it gets wrong."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    classifier = classifiers.Classifier(Partial(lambda weights, x: (x.reshape(len(x), -1) - 0.5) @ weights, weights))
    images = rng.random((NUM_IMAGES, 4, 4, 1)).astype(np.float32)
    labels = np.array(classifiers.predict(classifier, images))
    labels[:3] = 1 - labels[:3]
    return classifier, images, labels


@pytest.fixture(scope="module")
def expected(problem, tmp_path_factory):
    return _run(problem, tmp_path_factory.mktemp("whole") / "progress.npz")


def _run(problem, progress_file, **options):
    return attacked.broken_by(_config(), *problem, num_classes=2, seed=0, progress_file=progress_file, **options)


def test_broken_at_one_radius_is_broken_at_the_larger_ones_by_the_same_attack(expected):
    assert list(expected) == [("l2", 0.15), ("l2", 0.3), ("l2", 0.6), ("linf", 0.05), ("linf", 0.1), ("linf", 0.2)]
    counts = [int(np.sum(places == attacks.UNBROKEN)) for places in expected.values()]
    assert counts[0] > counts[1] > counts[2] and counts[3] > counts[4] > counts[5], counts
    for norm in ("l2", "linf"):
        curve = [places for (name, _), places in expected.items() if name == norm]
        np.testing.assert_array_equal(np.flatnonzero(curve[0] == attacks.CLEAN), [0, 1, 2])
        for smaller, larger in zip(curve, curve[1:], strict=False):
            gone = smaller != attacks.UNBROKEN
            np.testing.assert_array_equal(larger[gone], smaller[gone])


def test_no_image_of_a_linear_classifier_breaks_inside_its_radius(problem, expected):
    classifier, images, labels = problem
    (weights,) = classifier.logits_fn.args
    normal, logits = weights[:, 1] - weights[:, 0], np.asarray(classifier.logits_fn(images), np.float64)
    gap = np.abs(logits[:, 1] - logits[:, 0])
    for (norm, epsilon), places in expected.items():
        size = np.linalg.norm(normal, ord={"l2": 2, "linf": 1}[norm])
        assert not np.any((places != attacks.UNBROKEN) & (gap / size > epsilon * 1.001) & (np.arange(NUM_IMAGES) > 2))


@pytest.mark.parametrize("num_batches", [1, 7, 15])
def test_goes_on_from_where_it_was_stopped(problem, expected, tmp_path, monkeypatch, num_batches):
    monkeypatch.setattr(attacked, "_SECONDS_BETWEEN_SAVES", -1)
    shown = []

    def stop(text):
        shown.append(text)
        if len(shown) > num_batches:
            raise KeyboardInterrupt

    file = tmp_path / "attacks" / "progress.npz"
    with pytest.raises(KeyboardInterrupt):
        _run(problem, file, show=stop)
    assert file.exists()
    rest = []
    found = _run(problem, file, show=rest.append)
    assert rest[0] == shown[num_batches], "not the batch at which it was stopped"
    for threat, places in expected.items():
        np.testing.assert_array_equal(found[threat], places)


def test_a_damaged_file_says_what_to_do(problem, tmp_path):
    file = tmp_path / "progress.npz"
    file.write_bytes(b"nothing")
    with pytest.raises(results.ResultsError, match="progress.npz cannot be read .* remove it and run the same command"):
        _run(problem, file)


def test_images_left_by_each_attack_are_counted():
    places = np.array([attacks.UNBROKEN, attacks.CLEAN, 0, 1, 1, attacks.UNBROKEN])
    assert attacked.left_by_each(places, ["apgd-ce", "square"]) == {"apgd-ce": 4, "square": 2}


def test_attacks_have_the_size_that_is_asked_for():
    config = _config()
    config.evaluation.attacks = ()
    standard = plan.make_attacks(config, 2)
    assert [attack.name for attack in standard] == ["apgd-ce", "apgd-margin-t", "fab-t", "square"]
    assert standard[0].fn.keywords["num_steps"] == 3 and standard[3].fn.keywords == {"num_queries": 3}
    config.evaluation.attacks = ("magic",)
    with pytest.raises(ValueError, match="evaluation.attacks: attack must be one of apgd-ce, .*, got 'magic'"):
        plan.make_attacks(config, 2)
