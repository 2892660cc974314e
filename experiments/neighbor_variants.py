"""Exact robust accuracy of variants of 1NN: of fewer images, of wrong labels, of more copies, pruned, of prototypes.

A unit is one variant on one task with one seed, and gives one result row. `variants` says which variants there are.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments import evaluate, parsing, plan, radii, variants
from experiments.plan import Unit
from nn_adv import certify, data, neighbors
from nn_adv.threat import check_norm

_NOT_IN_A_ROW = ("data_dir", "variants", "seeds", "tasks.names")


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration and load the data, so that mistakes show before long work starts."""
    evaluation = check(config)
    if config.dataset == "manifolds":
        dataset = data.manifolds(**config.manifolds)
    else:
        dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    tasks = data.tasks(dataset, config.tasks.kind, holdout=config.tasks.holdout)
    tasks = parsing.named_tasks(tasks, config.tasks.names)
    for variant in config.variants:
        variants.check_sizes(variant, tasks, dataset.image_shape)
    name = parsing.dataset_name(config)
    return Plan(
        identity=parsing.make_identity(config, dataset, _NOT_IN_A_ROW),
        groups=[
            [Unit(f"{name}/{task.name}/{variant}/{seed}", variant, task, seed)]
            for task in tasks
            for variant in config.variants
            for seed in (config.seeds if variants.is_random(variant) else (0,))
        ],
        dataset=dataset,
        evaluation=evaluation,
        separation=tuple(config.separation),
        num_choosing=config.num_choosing,
    )


def check(config: ml_collections.ConfigDict) -> parsing.Evaluation:
    """Raise ValueError for the first value that no run could use, with its name and what is allowed."""
    if not config.variants:
        raise ValueError("variants must name at least one, such as 1nn")
    chosen = [name for name in config.variants if len(variants.alternatives(name)) > 1]
    if chosen and not (config.tasks.holdout and config.num_choosing > 0):
        raise ValueError(f"tasks.holdout and num_choosing must be above 0 to choose among {chosen[0]}")
    parsing.check_seeds("seeds", config.seeds)
    for norm in config.separation:
        check_norm(norm)
    parsing.check_distinct(config, ("variants", "seeds", "tasks.names", "separation"))
    evaluation = parsing.Evaluation.read(config)
    if without := [norm for norm in config.separation if norm not in evaluation.epsilons]:
        raise ValueError(f"separation must hold norms that have epsilons, got {without[0]}")
    return evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`."""

    evaluation: parsing.Evaluation  # of every unit
    separation: Sequence[str]  # norms in which the distance between the classes of the points is measured
    num_choosing: int  # held-out training images that choose among alternatives

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Any) -> dict[str, Any]:
        """Choose among the alternatives, make 1NN, and look its robust accuracy up in its radii."""
        show(f"{unit.subject} on {unit.task.name}")
        start = time.perf_counter()
        names = variants.alternatives(unit.subject)
        held_out = {name: self._held_out(unit, name) for name in names} if len(names) > 1 else {}
        name = max(names, key=lambda name: held_out.get(name, 0.0))
        task = variants.of_task(name, parsing.with_holdout(unit.task), unit.seed)
        made = self._make(name, task, unit.seed)
        distances = {norm: certify.separation(*made[:2], norm=norm).distance for norm in self.separation}
        ready = time.perf_counter()
        chosen = evaluate.choose_images(self.dataset, task, self.evaluation)
        known = self._radii(made, task.num_classes, chosen)
        records = evaluate.exact_records(self.evaluation, known)
        return self.about(unit) | {
            "method": unit.subject,
            "seed": unit.seed,
            "num_train": len(task.train_index),
            "num_points": len(made.points),
            "main_radii": self.evaluation.epsilons,
            "evaluations": [one.stored() for one in records if made.metric == "l2" or one.kind != "attacked"],
            "chosen": {"variant": name, "held_out": held_out} if held_out else None,
            "separation": distances,
            "least_radius": _least(known),
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
            "seconds": {"train": round(ready - start, 3), "evaluate": round(time.perf_counter() - ready, 3)},
        }

    def _make(self, name: str, task: data.Task, seed: int) -> variants.Made:
        return variants.make(
            name,
            self.dataset.train_images[task.train_index],
            task.train_labels,
            seed=seed,
            epsilons=self.evaluation.epsilons,
        )

    def _held_out(self, unit: Unit, name: str) -> float:
        """Return the share of held-out images that are robust at the main epsilons, in the mean over norms."""
        task = variants.of_task(name, unit.task, unit.seed)
        rows = evaluate.balanced(task.holdout_labels, self.num_choosing)
        index = task.holdout_index[rows]
        images = evaluate.Images(
            self.dataset.train_images[index], task.holdout_labels[rows], np.full(len(rows), "train"), index, index
        )
        known = self._radii(self._make(name, task, unit.seed), task.num_classes, images)
        robust = [known.correct & (known.lower[row] >= self.evaluation.epsilons[norm]) for row, norm in _rows(known)]
        return float(np.mean(robust))

    def _radii(self, made: variants.Made, num_classes: int, chosen: evaluate.Images) -> radii.Radii:
        reference = neighbors.fit(made.points, made.labels, num_classes, linear_map=made.linear_map)
        norms = list(self.evaluation.epsilons)
        where = {"split": chosen.split, "image": chosen.image}
        if made.metric == "l2":
            return radii.measure(reference, chosen.images, chosen.labels, norms, **where)
        correct = np.asarray(neighbors.predict(reference, chosen.images, norm=made.metric)) == chosen.labels
        bounds = [
            certify.margin_bound(reference, chosen.images, chosen.labels, distance_norm=made.metric, threat_norm=norm)
            for norm in norms
        ]
        upper = np.where(correct, np.inf, 0.0)
        shape = (len(norms), len(correct))
        return radii.Radii(
            np.array(norms), np.stack(bounds), np.broadcast_to(upper, shape), np.zeros(shape, bool), correct, **where
        )


def _rows(known: radii.Radii) -> list[tuple[int, str]]:
    return list(enumerate(known.norms.tolist()))


def _least(known: radii.Radii) -> dict[str, dict[str, float | None]]:
    """Return the smallest proven radius of the correct images of each split, in each norm; None where it is endless."""
    return {
        split: {
            norm: least if (least := float(np.min(known.lower[row][of]))) < np.inf else None
            for row, norm in _rows(known)
        }
        for split in dict.fromkeys(known.split.tolist())
        if np.any(of := known.correct & (known.split == split))
    }
