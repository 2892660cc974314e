"""What a network must pass before it is attacked."""

import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import admission, classifiers, contestants
from nn_adv import zoo

IMAGES = np.zeros((2, 3), np.uint8)


def _entry(output):
    return zoo.Entry("a", "digits", "Linf", "mlp", (zoo.File("a.pt"),), output=output)


def _returning(outputs):
    return classifiers.Classifier(Partial(lambda images: np.float32(outputs) + 0 * images[:, :1]))


@pytest.mark.parametrize("entry", [None, _entry("logits")])
@pytest.mark.parametrize("outputs", [[[0.25, 0.75], [0.5, 0.5]], [[0.2505, 0.75], [0.5, 0.4995]], [[0, 1], [1, 0]]])
def test_probabilities_are_refused_where_logits_are_expected(entry, outputs):
    contestant = contestants.Contestant("a", entry)
    with pytest.raises(
        ValueError, match="a returns probabilities .*2 images.*attacks need logits: leave out its softmax"
    ):
        admission.refuse_probabilities(contestant, _returning(outputs), IMAGES)


@pytest.mark.parametrize(
    ("entry", "outputs"),
    [
        (None, [[0.25, 0.75], [0.5, 0.502]]),
        (None, [[0.25, 0.75], [1.5, -0.5]]),
        (None, [[0.25, 0.75], [0.5, np.nan]]),  # refused as NaN, later
        (None, np.log([[0.25, 0.75], [0.5, 0.5]])),
        (_entry("log_probabilities"), [[0.25, 0.75], [0.5, 0.5]]),
        (_entry("probabilities"), [[0.25, 0.75], [0.5, 0.5]]),
    ],
)
def test_other_outputs_are_not_taken_for_probabilities_and_declared_ones_are_let_through(entry, outputs):
    admission.refuse_probabilities(contestants.Contestant("a", entry), _returning(outputs), IMAGES)
