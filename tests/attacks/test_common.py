"""What all attacks share."""

import numpy as np
import pytest

from nn_adv.attacks.common import Visited, better, highest_others


def test_highest_others_rank_the_classes_other_than_the_label():
    logits, labels = np.array([[2.0, 1.0, 1.5, 7.0], [3.0, 3.0, 1.0, 2.0]]), np.array([3, 1])
    np.testing.assert_array_equal(highest_others(logits, labels, 3), [[0, 2, 1], [0, 3, 2]])
    np.testing.assert_array_equal(highest_others(logits, labels, 1), [[0], [0]])
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_targets must be in 1..3, there are 4 classes, got {count}"):
            highest_others(logits, labels, count)
    vanished = np.array([[-np.inf, 0, -np.inf, -np.inf]], np.float32)
    assert set(np.asarray(highest_others(vanished, np.array([1]), 3))[0].tolist()) == {0, 2, 3}


def test_no_number_is_worse_than_any():
    nan, number = (Visited(np.full((1, 2), loss), np.zeros(1, bool), np.array([loss])) for loss in (np.nan, -5.0))
    assert better(nan, number).loss[0] == better(number, nan).loss[0] == -5.0
