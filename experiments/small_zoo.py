"""Train small networks and export them as published ones are: PyTorch files in RobustBench's layout, and a catalogue.

So that the leaderboard can be run as a whole where no published weights are at hand. A unit is one method of training;
its file and its row are stored before the next one starts.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.tree_util import Partial

from experiments import attacked, parsing, plan
from experiments.files import write_whole
from experiments.methods import NETWORKS
from experiments.plan import Unit
from nn_adv import data, evaluation, training, zoo

CATALOGUE = "catalogue.json"
# Folders of RobustBench's layout. Networks trained for no norm or for several lie in that of the first, as there.
_FOLDERS = {"linf": "Linf", "l2": "L2"}
_NOT_IN_A_ROW = ("data_dir", "methods", "training.checkpoint_every")


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration, load the data and build the network, so that mistakes show before long work starts."""
    parsing.check_named("methods", config.methods, NETWORKS)
    parsing.check_distinct(config, ("methods",))
    parsing.check_seeds("seed", [config.seed])
    recipes = parsing.read_recipes(config, config.methods)
    if importlib.util.find_spec("torch") is None:
        raise ValueError("the networks are exported as files of PyTorch's: pip install 'nn_adv[zoo]', or torch alone")
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    (task,) = data.tasks(dataset, "all", train_per_class=config.train_per_class or None)
    settings = parsing.model_settings(config)
    return Plan(
        identity=parsing.make_identity(config, dataset, _NOT_IN_A_ROW),
        groups=[[Unit(f"{config.dataset}/{method}", method, task, config.seed)] for method in config.methods],
        dataset=dataset,
        name=config.dataset,
        recipes=recipes,
        model=parsing.make_model(settings, dataset, task.num_classes),
        model_settings=settings,
        checkpoint_every=config.training.checkpoint_every,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`."""

    name: str  # of the dataset, in the catalogue
    recipes: Mapping[str, training.Recipe]
    model: nn.Module
    model_settings: Mapping[str, Any]
    checkpoint_every: int

    def before(self, workdir: Path, rows: Sequence[plan.Row], part: Sequence[Sequence[Unit]]) -> list[str]:
        """Refuse a workdir that has lost a network."""
        gone = [file for row in rows for file in row["files"] if not (workdir / file).is_file()]
        if gone:
            raise ValueError(f"{workdir} has no {', '.join(gone)} any more: put it back, or take another folder")
        return []

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Any) -> dict[str, Any]:
        """Train a network, export it, and tell what a catalogue says of it."""
        method, task, dataset = unit.subject, unit.task, self.dataset
        show(method)
        trained = self.train(unit, workdir)
        loss = float(trained.history.loss[0, -1])
        if not np.isfinite(loss):
            raise ValueError(
                f"training {method} diverged (loss {loss}): lower training.learning_rate, in another --workdir"
            )
        start = time.perf_counter()
        (variables,) = trained.variables
        norm = (*NETWORKS[method][1], "linf")[0]
        file = f"{self.name}/{_FOLDERS[norm]}/{method}.pt"
        zoo.write_state_dict(workdir / file, zoo.to_state_dict(variables))
        predict = functools.partial(attacked.predict, Partial(self.model.apply, variables))
        correct = evaluation.correct(predict, dataset.test_images, dataset.test_labels)
        return self.about(unit) | {
            "dataset_name": self.name,
            "image_shape": list(dataset.image_shape),
            "num_classes": task.num_classes,
            "num_train": len(task.train_index),
            "method": method,
            "norm": norm,
            "radii": {threat.norm: threat.epsilon for threat in self.recipes[method].threats},
            "clean_accuracy": round(100 * float(np.mean(correct)), 4),
            "model": self.model_settings,
            "training": parsing.recipe_settings(self.recipes[method]) | {"loss": loss},
            "files": [file],
            "seconds": {
                "train": round(float(np.nansum(trained.history.seconds)), 3),
                "export": round(time.perf_counter() - start, 3),
            },
        }

    def train(self, unit: Unit, workdir: Path) -> training.Trained:
        """Train the network of a unit, or load it where that was done before."""
        return training.train(
            self.model,
            jnp.asarray(self.dataset.train_images),
            [training.Member(unit.task.train_index, unit.task.train_labels)],
            self.recipes[unit.subject],
            seeds=[zlib.crc32(f"{unit.seed}/{unit.subject}".encode()) >> 1],  # 31 bits: an int32
            checkpoint_every=self.checkpoint_every,
            checkpoint_dir=workdir / "checkpoints" / unit.subject,
        )

    def after(self, workdir: Path, rows: Sequence[plan.Row]) -> None:
        """Write the catalogue of all networks there are."""
        path = workdir / CATALOGUE
        write_whole(path, json.dumps([_record(row) for row in rows], indent=1).encode() + b"\n")
        zoo.catalogue(path)  # what no reader would take must not be left for the reader to find


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
