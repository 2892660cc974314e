"""Attacks on one network at growing radii: what they count, and that they go on from where they were stopped."""

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import binary_tasks as config_file
from experiments import attacked, parsing
from nn_adv import attacks
from nn_adv.threat import Threat

NUM_IMAGES = 30


def _config():
    config = config_file.get_config("digits")
    config.evaluation.update(attacks=("apgd-margin", "square"), num_steps=3, num_queries=3, batch_size=8)
    config.epsilons.update(linf=0.1, l2=0.3)
    config.curve = (0.5, 2.0)
    return config


@pytest.fixture(scope="module")
def problem():
    """A linear classifier of two classes on [4, 4, 1] images, some of which it gets wrong."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    logits_fn = Partial(lambda weights, x: (x.reshape(len(x), -1) - 0.5) @ weights, weights)
    images = rng.random((NUM_IMAGES, 4, 4, 1)).astype(np.float32)
    labels = np.array(attacked.predict(logits_fn, images))
    labels[:3] = 1 - labels[:3]
    return logits_fn, images, labels


EVALUATION = parsing.Evaluation.read(_config())
THREATS = EVALUATION.threats


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory):
    """The result of a run without a break, and what it showed batch by batch."""
    shown = []
    outcomes = _outcomes(problem, tmp_path_factory.mktemp("whole") / "progress.npz", show=shown.append)
    return [outcome.attack_index for outcome in outcomes], shown


@pytest.fixture
def expected(whole):
    return {(threat.norm, threat.epsilon): places for threat, places in zip(THREATS, whole[0], strict=True)}


def _run(problem, progress_file, **options):
    return [outcome.attack_index for outcome in _outcomes(problem, progress_file, **options)]


def _outcomes(problem, progress_file, **options):
    outcomes = attacked.broken_by(
        *problem,
        suite=EVALUATION.suite(2),
        threats=THREATS,
        key=jax.random.key(0),
        indices=np.arange(NUM_IMAGES),
        batch_size=EVALUATION.batch_size,
        progress_file=progress_file,
        **options,
    )
    assert [outcome.threat for outcome in outcomes] == THREATS
    return outcomes


def test_broken_at_one_radius_is_broken_at_the_larger_ones_by_the_same_attack(expected):
    assert list(expected) == [("l2", 0.3), ("l2", 0.6), ("l2", 0.15), ("linf", 0.1), ("linf", 0.2), ("linf", 0.05)]
    expected = dict(sorted(expected.items()))
    counts = [int(np.sum(places == attacks.UNBROKEN)) for places in expected.values()]
    assert counts[0] > counts[1] > counts[2] and counts[3] > counts[4] > counts[5], counts
    for norm in ("l2", "linf"):
        curve = [places for (name, _), places in expected.items() if name == norm]
        np.testing.assert_array_equal(np.flatnonzero(curve[0] == attacks.CLEAN), [0, 1, 2])
        for smaller, larger in zip(curve, curve[1:], strict=False):
            gone = smaller != attacks.UNBROKEN
            np.testing.assert_array_equal(larger[gone], smaller[gone])


def test_at_the_first_radius_of_a_norm_the_counts_are_those_of_the_ensemble_alone(problem, expected):
    for norm, epsilon in (("l2", 0.3), ("linf", 0.1)):
        alone = attacks.ensemble(
            problem[0],
            *problem[1:],
            key=jax.random.key(0),
            threat=Threat(norm, epsilon),
            attacks=EVALUATION.suite(2),
            batch_size=8,
        )
        np.testing.assert_array_equal(expected[norm, epsilon], alone.broken_by)


def test_an_image_is_attacked_only_where_there_is_a_doubt(problem, tmp_path, monkeypatch):
    attacked_at = {}
    inner = attacks.ensemble

    def count(*args, threat, state, **options):
        attacked_at[threat.norm, threat.epsilon] = None if state is None else state.broken_by == attacks.UNBROKEN
        return inner(*args, threat=threat, state=state, **options)

    monkeypatch.setattr(attacks, "ensemble", count)
    places = _run(problem, tmp_path / "progress.npz")
    found = dict(zip(attacked_at, places, strict=True))
    assert attacked_at["linf", 0.1] is None
    unbroken = {epsilon: places == attacks.UNBROKEN for (norm, epsilon), places in found.items() if norm == "linf"}
    np.testing.assert_array_equal(attacked_at["linf", 0.2], unbroken[0.1])
    clean = found["linf", 0.1] == attacks.CLEAN
    np.testing.assert_array_equal(attacked_at["linf", 0.05], ~unbroken[0.1] & ~clean)
    assert unbroken[0.05][unbroken[0.1]].all() and unbroken[0.1][unbroken[0.2]].all()


def test_no_image_of_a_linear_classifier_breaks_inside_its_radius(problem, expected):
    logits_fn, images, labels = problem
    (weights,) = logits_fn.args
    normal, logits = weights[:, 1] - weights[:, 0], np.asarray(logits_fn(images), np.float64)
    gap = np.abs(logits[:, 1] - logits[:, 0])
    for (norm, epsilon), places in expected.items():
        size = np.linalg.norm(normal, ord={"l2": 2, "linf": 1}[norm])
        assert not np.any((places != attacks.UNBROKEN) & (gap / size > epsilon * 1.001) & (np.arange(NUM_IMAGES) > 2))


@pytest.mark.parametrize("num_batches", [1, 7, 15])
def test_goes_on_from_where_it_was_stopped(problem, whole, tmp_path, monkeypatch, num_batches):
    monkeypatch.setattr(attacked, "_SECONDS_BETWEEN_SAVES", -1)
    file = tmp_path / "attacks" / "progress.npz"
    shown = _run_until(problem, file, num_batches)
    rest = []
    outcomes = _outcomes(problem, file, show=rest.append)
    # The batch at which it was stopped had not been kept.
    assert shown[:num_batches] + rest == whole[1]
    np.testing.assert_array_equal([outcome.attack_index for outcome in outcomes], whole[0])


def test_another_network_does_not_go_on_from_there(problem, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(attacked, "_SECONDS_BETWEEN_SAVES", -1)
    logits_fn, images, labels = problem
    (weights,) = logits_fn.args
    other = Partial(logits_fn.func, weights[:, ::-1].copy())
    file = tmp_path / "progress.npz"
    _run_until((other, images, 1 - labels), file, 7)
    shown = []
    np.testing.assert_array_equal(_run(problem, file, show=shown.append), whole[0])
    assert shown == whole[1]


def _run_until(problem, file, num_batches):
    shown = []

    def stop(text):
        shown.append(text)
        if len(shown) > num_batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(problem, file, show=stop)
    assert file.exists()
    return shown


@pytest.mark.parametrize("content", [b"", b"nothing"])
def test_a_damaged_file_says_what_to_do(problem, tmp_path, content):
    file = tmp_path / "progress.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="progress.npz cannot be read .* remove it, .* and run the same command again"):
        _run(problem, file)


def test_attacks_have_the_size_that_is_asked_for():
    config = _config()
    config.evaluation.attacks = ()
    standard = parsing.Evaluation.read(config).suite(2)
    assert [attack.name for attack in standard] == ["apgd-ce", "apgd-margin-t", "fab-t", "square"]
    assert standard[0].fn.keywords["num_steps"] == 3 and standard[3].fn.keywords == {"num_queries": 3}
    config.evaluation.attacks = ("magic",)
    with pytest.raises(ValueError, match="evaluation.attacks: attack must be one of apgd-ce, .*, got 'magic'"):
        parsing.Evaluation.read(config).suite(2)


def test_functions_are_told_apart_by_what_they_say():
    images = np.random.default_rng(0).random((20, 4)).astype(np.float32)
    networks = [Partial(lambda x, sign=sign: sign * x) for sign in (1, 1, -1)]
    same, equal, other = (attacked._fingerprint(network, images, 20) for network in networks)
    assert same == equal != other
    assert {attacked._fingerprint(networks[0], images, batch_size) for batch_size in (3, 16, 100)} == {same}
