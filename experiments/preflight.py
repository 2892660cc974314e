"""What a network must pass before it is attacked: it returns logits, and is as accurate as was published."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from experiments import attacked
from experiments.networks import Network
from nn_adv import attacks, data, evaluation
from nn_adv.pixels import as_float


class WrongAccuracy(ValueError):
    """The clean accuracy of a model is not the published one: it is not the model that was published.

    Attributes:
      details: "clean", as in a row.
    """

    def __init__(self, message: str, clean: Mapping[str, Any]):
        super().__init__(message)
        self.details = {"clean": clean}


def check_outputs(network: Network, logits_fn: Partial, images: np.ndarray) -> None:
    """Raise ValueError if a network returns NaN for one of these images, or probabilities for all of them.

    With probabilities attacks would stop where the largest is 1 in float32, and leave a network that looks robust.
    """
    outputs = np.asarray(_outputs(logits_fn, as_float(images)))
    num_nan = int(np.isnan(outputs).any(axis=1).sum())
    if num_nan:
        raise ValueError(f"{network.name} returns NaN for {num_nan} of {len(outputs)} images")
    if attacks.are_probabilities(outputs):
        raise ValueError(
            f"{network.name} returns probabilities (none below 0, sums of 1 for {len(outputs)} images), and attacks "
            'need logits: leave out its softmax, or say in a catalogue that its output is "probabilities"'
        )


@jax.jit
def _outputs(logits_fn, images):
    return logits_fn(images)


class Check(NamedTuple):
    """How a clean accuracy is held against the published one."""

    num_images: int  # the first so many test images; 0: all
    tolerance: float  # points off beyond which a network is stopped
    is_comparable: bool  # whether the published accuracies are of these pixels


def clean_accuracy(
    network: Network, logits_fn: Partial, check: Check, dataset: data.Dataset, *, batch_size: int
) -> dict[str, Any]:
    """Measure the clean accuracy on test images and hold it against the published one.

    Accuracies that were published of other pixels are told, not compared.

    Raises:
      WrongAccuracy: they differ by more than the tolerance, and three standard errors where not all images are taken.
    """
    count = check.num_images or len(dataset.test_labels)
    images, labels = dataset.test_images[:count], dataset.test_labels[:count]
    correct = evaluation.correct(functools.partial(attacked.predict, logits_fn), images, labels, batch_size=batch_size)
    share = float(np.mean(correct))
    published = network.entry.clean_accuracy if network.entry else None
    verdict = "nothing published" if published is None else "other pixels"
    clean = {"count": len(labels), "correct": int(np.sum(correct)), "published": published, "verdict": verdict}
    if published is None or not check.is_comparable:
        return clean
    is_sample = len(labels) < len(dataset.test_labels)
    # Of a network as accurate as was published.
    sampling = np.sqrt(published * (100 - published) / len(labels)) if is_sample else 0.0
    allowed = check.tolerance + 3 * sampling
    if abs(100 * share - published) > allowed:
        raise WrongAccuracy(
            f"it classifies {100 * share:.2f} % of {len(labels)} test images correctly, published {published:.2f} %: "
            f"more than {allowed:.2g} points off (clean.tolerance), so it is not attacked",
            clean | {"verdict": "off"},
        )
    return clean | {"verdict": f"agrees within {allowed:.2g}"}
