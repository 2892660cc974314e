"""Train small networks and export them as published ones are: PyTorch files in RobustBench's layout, and a catalogue.

So that the leaderboard can be run as a whole where no published weights are at hand. A unit is one method of training;
its file and its row are stored before the next one starts.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import classifiers, plan, runner, storage
from nn_adv import data, evaluation, training, zoo

CATALOGUE = "catalogue.json"
# Folders of RobustBench's layout. Networks trained for no norm or for several lie in that of the first, as there.
_FOLDERS = {"linf": "Linf", "l2": "L2"}
_ROW_BYTES = 10_000
_BATCH_SIZE = 500
# What may change between two runs into one workdir: which networks are trained, where and how safely.
_NOT_IN_A_ROW = ("data_dir", "methods", "training.checkpoint_every")


class Zoo(NamedTuple):
    """What all networks of a run share: the task of all classes, and the network before training."""

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    task: data.Task
    model: nn.Module


class Unit(NamedTuple):
    """One network, by the method that trains it."""

    dataset: str
    method: str

    @property
    def name(self) -> str:
        """Name of the network's row, the same in every run."""
        return f"{self.dataset}/{self.method}"


def load(config: ml_collections.ConfigDict) -> Zoo:
    """Check the configuration, load the data and build the network, so that mistakes show before long work starts."""
    unknown = [method for method in config.methods if method not in plan.NETWORKS]
    if unknown or not config.methods:
        known = ", ".join(plan.NETWORKS)
        raise ValueError(f"methods must be some of {known}, got {', '.join(unknown) or 'none'}")
    plan.check_distinct(config, ("methods",))
    plan.check_recipes(config, config.methods)
    if importlib.util.find_spec("torch") is None:
        raise ValueError("the networks are exported as files of PyTorch's: pip install 'nn_adv[zoo]', or torch alone")
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    (task,) = data.tasks(dataset, "all", train_per_class=config.train_per_class or None)
    return Zoo(config, dataset, task, plan.make_model(config, dataset, task.num_classes))


def prepare(config: ml_collections.ConfigDict) -> runner.Experiment:
    """See `runner.Experiment`."""
    prepared = load(config)
    return runner.Experiment(
        identity=_row_identity(prepared),
        groups=[[Unit(config.dataset, method)] for method in config.methods],
        rows=functools.partial(_rows, prepared),
        needed_bytes=lambda groups: len(groups) * (_ROW_BYTES + 9 * _num_bytes(prepared)),
        report=_write_catalogue,
        summary=summary,
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """List the networks, the accuracy of each and the time it took, as plain text."""
    lines = [f"{rows[0]['dataset']}, test images", f"{'network':14}{'clean, %':>9}{'training, s':>13}"]
    lines += [f"{row['method']:14}{row['clean_accuracy']:9.2f}{row['seconds']['train']:13.0f}" for row in rows]
    return "\n".join(lines)


def _row_identity(prepared: Zoo) -> dict[str, Any]:
    config = prepared.config
    settings = plan.without(config.to_dict(), _NOT_IN_A_ROW)
    return settings | {"model": plan.model_settings(config)} | plan.identity(config, prepared.dataset)


def _num_bytes(prepared: Zoo) -> int:
    variables = jax.eval_shape(prepared.model.init, jax.random.key(0), plan.one_image(prepared.dataset))
    return sum(4 * leaf.size for leaf in jax.tree.leaves(variables))


def _rows(prepared: Zoo, group, done, workdir, progress) -> Iterator[dict[str, Any]]:
    (unit,) = group
    progress.show(unit.method)
    yield _row(prepared, unit, workdir)


def _row(prepared: Zoo, unit: Unit, workdir: Path) -> dict[str, Any]:
    """Train a network, export it, and tell what a catalogue says of it."""
    method = unit.method
    config, dataset = prepared.config, prepared.dataset
    recipe = plan.make_recipe(config, method)
    trained = _train(prepared, recipe, method, workdir)
    loss = float(trained.history.loss[0, -1])
    if not np.isfinite(loss):
        raise ValueError(
            f"training {method} diverged (loss {loss}): lower training.learning_rate, in another --workdir"
        )
    start = time.perf_counter()
    (variables,) = trained.variables
    norm = (*plan.NETWORKS[method][1], "linf")[0]
    file = f"{config.dataset}/{_FOLDERS[norm]}/{method}.pt"
    zoo.write_state_dict(workdir / file, zoo.to_state_dict(variables))
    classifier = classifiers.network(prepared.model, variables)
    correct = evaluation.correct(
        lambda images: classifiers.predict(classifier, images),
        dataset.test_images,
        dataset.test_labels,
        batch_size=_BATCH_SIZE,
    )
    return {
        "schema": 1,
        "unit": unit.name,
        "dataset": dataset.title,
        "dataset_name": config.dataset,
        "dataset_note": dataset.note,
        "image_shape": list(dataset.image_shape),
        "num_classes": prepared.task.num_classes,
        "num_train": len(prepared.task.train_index),
        "method": method,
        "norm": norm,
        "radii": {threat.norm: threat.epsilon for threat in recipe.threats},
        "clean_accuracy": round(100 * float(np.mean(correct)), 4),
        "model": plan.model_settings(config),
        "training": plan.recipe_settings(recipe) | {"loss": loss},
        "files": [file],
        "seconds": {
            "train": round(float(np.nansum(trained.history.seconds)), 3),
            "export": round(time.perf_counter() - start, 3),
        },
        **plan.circumstances(),
    }


def _train(prepared: Zoo, recipe: training.Recipe, method: str, workdir: Path) -> training.Trained:
    config, task = prepared.config, prepared.task
    return training.train(
        prepared.model,
        jnp.asarray(prepared.dataset.train_images),
        [training.Member(task.train_index, task.train_labels)],
        recipe,
        seeds=[zlib.crc32(f"{config.seed}/{method}".encode()) >> 1],  # 31 bits: an int32
        checkpoint_every=config.training.checkpoint_every,
        checkpoint_dir=workdir / "checkpoints" / method,
    )


def _write_catalogue(workdir: Path, rows: Sequence[Mapping[str, Any]], *_) -> Path:
    """Write the catalogue of all networks there are."""
    gone = [file for row in rows for file in row["files"] if not (workdir / file).is_file()]
    if gone:
        raise ValueError(f"{workdir} has no {', '.join(gone)} any more: put it back, or take another --workdir")
    path = workdir / CATALOGUE
    storage.write_whole(path, json.dumps([_record(row) for row in rows], indent=1).encode() + b"\n")
    zoo.catalogue(path)  # what no reader would take must not be left for the reader to find
    return path


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network in the form of `nn_adv.zoo.Entry`."""
    model = dict(row["model"])
    trained_for = ", ".join(f"{norm} {radius:.4g}" for norm, radius in row["radii"].items()) or "clean images"
    notes = [f"trained for {trained_for} on {row['num_train']} images, {row['training']['num_epochs']} epoch(s)"]
    return {
        "name": row["method"],
        "dataset": row["dataset_name"],
        "threat": _FOLDERS[row["norm"]],
        "architecture": model.pop("name"),
        "arguments": {name: value for name, value in model.items() if name != "dtype"},
        "files": [{"name": Path(row["files"][0]).name}],
        "num_classes": row["num_classes"],
        "image_shape": row["image_shape"],
        "epsilon": row["radii"].get(row["norm"]),
        "clean_accuracy": row["clean_accuracy"],
        "notes": notes + [row["dataset_note"]] * bool(row["dataset_note"]),
    }
