"""What a network must pass before it is attacked: it returns logits, and is as accurate as was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import classifiers, contestants
from nn_adv import attacks, data, evaluation
from nn_adv.pixels import as_float


class WrongAccuracy(ValueError):
    """The clean accuracy of a model is not the published one: it is not the model that was published.

    Attributes:
      details: "clean", as in a row.
    """

    def __init__(self, message: str, clean: Mapping[str, Any]):
        super().__init__(message, clean)  # both, so that it can travel between processes
        self.details = {"clean": clean}

    def __str__(self) -> str:
        return self.args[0]


def check_outputs(contestant: contestants.Contestant, classifier: classifiers.Classifier, images: np.ndarray) -> None:
    """Raise ValueError if a network returns NaN for one of these images, or probabilities for all of them.

    With probabilities attacks would stop where the largest is 1 in float32, and leave a network that looks robust.
    """
    outputs = np.asarray(_outputs(classifier, as_float(images)))
    num_nan = int(np.isnan(outputs).any(axis=1).sum())
    if num_nan:
        raise ValueError(f"{contestant.name} returns NaN for {num_nan} of {len(outputs)} images")
    if attacks.are_probabilities(outputs):
        raise ValueError(
            f"{contestant.name} returns probabilities (none below 0, sums of 1 for {len(outputs)} images), and attacks "
            'need logits: leave out its softmax, or say in a catalogue that its output is "probabilities"'
        )


@jax.jit
def _outputs(classifier, images):
    return classifier.logits_fn(images)


def clean_accuracy(
    contestant: contestants.Contestant,
    classifier: classifiers.Classifier,
    config: ml_collections.ConfigDict,
    dataset: data.Dataset,
) -> dict[str, Any]:
    """Measure the clean accuracy on test images and hold it against the published one.

    The project's catalogue tells accuracies on the original pixels; on a copy of other pixels they are told, not
    compared. A catalogue of one's own is taken at its word.

    Raises:
      WrongAccuracy: they differ by more than the tolerance, and three standard errors where not all images are taken.
    """
    count = config.clean.images or len(dataset.test_labels)
    labels = dataset.test_labels[:count]
    correct = evaluation.correct(
        lambda x: classifiers.predict(classifier, x),
        dataset.test_images[:count],
        labels,
        batch_size=config.evaluation.batch_size,
    )
    share = float(np.mean(correct))
    published = contestant.entry.clean_accuracy if contestant.entry else None
    is_comparable = bool(config.catalogue) or not dataset.note
    verdict = "nothing published" if published is None else "other pixels"
    clean = {"count": len(labels), "correct": int(np.sum(correct)), "published": published, "verdict": verdict}
    if published is None or not is_comparable:
        return clean
    is_sample = len(labels) < len(dataset.test_labels)
    # Of a network as accurate as was published.
    sampling = np.sqrt(published * (100 - published) / len(labels)) if is_sample else 0.0
    allowed = config.clean.tolerance + 3 * sampling
    if abs(100 * share - published) > allowed:
        raise WrongAccuracy(
            f"it classifies {100 * share:.2f} % of {len(labels)} test images correctly, published {published:.2f} %: "
            f"more than {allowed:.2g} points off (clean.tolerance), so it is not attacked",
            clean | {"verdict": "off"},
        )
    return clean | {"verdict": f"agrees within {allowed:.2g}"}
