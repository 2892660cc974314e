"""From rows to the numbers of the report: accuracies per task, means over tasks, differences, checks.

Every task weighs the same and standard errors are over tasks. Four kinds of accuracy are kept apart:
`clean`; `attacked`, an upper bound on robust accuracy (no attack that was tried broke these images); `certified`, a
lower bound; `exact`. Where exact and attacked are both known the exact one is shown.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]
SPLITS = ("train", "test", "both")
_METHOD_ORDER = ("1nn", "trades-linf", "trades-l2", "trades-both", "pgd-linf", "pgd-l2", "standard")
_NORM_ORDER = ("linf", "l2", "l1", "worst")


class Threat(NamedTuple):
    """What the images are up against. norm: None (clean), "linf", "l2", "l1", or "worst" (all at their main radius)."""

    norm: str | None
    epsilon: float | None


CLEAN = Threat(None, 0.0)
WORST = Threat("worst", None)


class Accuracy(NamedTuple):
    """The share of images (mean over seeds) and what it means: clean, attacked, certified or exact."""

    value: float
    kind: str


class Mean(NamedTuple):
    """A mean over tasks; error is its standard error, None for a single task."""

    value: float
    error: float | None
    num_tasks: int
    kind: str


class Results(NamedTuple):
    """The rows of one dataset, indexed.

    Attributes:
      methods: in the order of the tables.
      method_tasks: the tasks that each method was run on, in the order of the tables.
      main_radii: radius per norm.
      classes: class names per task.
      accuracies: (method, split, threat, kind) -> task -> mean accuracy over seeds.
    """

    dataset: str
    methods: tuple[str, ...]
    method_tasks: dict[str, tuple[str, ...]]
    main_radii: dict[str, float]
    classes: dict[str, tuple[str, ...]]
    accuracies: dict[tuple[str, str, Threat, str], dict[str, float]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that any method was run on."""
        return _ordered_tasks({task for tasks in self.method_tasks.values() for task in tasks})

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks that every method was run on."""
        return _ordered_tasks(set.intersection(*map(set, self.method_tasks.values())))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were evaluated, with "both" (their mean) where there are two."""
        found = tuple(split for split in SPLITS if any(key[1] == split for key in self.accuracies))
        return (*found, "both") if len(found) == 2 else found

    @property
    def main_threats(self) -> tuple[Threat, ...]:
        """Clean, each norm at its main radius, worst: those that were evaluated, as the columns of the main table."""
        found = {key[2] for key in self.accuracies}
        norms = [Threat(norm, radius) for norm, radius in self.main_radii.items()]
        return tuple(threat for threat in (CLEAN, *norms, WORST) if threat in found)

    def radii(self, norm: str) -> tuple[float, ...]:
        """Every radius evaluated in one norm, ascending."""
        return tuple(
            sorted(
                {
                    threat.epsilon
                    for _, _, threat, _ in self.accuracies
                    if threat.norm == norm and threat.epsilon is not None
                }
            )
        )


def index_rows(rows: Iterable[Row]) -> list[Results]:
    """Index the rows of a store, one `Results` per dataset."""
    by_dataset = defaultdict(list)
    for row in rows:
        by_dataset[row["dataset"]].append(row)
    return [_index_dataset(dataset, found) for dataset, found in sorted(by_dataset.items())]


def _index_dataset(dataset: str, rows: Sequence[Row]) -> Results:
    by_seed: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for item in row["evaluations"]:
            key = (row["method"], item["split"], Threat(item["norm"], item["epsilon"]), item["kind"])
            by_seed[key][row["task"]].append(item["robust"] / item["count"])
    tasks = defaultdict(set)
    radii: dict[str, float] = {}
    for row in rows:
        tasks[row["method"]].add(row["task"])
        radii |= row["main_radii"]
    methods = sorted(tasks, key=method_key)
    return Results(
        dataset=dataset,
        methods=tuple(methods),
        method_tasks={method: _ordered_tasks(tasks[method]) for method in methods},
        main_radii={norm: radii[norm] for norm in sorted(radii, key=lambda norm: _position(_NORM_ORDER, norm))},
        classes={row["task"]: tuple(row["classes"]) for row in rows},
        accuracies={
            key: {task: float(np.mean(values)) for task, values in found.items()} for key, found in by_seed.items()
        },
    )


def task_accuracies(results: Results, method: str, split: str, threat: Threat) -> dict[str, Accuracy]:
    """Return the accuracy shown for each task: clean, or exact where it is known, else attacked.

    split "both" is the mean of a task's train and test accuracies; it counts as exact only if both are.
    """
    if split == "both":
        train, test = (task_accuracies(results, method, name, threat) for name in ("train", "test"))
        return _mean_of_both(train, test)
    shown = {}
    for kind in ("attacked", "exact", "clean"):  # A later one replaces an earlier one.
        for task, value in results.accuracies.get((method, split, threat, kind), {}).items():
            shown[task] = Accuracy(value, kind)
    return shown


def lower_bounds(results: Results, method: str, split: str, threat: Threat) -> dict[str, Accuracy]:
    """Return the lower bound known for each task: certified, or exact where that is known."""
    if split == "both":
        train, test = (lower_bounds(results, method, name, threat) for name in ("train", "test"))
        return _mean_of_both(train, test)
    found = {}
    for kind in ("certified", "exact"):  # The later one replaces the earlier one.
        for task, value in results.accuracies.get((method, split, threat, kind), {}).items():
            found[task] = Accuracy(value, kind)
    return found


def _mean_of_both(train: Mapping[str, Accuracy], test: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
    return {
        task: Accuracy((train[task].value + test[task].value) / 2, _weakest([train[task], test[task]]))
        for task in train
        if task in test
    }


def mean_over_tasks(accuracies: Mapping[str, Accuracy], tasks: Iterable[str]) -> Mean | None:
    """Average over those of `tasks` that were evaluated; None if none was.

    A mean of exact and attacked accuracies is an upper bound, hence 'attacked'; one of exact and certified ones is a
    lower bound, hence 'certified'.
    """
    found = [accuracies[task] for task in tasks if task in accuracies]
    return _mean(found) if found else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error s / sqrt(n), s with n - 1; None instead of an error for n = 1."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


class Line(NamedTuple):
    """One line of the main table: cells[split][threat]."""

    method: str
    certified: bool
    cells: dict[str, dict[Threat, Mean | None]]


def main_table(results: Results, tasks: Sequence[str]) -> list[Line]:
    """Average each method over `tasks`: one line per method, and one for its lower bounds where not all are exact."""
    lines = []
    for method in results.methods:
        for certified, source in ((False, task_accuracies), (True, lower_bounds)):
            cells = {
                split: {
                    threat: mean_over_tasks(source(results, method, split, threat), tasks)
                    for threat in results.main_threats
                }
                for split in results.splits
            }
            kinds = {mean.kind for by_threat in cells.values() for mean in by_threat.values() if mean}
            if kinds and (not certified or "certified" in kinds):
                lines.append(Line(method, certified, cells))
    return lines


class Difference(NamedTuple):
    """A paired difference of two methods, mean over their common tasks."""

    first: Mean
    second: Mean
    value: float
    error: float | None


def paired_difference(
    results: Results, first: str, second: str, split: str, threat: Threat, tasks: Iterable[str]
) -> Difference | None:
    """Compare two methods task by task; None where no task has both."""
    one, two = (task_accuracies(results, method, split, threat) for method in (first, second))
    shared = [task for task in tasks if task in one and task in two]
    if not shared:
        return None
    value, error = mean_and_error([one[task].value - two[task].value for task in shared])
    return Difference(_mean([one[task] for task in shared]), _mean([two[task] for task in shared]), value, error)


def parse_pair(task: str) -> tuple[int, int] | None:
    """Return the classes (a, b) of a pair task "3v8"; None for other tasks."""
    match = re.fullmatch(r"(\d+)v(\d+)", task)
    return (int(match[1]), int(match[2])) if match else None


def _mean(accuracies: Sequence[Accuracy]) -> Mean:
    value, error = mean_and_error([accuracy.value for accuracy in accuracies])
    return Mean(value, error, len(accuracies), _weakest(accuracies))


def _weakest(accuracies: Iterable[Accuracy]) -> str:
    kinds = {accuracy.kind for accuracy in accuracies}
    return next(kind for kind in ("attacked", "certified", "exact", "clean") if kind in kinds)


def _position(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def method_key(method: str) -> tuple:
    """Order 1NN first, then the networks by what they are trained for, then methods unknown here."""
    return _position(_METHOD_ORDER, method), method


def task_key(task: str) -> tuple:
    """Order the numbers in a task's name as numbers: 2v10 after 2v9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", task))


def _ordered_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(tasks, key=task_key))
