"""The attacks on 1NN against borders found by bisection, exact radii, and single runs of APGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks, neighbors
from nn_adv.threat import NORMS, Threat

_ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}


def _problem(num_points=60, count=40, seed=0):
    """Makes points of three classes, images near points that 1NN gets right, and their labels."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (num_points, 3, 2)).astype(np.float32)
    point_labels = rng.integers(0, 3, num_points)
    rows = rng.permutation(num_points)[:count]
    images = np.clip(points[rows] + rng.normal(0, 0.05, (count, 3, 2)), 0, 1).astype(np.float32)
    reference = neighbors.fit(points, point_labels, 3)
    return reference, points, point_labels, images, np.asarray(neighbors.predict(reference, images))


@functools.partial(jax.jit, static_argnames=("norm", "num_candidates"))
def _segments(reference, points, point_labels, images, labels, norm, num_candidates):
    return attacks.segment_attack(
        points,
        point_labels,
        images,
        labels,
        norm=norm,
        predict_fn=lambda x: neighbors.predict(reference, x),
        num_candidates=num_candidates,
    )


def _first_size(points, point_labels, image, label, norm, num_candidates):
    """Bisects every segment for where its end is nearer than all own points, in float64."""
    image, points = image.astype(np.float64).ravel(), points.astype(np.float64).reshape(len(points), -1)
    own, others = points[point_labels == label], points[point_labels != label]
    others = others[np.argsort(((others - image) ** 2).sum(axis=1))[:num_candidates]]
    sizes = []
    for end in others:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            at = image + middle * (end - image)
            wins = ((at - end) ** 2).sum() <= ((at - own) ** 2).sum(axis=1).min()
            low, high = (low, middle) if wins else (middle, high)
        sizes.append(high * np.linalg.norm(end - image, _ORDERS[norm]))
    return min(sizes)


@pytest.mark.parametrize("norm", NORMS)
def test_segment_ends_a_hair_beyond_the_first_border(norm):
    reference, points, point_labels, images, labels = _problem()
    result = _segments(reference, points, point_labels, images, labels, norm, 5)
    truth = [_first_size(points, point_labels, x, y, norm, 5) for x, y in zip(images, labels, strict=True)]
    assert np.all(result.success)
    assert np.all(neighbors.predict(reference, result.adversarial) != labels)
    np.testing.assert_allclose(result.distance, truth, rtol=1e-4)
    sizes = np.linalg.norm((result.adversarial - images).reshape(40, -1), _ORDERS[norm], axis=1)
    np.testing.assert_allclose(result.distance, sizes, rtol=1e-5)
    assert np.all((result.adversarial >= 0) & (result.adversarial <= 1))


def test_each_image_is_on_its_own():
    reference, points, point_labels, images, labels = _problem()
    together = _segments(reference, points, point_labels, images, labels, "l2", 5)
    others = np.where(np.arange(40)[:, None, None] == 7, images, images[::-1])
    other_labels = np.where(np.arange(40) == 7, labels, labels[::-1])
    among_others = _segments(reference, points, point_labels, others, other_labels, "l2", 5)
    np.testing.assert_allclose(among_others.adversarial[7], together.adversarial[7], rtol=0, atol=1e-6)


def test_only_own_points_stand_in_the_way():
    # Halfway to the far candidate the near one is nearer still, but the far one is first in linf.
    points = np.array([[0, 0], [0.5, 0.5], [0.525, 0.1]], np.float32)
    reference = neighbors.fit(points, [0, 1, 1], 2)
    result = _segments(reference, points, np.array([0, 1, 1]), points[:1], np.zeros(1, int), "linf", 2)
    np.testing.assert_allclose(result.distance, 0.25, rtol=1e-4)


def test_copies_of_own_points_are_passed_over():
    points = np.array([[0.5], [0.5], [0.9], [0.1]], np.float32)
    images, labels = np.full((1, 1), 0.52, np.float32), np.zeros(1, int)
    reference = neighbors.fit(points, [0, 1, 1, 0], 2)
    result = _segments(reference, points, np.array([0, 1, 1, 0]), images, labels, "l2", 3)
    np.testing.assert_allclose(result.distance, 0.18, rtol=1e-4)
    # The third candidate is an own point: there are two others only. Without the far one nothing can win.
    reference = neighbors.fit(points, [0, 1, 0, 0], 2)
    result = _segments(reference, points, np.array([0, 1, 0, 0]), images, labels, "l2", 3)
    assert not result.success[0] and result.distance[0] == np.inf
    np.testing.assert_array_equal(result.adversarial, images)


def test_wrong_from_the_start_is_at_distance_zero():
    reference, points, point_labels, images, labels = _problem()
    result = _segments(reference, points, point_labels, images, (labels + 1) % 3, "l2", 5)
    assert np.all(result.success) and np.all(result.distance == 0)
    np.testing.assert_array_equal(result.adversarial, images)


def test_segments_of_digits_are_never_inside_the_exact_radius(shared_dir):
    with np.load(shared_dir / "reference" / "nn_radius" / "digits_3v8.npz") as file:
        oracle = dict(file)
    points, images = (oracle[name].astype(np.float32) for name in ("reference", "queries"))
    classes, point_labels = np.unique(oracle["labels"], return_inverse=True)
    labels = np.searchsorted(classes, oracle["query_labels"])
    result = _segments(neighbors.fit(points, point_labels, 2), points, point_labels, images, labels, "l2", 10)
    ratio = np.asarray(result.distance) / oracle["radius_l2_box"]
    assert np.all(ratio >= 1 - 1e-6)
    assert 1 < np.mean(ratio) < 1.3


_STEPS = 15


def _soft(reference, points, point_labels):
    """Returns the soft 1NN and the 1NN that judges: by brute force, which compiles faster than the search."""

    def predict(images):
        sq = jnp.sum(jnp.square(images[:, None] - points), axis=(2, 3))
        return jnp.asarray(point_labels)[jnp.argmin(sq, axis=1)]

    return lambda x, temperature: neighbors.soft_logits(reference, x, temperature), predict


@jax.jit
def _tempered(problem, keys, threat, temperatures):
    *points, images, labels = problem
    soft, predict = _soft(*points)
    return attacks.tempered_apgd(
        soft,
        images,
        labels,
        key=keys,
        threat=threat,
        predict_fn=predict,
        temperatures=temperatures,
        num_steps=_STEPS,
    )


def test_schedule_breaks_what_any_of_its_runs_breaks():
    problem = _problem(200, 60, seed=1)
    reference, *points, images, labels = problem
    keys = attacks.example_keys(jax.random.key(2), np.arange(60))
    threat, temperatures = Threat("linf", 0.09), np.float32([1.0, 0.01])
    found = _tempered(problem, keys, threat, temperatures)

    @jax.jit
    def single(keys, temperature):
        soft, predict = _soft(reference, *points)
        return attacks.apgd(
            lambda x: soft(x, temperature), images, labels, key=keys, threat=threat, num_steps=_STEPS,
            loss_fn=attacks.margin, predict_fn=predict,
        )  # fmt: skip

    folded = [jax.vmap(lambda key, n=n: jax.random.fold_in(key, n))(keys) for n in range(2)]
    runs = [np.asarray(single(k, t).success) for k, t in zip(folded, temperatures, strict=True)]
    assert np.any(runs[1] & ~runs[0]) and not np.all(runs[1]), "the runs do not differ: the test says nothing"
    np.testing.assert_array_equal(found.success, runs[0] | runs[1])
    np.testing.assert_array_equal(np.asarray(neighbors.predict(reference, found.adversarial)) != labels, found.success)
    assert np.all(found.distance <= 0.09 * (1 + 1e-5))

    # Another place in the batch, another radius, other temperatures: the same results where the same is asked.
    count = _tempered._cache_size()
    backwards = _tempered((reference, *points, images[::-1], labels[::-1]), keys[::-1], threat, temperatures)
    np.testing.assert_allclose(backwards.adversarial, found.adversarial[::-1], rtol=0, atol=1e-5)
    wider = _tempered(problem, keys, Threat("linf", 0.2), np.float32([0.1, 0.02]))
    assert wider.success.sum() > found.success.sum()
    wrong = _tempered((reference, *points, images, (labels + 1) % 3), keys, threat, temperatures)
    assert np.all(wrong.success)
    np.testing.assert_array_equal(wrong.adversarial, images)
    assert _tempered._cache_size() == count, "compiled again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l3"}, "norm must be one of"),
        ({"points": np.zeros((4, 2), np.uint8)}, "points must be floating point.*divide pixels by 255"),
        ({"images": np.zeros((1, 2), int)}, "images must be floating point"),
        ({"points": np.zeros((4, 3), np.float32)}, r"images must be \[N, ...\] with 3 pixels each, got shape \(1, 2\)"),
        ({"num_candidates": 0}, "num_candidates must be 1 to the number of points, 4, got 0"),
        ({"num_candidates": 5}, "num_candidates must be 1 to the number of points, 4, got 5"),
    ],
)
def test_segments_refuse_bad_input(change, message):
    usual = {"points": np.zeros((4, 2), np.float32), "images": np.zeros((1, 2), np.float32), "norm": "l2"}
    given = {**usual, "predict_fn": lambda x: jnp.zeros(len(x), int), "num_candidates": 2, **change}
    with pytest.raises(ValueError, match=message):
        attacks.segment_attack(point_labels=np.array([0, 0, 1, 1]), labels=np.zeros(1, int), **given)


@pytest.mark.parametrize("temperatures", [(), (0.1, 0.0), (-1.0,)])
def test_schedule_refuses_bad_temperatures(temperatures):
    with pytest.raises(ValueError, match="temperatures must be at least one number above 0"):
        attacks.tempered_apgd(
            lambda x, t: x, np.zeros((1, 2), np.float32), np.zeros(1, int), key=jax.random.key(0),
            threat=Threat("l2", 0.1), predict_fn=lambda x: jnp.zeros(len(x), int), temperatures=temperatures,
        )  # fmt: skip
