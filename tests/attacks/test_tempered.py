"""The attack on 1NN through its soft form against single runs of APGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks, neighbors
from nn_adv.threat import Threat


def _problem(num_points=60, count=40, seed=0):
    """Makes points of three classes, images near points that 1NN gets right, and their labels."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (num_points, 3, 2)).astype(np.float32)
    point_labels = rng.integers(0, 3, num_points)
    rows = rng.permutation(num_points)[:count]
    images = np.clip(points[rows] + rng.normal(0, 0.05, (count, 3, 2)), 0, 1).astype(np.float32)
    reference = neighbors.fit(points, point_labels, 3)
    return reference, points, point_labels, images, np.asarray(neighbors.predict(reference, images))


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


@pytest.mark.slow
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


@pytest.mark.parametrize("temperatures", [(), (0.1, 0.0), (-1.0,), (0.1, np.inf)])
def test_schedule_refuses_bad_temperatures(temperatures):
    with pytest.raises(ValueError, match="temperatures must be at least one number above 0"):
        attacks.tempered_apgd(
            lambda x, t: x, np.zeros((1, 2), np.float32), np.zeros(1, int), key=jax.random.key(0),
            threat=Threat("l2", 0.1), predict_fn=lambda x: jnp.zeros(len(x), int), temperatures=temperatures,
        )  # fmt: skip
