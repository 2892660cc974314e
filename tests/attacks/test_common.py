"""What all attacks share."""

import numpy as np
import pytest

from nn_adv.attacks.common import highest_others


def test_highest_others_rank_the_classes_other_than_the_label():
    logits, labels = np.array([[2.0, 1.0, 1.5, 7.0], [3.0, 3.0, 1.0, 2.0]]), np.array([3, 1])
    np.testing.assert_array_equal(highest_others(logits, labels, 3), [[0, 2, 1], [0, 3, 2]])
    np.testing.assert_array_equal(highest_others(logits, labels, 1), [[0], [0]])
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_targets must be None or 1 to 3 for 4 classes, got {count}"):
            highest_others(logits, labels, count)
