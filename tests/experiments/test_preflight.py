"""What a network must pass before it is attacked."""

import numpy as np
import pytest
from jax.tree_util import Partial

from experiments import networks, preflight
from nn_adv import zoo

IMAGES = np.zeros((2, 3), np.uint8)


def _entry(output):
    return zoo.Entry("a", "digits", "Linf", "mlp", (zoo.File("a.pt"),), output=output)


def _returning(outputs, dtype=np.float32):
    return Partial(lambda images: np.asarray(outputs, dtype) + 0 * images[:, :1].astype(dtype))


@pytest.mark.parametrize("entry", [None, _entry("logits")])
@pytest.mark.parametrize(
    ("outputs", "dtype"),
    [
        ([[0.25, 0.75], [0.5, 0.5]], np.float32),
        ([[0.2505, 0.75], [0.5, 0.498]], np.float32),  # as of half precision
        ([[0, 1], [1, 0]], np.float32),
    ],
)
def test_probabilities_are_refused(entry, outputs, dtype):
    network = networks.Network("a", entry)
    with pytest.raises(
        ValueError, match="a returns probabilities .*2 images.*attacks need logits: leave out its softmax"
    ):
        preflight.check_outputs(network, _returning(outputs, dtype), IMAGES)


def test_nan_is_refused():
    with pytest.raises(ValueError, match="a returns NaN for 1 of 2 images"):
        preflight.check_outputs(networks.Network("a"), _returning([[0.25, 0.75], [0.5, np.nan]]), IMAGES)


@pytest.mark.parametrize(
    "outputs",
    [[[0.25, 0.75], [0.5, 0.52]], [[0.25, 0.75], [1.5, -0.5]], np.log([[0.25, 0.75], [0.5, 0.5]])],
)
def test_other_outputs_are_not_taken_for_probabilities(outputs):
    preflight.check_outputs(networks.Network("a"), _returning(outputs), IMAGES)
