"""From rows to numbers: one tidy table, then accuracies per task, means over tasks and differences.

Every task weighs the same and standard errors are over tasks. Four kinds of accuracy are kept apart:
`clean`; `attacked`, an upper bound on robust accuracy (no attack that was tried broke these images); `certified`, a
lower bound; `exact`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from experiments.pictures import Pictures
from nn_adv import evaluation

Row = Mapping[str, Any]
SPLITS = ("train", "test", "both")
NORMS = ("linf", "l2", "l1", "worst")
_METHODS = ("1nn", "trades-linf", "trades-l2", "trades-both", "pgd-linf", "pgd-l2", "standard")
# Of several kinds that are known for the same images the first is taken: what is shown, and what is proven.
SHOWN = ("clean", "exact", "attacked")
PROVEN = ("exact", "certified")


class Run(NamedTuple):
    """What lies in a workdir: all that a report says.

    Attributes:
      rows: those of its units that are finished; a report needs one or more.
      problems: damaged lines and the like, in words.
      failed: records of `failures`, of the units that could not be run.
      contradictions: what the rows say that cannot be, in words.
      num_missing: units that were asked for, have no row and did not fail.
      settings: what the experiment says of its report.
      pictures: of some units, by their names.
    """

    rows: Sequence[Row]
    problems: Sequence[str] = ()
    failed: Sequence[Mapping[str, Any]] = ()
    contradictions: Sequence[str] = ()
    num_missing: int = 0
    settings: Mapping[str, Any] = {}
    pictures: Mapping[str, Pictures] = {}


class Condition(NamedTuple):
    """What the images are up against. norm: None (clean), "linf", "l2", "l1", or "worst" (each at its main epsilon)."""

    norm: str | None
    epsilon: float | None


CLEAN = Condition(None, 0.0)
WORST = Condition("worst", None)


def tidy(rows: Iterable[Row]) -> pd.DataFrame:
    """Return one line for each accuracy that was measured, by the name of its unit.

    Columns: dataset, task, classes, method, seed; split, norm (missing: clean), epsilon (missing: the worst of the
    norms), kind; count and robust, in images; accuracy with the ends of its 95 % interval (Wilson), in [0, 1].
    """
    found = _evaluations(rows)
    ends = [_interval(robust, count) for robust, count in zip(found["robust"], found["count"], strict=True)]
    return found.assign(low95=[low for low, _ in ends], high95=[high for _, high in ends]).set_index("unit")


_interval = functools.cache(evaluation.wilson_interval)


def _evaluations(rows: Iterable[Row]) -> pd.DataFrame:
    lines = []
    for row in sorted(rows, key=_row_key):
        about = {name: row[name] for name in ("unit", "dataset", "task")}
        about |= {"classes": " / ".join(row["classes"]), "method": row["method"], "seed": row["seed"]}
        for item in row["evaluations"]:
            found = {name: item[name] for name in ("split", "norm", "epsilon", "kind", "count", "robust")}
            lines.append(about | found | {"accuracy": item["robust"] / item["count"]})
    return pd.DataFrame(lines)


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
    """The numbers of one dataset, indexed.

    Attributes:
      methods: in the order of the tables.
      method_tasks: the tasks that each method was run on, in the order of the tables.
      main_epsilons: the main epsilon per norm.
      classes: class names per task.
      accuracies: (method, split, condition, kind) -> task -> mean accuracy over seeds.
      images: likewise -> (robust, count) of all tasks and seeds together.
    """

    dataset: str
    methods: tuple[str, ...]
    method_tasks: dict[str, tuple[str, ...]]
    main_epsilons: dict[str, float]
    classes: dict[str, tuple[str, ...]]
    accuracies: dict[tuple[str, str, Condition, str], dict[str, float]]
    images: dict[tuple[str, str, Condition, str], tuple[int, int]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task that any method was run on."""
        return _ordered_tasks({task for tasks in self.method_tasks.values() for task in tasks})

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks that every method was run on."""
        return _ordered_tasks(set.intersection(*map(set, self.method_tasks.values())))

    @property
    def single_splits(self) -> tuple[str, ...]:
        """The splits that were evaluated."""
        return tuple(split for split in SPLITS if any(key[1] == split for key in self.accuracies))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were evaluated, with "both" (their mean) where there are two."""
        return (*self.single_splits, *["both"] * (len(self.single_splits) == 2))

    @property
    def main_conditions(self) -> tuple[Condition, ...]:
        """Clean, each norm at its main epsilon, worst: those that were evaluated, as the columns of the main table."""
        found = {key[2] for key in self.accuracies}
        norms = [Condition(norm, epsilon) for norm, epsilon in self.main_epsilons.items()]
        return tuple(condition for condition in (CLEAN, *norms, WORST) if condition in found)

    def epsilons(self, norm: str) -> list[float]:
        """Every epsilon evaluated in one norm, ascending."""
        found = {key[2].epsilon for key in self.accuracies if key[2].norm == norm}
        return sorted(epsilon for epsilon in found if epsilon is not None)


def index(rows: Sequence[Row]) -> list[Results]:
    """Index the rows of a store, one `Results` per dataset."""
    names = sorted({row["dataset"] for row in rows})
    return [_index_dataset(name, [row for row in rows if row["dataset"] == name]) for name in names]


def _index_dataset(dataset: str, rows: Sequence[Row]) -> Results:
    table = _evaluations(rows)
    keys = ["method", "split", "norm", "epsilon", "kind"]
    accuracies: dict[tuple[str, str, Condition, str], dict[str, float]] = {}
    for (*key, task), value in table.groupby([*keys, "task"], dropna=False, sort=False)["accuracy"].mean().items():
        accuracies.setdefault(_key(*key), {})[task] = value
    sums = table.groupby(keys, dropna=False, sort=False)[["robust", "count"]].sum()
    tasks = table.groupby("method")["task"].unique()
    methods = sorted(tasks.index, key=method_key)
    epsilons = {norm: epsilon for row in rows for norm, epsilon in row["main_radii"].items()}
    return Results(
        dataset=dataset,
        methods=tuple(methods),
        method_tasks={method: _ordered_tasks(tasks[method]) for method in methods},
        main_epsilons={norm: epsilons[norm] for norm in sorted(epsilons, key=norm_key)},
        classes={row["task"]: tuple(row["classes"]) for row in rows},
        accuracies=accuracies,
        images={
            _key(*key): (int(robust), int(count))
            for key, robust, count in zip(sums.index, sums["robust"], sums["count"], strict=True)
        },
    )


def _key(method: str, split: str, norm: Any, epsilon: Any, kind: str) -> tuple[str, str, Condition, str]:
    known = (None if pd.isna(value) else value for value in (norm, epsilon))
    return method, split, Condition(*known), kind


def task_accuracies(
    results: Results, method: str, split: str, condition: Condition, kinds: Sequence[str] = SHOWN
) -> dict[str, Accuracy]:
    """Return the accuracy of each task, of the first of these kinds that is known for it.

    split "both" is the mean of a task's train and test accuracies; it counts as exact only if both are.
    """
    if split == "both":
        train, test = (task_accuracies(results, method, name, condition, kinds) for name in ("train", "test"))
        return {
            task: Accuracy((train[task].value + test[task].value) / 2, _weakest([train[task], test[task]]))
            for task in train
            if task in test
        }
    found = {}
    for kind in reversed(kinds):  # An earlier one replaces a later one.
        for task, value in results.accuracies.get((method, split, condition, kind), {}).items():
            found[task] = Accuracy(value, kind)
    return found


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


def interval_over_tasks(value: float, error: float | None, num_tasks: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean with this standard error (Student's t); None for a single task."""
    if error is None:
        return None
    half = error * float(stats.t.ppf(0.975, num_tasks - 1))
    return value - half, value + half


def share(results: Results, method: str, split: str, condition: Condition, kinds: Sequence[str] = SHOWN) -> Mean | None:
    """Return the share of a split's images where there is one task; its error is binomial, over images."""
    mean = mean_over_tasks(task_accuracies(results, method, split, condition, kinds), results.tasks)
    if mean is None:
        return None
    counts = [_images(results, method, name, condition, kinds) for name in _parts(split)]
    errors = [standard_error(robust / count, count) for robust, count in counts]
    return mean._replace(error=math.hypot(*errors) / len(errors))


def interval(
    results: Results, method: str, split: str, condition: Condition, kinds: Sequence[str] = SHOWN
) -> tuple[float, float]:
    """Return the 95 % interval of a `share` that there is; of both splits as if their images were one sample."""
    counts = [_images(results, method, name, condition, kinds) for name in _parts(split)]
    return evaluation.wilson_interval(sum(robust for robust, _ in counts), sum(count for _, count in counts))


def standard_error(value: float, count: int) -> float:
    """Return the standard error of a share of so many images drawn at random."""
    return math.sqrt(value * (1 - value) / count)


def _images(results, method, split, condition, kinds) -> tuple[int, int]:
    keys = [(method, split, condition, kind) for kind in kinds]
    return next(results.images[key] for key in keys if key in results.images)


def _parts(split: str) -> tuple[str, ...]:
    return ("train", "test") if split == "both" else (split,)


class Line(NamedTuple):
    """One line of the main table: cells[split][condition]."""

    method: str
    certified: bool
    cells: dict[str, dict[Condition, Mean | None]]


def main_table(results: Results, tasks: Sequence[str]) -> list[Line]:
    """Average each method over `tasks`: one line per method, and one for its lower bounds where not all are exact."""
    lines = []
    for method in results.methods:
        for certified, kinds in ((False, SHOWN), (True, PROVEN)):
            cells = {
                split: {
                    condition: mean_over_tasks(task_accuracies(results, method, split, condition, kinds), tasks)
                    for condition in results.main_conditions
                }
                for split in results.splits
            }
            found = {mean.kind for by_condition in cells.values() for mean in by_condition.values() if mean}
            if found and (not certified or "certified" in found):
                lines.append(Line(method, certified, cells))
    return lines


class Difference(NamedTuple):
    """A paired difference of two methods, mean over their common tasks."""

    first: Mean
    second: Mean
    value: float
    error: float | None


def paired_difference(
    results: Results, first: str, second: str, split: str, condition: Condition, tasks: Iterable[str]
) -> Difference | None:
    """Compare two methods task by task; None where no task has both."""
    one, two = (task_accuracies(results, method, split, condition) for method in (first, second))
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


def method_key(method: str) -> tuple:
    """Order 1NN first, then the networks by what they are trained for, then methods unknown here."""
    return _METHODS.index(method) if method in _METHODS else len(_METHODS), method


def norm_key(norm: str) -> int:
    """Order norms as the tables do."""
    return NORMS.index(norm) if norm in NORMS else len(NORMS)


def task_key(task: str) -> tuple:
    """Order the numbers in a task's name as numbers: 2v10 after 2v9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", task))


def _row_key(row: Row) -> tuple:
    return row["dataset"], task_key(row["task"]), method_key(row["method"]), row["seed"]


def _ordered_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(tasks, key=task_key))
