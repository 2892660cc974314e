"""Calls in the manner of other libraries against our own, and their attacks on our classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.threat import Threat
from tests.attacks import reference_models, small_networks

KEY = jax.random.key(0)


def _channels_first(images):
    return np.moveaxis(images, -1, 1)


# 20 are filled up to 32: the same to the bit as users compile (Makefile), and up to rounding otherwise.
@pytest.mark.slow
@pytest.mark.parametrize("count", [32, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("norm", "name"), [(np.inf, "linf"), (2, "l2")])
def test_channels_first_gives_what_our_own_call_gives(norm, name, count):
    problem = small_networks.network(count, (6, 5, 2))
    eps = {"linf": 0.03, "l2": 0.15}[name]
    ours = attacks.ensemble(
        *problem,
        key=jax.random.key(3),
        threat=Threat(name, eps),
        attacks=[attacks.named_attack("apgd-margin", 4, num_steps=10)],
        batch_size=count,
    )
    x = _channels_first(problem.images)
    found = attacks.perturb(
        problem.logits_fn, x, problem.labels, eps=eps, norm=norm, attack="apgd-margin", n_iter=10, seed=3
    )
    assert found.shape == x.shape == (count, 2, 6, 5) and found.dtype == np.float32
    np.testing.assert_array_equal(found, _channels_first(ours.adversarial))
    wrong = np.argmax(problem.logits_fn(np.moveaxis(found, 1, -1)), axis=1) != problem.labels
    assert 0 < wrong.sum() < count
    np.testing.assert_array_equal(found[~wrong], x[~wrong])
    sizes = np.linalg.norm((found - x).reshape(count, -1), norm, axis=1)
    assert np.all(sizes <= eps * (1 + 1e-5))


@pytest.mark.parametrize("norm", ["Linf", "linf", "inf", float("inf")])
def test_names_of_a_norm_mean_the_same(norm):
    problem = small_networks.network(4)
    arguments = (problem.logits_fn, _channels_first(problem.images), problem.labels)
    found = attacks.perturb(*arguments, eps=0.05, norm=norm, attack="square", n_iter=5)
    np.testing.assert_array_equal(found, attacks.perturb(*arguments, eps=0.05, norm=np.inf, attack="square", n_iter=5))


@pytest.mark.slow
def test_batches_of_a_loader_share_what_is_compiled_and_keep_their_random_numbers():
    problem = small_networks.network(40)
    traces = []

    def logits_fn(images):
        traces.append(images.shape)
        return problem.logits_fn(images)

    def attack(rows):
        chosen = (_channels_first(problem.images[rows]), problem.labels[rows])
        return attacks.perturb(logits_fn, *chosen, eps=0.05, norm=2, attack="square", n_iter=5, indices=rows)

    whole = attack(np.arange(30))
    np.testing.assert_allclose(attack(np.arange(13, 30)), whole[13:], rtol=0, atol=1e-6)
    assert {shape[0] for shape in traces} == {1, 32}  # one image tells how many classes there are


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": 3}, "norm must be 1, 2, np.inf or one of l1, l2, linf, got 3"),
        ({"norm": np.int64(3)}, "norm must be 1, 2, np.inf or one of l1, l2, linf, got np.int64"),
        ({"norm": None}, "norm must be 1, 2, np.inf or one of l1, l2, linf, got None"),
        ({"eps": [0.1]}, r"eps must be a number >= 0, got \[0.1\]"),
        ({"batch_size": "8"}, "batch_size must be a whole number, .* got '8'"),
        ({"x": np.zeros((2, 5), np.float32)}, r"x must be \[N, C, H, W\]"),
        ({"attack": "standard", "n_iter": 5}, "n_iter is of a single attack"),
        ({"attack": "cw"}, "attack must be one of"),
    ],
)
def test_bad_input_is_refused(change, message):
    problem = small_networks.network(2)
    usual = {"x": _channels_first(problem.images), "y": problem.labels, "eps": 0.1, "norm": 2, "attack": "pgd"}
    with pytest.raises(ValueError, match=message):
        attacks.perturb(problem.logits_fn, **usual | change)


def test_foolbox_attacks_our_classifier():
    foolbox = pytest.importorskip("foolbox")
    problem = small_networks.network(30)
    model = foolbox.models.JAXModel(problem.logits_fn, bounds=(0, 1))
    images, labels = jnp.asarray(problem.images), jnp.asarray(problem.labels)
    _, points, broken = foolbox.attacks.LinfPGD(steps=20)(model, images, labels, epsilons=0.05)
    assert 0 < int(broken.sum()) < 30
    np.testing.assert_array_equal(np.argmax(problem.logits_fn(points), axis=1) != problem.labels, broken)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "theirs"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_apgd_is_not_weaker_than_the_pgd_of_foolbox(shared_dir, norm, theirs):
    foolbox = pytest.importorskip("foolbox")
    problem = reference_models.load(shared_dir / "reference" / "apgd", "c10", every=4)
    epsilon, images, labels = problem.epsilon[norm], jnp.asarray(problem.images), jnp.asarray(problem.labels)
    model = foolbox.models.JAXModel(jax.jit(problem.logits_fn), bounds=(0, 1), data_format="channels_last")
    _, _, broken = getattr(foolbox.attacks, theirs)(steps=40)(model, images, labels, epsilons=epsilon)
    run = jax.jit(lambda threat: attacks.apgd(problem.logits_fn, images, labels, key=KEY, threat=threat, num_steps=40))
    ours = run(Threat(norm, epsilon)).success
    assert 0 < int(broken.sum()) <= int(ours.sum()), (int(broken.sum()), int(ours.sum()))


@pytest.fixture
def estimator():
    pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    return attacks.art_classifier(small_networks.network(30).logits_fn, input_shape=(6, 6, 2), num_classes=4)


def test_art_gradients_are_those_of_differences(estimator):
    problem = small_networks.network(30)
    images, step = problem.images[:3].astype(np.float64), 1e-3
    direction = np.random.default_rng(0).standard_normal(images.shape)
    labels = problem.labels[:3]

    def slope(values):
        return (values(images + step * direction) - values(images - step * direction)) / (2 * step)

    along = np.einsum("bchwk,bhwk->bc", estimator.class_gradient(images), direction)
    np.testing.assert_allclose(along, slope(estimator.predict), rtol=1e-2, atol=1e-2)
    one = estimator.class_gradient(images, label=labels)
    np.testing.assert_array_equal(one[:, 0], estimator.class_gradient(images)[np.arange(3), labels])
    np.testing.assert_array_equal(estimator.class_gradient(images, 2)[:, 0], estimator.class_gradient(images)[:, 2])
    loss = slope(lambda x: np.asarray(attacks.cross_entropy(estimator.predict(x), labels)))
    found = estimator.loss_gradient(images, np.eye(4)[labels])
    np.testing.assert_allclose(np.einsum("bhwk,bhwk->b", found, direction), loss, rtol=1e-2, atol=1e-2)


def test_art_attacks_our_classifier(estimator):
    evasion = pytest.importorskip("art.attacks.evasion")
    problem = small_networks.network(30)
    one_hot = np.eye(4, dtype=np.float32)[problem.labels]
    pgd = evasion.ProjectedGradientDescentNumpy(estimator, eps=0.05, eps_step=0.01, max_iter=20, verbose=False)
    points = pgd.generate(problem.images, one_hot)
    broken = np.argmax(estimator.predict(points), axis=1) != problem.labels
    assert 0 < broken.sum() < 30
    assert np.abs(points - problem.images).max() <= 0.05 + 1e-6
    near = evasion.DeepFool(estimator, max_iter=30, nb_grads=4, verbose=False).generate(problem.images[:5])
    assert np.all(np.argmax(estimator.predict(near), axis=1) != problem.labels[:5])
