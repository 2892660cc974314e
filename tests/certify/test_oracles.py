"""Radii of 1NN against those of independent solvers."""

import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.threat import NORMS

SETTINGS = [(norm, kind) for norm in NORMS for kind in ("box", "free")]
_SLOW = (("l1", "free"), ("linf", "free"))


def _load(shared_dir, name):
    with np.load(shared_dir / "reference" / "nn_radius" / name) as file:
        return dict(file)


def _assert_agrees(found, expected):
    assert np.all(found.correct)
    np.testing.assert_array_equal(found.status, "exact")
    np.testing.assert_allclose(found.lower, expected, rtol=1e-6)
    np.testing.assert_allclose(found.upper, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("norm", "kind"),
    [pytest.param(*setting, marks=[pytest.mark.slow] * (setting in _SLOW)) for setting in SETTINGS],
)
def test_digits(shared_dir, norm, kind):
    oracle = _load(shared_dir, "digits_3v8.npz")
    classes, labels = np.unique(oracle["labels"], return_inverse=True)
    reference = neighbors.fit(oracle["reference"], labels, 2)
    query_labels = np.searchsorted(classes, oracle["query_labels"])
    bounds = (0.0, 1.0) if kind == "box" else None
    found = certify.radius(reference, oracle["queries"], query_labels, norm=norm, bounds=bounds)
    _assert_agrees(found, oracle[f"radius_{norm}_{kind}"])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["box", "free"])
def test_mnist(shared_dir, norm, kind):
    oracle = _load(shared_dir, "mnist_1v7.npz")
    classes, labels = np.unique(oracle["labels"], return_inverse=True)
    reference = neighbors.fit(oracle["reference"], labels, 2)
    query_labels = np.searchsorted(classes, oracle["query_labels"])
    expected = oracle[f"radius_{norm}_{kind}"]
    bounds = (0.0, 1.0) if kind == "box" else None
    count = len(expected)
    found = certify.radius(reference, oracle["queries"][:count], query_labels[:count], norm=norm, bounds=bounds)
    _assert_agrees(found, expected)
