"""Entries of the top modules of nn_adv, and of data, models and zoo."""

from __future__ import annotations

import jax.numpy as jnp

from nn_adv import border, evaluation
from tests.border.inputs import COUNT, NUM_CLASSES
from tests.border.table import Entry


def _predict(images):
    return jnp.argmax(images.reshape(len(images), -1)[:, :NUM_CLASSES], axis=1)


_NOT_KNOWN = dict.fromkeys(("1..C", "one beyond"), "how many classes there are is not known")
ENTRIES = (
    Entry("border.as_images", lambda images: border.as_images(images, bounds=(0, 1)), {"images": "pixels"}),
    Entry("border.as_labels", lambda labels: border.as_labels(labels, NUM_CLASSES, count=COUNT), {"labels": "labels"},
          shared=("labels",)),
    Entry("border.as_integers", lambda indices: border.as_integers(indices, "indices", count=COUNT),
          {"indices": "indices"}, shared=("indices",)),
    Entry("border.as_key", lambda key: border.as_key(key, count=COUNT).shape, {"key": "key"}),
    Entry("evaluation.correct", lambda images, labels: evaluation.correct(_predict, images, labels, batch_size=4),
          {"images": "pixels", "labels": "labels"},
          narrows={"labels": _NOT_KNOWN}),
    Entry("evaluation.ceiling",
          lambda images, labels, norm: evaluation.ceiling(images, labels, [0.3], norm=norm),
          {"images": "queries", "labels": "labels", "norm": "norm"},
          narrows={"labels": _NOT_KNOWN}, needs_some="a share of none"),
)  # fmt: skip

_OP = "an op on arrays inside attacks, which have checked them"
_PLAIN = "takes names and plain numbers"
EXEMPT = {
    "border.as_array": "what the others begin with",
    "border.as_bounds": "two numbers: tests/test_threat.py",
    "border.as_count": "a whole number: tried in what takes k",
    "border.as_number": "a number: tests/training/test_prototypes.py",
    "border.check_size": "a number: tests/test_threat.py",
    "border.check_sizes": "numbers: tests/training/test_objectives.py",
    "data.Dataset": "made by load",
    "data.Task": "made by tasks",
    "data.manifolds": _PLAIN,
    "data.tasks": "takes a Dataset: tests/data/test_tasks.py",
    "estimator.NearestNeighbor": "held by scikit-learn's own checks: tests/test_estimator.py",
    "evaluation.map_batches": "rows of any arrays",
    "evaluation.robust_curve": "radii: tests/test_evaluation.py",
    "evaluation.wilson_interval": _PLAIN,
    "models.Form": _PLAIN,
    "models.MLP": _PLAIN,
    "models.PreActEnsemble": _PLAIN,
    "models.PreActResNet": _PLAIN,
    "models.ResNet": _PLAIN,
    "models.SmallCNN": _PLAIN,
    "models.StridedCNN": _PLAIN,
    "models.create": _PLAIN,
    "models.wide_resnet": _PLAIN,
    "pixels.as_float": "the unit of pixels, for arrays of any shape: tests/test_pixels.py",
    "pixels.float64_pixels": _OP,
    "threat.Threat": "tried in the functions that take it; tests/test_threat.py",
    "threat.as_threat": "tried in the functions that take one",
    "threat.check_norm": _PLAIN,
    "threat.check_threat": "tried in the functions that take one",
    "threat.covering_threshold": _OP,
    "threat.drop_outward": _OP,
    "threat.dual_norm": _PLAIN,
    "threat.float64_sizes": _OP,
    "threat.per_image": _OP,
    "threat.perturbation_size": _OP,
    "threat.project": _OP,
    "threat.random_start": _OP,
    "threat.sparse_step": _OP,
    "threat.steepest_step": _OP,
    "threat.sum_per_image": _OP,
    "zoo.Entry": "made by read",
    "zoo.File": "made by read",
    "zoo.Model": "made by load",
    "zoo.from_state_dict": "arrays by key: tests/zoo/test_convert.py",
    "zoo.from_torch": "takes a module: tests/zoo/test_torch_bridge.py",
    "zoo.to_state_dict": "arrays by key: tests/zoo/test_convert.py",
}
