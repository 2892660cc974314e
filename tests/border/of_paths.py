"""Entries of everything in nn_adv that takes a path."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import data, models, paths, training, zoo
from tests.border.inputs import COUNT, KINDS, NUM_CLASSES, SHAPE
from tests.border.table import Entry

_IMAGES, _LABELS = KINDS["images"].standard, KINDS["labels"].standard
_STATE = {"a": _IMAGES}
_MODEL = models.create("mlp", NUM_CLASSES, hidden_sizes=())
_RECIPE = training.Recipe(objective="standard", num_epochs=1, batch_size=COUNT)
_RECORD = {
    "name": "Tiny",
    "dataset": "mnist",
    "threat": "Linf",
    "architecture": "mlp",
    "arguments": {"hidden_sizes": []},
    "num_classes": NUM_CLASSES,
    "image_shape": list(SHAPE),
    "files": [{"name": "Tiny.safetensors"}],
}


def _entry(
    name: str,
    argument: str,
    use: Callable[[Any], Any],
    *,
    make: Callable[[pathlib.Path], Any],
    kind: str = "path",
    suffix: str = "",
) -> Entry:
    """Make an entry: ``make`` puts what is right at a path in the home, ``use`` is called with that path or another."""

    def call(path):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", folder)
            good = pathlib.Path(folder) / f"good{suffix}"
            make(good)
            return use(path(good))

    return Entry(name, call, {"path": kind}, shown={"path": argument})


def _make_npz(path):
    np.savez(path, train_images=_IMAGES, train_labels=_LABELS, test_images=_IMAGES, test_labels=_LABELS)


def _load_npz(path):
    dataset = data.load_npz(path)
    return dataset.train_images, dataset.test_labels


def _make_prepared(path):
    for name in ("mnist/3.0.1", "mnist/other"):
        (path / name).mkdir(parents=True)
    (path / "mnist/3.0.1/dataset_info.json").touch()


def _num_parts(path):
    return len(list(data.prepare("mnist", path).parent.iterdir()))


def _make_catalogue(path):
    path.write_text(json.dumps([_RECORD]))


def _make_state(path):
    if path.suffix == ".pt":
        pytest.importorskip("torch")
    zoo.write_state_dict(path, _STATE)


def _write_state(path):
    zoo.write_state_dict(path, _STATE)
    return zoo.read_state_dict(path)


def _make_weights(path):
    _make_catalogue(path.with_name("own.json"))
    variables = _MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    zoo.write_state_dict(path / "mnist/Linf/Tiny.safetensors", zoo.to_state_dict(variables))


def _tiny():
    return zoo.find("Tiny", "~/own.json")


def _train(path):
    member = training.Member(np.arange(COUNT), _LABELS)
    for _ in range(2):  # from nothing, and from what is there
        found = training.train(_MODEL, _IMAGES, [member], _RECIPE, seeds=[0], checkpoint_dir=path)
    return found.variables


ENTRIES = (
    _entry("paths.as_path", "path", lambda path: paths.as_path(path).exists(), make=pathlib.Path.touch),
    _entry("data.load_npz", "npz path", _load_npz, make=_make_npz, kind="file", suffix=".npz"),
    _entry("data.prepare", "data_dir", _num_parts, make=_make_prepared),
    _entry("training.train.checkpoint_dir", "checkpoint_dir", _train, make=lambda path: None),
    _entry("zoo.catalogue", "catalogue", lambda path: len(zoo.catalogue(path)), make=_make_catalogue, kind="file",
           suffix=".json"),
    _entry("zoo.find", "catalogue", lambda path: zoo.find("Tiny", path).num_classes, make=_make_catalogue,
           kind="file", suffix=".json"),
    _entry("zoo.read_state_dict", "path", zoo.read_state_dict, make=_make_state, kind="file", suffix=".safetensors"),
    _entry("zoo.read_state_dict.torch", "path", zoo.read_state_dict, make=_make_state, kind="file", suffix=".pt"),
    _entry("zoo.write_state_dict", "path", _write_state, make=lambda path: None, suffix=".safetensors"),
    _entry("zoo.load", "folder", lambda path: zoo.load("Tiny", path, catalogue="~/own.json").logits_fn,
           make=_make_weights),
    _entry("zoo.has_weights", "folder", lambda path: zoo.has_weights(_tiny(), path), make=_make_weights),
    _entry("zoo.fingerprints", "folder", lambda path: len(zoo.fingerprints(_tiny(), path)), make=_make_weights),
)  # fmt: skip

EXEMPT = {"data.load": "passes paths on to load_npz and prepare"}
