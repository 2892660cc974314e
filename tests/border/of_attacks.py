"""Entries of nn_adv.attacks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from nn_adv import attacks
from tests.border.inputs import KINDS, NUM_CLASSES, SHAPE
from tests.border.table import Entry

_WEIGHTS = np.random.default_rng(5).standard_normal((int(np.prod(SHAPE)), 4)).astype(np.float32)
_LOGITS = np.random.default_rng(6).standard_normal((len(KINDS["labels"].standard), 4)).astype(np.float32)


def _linear(weights, images):
    return jnp.dot(images.reshape(images.shape[0], -1), weights)


def _tempered(weights, images, temperature):
    return _linear(weights, images) / temperature


def _classify(weights, images):
    return jnp.argmax(_linear(weights, images), axis=1)


# Bound arguments, not closures: what is compiled for them serves all cases.
logits_fn = Partial(_linear, _WEIGHTS[:, :NUM_CLASSES])
_tempered_fn = Partial(_tempered, _WEIGHTS[:, :NUM_CLASSES])
_predict_fn = Partial(_classify, _WEIGHTS[:, :NUM_CLASSES])
_STANDARD = {"images": "images", "labels": "labels", "key": "key", "threat": "threat"}


def _attack(fn, **options):
    return lambda images, labels, key, threat: fn(logits_fn, images, labels, key=key, threat=threat, **options)


def _apgd(images, labels, key, threat, starts):
    return attacks.apgd(logits_fn, images, labels, key=key, threat=threat, starts=starts, num_steps=2)


def _fmn(images, labels, key, norm, bounds):
    options = {"norm": norm, "bounds": bounds, "num_steps": 2, "num_restarts": 2}
    return attacks.fmn(logits_fn, images, labels, key=key, **options)


def _tempered_apgd(images, labels, key, threat):
    return attacks.tempered_apgd(
        _tempered_fn, images, labels, key=key, threat=threat, predict_fn=_predict_fn, temperatures=(0.1,), num_steps=2
    )


@functools.cache
def _short():
    return (attacks.named_attack("pgd", NUM_CLASSES, num_steps=1),)


def _ensemble(images, labels, key, threat, indices):
    found = attacks.ensemble(
        logits_fn, images, labels, key=key, threat=threat, attacks=_short(), batch_size=8, indices=indices
    )
    return found._replace(names=())


def _channels_first(x):
    if isinstance(x, list):
        return [np.moveaxis(image, -1, 0) for image in x]
    return np.moveaxis(x, -1, 1) if np.ndim(x) == 4 else x


def _perturb(x, y, indices):
    x = _channels_first(x)
    return attacks.perturb(
        logits_fn, x, y, eps=0.125, norm=np.inf, attack="pgd", n_iter=1, batch_size=8, indices=indices
    )


def _eot(key):
    def random(images, key):
        return _linear(_WEIGHTS[:, :NUM_CLASSES], images) + jax.random.normal(key, (NUM_CLASSES,))

    return attacks.eot(random, key=key, num_samples=2)(jnp.zeros((1, *SHAPE)))


def _flags(images, labels):
    return np.array(attacks.flags(logits_fn, images, labels))


@functools.cache
def _art():
    pytest.importorskip("art")
    return attacks.art_classifier(logits_fn, input_shape=SHAPE, num_classes=NUM_CLASSES)


def _of_logits(fn):
    return lambda labels: fn(jnp.asarray(_LOGITS[:, :NUM_CLASSES]), labels)


def _of_targets(fn):
    return lambda labels, targets: fn(jnp.asarray(_LOGITS), labels, targets)


_ANY_CLASS = dict.fromkeys(("1..C", "one beyond"), "how many classes there are is not known")
_NO_INDICES = {"indices": {"none of them": "then places"}}
_FOUR_CLASSES = {"1..C": "targeted DLR has four classes"}

ENTRIES = (
    Entry("attacks.apgd", _apgd, _STANDARD | {"starts": "queries"},
          narrows={"starts": {"none of them": "then they are drawn"}}),
    Entry("attacks.fab", _attack(attacks.fab, num_steps=1, num_restarts=2), _STANDARD),
    Entry("attacks.pgd", _attack(attacks.pgd, num_steps=1, step_size=0.125), _STANDARD),
    Entry("attacks.square", _attack(attacks.square, num_queries=2), _STANDARD),
    Entry("attacks.fmn", _fmn,
          {"images": "images", "labels": "labels", "key": "key", "norm": "norm", "bounds": "bounds"}),
    Entry("attacks.tempered_apgd", _tempered_apgd, _STANDARD),
    Entry("attacks.ensemble", _ensemble, _STANDARD | {"indices": "indices"}, narrows=_NO_INDICES),
    Entry("attacks.perturb", _perturb, {"x": "images", "y": "labels", "indices": "indices"}, narrows=_NO_INDICES),
    Entry("attacks.art_classifier.predict", lambda x: _art().predict(x), {"x": "points"},
          narrows={"x": {"ragged": "ART makes an array of a list first"}}),
    Entry("attacks.art_classifier.loss_gradient", lambda x, y: _art().loss_gradient(x, y),
          {"x": "points", "y": "labels"}, narrows={"y": {"one-hot": "ART's own form"}}),
    Entry("attacks.art_classifier.class_gradient", lambda x: _art().class_gradient(x), {"x": "points"}),
    Entry("attacks.flags", _flags, {"images": "points", "labels": "labels"}),
    Entry("attacks.eot", _eot, {"key": "key"}, shared=("key",)),
    Entry("attacks.example_keys", lambda key, indices: jax.random.key_data(attacks.example_keys(key, indices)),
          {"key": "key", "indices": "indices"},
          narrows={"indices": {"one too few": "any number of them"}}),
    *(Entry(f"attacks.{fn.__name__}", _of_logits(fn), {"labels": "labels"}, shared=("labels",))
      for fn in (attacks.cross_entropy, attacks.cross_entropy_plain, attacks.dlr, attacks.margin)),
    *(Entry(f"attacks.{fn.__name__}", _of_targets(fn), {"labels": "labels", "targets": "labels"},
            shared=("labels", "targets"), narrows=dict.fromkeys(("labels", "targets"), _FOUR_CLASSES))
      for fn in (attacks.targeted_dlr, attacks.targeted_margin)),
)  # fmt: skip

_RESULT = "a result, or a part of one"
EXEMPT = {
    "attacks.Attack": _RESULT,
    "attacks.AttackResult": _RESULT,
    "attacks.EnsembleResult": _RESULT,
    "attacks.EnsembleState": _RESULT,
    "attacks.are_probabilities": "tells of any array what it is",
    "attacks.count_unbroken": "counts what the ensemble made",
    "attacks.square_flag": "reads what that counted",
    "attacks.named_attack": "takes a name and whole numbers: tests/attacks/test_ensemble.py",
    "attacks.standard_attacks": "takes a whole number: tests/attacks/test_ensemble.py",
}
