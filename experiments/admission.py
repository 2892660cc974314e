"""What a network must pass before it is attacked: it returns logits, and is as accurate as was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import classifiers, contestants
from nn_adv import data, evaluation
from nn_adv.pixels import as_float

_SUM_TOLERANCE = 1e-3  # of probabilities, half precisions among them


class WrongAccuracy(ValueError):
    """The clean accuracy of a model is not the published one: it is not the model that was published.

    Attributes:
      clean: as in a row.
    """

    def __init__(self, message: str, clean: Mapping[str, Any]):
        super().__init__(message)
        self.clean = clean


def refuse_probabilities(
    contestant: contestants.Contestant, classifier: classifiers.Classifier, images: np.ndarray
) -> None:
    """Raise ValueError if a network that should return logits returns probabilities for all of these images.

    Attacks would stop where the largest is 1 in float32, and leave a network that looks robust.
    """
    if contestant.entry is not None and contestant.entry.output != "logits":
        return
    outputs = np.asarray(_outputs(classifier, as_float(images)), np.float64)
    if np.all(outputs >= 0) and np.all(np.abs(outputs.sum(axis=1) - 1) <= _SUM_TOLERANCE):
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
    verdict = "nothing published" if published is None else "agrees" if is_comparable else "other pixels"
    clean = {"count": len(labels), "correct": int(np.sum(correct)), "published": published, "verdict": verdict}
    if published is None or not is_comparable:
        return clean
    sampling = 100 * np.sqrt(share * (1 - share) / len(labels)) if len(labels) < len(dataset.test_labels) else 0.0
    allowed = config.clean.tolerance + 3 * sampling
    if abs(100 * share - published) > allowed:
        raise WrongAccuracy(
            f"it classifies {100 * share:.2f} % of {len(labels)} test images correctly, published {published:.2f} %: "
            f"more than {allowed:.2g} points off (clean.tolerance), so it is not attacked",
            clean | {"verdict": "off"},
        )
    return clean
