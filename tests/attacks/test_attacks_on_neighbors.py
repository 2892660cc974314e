"""PGD through the soft 1NN, judged by the hard 1NN, against exact radii from independent solvers."""

import functools

import jax
import numpy as np
import pytest

from nn_adv import attacks, neighbors
from nn_adv.threat import Threat


@functools.partial(jax.jit, static_argnames="num_steps")
def _attack(reference, images, labels, key, threat, temperature, num_steps=60):
    return attacks.pgd(
        lambda points: neighbors.soft_logits(reference, points, temperature),
        images,
        labels,
        key=key,
        threat=threat,
        num_steps=num_steps,
        step_size=2.5 * threat.epsilon / num_steps,
        num_restarts=2,
        loss_fn=attacks.margin,
        predict_fn=lambda points: neighbors.predict(reference, points),
    )


@pytest.fixture(scope="module")
def oracle(shared_dir):
    with np.load(shared_dir / "reference" / "nn_radius" / "digits_3v8.npz") as file:
        return dict(file)


def _run(oracle, norm, share, temperature=0.02):
    classes, labels = np.unique(oracle["labels"], return_inverse=True)
    reference = neighbors.fit(oracle["reference"].astype(np.float32), labels, 2)
    queries = oracle["queries"].astype(np.float32)
    query_labels = np.searchsorted(classes, oracle["query_labels"])
    np.testing.assert_array_equal(neighbors.predict(reference, queries), query_labels)
    epsilon = (share * oracle[f"radius_{norm}_box"]).astype(np.float32)
    return _attack(reference, queries, query_labels, jax.random.key(0), Threat(norm, epsilon), temperature), epsilon


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("temperature", [0.02, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nothing_breaks_inside_its_exact_radius(oracle, norm, temperature):
    result, _ = _run(oracle, norm, 1 - 1e-5, temperature)
    assert not np.any(result.success)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("norm", "share", "least"), [("linf", 1.1, 0.9), ("l2", 1.1, 0.9), ("l1", 1.3, 0.9)])
def test_most_images_break_a_little_outside(oracle, norm, share, least):
    result, epsilon = _run(oracle, norm, share)
    success = np.asarray(result.success)
    assert success.mean() >= least, success.mean()
    assert np.all(result.distance <= epsilon * (1 + 1e-5))
    inside = (result.adversarial >= 0) & (result.adversarial <= 1)
    assert np.all(inside)
