"""Published robust networks beside 1NN, in another norm than they were trained for (Hagai & Weiss, arXiv 2404.06313).

A unit is one model, and gives one result row: its clean accuracy, held against the published one before anything else,
then what the attacks leave of the first images of each split. 1NN's figures are exact.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import attacked, evaluate, failures, files, networks, parsing, plan, preflight, radii
from experiments.networks import NEIGHBOR
from experiments.plan import Unit
from nn_adv import attacks, data, neighbors

_RADII_AT_ONCE = 200  # images between two saves
# `Plan.before` sees to what a catalogue says of a network that has a row.
_NOT_IN_A_ROW = (
    *("data_dir", "catalogue", "weights_dir", "download", "models", "only_in_paper"),
    *("clean.tolerance", "evaluation.batch_size"),
)


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration, load the data and find the models, so that mistakes show before long work starts."""
    evaluation = parsing.Evaluation.read(config)
    parsing.check_distinct(config, ("models",))
    parsing.check_seeds("seed", [config.seed])
    for name, value in config.clean.items():
        if not value >= 0:
            raise ValueError(f"clean.{name} must be at least 0, got {value}")
    chosen = networks.choose(config)
    source = networks.Source(config.catalogue or None, config.weights_dir, config.download)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    units = [Unit(f"{parsing.dataset_name(config)}/{network.name}", network, None, config.seed) for network in chosen]
    # The project's catalogue tells accuracies on the original pixels; one's own is taken at its word.
    is_comparable = bool(config.catalogue) or not dataset.note
    return Plan(
        identity=parsing.make_identity(config, dataset, _NOT_IN_A_ROW),
        groups=[[unit] for unit in units],
        dataset=dataset,
        skipped=frozenset(
            unit.name for unit in units if unit.subject.is_optional and networks.lacks_weights(unit.subject, source)
        ),
        evaluation=evaluation,
        suite=evaluation.suite(dataset.num_classes),
        source=source,
        clean=preflight.Check(config.clean.images, config.clean.tolerance, is_comparable),
        images=evaluate.choose_images(dataset, None, evaluation),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`."""

    evaluation: parsing.Evaluation
    suite: tuple[attacks.Attack, ...]
    source: networks.Source
    clean: preflight.Check
    images: evaluate.Images

    @property
    def units(self) -> list[Unit]:
        """The models, in the order in which they are run."""
        return [unit for (unit,) in self.groups]

    def before(self, workdir: Path, rows: Sequence[plan.Row], part: Sequence[Sequence[Unit]]) -> list[str]:
        """Refuse rows of another network than the one that has its name now; tell which networks lack their weights."""
        stored = {row["unit"]: row for row in rows}
        changed = [
            f"{unit.subject.name} ({', '.join(what)})"
            for unit in self.units
            if (row := stored.get(unit.name))
            and (what := networks.changed_since(unit.subject, row["model"], self.source))
        ]
        if changed:
            raise ValueError(
                f"workdir {workdir} has rows of other networks of these names, changed since: {', '.join(changed)}; "
                "take another folder, or put back what was there"
            )
        lacking = [
            unit.subject.name
            for (unit,) in part
            if unit.name not in {*stored, *self.skipped} and networks.lacks_weights(unit.subject, self.source)
        ]
        where = f"no weights in {self.source.weights_dir}, so these will fail: {', '.join(lacking)}"
        return super().before(workdir, rows, part) + [where] * bool(lacking)

    def absence(self, left_out: Sequence[Unit], part: Sequence[Sequence[Unit]]) -> str:
        """Say how many networks are left out for want of weights."""
        total = sum(unit.subject.is_optional for (unit,) in part)
        which = "networks" if len(part) == len(self.groups) else "networks of this shard"
        return (
            f"{len(left_out)} of {total} {which} have no weights in {self.source.weights_dir} and are left out: put "
            "them there (docs/leaderboard.md says where from) or set download, and run the same command again"
        )

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Any) -> dict[str, Any]:
        """Evaluate one model.

        Raises:
          ValueError: a network does not return logits, or is not as accurate as was published (`preflight`).
        """
        network = unit.subject
        make = self._neighbor_fields if network.name == NEIGHBOR else self._network_fields
        try:
            fields = make(unit, workdir, lambda text: show(f"{network.name}: {text}"))
        finally:
            gc.collect()
            following = self.units[self.units.index(unit) + 1 :][:1]
            if not following or following[0].subject.architecture != network.architecture:
                jax.clear_caches()  # programs hold memory, and those of plain functions their weights
        return self.about(unit) | {
            "task": "all",
            "classes": list(self.dataset.class_names),
            "method": network.name,
            "seed": unit.seed,
            "main_radii": self.evaluation.epsilons,
            **fields,
        }

    def _network_fields(self, unit: Unit, workdir: Path, show) -> dict[str, Any]:
        start = time.perf_counter()
        network, batch_size = unit.subject, self.evaluation.batch_size
        show("loading")
        logits_fn = networks.load(network, self.source, self.dataset)
        facts = networks.about(network, logits_fn, self.source)  # now: the files may be replaced when it is done
        loaded = time.perf_counter()
        show("clean accuracy")
        preflight.check_outputs(network, logits_fn, self.images.images[:batch_size])
        clean = preflight.clean_accuracy(network, logits_fn, self.clean, self.dataset, batch_size=batch_size)
        checked = time.perf_counter()
        names = [attack.name for attack in self.suite]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcomes, records, flags = evaluate.attack(
                self.evaluation, self.suite, logits_fn, self.images, unit, workdir, show
            )
        file = f"outcomes/{failures.file_name(unit.name)}.npz"
        _save_outcomes(workdir / file, self.images, names, outcomes)
        sizes = dict(self.evaluation.sizes)
        if "square" not in names:
            sizes.pop("num_queries", None)
        return {
            "evaluations": [record.stored() for record in records],
            "model": facts,
            "clean": clean,
            "attack": {"attacks": names, "images_per_split": self.evaluation.images_per_split, **sizes},
            "radii": None,
            "files": [file],
            "warnings": [*sorted({str(item.message) for item in caught}), *flags],
            "seconds": {
                "load": round(loaded - start, 3),
                "clean": round(checked - loaded, 3),
                "attack": round(time.perf_counter() - checked, 3),
            },
        }

    def _neighbor_fields(self, unit: Unit, workdir: Path, show) -> dict[str, Any]:
        """Compute 1NN's radii, those that an earlier run has not, and look its robust accuracy up in them."""
        start, dataset, file = time.perf_counter(), self.dataset, "radii/all.npz"
        reference = neighbors.fit(dataset.train_images, dataset.train_labels, dataset.num_classes)
        fitted = time.perf_counter()
        known = self._radii(reference, workdir / file, show)
        return {
            "evaluations": [record.stored() for record in evaluate.exact_records(self.evaluation, known)],
            "num_train": len(dataset.train_images),
            "model": {"architecture": "1NN", "num_values": int(np.prod(dataset.train_images.shape))},
            "clean": None,
            "attack": None,
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
            "warnings": [],
            "files": [file],
            "seconds": {"fit": round(fitted - start, 3), "radii": round(time.perf_counter() - fitted, 3)},
        }

    def _radii(self, reference: neighbors.Reference, path: Path, show) -> radii.Radii:
        """Compute the radii of all images, going on where ``path`` ends; they are kept there."""
        known = [radii.load(path)] if path.exists() else []
        for begin in range(sum(len(part.correct) for part in known), len(self.images.labels), _RADII_AT_ONCE):
            show(f"radii, {begin} of {len(self.images.labels)}")
            part = evaluate.Images(*(array[begin : begin + _RADII_AT_ONCE] for array in self.images))
            norms = list(self.evaluation.epsilons)
            found = radii.measure(reference, part.images, part.labels, norms, split=part.split, image=part.image)
            known = [functools.reduce(radii.join, [*known, found])]
            radii.save(path, known[0])
        return known[0]


def _save_outcomes(
    path: Path, images: evaluate.Images, attack_names: Sequence[str], outcomes: Sequence[attacked.Outcome]
) -> None:
    """Keep what broke each image: with the radii of 1NN it allows paired comparisons that the counts of a row do not.

    ``broken_by`` is ``[T, N]``: for each threat and image the number of an attack in ``attacks``, or -1 where the clean
    image is wrong, or -2 where no attack broke it.
    """
    files.write_arrays(
        path,
        norm=np.array([outcome.threat.norm for outcome in outcomes]),
        epsilon=np.array([float(outcome.threat.epsilon) for outcome in outcomes]),
        attacks=np.array(attack_names),
        split=images.split,
        image=images.image,
        broken_by=np.array([outcome.attack_index for outcome in outcomes]),
    )
