import numpy as np
import pytest

from nn_adv.conflicts import conflicts

ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}


@pytest.mark.parametrize("norm", ORDERS)
def test_conflicts_are_those_of_brute_force(norm, monkeypatch):
    monkeypatch.setattr("nn_adv.conflicts._MEASURED_AT_A_TIME", 50)  # several blocks
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((60, 7)), rng.integers(0, 3, 60)
    pixels[1], labels[:2] = pixels[0], (0, 2)  # equal
    pixels[3], labels[2:4] = pixels[2] + 1e-9, (0, 1)  # the expanded distance of these is rounding alone
    table = np.linalg.norm(pixels[:, None] - pixels, ord=ORDERS[norm], axis=2)
    limit = np.quantile(table, 0.3)
    first, second, apart = conflicts(pixels, labels, limit, norm=norm)
    expected = {(i, j) for i, j in np.argwhere(table < limit) if labels[i] < labels[j]}
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected and len(first) == len(expected) > 100
    np.testing.assert_allclose(apart, table[first, second], rtol=1e-9)


def test_equal_images_conflict_at_every_limit():
    pixels = np.random.default_rng(0).random((4, 5))[[0, 1, 0, 2]]
    first, second, apart = conflicts(pixels, np.array([0, 0, 1, 1]), 0.0, norm="l2")
    assert (first.tolist(), second.tolist(), apart.tolist()) == ([0], [2], [0.0])
