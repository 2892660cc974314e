"""Own points around a candidate: the same on the host as by the search."""

import types

import numpy as np
import pytest

from nn_adv import certify, data, neighbors
from nn_adv.certify import state
from nn_adv.certify.inputs import host_points


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("candidate_dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("point_dtype", [np.uint8, np.float32])
def test_few_points_are_searched_on_the_host_with_the_same_answer(point_dtype, candidate_dtype, monkeypatch):
    rng = np.random.default_rng(0)

    def pixels(count, dtype):
        whole = rng.integers(0, 3, (count, 12)).astype(np.uint8)  # three values: many ties and copies
        return whole if dtype == np.uint8 else whole.astype(np.float32) / np.float32(255)

    reference = neighbors.fit(pixels(40, point_dtype), np.repeat([0, 1, 2], [30, 2, 8]), 3)
    search = types.SimpleNamespace(reference=reference, points=host_points(reference))
    candidates = pixels(25, candidate_dtype)
    for label in range(3):  # the second has fewer points than are asked for
        found = state.Search.nearest_own(search, candidates, label)
        monkeypatch.setattr(state, "_FEW", -1)
        np.testing.assert_array_equal(found, state.Search.nearest_own(search, candidates, label))
        monkeypatch.undo()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_own_points_near_candidates_are_all_that_a_radius_needs(norm, monkeypatch):
    digits = data.load("digits")
    reference = neighbors.fit(digits.train_images, digits.train_labels, 10)
    images, measured = digits.test_images[:40], []
    of_few = state._nearest_of_few
    monkeypatch.setattr(state, "_nearest_of_few", lambda *some: measured.append(len(some[2])) or of_few(*some))
    monkeypatch.setattr(state, "_FEW", -1)
    found = certify.radius(reference, images, neighbors.predict(reference, images), norm=norm)
    assert len(measured) > 15 and max(measured) < 100  # of some 170 of a class
    monkeypatch.setattr(state, "_FEW_EACH", -1)
    searched = certify.radius(reference, images, neighbors.predict(reference, images), norm=norm)
    np.testing.assert_array_equal(found.lower, searched.lower)
    np.testing.assert_array_equal(found.adversarial, searched.adversarial)
