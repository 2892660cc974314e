"""Entries of nn_adv.training."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nn_adv import models, training
from nn_adv.threat import Threat
from tests.border.inputs import COUNT, KINDS, NUM_CLASSES, SHAPE
from tests.border.table import Entry

_MODEL = models.create("mlp", NUM_CLASSES, hidden_sizes=())
_RECIPE = training.Recipe(objective="standard", num_epochs=1, batch_size=COUNT, select_every=1, select_steps=0)
_THREAT = Threat("linf", 0.125)
_LOGITS = np.random.default_rng(7).standard_normal((2, COUNT, NUM_CLASSES)).astype(np.float32)


@functools.cache
def _variables():
    return _MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))


def _train(images, train_index, train_labels, holdout_index, holdout_labels):
    member = training.Member(train_index, train_labels, holdout_index, holdout_labels)
    found = training.train(_MODEL, images, [member], _RECIPE, seeds=[0])
    return found.variables, found.history._replace(seconds=()), found.selected_epoch


def _objective(fn, **options):
    def call(images, labels, key):
        return fn(_MODEL.apply, _variables(), training.Batch(images, labels), key=key, **options)

    return call


def _count(images):
    return 0 if isinstance(images, np.ndarray) and images.shape[:1] == (0,) else COUNT


def _trades_loss(labels):
    return training.trades_loss(_LOGITS[0], _LOGITS, labels, beta=1.0)


def _maximize(images, threat):
    count = _count(images)
    noise = training.draw_noise(jax.random.key(1), jnp.asarray(KINDS["images"].standard[:count]))

    def logits_fn(x):
        return _MODEL.apply(_variables(), x)

    return training.inner_maximization(logits_fn, images, noise=noise, threat=threat, num_steps=1)


def _learn(points, labels, key):
    return training.learn_prototypes(points, labels, key=key, per_class=1, threats=[_THREAT], num_steps=1, batch_size=4)


_ANY_CLASS = dict.fromkeys(("1..C", "one beyond"), "there may be any number of classes")
_POINTS = {"points": "pixels", "labels": "labels", "key": "key"}
_BATCH = {"images": "images", "labels": "labels", "key": "key"}
_OTHER_DRAWS = {"key": {"rbg": "another generator draws other numbers"}}

ENTRIES = (
    Entry("training.train", _train,
          {"images": "pixels", "train_index": "indices", "train_labels": "labels", "holdout_index": "indices",
           "holdout_labels": "labels"},
          # An index too few is a label too many.
          needs_some="nothing is learnt from none",
          shown={f"{part}_{field}": rf"members\[0\]\.{part}_(labels|{field})"
                 for part in ("train", "holdout") for field in ("index", "labels")}),
    Entry("training.standard", _objective(training.standard), _BATCH),
    Entry("training.adversarial", _objective(training.adversarial, threats=[_THREAT], num_steps=1), _BATCH),
    Entry("training.trades", _objective(training.trades, threats=[_THREAT], beta=1.0, num_steps=1), _BATCH,
          narrows=_OTHER_DRAWS),
    Entry("training.trades_loss", _trades_loss, {"labels": "labels"}, shared=("labels",)),
    Entry("training.inner_maximization", _maximize, {"images": "images", "threat": "threat"}),
    Entry("training.cluster_prototypes",
          lambda points, labels, key: training.cluster_prototypes(points, labels, key=key, per_class=1),
          _POINTS, narrows=_OTHER_DRAWS | {"labels": _ANY_CLASS}, needs_some="none have a centre"),
    Entry("training.learn_prototypes", _learn,
          _POINTS, narrows=_OTHER_DRAWS | {"labels": _ANY_CLASS}, needs_some="none have a centre"),
    Entry("training.draw_noise", lambda key, images: training.draw_noise(key, images),
          {"key": "key", "images": "points"}, narrows=_OTHER_DRAWS),
)  # fmt: skip

_RESULT = "a result, or what is tried in the functions that take it"
EXEMPT = {
    "training.Aux": _RESULT,
    "training.Batch": _RESULT,
    "training.InnerMaximum": _RESULT,
    "training.History": _RESULT,
    "training.Member": _RESULT,
    "training.Noise": _RESULT,
    "training.Recipe": "takes plain numbers: tests/training/test_recipe.py",
    "training.Trained": _RESULT,
}
