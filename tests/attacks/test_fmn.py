"""The minimum-norm search against exact distances, FAB and Foolbox."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.evaluation import robust_curve
from nn_adv.threat import NORMS, Threat, perturbation_size
from tests.attacks import reference_models, small_networks


@functools.partial(jax.jit, static_argnames=("logits_fn", "norm", "bounds", "num_steps", "num_restarts", "num_targets"))
def _jitted(logits_fn, images, labels, **options):
    return attacks.fmn(logits_fn, images, labels, key=jax.random.key(0), **options)


def _search(problem, norm, num_steps=30, **options):
    return _jitted(*problem[:3], norm=norm, num_steps=num_steps, **options)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
def test_distance_of_a_linear_classifier_is_found(norm, bounds):
    problem = small_networks.linear(12)
    result = _search(problem, norm, 100, bounds=bounds, num_targets=2)
    truth = np.array([problem.radius(i, norm, bounds) for i in range(12)])
    assert np.all(np.isfinite(truth)) and np.all(truth > 1e-3)
    assert np.all(result.distance >= truth * (1 - 1e-5)), "an upper bound below the truth"
    assert np.all(result.distance <= truth * 1.01), result.distance / truth


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_result_is_misclassified_within_bounds_and_measured(norm):
    problem = small_networks.network(40)
    result = _search(problem, norm)
    assert np.all(result.success)
    assert np.all((result.adversarial >= 0) & (result.adversarial <= 1))
    assert np.all(np.argmax(problem.logits_fn(result.adversarial), axis=1) != problem.labels)
    np.testing.assert_allclose(result.distance, perturbation_size(norm, result.adversarial - problem.images), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["l2", pytest.param("l1", marks=pytest.mark.slow), pytest.param("linf", marks=pytest.mark.slow)]
)
def test_distances_make_a_curve_that_no_attack_in_the_ball_undercuts_by_much(norm):
    problem = small_networks.network(40)
    distance = np.asarray(_search(problem, norm, 100, num_targets=3).distance)
    epsilon = float(np.median(distance)) * 0.97
    attacked = attacks.pgd(
        *problem,
        key=jax.random.key(1),
        threat=Threat(norm, epsilon),
        num_steps=50,
        step_size=epsilon / 10,
        loss_fn=attacks.margin,
    )
    kept = robust_curve(distance, np.ones(40, bool), [epsilon])[0]
    assert 15 <= kept.sum() <= 25
    assert not np.any(np.asarray(attacked.success) & (distance > 1.03 * epsilon))


def test_wrong_from_the_start_is_returned_unchanged():
    problem = small_networks.network(10)
    result = _search(problem._replace(labels=(problem.labels + 1) % 4), "l2", num_restarts=2)
    assert np.all(result.success)
    np.testing.assert_array_equal(result.adversarial, problem.images)
    np.testing.assert_array_equal(result.distance, 0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_found_is_infinitely_far(norm):
    images = np.full((3, 6), 0.5, np.float32)
    always = lambda points: jnp.tile(jnp.array([0.0, 2.0]), (points.shape[0], 1)) + 0 * points[:, :1]  # noqa: E731
    result = attacks.fmn(always, images, np.ones(3, int), key=jax.random.key(0), norm=norm, num_steps=3, num_restarts=2)
    assert not np.any(result.success) and np.all(np.isinf(result.distance))
    np.testing.assert_array_equal(result.adversarial, images)


def test_the_last_point_is_scored():
    # One step goes 5 % beyond the border; nothing is visited after it.
    problem = small_networks.linear(20, num_classes=2)
    result = _search(problem, "l2", 1, bounds=None)
    truth = [problem.radius(i, "l2", None) for i in range(20)]
    np.testing.assert_allclose(result.distance, 1.05 * np.array(truth), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_judge_whose_border_lies_beyond_that_of_the_logits(norm):
    def brightness(border):
        return lambda x: jnp.stack([jnp.full(len(x), border * x.shape[1]), jnp.sum(x, axis=1)], axis=1)

    images = np.full((2, 4), 0.4, np.float32)
    logits_fn, judge = brightness(0.5), lambda x: jnp.argmax(brightness(0.6)(x), axis=1)
    found = attacks.fmn(
        logits_fn, images, np.zeros(2, int), key=jax.random.key(0), norm=norm, num_steps=40, predict_fn=judge
    )
    truth = {"l1": 0.8, "l2": 0.4, "linf": 0.2}[norm]
    np.testing.assert_allclose(found.distance, truth, rtol=0.01)
    assert np.all(found.distance >= truth * (1 - 1e-5))


def test_more_targets_never_lose():
    problem = small_networks.network(40)
    one, three = (_search(problem, "l2", 10, num_targets=count) for count in (1, 3))
    assert np.all(one.distance >= three.distance) and np.any(one.distance > three.distance)


@pytest.mark.slow
def test_restarts_find_what_no_gradient_at_the_image_shows():
    def logits_fn(points):  # wrong far to the right, where the slope leads, and just below, behind a flat stretch
        right, below = points[:, 0] - 0.9, 10 * jax.nn.relu(0.45 - points[:, 1]) - 0.1
        return jnp.stack([jnp.zeros_like(right), jnp.maximum(right, jnp.where(below > -0.1, below, -1))], axis=1)

    problem = small_networks.Problem(logits_fn, np.full((20, 2), 0.5, np.float32), np.zeros(20, int))
    one, many = (np.asarray(_search(problem, "l2", num_restarts=count).distance) for count in (1, 4))
    np.testing.assert_allclose(one, 0.4, rtol=0.01)
    assert np.all(many <= one) and np.all(many >= 0.06)  # the border below is at 0.06
    assert np.sum(many < 0.1) >= 10


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("size", [7, 1])
@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_result_does_not_depend_on_the_batch(norm, size):
    search = functools.partial(attacks.fmn, norm=norm, num_steps=6, num_restarts=2)
    small_networks.check_that_batches_do_not_matter(search, sizes=[size])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l3"}, "norm must be one of l1, l2, linf, got 'l3'"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be at least 1, got 0"),
        ({"num_targets": 4}, "num_targets must be in 1..3, there are 4 classes, got 4"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"key": 0}, "key must be a key from jax.random.key, got 0"),
        ({"images": np.zeros((4, 6, 6, 2), np.uint8)}, "floating point"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    problem = small_networks.network(4)
    arguments = dict(images=problem.images, labels=problem.labels, key=jax.random.key(0), norm="l2")
    with pytest.raises(ValueError, match=message):
        attacks.fmn(problem.logits_fn, **(arguments | change))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_as_near_as_fab_on_a_published_network(shared_dir, norm):
    model = reference_models.load(shared_dir / "reference" / "apgd", "c2", every=5)
    ours = _jitted(model.logits_fn, model.images, model.labels, norm=norm, num_steps=100).distance
    run = jax.jit(
        lambda x, y: attacks.fab(
            model.logits_fn, x, y, key=jax.random.key(0), threat=Threat(norm, 100.0), num_targets=1
        )
    )
    ratio = np.asarray(ours) / np.asarray(run(model.images, model.labels).distance)
    assert np.exp(np.mean(np.log(ratio))) < 1 and ratio.max() < 1.02


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_not_weaker_than_foolbox(shared_dir, norm):
    foolbox = pytest.importorskip("foolbox")
    model = reference_models.load(shared_dir / "reference" / "apgd", "c2", every=5)
    attack = {"l1": "L1FMNAttack", "l2": "L2FMNAttack", "linf": "LInfFMNAttack"}[norm]
    theirs = foolbox.models.JAXModel(jax.jit(model.logits_fn), bounds=(0, 1), data_format="channels_last")
    images, labels = jnp.asarray(model.images), jnp.asarray(model.labels)
    _, points, broken = getattr(foolbox.attacks, attack)(steps=50)(theirs, images, labels, epsilons=None)
    distance = np.where(broken, perturbation_size(norm, points - images), np.inf)
    ours = np.asarray(_jitted(model.logits_fn, images, labels, norm=norm, num_steps=50).distance)
    assert np.all(ours <= distance * 1.02), np.max(ours / distance)
    assert np.median(ours / distance) < 1.002
