"""The ensemble: what it breaks, in which order, whatever the batches and wherever it was stopped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.attacks import programs
from nn_adv.attacks.ensemble import CLEAN, UNBROKEN
from nn_adv.threat import Threat, perturbation_size, sum_per_image

KEY = jax.random.key(0)
THREAT = Threat("linf", 0.05)


def _network(num_classes, seed=0):
    """A small network on [6, 6, 1] images whose result for an image does not depend on the batch."""
    rng = np.random.default_rng(seed)
    first = jnp.asarray(rng.normal(size=(36, 16)).T / 6, jnp.float32)
    last = jnp.asarray(rng.normal(size=(16, num_classes)).T, jnp.float32)

    def logits_fn(images):
        hidden = jnp.maximum(_dense(images.reshape(len(images), -1) - 0.5, first), 0)
        return _dense(hidden, last)

    return logits_fn


def _dense(x, weights):
    products = x[:, None] * weights
    return sum_per_image(products.reshape(-1, x.shape[1])).reshape(len(x), -1)


# Most of the time here is compilation, of many small programs.
pytestmark = pytest.mark.usefixtures("quickly_compiled")


LOGITS = {num_classes: _network(num_classes) for num_classes in (2, 3, 10)}


MARKED = np.float32(0.123)  # a pixel of image 20


def _nan_where_marked(x):
    return jnp.where(x[:, :1, 0, 0] == MARKED, jnp.nan, LOGITS[10](x))


def _images(num_classes, count=23, wrong=2):
    images = np.random.default_rng(1).random((count, 6, 6, 1)).astype(np.float32)
    images[20, 0, 0, 0] = MARKED
    labels = np.array(jnp.argmax(LOGITS[num_classes](images), axis=1))
    labels[:wrong] = (labels[:wrong] + 1) % num_classes
    return images, labels


@functools.cache
def _quick(num_classes):
    """The standard attacks, shortened."""
    short = {"apgd": {"num_steps": 10}, "fab": {"num_steps": 10}, "square": {"num_queries": 50}}
    return tuple(
        attack._replace(fn=functools.partial(attack.fn, **short[attack.name.split("-")[0]]))
        for attack in attacks.standard_attacks(num_classes)
    )


def _run(num_classes, **options):
    options = {"key": KEY, "threat": THREAT, "attacks": _quick(num_classes), "batch_size": 8} | options
    return attacks.ensemble(LOGITS[num_classes], *_images(num_classes), **options)


@pytest.mark.parametrize("num_classes", [10, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3))])
def test_breaks_only_what_is_left_and_says_who_did(num_classes):
    images, labels = _images(num_classes)
    found = _run(num_classes)
    np.testing.assert_array_equal(np.flatnonzero(found.broken_by == CLEAN), [0, 1])
    np.testing.assert_array_equal(found.adversarial[found.broken_by < 0], images[found.broken_by < 0])
    np.testing.assert_array_equal(found.success, found.broken_by != UNBROKEN)
    assert found.num_unbroken == tuple(
        int(np.sum((found.broken_by == UNBROKEN) | (found.broken_by > k))) for k in range(-1, 4)
    )
    assert 2 < found.success.sum() < len(images)
    predicted = np.asarray(jnp.argmax(LOGITS[num_classes](found.adversarial), axis=1))
    np.testing.assert_array_equal(predicted != labels, found.success)
    assert np.max(perturbation_size("linf", jnp.asarray(found.adversarial - images))) <= 0.05 * (1 + 1e-5)
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    np.testing.assert_allclose(found.loss, attacks.margin(LOGITS[num_classes](found.adversarial), labels), atol=1e-6)
    np.testing.assert_allclose(found.distance, perturbation_size("linf", found.adversarial - images), rtol=1e-6)


def test_is_no_weaker_than_its_first_attack():
    alone = _run(10, attacks=_quick(10)[:1])
    together = _run(10)
    assert np.all(together.success >= alone.success)
    np.testing.assert_array_equal(together.adversarial[alone.success], alone.adversarial[alone.success])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "epsilon"),
    [
        ("linf", 0.05),
        pytest.param("l2", 0.4, marks=pytest.mark.slow),
        pytest.param("l1", 1.5, marks=pytest.mark.slow),
    ],
)
def test_does_not_depend_on_the_batch_size(norm, epsilon):
    """To the bit, with a network whose own result does not; in l2 but for the last bits of APGD."""
    for attack in _quick(10):
        options = {"threat": Threat(norm, epsilon), "attacks": (attack,)}
        one, seven, many = (_run(10, batch_size=batch_size, **options) for batch_size in (1, 7, 64))
        rounding = 1e-5 if norm == "l2" and attack.name.startswith("apgd") else 0
        for found in (one, seven):
            np.testing.assert_array_equal(found.broken_by, many.broken_by)
            np.testing.assert_allclose(found.adversarial, many.adversarial, rtol=0, atol=rounding)
        assert 0 < np.sum(many.broken_by == 0) < len(many.broken_by)


@pytest.mark.parametrize("num_batches", [1, 3, 4, 6])
def test_goes_on_from_where_it_stopped_to_the_same_bits(num_batches):
    states = []

    def stop(state):
        states.append(state)
        if len(states) == num_batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(10, on_batch=stop)
    rest, everything = [], []
    found = _run(10, state=states[-1], on_batch=lambda state: rest.append(state.num_done))
    expected = _run(10, on_batch=lambda state: everything.append(state.num_done))
    assert rest == everything[num_batches:]
    np.testing.assert_array_equal(found.broken_by, expected.broken_by)
    np.testing.assert_array_equal(found.adversarial, expected.adversarial)


def test_random_numbers_belong_to_the_index():
    images, labels = _images(10)
    whole = _run(10, indices=np.arange(100, 123))
    options = {"key": KEY, "threat": THREAT, "attacks": _quick(10), "batch_size": 8}
    half = attacks.ensemble(LOGITS[10], images[11:], labels[11:], indices=np.arange(111, 123), **options)
    np.testing.assert_array_equal(half.broken_by, whole.broken_by[11:])
    np.testing.assert_array_equal(half.adversarial, whole.adversarial[11:])
    others = attacks.ensemble(LOGITS[10], images[11:], labels[11:], **options)
    assert np.any(others.adversarial != half.adversarial)


@pytest.mark.slow
def test_another_classifier_may_judge():
    images, labels = _images(10)
    found = attacks.ensemble(
        LOGITS[10],
        images,
        labels,
        key=KEY,
        threat=THREAT,
        attacks=_quick(10),
        predict_fn=lambda x: jnp.zeros(len(x), int),
    )
    np.testing.assert_array_equal(found.success, labels != 0)
    assert np.all(found.broken_by[found.success] == CLEAN)


def _own_attack(change, name="own"):
    """An attack that adds ``change`` to every image and claims to break it."""

    def attack(logits_fn, images, labels, *, key, threat, predict_fn):
        moved = images + jnp.asarray(change, images.dtype)
        everything = jnp.ones(labels.shape, bool)
        return attacks.AttackResult(moved, everything, jnp.zeros(labels.shape), jnp.zeros(labels.shape))

    return [attacks.Attack(name, attack)]


def test_claims_of_an_attack_are_judged_again():
    found = _run(10, attacks=_own_attack(0.0))
    np.testing.assert_array_equal(found.success, np.arange(23) < 2)


@pytest.mark.parametrize(
    ("images", "change", "message"),
    [
        (0.5, 0.06, "attack own left the ball or the bounds: distance 0.06 of 0.05, pixels from 0.56 to 0.56"),
        (0.99, 0.02, "attack own left the ball or the bounds: distance 0.02 of 0.05, pixels from 1.01 to 1.01"),
        (0.5, np.nan, "attack own left the ball or the bounds: distance nan"),
    ],
)
def test_attacks_that_leave_what_is_allowed_are_refused(images, change, message):
    images = np.full((9, 6, 6, 1), images, np.float32)
    labels = np.array(jnp.argmax(LOGITS[10](images), axis=1))
    options = {"key": KEY, "threat": THREAT, "attacks": _own_attack(change), "batch_size": 8}
    with pytest.raises(ValueError, match=message):
        attacks.ensemble(LOGITS[10], images, labels, **options)


def test_bounds_of_any_number_type_are_those_of_the_pixels():
    # float32(0.2) exceeds 0.2.
    images = np.full((4, 6, 6, 1), 0.2, np.float32)
    labels = np.array(jnp.argmax(LOGITS[10](images), axis=1))
    threat = Threat("linf", 0.05, (np.float64(0), np.float64(0.2)))
    for attack in (_own_attack(0.0), [attacks.named_attack("pgd", 10, num_steps=3)]):
        attacks.ensemble(LOGITS[10], images, labels, key=KEY, threat=threat, attacks=attack, batch_size=8)


def test_half_precision_runs():
    images, labels = _images(10)
    options = {"key": KEY, "threat": THREAT, "attacks": _quick(10)[:1], "batch_size": 8}
    found = attacks.ensemble(LOGITS[10], images.astype(jnp.bfloat16), labels, **options)
    assert found.adversarial.dtype == jnp.float32  # half precisions are attacked in it


def test_few_classes_get_the_margin_and_names_get_an_error():
    assert [attack.name for attack in attacks.standard_attacks(2)] == ["apgd-ce", "apgd-margin-t", "fab-t", "square"]
    assert [attack.name for attack in attacks.standard_attacks(10)] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert attacks.named_attack("apgd-margin-t", 3).fn.keywords["num_targets"] == 2
    with pytest.raises(ValueError, match="apgd-dlr needs at least 3 classes, got 2: take apgd-margin"):
        attacks.named_attack("apgd-dlr", 2)
    with pytest.raises(ValueError, match="apgd-t needs at least 4 classes, got 3: take apgd-margin-t"):
        attacks.named_attack("apgd-t", 3)
    with pytest.raises(ValueError, match="attack must be one of apgd-ce, .*, got 'pgd-20'"):
        attacks.named_attack("pgd-20", 10)


def test_no_images_have_an_empty_result():
    images, labels = _images(10)
    found = attacks.ensemble(LOGITS[10], images[:0], labels[:0], key=KEY, threat=THREAT, attacks=_quick(10)[:1])
    assert found.adversarial.shape == images[:0].shape and found.success.shape == (0,)


def test_radius_zero_breaks_nothing_more():
    found = _run(10, threat=Threat("linf", 0.0))
    np.testing.assert_array_equal(found.success, np.arange(23) < 2)


def test_one_compilation_serves_all_batches_and_radii():
    traces = []

    def logits_fn(x):
        traces.append(x.shape)
        return LOGITS[10](x)

    images, labels = _images(10)
    attack = (attacks.Attack("short", functools.partial(attacks.apgd, num_steps=3)),)
    counts = []
    programs._of_texts.clear()
    for epsilon in (0.01, 0.02, 0.04):
        options = {"key": KEY, "threat": Threat("linf", epsilon), "attacks": attack, "batch_size": 8}
        attacks.ensemble(logits_fn, images, labels, **options)
        counts.append((len(traces), len(programs._of_texts)))
        traces.clear()
    assert counts[1] == counts[2] and counts[1][1] == counts[0][1]


def test_one_compilation_serves_networks_that_differ_in_their_variables():
    traces = []

    def logits_of(weights, x):
        traces.append(x.shape)
        return x.reshape(len(x), -1) @ weights

    images, _ = _images(10)
    attack = (attacks.named_attack("apgd-ce", 10, num_steps=3),)
    counts = []
    for seed in range(3):
        weights = np.random.default_rng(seed).normal(size=(36, 10)).astype(np.float32)
        labels = np.argmax(images.reshape(len(images), -1) @ weights, axis=1)
        network = jax.tree_util.Partial(logits_of, weights)
        attacks.ensemble(network, images, labels, key=KEY, threat=THREAT, attacks=attack)
        counts.append(len(traces))
    assert counts[0] == counts[2]


def test_attacks_by_name_take_their_counts():
    short, usual = attacks.named_attack("square", 10, num_queries=7), attacks.named_attack("square", 10)
    assert short.fn.keywords == {"num_queries": 7} and usual.fn.keywords == {}
    assert short is attacks.named_attack("square", 10, num_queries=7)  # so that it is compiled once


@pytest.mark.parametrize(
    ("name", "option"), [("square", "num_steps"), ("apgd-ce", "num_targets"), ("pgd", "step_size")]
)
def test_options_that_a_named_attack_has_not_are_refused(name, option):
    with pytest.raises(ValueError, match=f"{name} takes no {option} here"):
        attacks.named_attack(name, 10, **{option: 5})


@pytest.mark.parametrize(
    ("name", "num_classes", "options", "message"),
    [
        ("pgd", 3, {"num_steps": [1]}, r"num_steps must be a whole number, at least 0, got \[1\]"),
        ("square", 3, {"num_queries": 0.5}, "num_queries must be a whole number, at least 0, got 0.5"),
        ("pgd", 3, {"step_size": [0.1]}, "pgd takes no step_size here; make an Attack of your own for it"),
        ("pgd", [3], {}, r"num_classes must be a whole number, at least 1, got \[3\]"),
        (["pgd"], 3, {}, r"attack must be one of apgd-ce, .*, got \['pgd'\]"),
    ],
)
def test_what_names_no_attack_is_refused(name, num_classes, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        attacks.named_attack(name, num_classes, **options)


def test_plain_pgd_is_there_by_name():
    options = {"key": KEY, "threat": THREAT, "predict_fn": None}
    by_name = attacks.named_attack("pgd", 10).fn(LOGITS[10], *_images(10), **options)
    plain = attacks.pgd(LOGITS[10], *_images(10), **options, num_steps=40, step_size=0.05 / 16, loss_fn=attacks.margin)
    np.testing.assert_array_equal(by_name.adversarial, plain.adversarial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((23, 6, 6, 1), np.uint8)}, "images must be floating point"),
        ({"images": np.zeros((0, 6, 6, 1), np.float32)}, r"labels must be integers \[0\], got .* of shape \(23,\)"),
        ({"images": np.full((23, 6, 6, 1), 1.5, np.float32)}, "finite and inside .*, got 1.5 at index 0"),
        ({"images": np.full((23, 6, 6, 1), np.nan, np.float32)}, "finite and inside"),
        ({"labels": np.full(23, 10)}, r"labels must be in 0\.\.9, got 10 at index 0"),
        ({"labels": np.full(23, 0.0)}, "labels must be integers"),
        ({"logits_fn": _nan_where_marked, "batch_size": 8}, "for image 20 it returned NaN"),
        ({"logits_fn": lambda x: jnp.zeros(len(x))}, "logits_fn must return"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"state": attacks.EnsembleState(np.zeros((1, 1)), np.zeros(1), -1, 0)}, "state must be of the same images"),
        (
            {"state": attacks.EnsembleState(_images(10)[0], np.zeros(23), 4, 0)},
            "and attacks, .* and 4, got .* attack 4",
        ),
        (
            {"state": attacks.EnsembleState(_images(10)[0], np.full(3, UNBROKEN), 0, 0)},
            r"state.broken_by must be integers \[23\], got int64 of shape \(3,\)",
        ),
        (
            {"state": attacks.EnsembleState(_images(10)[0], np.full(23, -2.0), 0, 0)},
            r"state.broken_by must be integers \[23\], got -2.0 at index 0",
        ),
        (
            {"state": attacks.EnsembleState(_images(10)[0], np.full(23, 9), 0, 0)},
            r"state.broken_by must be in -2\.\.3, got 9 at index 0",
        ),
        (
            {"state": attacks.EnsembleState(_images(10)[0], np.full(23, UNBROKEN), 0, -1)},
            "state.num_done must be in 0..23, got -1",
        ),
        ({"indices": np.arange(22)}, r"indices must be integers \[23\], got .* of shape \(22,\)"),
        ({"labels": np.zeros((23, 1), int)}, r"labels must be integers \[23\], got .* of shape \(23, 1\)"),
        ({"threat": Threat("linf", np.full(23, 0.1))}, r"threat must have one epsilon for all images, got \(23,\)"),
        ({"attacks": [attacks.named_attack("square", 10)] * 2}, "different names, got square, square"),
        ({"attacks": ["apgd-ce"]}, "attacks must be a list of Attack, as named_attack makes them, got 'apgd-ce' in it"),
        ({"attacks": attacks.named_attack("square", 10)}, "attacks must be a list of Attack, .*, got 'square' in it"),
        ({"state": {}}, "state must be an EnsembleState, as on_batch is given, got dict"),
        ({"predict_fn": lambda x: LOGITS[10](x)}, r"predict_fn must return a class per image, \[128\], got .*128, 10"),
    ],
)
def test_bad_input_gets_one_clear_line(change, message):
    images, labels = _images(10)
    options = {"logits_fn": LOGITS[10], "images": images, "labels": labels, "key": KEY, "threat": THREAT} | change
    with pytest.raises(ValueError, match=message) as error:
        attacks.ensemble(options.pop("logits_fn"), options.pop("images"), options.pop("labels"), **options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("state", [None, attacks.EnsembleState(_images(10)[0], np.full(23, CLEAN), 0, 0)])
def test_probabilities_are_noticed(state):
    images, labels = _images(10)
    with pytest.warns(UserWarning, match="probabilities") as warned:
        attacks.ensemble(
            lambda x: jax.nn.softmax(LOGITS[10](x)),
            images,
            labels,
            key=KEY,
            threat=THREAT,
            attacks=_quick(10)[:1],
            state=state,
        )
    assert warned[0].filename == __file__


def test_a_plain_function_that_changes_between_calls_is_noticed():
    images, labels = _images(2)
    scale = 1.0

    def logits_fn(points):
        return scale * LOGITS[2](points)

    run = functools.partial(attacks.ensemble, logits_fn, images, labels, key=KEY, threat=THREAT, attacks=())
    assert run().num_unbroken[0] == len(images) - 2
    scale = -1.0
    assert run().num_unbroken[0] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": Threat("linf", 0.001)}, "attack of the state left the ball or the bounds: distance"),
        ({"images": lambda images: images[::-1]}, "state must be of the same images, got others that are unbroken"),
    ],
)
def test_a_state_of_another_question_is_refused(change, message):
    kept = []
    attack = attacks.named_attack("pgd", 10, num_steps=3)
    found = _run(
        10, attacks=(attack,), on_batch=lambda state: kept.append(state._replace(adversarial=state.adversarial.copy()))
    )
    assert (found.broken_by >= 0).any() and not found.success.all()
    images, labels = _images(10)
    images = change.pop("images", np.asarray)(images)
    options = {"key": KEY, "threat": THREAT, "attacks": (attack,), "batch_size": 8, "state": kept[-1]} | change
    with pytest.raises(ValueError, match=message):
        attacks.ensemble(LOGITS[10], images, labels, **options)
