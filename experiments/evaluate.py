"""From images to records: what attacks leave unbroken of a network, and what the radii of 1NN say.

Every method is evaluated on the same images. A record is one measured number: how many images were robust, of which
split, against which threat, and what the number is (clean, attacked, certified, exact, or what no classifier exceeds).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from experiments import attacked, radii
from experiments.parsing import Evaluation
from experiments.plan import Unit, progress_file
from nn_adv import attacks, data
from nn_adv import evaluation as accuracy
from nn_adv.pixels import as_float

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured number."""

    split: str  # "train" or "test"
    norm: str | None  # None: clean; "worst": every norm at its main epsilon
    epsilon: float | None  # 0 where clean; None: the main one of every norm
    kind: str  # clean, attacked, certified, exact or ceiling
    count: int  # how many images there were
    robust: int  # how many of them were robust
    # correct clean, then after each attack; None where nothing was attacked here
    remaining: Mapping[str, int] | None = None

    def stored(self) -> dict[str, Any]:
        """Return it as it stands in a row."""
        fields = dataclasses.asdict(self)
        remaining = fields.pop("remaining")
        return fields if remaining is None else fields | {"left": dict(remaining)}


class Images(NamedTuple):
    """The images that a task is evaluated on, the same for every method; all splits together."""

    images: np.ndarray  # ``[N, ...]``
    labels: np.ndarray  # ``[N]``
    split: np.ndarray  # ``[N]`` "train" or "test"
    image: np.ndarray  # ``[N]`` number of the image in its split of the dataset
    number: np.ndarray  # ``[N]`` what its random numbers belong to, whether one split is evaluated or both


def choose_images(dataset: data.Dataset, task: data.Task | None, evaluation: Evaluation) -> Images:
    """Take the first images of each split: as many of each class of a task, or those of the whole dataset."""
    parts, num_train = [], len(dataset.train_images)
    for split in evaluation.splits:
        images, truth = (getattr(dataset, f"{split}_{what}") for what in ("images", "labels"))
        if task is None:
            index = np.arange(len(truth))[: evaluation.images_per_split or None]
            labels = truth[index]
        else:
            of_task, labels = (getattr(task, f"{split}_{what}") for what in ("index", "labels"))
            chosen = balanced(labels, evaluation.images_per_split)
            index, labels = of_task[chosen], labels[chosen]
        parts.append((images[index], labels, np.full(len(index), split), index, index + num_train * (split == "test")))
    return Images(*map(np.concatenate, zip(*parts, strict=True)))


def attack(
    evaluation: Evaluation,
    suite: Sequence[attacks.Attack],
    logits_fn: Partial,
    chosen: Images,
    unit: Unit,
    workdir: Path,
    show: Callable[[str], None],
) -> tuple[list[attacked.Outcome], list[Record], tuple[str, ...]]:
    """Attack the network of a unit in every threat of the evaluation, going on where an earlier run was stopped.

    Returns:
      What broke each image in each threat, the counts of them, and what makes these say little.
    """
    outcomes = attacked.broken_by(
        logits_fn,
        np.asarray(as_float(chosen.images)),
        chosen.labels,
        suite=suite,
        threats=evaluation.threats,
        key=jax.random.key(unit.seed),
        indices=chosen.number,
        batch_size=evaluation.batch_size,
        progress_file=progress_file(workdir, unit),
        show=show,
    )
    records = attacked_records(evaluation, chosen.split, outcomes, [attack.name for attack in suite])
    return outcomes, records, flags(evaluation, logits_fn, chosen, records)


def attacked_records(
    evaluation: Evaluation, split: np.ndarray, outcomes: Sequence[attacked.Outcome], names: Sequence[str]
) -> list[Record]:
    """Count the images that are classified correctly, and those that no attack broke, by growing epsilons of each norm.

    ``split`` is ``[N]``. The main epsilons count for the worst of the norms.
    """
    found = _counts(split, None, 0.0, "clean", outcomes[0].attack_index != attacks.CLEAN)
    at_main = []
    order = list(evaluation.epsilons)
    for threat, index in sorted(outcomes, key=lambda one: (order.index(one.threat.norm), one.threat.epsilon)):
        unbroken = index == attacks.UNBROKEN
        for record in _counts(split, threat.norm, threat.epsilon, "attacked", unbroken):
            remaining = attacks.count_unbroken(index[split == record.split], len(names))
            found.append(dataclasses.replace(record, remaining=dict(zip(("clean", *names), remaining, strict=True))))
        if threat.epsilon == evaluation.epsilons[threat.norm]:
            at_main.append(unbroken)
    return found + _counts(split, "worst", None, "attacked", np.logical_and.reduce(at_main))


def flags(evaluation: Evaluation, logits_fn: Partial, chosen: Images, records: Sequence[Record]) -> tuple[str, ...]:
    """Say what makes these attacked records say little: of the first batch of images, and of what Square broke."""
    first = slice(evaluation.batch_size)
    images = np.asarray(as_float(chosen.images[first]))
    found = [*attacks.flags(logits_fn, images, chosen.labels[first])]
    for record in records:
        if text := attacks.square_flag(record.remaining or {}):
            found.append(f"{record.split} images, {record.norm} {record.epsilon:.4g}: {text}")
    return tuple(found)


def exact_records(evaluation: Evaluation, known: radii.Radii) -> list[Record]:
    """Count the images that are robust at the networks' epsilons and at a finer grid of them."""
    found = _counts(known.split, None, 0.0, "clean", known.correct)
    at_main = []
    for norm, epsilons in evaluation.fine_curves.items():
        least, most = radii.robust_between(known, norm, epsilons)
        for epsilon, *bounds in zip(epsilons, least, most, strict=True):
            found += _exact_counts(known.split, norm, epsilon, *bounds)
        main = epsilons.index(evaluation.epsilons[norm])
        at_main.append((least[main], most[main]))
    return found + _exact_counts(known.split, "worst", None, *np.logical_and.reduce(at_main))


def ceiling_records(evaluation: Evaluation, chosen: Images) -> list[Record]:
    """Count the images around which some classifier can be robust, at most, at the epsilons of `exact_records`."""
    found = []
    for split in (name for name in SPLITS if np.any(chosen.split == name)):
        images, labels = (values[chosen.split == split] for values in (chosen.images, chosen.labels))
        for norm, epsilons in [(None, (0.0,)), *evaluation.fine_curves.items()]:
            shares = accuracy.ceiling(images, labels, epsilons, norm=norm or "linf")  # equal images are so in any norm
            for epsilon, share in zip(epsilons, shares, strict=True):
                robust = math.floor(len(labels) * share + 1e-6)
                found.append(Record(split, norm, epsilon, "ceiling" if norm else "clean", len(labels), robust))
    return found


def _exact_counts(split, norm, epsilon, least, most) -> list[Record]:
    """One exact count for each split whose images are all decided; else what is certified and what is not broken."""
    found = []
    bounds = (_counts(split, norm, epsilon, kind, flags) for kind, flags in (("certified", least), ("attacked", most)))
    for lower, upper in zip(*bounds, strict=True):
        found += [dataclasses.replace(lower, kind="exact")] if lower.robust == upper.robust else [lower, upper]
    return found


def _counts(split, norm, epsilon, kind, flags) -> list[Record]:
    return [
        Record(name, norm, epsilon, kind, int(np.sum(split == name)), int(np.sum(flags[split == name])))
        for name in SPLITS
        if np.any(split == name)
    ]


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Return rows of the first images of each class, ``count`` in all (0: all rows), in their order."""
    if count == 0 or count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    share = [len(part) for part in np.array_split(np.arange(count), len(classes))]
    rows = [np.flatnonzero(labels == label)[:size] for label, size in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows))
