"""Attacks on 1NN against the exact answer: how far each overstates its robust accuracy and its radii.

A unit is one attack in one norm on one task, at all of that norm's radii, and gives one result row. What breaks is for
1NN to say, decided in float64, inside the box. All of it is held against the image's proven radius: a smaller
perturbation would disprove it, and fails the unit.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import audited, evaluate, named_attacks, parsing, plan, radii
from experiments.plan import Unit
from nn_adv import attacks, data, evaluation, neighbors
from nn_adv.pixels import as_float
from nn_adv.threat import NORMS, Threat

# Sizes of perturbations are computed in float64: a relative rounding far below this.
_ROUNDING = 1e-9
# A point of an attack at a radius may lie outside by rounding, in parts of the radius.
_OUTSIDE = 1e-5
# A nearest point lies on the border of the soft 1NN, which is not quite that of 1NN: so much further out counts too.
_STRETCHES = (1.0, 1.001, 1.01, 1.1)
NOT_IN_A_ROW = (
    *("data_dir", "tasks.names", "temperatures", "temperature", "variants"),
    *("every_variant_at_every_temperature", "attacks", "batch_size"),
)


class Subject(NamedTuple):
    """An attack in one norm, through the soft 1NN of one temperature or of the best for each image."""

    norm: str  # of the perturbations
    name: str  # of the attack in its rows' units
    temperatures: tuple[float, ...]  # those tried
    attack: audited.Attack  # with its settings
    is_named: bool  # whether a name stands for it; else it is PGD with settings of the configuration


class Prepared(NamedTuple):
    """A task made ready: 1NN, the images to attack, their radii in one norm and the file these are in."""

    reference: neighbors.Reference
    images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray  # ``[N, ...]`` a training image of another class for each
    radii: radii.Radii
    file: str


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration and load the data, so that mistakes show before long work starts."""
    check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    tasks = data.tasks(dataset, config.tasks.kind, train_per_class=config.tasks.train_per_class or None)
    name = parsing.dataset_name(config)
    groups = [
        [
            Unit(f"{name}/{task.name}/{norm}/{subject.name}", subject, task, config.seed)
            for subject in make_subjects(config, norm)
        ]
        for task in parsing.named_tasks(tasks, config.tasks.names)
        for norm, epsilons in config.epsilons.items()
        if epsilons
    ]
    return Plan(
        identity=parsing.make_identity(config, dataset, NOT_IN_A_ROW),
        groups=groups,
        dataset=dataset,
        skipped=frozenset(
            unit.name
            for group in groups
            for unit in group
            if not named_attacks.is_installed(unit.subject.attack.package)
        ),
        epsilons={norm: tuple(map(float, epsilons)) for norm, epsilons in config.epsilons.items()},
        num_images=config.num_images,
        num_inside=config.num_inside,
        batch_size=config.batch_size,
    )


def make_subjects(config: ml_collections.ConfigDict, norm: str) -> list[Subject]:
    """List the attacks, each once: variants of PGD, then those that are named, at the best temperature.

    The first variant comes at every temperature, the others at one or at every.
    """
    chosen = config.temperatures if config.every_variant_at_every_temperature else (config.temperature,)
    variants = [(temperature, *variant) for variant in config.variants[:1] for temperature in config.temperatures]
    variants += [(temperature, *variant) for variant in config.variants for temperature in chosen]
    found = []
    for temperature, num_steps, num_restarts, loss in dict.fromkeys(variants):
        attack = audited.pgd_variant(num_steps, num_restarts, loss, config.step_share)
        name = f"T{temperature:g}-{num_steps}x{num_restarts}-{loss}"
        found.append(Subject(norm, name, (temperature,), attack, is_named=False))
    named = [(name, named_attacks.NAMED[name]) for name in config.attacks]
    best_of = tuple(config.best_of_temperatures)
    return found + [
        Subject(norm, name, best_of, attack, is_named=True) for name, attack in named if norm in attack.norms
    ]


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError for the first value that no run could use, with its name and what is allowed."""
    for norm, epsilons in config.epsilons.items():
        for epsilon in epsilons:
            Threat(norm, epsilon)
    if not any(config.epsilons.values()):
        raise ValueError(f"epsilons must give those of at least one norm of {', '.join(NORMS)}")
    several = ("temperatures", "best_of_temperatures")
    for name, values in (("temperature", [config.temperature]), *((name, config[name]) for name in several)):
        if not values or not all(isinstance(value, int | float) and 0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be above 0 and finite, got {config[name]}")
    parsing.check_seeds("seed", [config.seed])
    parsing.check_distinct(config, ("attacks", "tasks.names"))
    parsing.check_named("attacks", config.attacks, named_attacks.NAMED, may_be_empty=True)
    if not config.variants and not config.attacks:
        raise ValueError("variants must hold at least one (steps, restarts, loss), or attacks a name")
    for variant in config.variants:
        match variant:
            case [int(steps), int(restarts), str(loss)] if steps >= 0 and restarts >= 1 and loss in audited.LOSSES:
                continue
        losses = " or ".join(audited.LOSSES)
        raise ValueError(f"variants must be (steps >= 0, restarts >= 1, {losses}), got {variant}")
    for name, least in (("num_images", 0), ("num_inside", 0), ("batch_size", 1)):
        if config[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {config[name]}")
    if not config.step_share > 0:
        raise ValueError(f"step_share must be positive, got {config.step_share}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`. A group is one task in one norm, whose units share their radii."""

    epsilons: Mapping[str, tuple[float, ...]]  # those to attack at, per norm
    num_images: int  # the first so many test images of a task; 0: all
    num_inside: int  # so many images are attacked just below their radius
    batch_size: int  # images per call

    def absence(self, left_out: Sequence[Unit], part: Sequence[Sequence[Unit]]) -> str:
        """Say which attacks are left out for want of their library."""
        names = ", ".join(dict.fromkeys(unit.subject.name for unit in left_out))
        packages = " ".join(sorted({named_attacks.PACKAGES[unit.subject.attack.package] for unit in left_out}))
        return f"left out, for want of their library: {names}; pip install {packages}, and run the same command again"

    def share(self, group: Sequence[Unit], num_missing: int, workdir: Path, show: plan.Show) -> Prepared:
        """Fit 1NN and find the radii of the images, or read them where an earlier run has written them."""
        task, norm = group[0].task, group[0].subject.norm
        show(f"{norm} radii on {task.name}")
        dataset = self.dataset
        points = dataset.train_images[task.train_index]
        reference = neighbors.fit(points, task.train_labels, task.num_classes)
        chosen = evaluate.balanced(task.test_labels, self.num_images)
        image = task.test_index[chosen]
        images, labels = dataset.test_images[image], task.test_labels[chosen]
        file = f"radii/{task.name}-{norm}.npz"
        if not (workdir / file).exists():
            split = np.repeat("test", len(image))
            radii.save(workdir / file, radii.measure(reference, images, labels, [norm], split=split, image=image))
        others = [np.argmax(task.train_labels == (label + 1) % task.num_classes) for label in labels]
        starts = np.asarray(as_float(points[others]))
        images = np.asarray(as_float(images))
        return Prepared(reference, images, labels, starts, radii.load(workdir / file), file)

    def row(self, unit: Unit, shared: Prepared, workdir: Path, show: Any) -> dict[str, Any]:
        """Attack, at every epsilon of the norm or to find distances, and count what is left at every epsilon."""
        subject, task, known = unit.subject, unit.task, shared.radii
        show(f"{subject.name} in {subject.norm} on {task.name}")
        start = time.perf_counter()
        nearest, spent = self._nearest(unit, shared)
        epsilons = self.epsilons[subject.norm]
        least, most = radii.robust_between(known, subject.norm, epsilons)
        attack = {"name": subject.name, "sees": subject.attack.sees, "finds": subject.attack.finds}
        if package := subject.attack.package:  # nothing for ours
            package += f" {importlib.metadata.version(named_attacks.PACKAGES[package])}"
        attack |= {"package": package, "temperatures": subject.temperatures}
        if not subject.is_named:
            attack = {"name": "pgd", "temperature": subject.temperatures[0]}
        fields = {
            "norm": subject.norm,
            "num_train": len(task.train_index),
            "count": len(shared.images),
            "correct": int(np.sum(known.correct)),
            "attack": attack | dict(subject.attack.settings),
            "audited": [
                {
                    "epsilon": epsilon,
                    "certified": int(np.sum(least[place])),
                    "at_most": int(np.sum(most[place])),
                    "unbroken": int(np.sum(known.correct & ~(nearest <= epsilon * (1 + _OUTSIDE)))),
                    "attacked": int(np.sum(known.correct & ~least[place])),
                    "attacked_inside": len(self._inside(known, least[place])),
                }
                for place, epsilon in enumerate(epsilons)
            ],
            "spent": spent,
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
            "files": [shared.file],
            "seconds": {"attack": round(time.perf_counter() - start, 3)},
        }
        if subject.attack.finds == "distance":
            fields["distances"] = _ratios(nearest[known.correct], known.upper[0, known.correct])
        return self.about(unit) | fields

    def _inside(self, known: radii.Radii, is_robust: np.ndarray) -> np.ndarray:
        """Return some images that an attack at a radius must not break: those that are nearest to breaking."""
        inside = np.flatnonzero(is_robust)
        return inside[np.argsort(known.lower[0, inside], kind="stable")][: self.num_inside]

    def _nearest(self, unit: Unit, shared: Prepared) -> tuple[np.ndarray, dict[str, float]]:
        """Return how near each image broke, ``[N]``, inf if it did not, and what was asked for an image and radius."""
        subject, known, spent = unit.subject, shared.radii, audited.Spent(queries=0, gradients=0)
        search = subject.attack.make(subject.norm, unit.seed, spent)
        nearest, num_attacked = np.full(len(known.correct), np.inf), 0
        jobs: list[tuple[float | None, np.ndarray]] = [(None, np.flatnonzero(known.correct))]
        if subject.attack.finds == "radius":  # what can break there, and some that cannot
            epsilons = self.epsilons[subject.norm]
            least, _ = radii.robust_between(known, subject.norm, epsilons)
            attacked = [np.concatenate([np.flatnonzero(known.correct & ~of), self._inside(known, of)]) for of in least]
            jobs = list(zip(epsilons, attacked, strict=True))
        for epsilon, rows in jobs:
            for temperature in subject.attack.runs(subject.temperatures):
                found, num_filled = self._distances(unit, shared, search, rows, temperature, epsilon)
                nearest[rows] = np.minimum(nearest[rows], found)
            num_attacked += num_filled
        jax.effects_barrier()
        asked = {name: round(count / max(num_attacked, 1), 1) for name, count in spent.items()}
        return nearest, asked

    def _distances(
        self, unit: Unit, shared: Prepared, search: audited.Search, rows: np.ndarray, temperature, epsilon: float | None
    ) -> tuple[np.ndarray, int]:
        """Attack images once; return how far away each broke, and how many were attacked: a last batch is filled up."""
        images, labels, known = shared.images[rows], shared.labels[rows], shared.radii
        keys = jax.random.key_data(attacks.example_keys(jax.random.key(unit.seed), known.image[rows]))
        # ART takes images one by one, whatever the batch.
        batch_size = max(len(rows), 1) if unit.subject.attack.package == "art" else self.batch_size
        if not rows.size:
            return np.zeros(0), 0
        points = evaluation.map_batches(
            lambda x, y, start, key: search(audited.Problem(shared.reference, x, y, start, key, temperature, epsilon)),
            *(images, labels, shared.starts[rows], np.asarray(keys)),
            batch_size=batch_size,
        )
        stretches = (1.0,) if epsilon is not None else _STRETCHES
        found = audited.distances(
            *(shared.reference, unit.subject.norm, images, labels, points),
            stretches=stretches,
            batch_size=self.batch_size,
        )
        _hold_against_radii(unit, known.lower[0, rows], known.image[rows], found)
        return found, -(-len(rows) // batch_size) * batch_size


def _hold_against_radii(unit: Unit, lower: np.ndarray, numbers: np.ndarray, sizes: np.ndarray) -> None:
    """Raise ValueError for the first image that broke inside its proven radius."""
    wrong = np.flatnonzero(sizes < lower * (1 - _ROUNDING))
    if wrong.size:
        first, dataset = wrong[0], unit.name.partition("/")[0]
        raise ValueError(
            f"test image {numbers[first]} of {dataset}, task {unit.task.name}, breaks at {unit.subject.norm} distance "
            f"{sizes[first]:.9g} under {unit.subject.name}, inside its proven radius {lower[first]:.9g}: one is wrong"
        )


def _ratios(nearest: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Return the median of found over exact distances, None where it is that of an image for which none was found."""
    ratio = nearest / exact
    median = float(np.median(ratio))
    return {
        "median_ratio": round(median, 5) if np.isfinite(median) else None,
        "within_one_percent": int(np.sum(ratio <= 1.01)),
        "not_found": int(np.sum(np.isinf(nearest))),
    }
