"""PGD through the soft 1NN against the exact answer: how far each attack overstates the robust accuracy of 1NN.

A unit is one attack in one norm on one task, at all of that norm's radii, and gives one result row. Whatever an
attack breaks is held against the image's proven radius: a smaller perturbation would disprove it and ends the run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import accuracies, classifiers, plan, radii, runner
from experiments.report import audit as report
from nn_adv import attacks, data, evaluation, neighbors
from nn_adv.pixels import as_float
from nn_adv.threat import NORMS, Threat

_ROW_BYTES = 5_000
_ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
# Sizes of perturbations are computed in float64: a relative rounding far below this.
_ROUNDING = 1e-9
# What may change between two runs into one workdir: which units are run and how fast, not what a row says.
_NOT_IN_A_ROW = (
    "data_dir",
    "tasks.names",
    "temperatures",
    "temperature",
    "variants",
    "every_variant_at_every_temperature",
    "batch_size",
)


class Attack(NamedTuple):
    """PGD through the soft 1NN of one temperature."""

    temperature: float
    num_steps: int
    num_restarts: int
    loss: str

    @property
    def name(self) -> str:
        """Name of the attack in its rows' units."""
        return f"T{self.temperature:g}-{self.num_steps}x{self.num_restarts}-{self.loss}"


class Unit(NamedTuple):
    """One attack on one task in one norm."""

    dataset: str
    task: data.Task
    norm: str
    attack: Attack

    @property
    def name(self) -> str:
        """Name of the unit's row, the same in every run."""
        return f"{self.dataset}/{self.task.name}/{self.norm}/{self.attack.name}"


class _Task(NamedTuple):
    """A task made ready: 1NN, the images to attack, their radii in one norm and the file these are in."""

    reference: neighbors.Reference
    images: np.ndarray
    labels: np.ndarray
    radii: radii.Radii
    file: str


def prepare(config: ml_collections.ConfigDict) -> runner.Experiment:
    """Check the configuration and load the data, so that mistakes show before long work starts."""
    _check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    tasks = data.tasks(dataset, config.tasks.kind, train_per_class=config.tasks.train_per_class or None)
    return runner.Experiment(
        identity=_row_identity(config, dataset),
        groups=make_groups(config, plan.named_tasks(tasks, config.tasks.names)),
        rows=functools.partial(_rows, config, dataset),
        needed_bytes=lambda groups: _ROW_BYTES * sum(map(len, groups)),
        report=_report,
        summary=report.terminal_text,
    )


def _report(workdir, rows, problems, failed, missing, _) -> Path:
    told = [f"{failure['unit']} failed: {failure['reason']}" for failure in failed]
    return report.write(workdir, rows, [*problems, *told], num_missing=len(missing) + len(failed))


def make_groups(config: ml_collections.ConfigDict, tasks: Sequence[data.Task]) -> list[list[Unit]]:
    """List all units in groups of one task and one norm, which share their radii."""
    return [
        [Unit(plan.dataset_name(config), task, norm, attack) for attack in make_attacks(config)]
        for task in tasks
        for norm, epsilons in config.epsilons.items()
        if epsilons
    ]


def make_attacks(config: ml_collections.ConfigDict) -> list[Attack]:
    """List the attacks, each once: the first variant at every temperature, the others at one or at every."""
    chosen = config.temperatures if config.every_variant_at_every_temperature else (config.temperature,)
    found = [Attack(temperature, *config.variants[0]) for temperature in config.temperatures]
    found += [Attack(temperature, *variant) for variant in config.variants for temperature in chosen]
    return list(dict.fromkeys(found))


def _check(config) -> None:
    for norm, epsilons in config.epsilons.items():
        for epsilon in epsilons:
            Threat(norm, epsilon)
    if not any(config.epsilons.values()):
        raise ValueError(f"epsilons must give those of at least one norm of {', '.join(NORMS)}")
    for name, values in (("temperatures", config.temperatures), ("temperature", [config.temperature])):
        if not values or not all(value > 0 for value in values):
            raise ValueError(f"{name} must be above 0, got {config[name]}")
    if not config.variants:
        raise ValueError("variants must hold at least one (steps, restarts, loss)")
    for variant in config.variants:
        if len(variant) != 3 or variant[0] < 0 or variant[1] < 1 or variant[2] not in classifiers.LOSSES:
            losses = " or ".join(classifiers.LOSSES)
            raise ValueError(f"variants must be (steps >= 0, restarts >= 1, {losses}), got {variant}")
    for name, least in (("num_images", 0), ("num_inside", 0), ("batch_size", 1)):
        if config[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {config[name]}")
    if not config.step_share > 0:
        raise ValueError(f"step_share must be positive, got {config.step_share}")


def _row_identity(config, dataset) -> dict[str, Any]:
    return plan.without(config.to_dict(), _NOT_IN_A_ROW) | plan.identity(config, dataset)


def _rows(config, dataset, group, done, workdir, progress) -> Iterator[dict[str, Any]]:
    progress.show(f"{group[0].norm} radii on {group[0].task.name}")
    prepared = _prepare_task(config, dataset, group[0].task, group[0].norm, workdir)
    for unit in (unit for unit in group if unit.name not in done):
        progress.show(f"{unit.attack.name} in {unit.norm} on {unit.task.name}")
        start = time.perf_counter()
        audited = [_audit(config, unit, prepared, epsilon) for epsilon in config.epsilons[unit.norm]]
        yield {
            "schema": 1,
            "unit": unit.name,
            "dataset": dataset.title,
            "dataset_note": dataset.note,
            "task": unit.task.name,
            "classes": list(unit.task.class_names),
            "norm": unit.norm,
            "num_train": len(unit.task.train_index),
            "count": len(prepared.images),
            "correct": int(np.sum(prepared.radii.correct)),
            "attack": {"name": "pgd", **unit.attack._asdict(), "step_share": config.step_share},
            "audited": audited,
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(prepared.radii)},
            "files": [prepared.file],
            "seconds": {"attack": round(time.perf_counter() - start, 3)},
            **plan.circumstances(),
        }
        progress.advance(1)


def _prepare_task(config, dataset, task, norm, workdir) -> _Task:
    """Fit 1NN and find the radii of the images, or read them where an earlier run has written them."""
    reference = neighbors.fit(dataset.train_images[task.train_index], task.train_labels, task.num_classes)
    chosen = accuracies.balanced(task.test_labels, config.num_images)
    image = task.test_index[chosen]
    images, labels = dataset.test_images[image], task.test_labels[chosen]
    file = f"radii/{task.name}-{norm}.npz"
    if not (workdir / file).exists():
        split = np.repeat("test", len(image))
        radii.save(workdir / file, radii.measure(reference, images, labels, [norm], split=split, image=image))
    return _Task(reference, images, labels, radii.load(workdir / file), file)


def _audit(config, unit, prepared: _Task, epsilon) -> dict[str, Any]:
    """Attack at one radius every image that can break there, and some that cannot; count what is left."""
    known = prepared.radii
    least, most = (flags[0] for flags in radii.robust_between(known, unit.norm, [epsilon]))
    breakable = np.flatnonzero(known.correct & ~least)
    inside = np.flatnonzero(least)
    inside = inside[np.argsort(known.lower[0, inside], kind="stable")][: config.num_inside]  # those nearest to breaking
    broken = _broken(config, unit, prepared, epsilon, np.concatenate([breakable, inside]))
    return {
        "epsilon": float(epsilon),
        "certified": int(np.sum(least)),
        "at_most": int(np.sum(most)),
        "unbroken": int(np.sum(known.correct)) - int(np.sum(broken)),
        "attacked": len(breakable),
        "attacked_inside": len(inside),
    }


def _broken(config, unit, prepared: _Task, epsilon, rows) -> np.ndarray:
    """Attack images; tell which broke, after holding each broken one against its proven radius."""
    if not rows.size:
        return np.zeros(0, bool)
    classifier = classifiers.soft_nearest_neighbor(prepared.reference, unit.attack.temperature)
    numbers = prepared.radii.image[rows]
    images, labels = np.asarray(as_float(prepared.images[rows])), prepared.labels[rows]
    keys = np.asarray(jax.random.key_data(attacks.example_keys(jax.random.key(config.seed), numbers)))
    adversarial = evaluation.map_batches(
        lambda x, y, k: (
            classifiers.pgd_attack(
                classifier,
                x,
                y,
                jax.random.wrap_key_data(k),
                Threat(unit.norm, epsilon),
                num_steps=unit.attack.num_steps,
                num_restarts=unit.attack.num_restarts,
                step_share=config.step_share,
                loss=unit.attack.loss,
            ).adversarial
        ),
        images,
        labels,
        keys,
        batch_size=config.batch_size,
    )
    broken = ~evaluation.correct(
        lambda x: classifiers.predict(classifier, x), adversarial, labels, batch_size=config.batch_size
    )
    _hold_against_radii(unit, prepared.radii.lower[0, rows], numbers, images, adversarial, broken)
    return broken


def _hold_against_radii(unit, lower, numbers, images, adversarial, broken) -> None:
    """Raise ValueError for the first image that broke inside its proven radius."""
    changes = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    sizes = np.linalg.norm(changes, ord=_ORDERS[unit.norm], axis=1)
    wrong = np.flatnonzero(broken & (sizes < lower * (1 - _ROUNDING)))
    if wrong.size:
        first = wrong[0]
        raise ValueError(
            f"test image {numbers[first]} of {unit.dataset}, task {unit.task.name}, breaks at {unit.norm} distance "
            f"{sizes[first]:.9g} under {unit.attack.name}, inside its proven radius {lower[first]:.9g}: one is wrong"
        )
