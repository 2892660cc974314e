"""PGD through the soft 1NN against the exact answer: how far each attack overstates the robust accuracy of 1NN.

A unit is one attack in one norm on one task, at all of that norm's radii, and gives one result row. Whatever an
attack breaks is held against the image's proven radius: a smaller perturbation would disprove it and ends the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import classifiers, evaluate, plan, radii
from experiments.plan import Unit
from nn_adv import attacks, data, evaluation, neighbors
from nn_adv.pixels import as_float
from nn_adv.threat import NORMS, Threat

_ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
# Sizes of perturbations are computed in float64: a relative rounding far below this.
_ROUNDING = 1e-9
_NOT_IN_A_ROW = (
    "data_dir",
    "tasks.names",
    "temperatures",
    "temperature",
    "variants",
    "every_variant_at_every_temperature",
    "batch_size",
)


class Variant(NamedTuple):
    """PGD in one norm through the soft 1NN of one temperature."""

    norm: str
    temperature: float
    num_steps: int
    num_restarts: int
    loss: str

    @property
    def name(self) -> str:
        """Name of the attack in its rows' units."""
        return f"T{self.temperature:g}-{self.num_steps}x{self.num_restarts}-{self.loss}"


class Prepared(NamedTuple):
    """A task made ready: 1NN, the images to attack, their radii in one norm and the file these are in."""

    reference: neighbors.Reference
    images: np.ndarray
    labels: np.ndarray
    radii: radii.Radii
    file: str


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration and load the data, so that mistakes show before long work starts."""
    check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    tasks = data.tasks(dataset, config.tasks.kind, train_per_class=config.tasks.train_per_class or None)
    name = plan.dataset_name(config)
    return Plan(
        identity=make_identity(config, dataset),
        groups=[
            [
                Unit(f"{name}/{task.name}/{norm}/{variant.name}", variant, task, config.seed)
                for variant in make_variants(config, norm)
            ]
            for task in plan.named_tasks(tasks, config.tasks.names)
            for norm, epsilons in config.epsilons.items()
            if epsilons
        ],
        dataset=dataset,
        epsilons={norm: tuple(map(float, epsilons)) for norm, epsilons in config.epsilons.items()},
        num_images=config.num_images,
        num_inside=config.num_inside,
        step_share=config.step_share,
        batch_size=config.batch_size,
    )


def make_variants(config: ml_collections.ConfigDict, norm: str) -> list[Variant]:
    """List the attacks, each once: the first variant at every temperature, the others at one or at every."""
    chosen = config.temperatures if config.every_variant_at_every_temperature else (config.temperature,)
    found = [Variant(norm, temperature, *config.variants[0]) for temperature in config.temperatures]
    found += [Variant(norm, temperature, *variant) for variant in config.variants for temperature in chosen]
    return list(dict.fromkeys(found))


def make_identity(config: ml_collections.ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """See `plan.make_identity`."""
    return plan.make_identity(config, dataset, _NOT_IN_A_ROW)


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError for the first value that no run could use, with its name and what is allowed."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`. A group is one task in one norm, whose units share their radii.

    Attributes:
      epsilons: those to attack at, per norm.
      num_images: the first so many test images of a task; 0: all.
      num_inside: so many images are attacked just below their radius.
      step_share: step size, in multiples of epsilon / steps.
      batch_size: images per call.
    """

    epsilons: Mapping[str, tuple[float, ...]]
    num_images: int
    num_inside: int
    step_share: float
    batch_size: int

    row_bytes: ClassVar[int] = 5_000

    def share(self, group: Sequence[Unit], num_missing: int, workdir: Path, progress: plan.Progress) -> Prepared:
        """Fit 1NN and find the radii of the images, or read them where an earlier run has written them."""
        task, norm = group[0].task, group[0].subject.norm
        progress.show(f"{norm} radii on {task.name}")
        dataset = self.dataset
        reference = neighbors.fit(dataset.train_images[task.train_index], task.train_labels, task.num_classes)
        chosen = evaluate.balanced(task.test_labels, self.num_images)
        image = task.test_index[chosen]
        images, labels = dataset.test_images[image], task.test_labels[chosen]
        file = f"radii/{task.name}-{norm}.npz"
        if not (workdir / file).exists():
            split = np.repeat("test", len(image))
            radii.save(workdir / file, radii.measure(reference, images, labels, [norm], split=split, image=image))
        return Prepared(reference, images, labels, radii.load(workdir / file), file)

    def row(self, unit: Unit, shared: Prepared, workdir: Path, show: Any) -> dict[str, Any]:
        """Attack at every epsilon of the norm."""
        variant, task = unit.subject, unit.task
        show(f"{variant.name} in {variant.norm} on {task.name}")
        start = time.perf_counter()
        audited = [self._audit(unit, shared, epsilon) for epsilon in self.epsilons[variant.norm]]
        settings = variant._asdict()
        return self.about(unit) | {
            "task": task.name,
            "classes": list(task.class_names),
            "norm": settings.pop("norm"),
            "num_train": len(task.train_index),
            "count": len(shared.images),
            "correct": int(np.sum(shared.radii.correct)),
            "attack": {"name": "pgd", **settings, "step_share": self.step_share},
            "audited": audited,
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(shared.radii)},
            "files": [shared.file],
            "seconds": {"attack": round(time.perf_counter() - start, 3)},
        }

    def _audit(self, unit: Unit, prepared: Prepared, epsilon: float) -> dict[str, Any]:
        """Attack at one radius every image that can break there, and some that cannot; count what is left."""
        known = prepared.radii
        least, most = (flags[0] for flags in radii.robust_between(known, unit.subject.norm, [epsilon]))
        breakable = np.flatnonzero(known.correct & ~least)
        inside = np.flatnonzero(least)
        inside = inside[np.argsort(known.lower[0, inside], kind="stable")][: self.num_inside]  # the nearest to breaking
        broken = self._broken(unit, prepared, epsilon, np.concatenate([breakable, inside]))
        return {
            "epsilon": epsilon,
            "certified": int(np.sum(least)),
            "at_most": int(np.sum(most)),
            "unbroken": int(np.sum(known.correct)) - int(np.sum(broken)),
            "attacked": len(breakable),
            "attacked_inside": len(inside),
        }

    def _broken(self, unit: Unit, prepared: Prepared, epsilon: float, rows: np.ndarray) -> np.ndarray:
        """Attack images; tell which broke, after holding each broken one against its proven radius."""
        if not rows.size:
            return np.zeros(0, bool)
        classifier = classifiers.soft_nearest_neighbor(prepared.reference, unit.subject.temperature)
        numbers = prepared.radii.image[rows]
        images, labels = np.asarray(as_float(prepared.images[rows])), prepared.labels[rows]
        keys = np.asarray(jax.random.key_data(attacks.example_keys(jax.random.key(unit.seed), numbers)))
        adversarial = evaluation.map_batches(
            lambda x, y, k: (
                classifiers.pgd_attack(
                    classifier,
                    x,
                    y,
                    jax.random.wrap_key_data(k),
                    Threat(unit.subject.norm, epsilon),
                    num_steps=unit.subject.num_steps,
                    num_restarts=unit.subject.num_restarts,
                    step_share=self.step_share,
                    loss=unit.subject.loss,
                ).adversarial
            ),
            images,
            labels,
            keys,
            batch_size=self.batch_size,
        )
        broken = ~evaluation.correct(
            lambda x: classifiers.predict(classifier, x), adversarial, labels, batch_size=self.batch_size
        )
        _hold_against_radii(unit, prepared.radii.lower[0, rows], numbers, images, adversarial, broken)
        return broken


def _hold_against_radii(unit: Unit, lower, numbers, images, adversarial, broken) -> None:
    """Raise ValueError for the first image that broke inside its proven radius."""
    changes = (adversarial.astype(np.float64) - images).reshape(len(images), -1)
    sizes = np.linalg.norm(changes, ord=_ORDERS[unit.subject.norm], axis=1)
    wrong = np.flatnonzero(broken & (sizes < lower * (1 - _ROUNDING)))
    if wrong.size:
        first, dataset = wrong[0], unit.name.partition("/")[0]
        raise ValueError(
            f"test image {numbers[first]} of {dataset}, task {unit.task.name}, breaks at {unit.subject.norm} distance "
            f"{sizes[first]:.9g} under {unit.subject.name}, inside its proven radius {lower[first]:.9g}: one is wrong"
        )
