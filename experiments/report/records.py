"""From rows to numbers: one tidy table, an index of it, and the order of tasks, methods and norms."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from experiments.methods import CEILING, is_neighbor
from experiments.pictures import Pictures
from nn_adv import evaluation

Row = Mapping[str, Any]
SPLITS = ("train", "test", "both")
NORMS = ("linf", "l2", "l1", "worst")
_METHODS = ("trades-linf", "trades-l2", "trades-both", "pgd-linf", "pgd-l2", "standard", CEILING)


class Run(NamedTuple):
    """What lies in a workdir: all that a report says."""

    rows: Sequence[Row]  # those of its units that are finished; a report needs one or more
    problems: Sequence[str] = ()  # damaged lines and the like, in words
    failed: Sequence[Mapping[str, Any]] = ()  # records of `failures`, of the units that could not be run
    contradictions: Sequence[str] = ()  # what the rows say that cannot be, in words
    num_missing: int = 0  # units that were asked for, have no row and did not fail
    settings: Mapping[str, Any] = {}  # what the experiment says of its report
    pictures: Mapping[str, Pictures] = {}  # of some units, by their names


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


class Results(NamedTuple):
    """The numbers of a run, indexed."""

    dataset: str
    methods: tuple[str, ...]  # in the order of the tables
    method_tasks: dict[str, tuple[str, ...]]  # the tasks that each method was run on, in the order of the tables
    main_epsilons: dict[str, float]  # the main epsilon per norm
    classes: dict[str, tuple[str, ...]]  # class names per task
    # (method, split, condition, kind) -> task -> mean accuracy over seeds
    accuracies: dict[tuple[str, str, Condition, str], dict[str, float]]
    # likewise -> (robust, count) of all tasks and seeds together
    images: dict[tuple[str, str, Condition, str], tuple[int, int]]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The methods without the ceiling, which no method has to beat."""
        return tuple(method for method in self.methods if method != CEILING)

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
        """Clean, each norm at its main epsilon, worst of several: those evaluated, as the columns of the main table."""
        found = {key[2] for key in self.accuracies}
        norms = [Condition(norm, epsilon) for norm, epsilon in self.main_epsilons.items()]
        worst = [WORST] if len(norms) > 1 else []
        return tuple(condition for condition in (CLEAN, *norms, *worst) if condition in found)

    @property
    def single_conditions(self) -> tuple[Condition, ...]:
        """Clean and each norm at its main epsilon."""
        return tuple(condition for condition in self.main_conditions if condition != WORST)

    @property
    def robust_conditions(self) -> tuple[Condition, ...]:
        """Each norm at its main epsilon."""
        return tuple(condition for condition in self.single_conditions if condition != CLEAN)

    def epsilons(self, norm: str) -> list[float]:
        """Every epsilon evaluated in one norm, ascending."""
        found = {key[2].epsilon for key in self.accuracies if key[2].norm == norm}
        return sorted(epsilon for epsilon in found if epsilon is not None)


def index(rows: Sequence[Row]) -> Results:
    """Index the rows of a store, which are all of one dataset."""
    table = _as_weak_as_the_weakest(_evaluations(rows))
    keys = ["method", "split", "norm", "epsilon", "kind"]
    accuracies: dict[tuple[str, str, Condition, str], dict[str, float]] = {}
    for (*key, task), value in table.groupby([*keys, "task"], dropna=False, sort=False)["accuracy"].mean().items():
        accuracies.setdefault(_key(*key), {})[task] = value
    sums = table.groupby(keys, dropna=False, sort=False)[["robust", "count"]].sum()
    tasks = table.groupby("method")["task"].unique()
    methods = sorted(tasks.index, key=method_key)
    epsilons = {norm: epsilon for row in rows for norm, epsilon in row["main_radii"].items()}
    return Results(
        dataset=rows[0]["dataset"],
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


def _as_weak_as_the_weakest(table: pd.DataFrame) -> pd.DataFrame:
    """Take an exact accuracy as the lower and the upper bound that it is where another seed has only bounds."""
    cell = [table[name] for name in ("method", "task", "split", "norm", "epsilon")]
    is_exact = table["kind"] == "exact"
    is_known = is_exact.groupby([*cell, table["unit"]], dropna=False).transform("any")
    of_cell = is_known.groupby(cell, dropna=False)
    is_mixed = is_known & of_cell.transform("any") & ~of_cell.transform("all")
    bounds = [table[is_mixed & is_exact].assign(kind=kind) for kind in ("certified", "attacked")]
    return pd.concat([table[~is_mixed], *bounds]) if is_mixed.any() else table


def _key(method: str, split: str, norm: Any, epsilon: Any, kind: str) -> tuple[str, str, Condition, str]:
    known = (None if pd.isna(value) else value for value in (norm, epsilon))
    return method, split, Condition(*known), kind


def parse_pair(task: str) -> tuple[int, int] | None:
    """Return the classes (a, b) of a pair task "3v8"; None for other tasks."""
    match = re.fullmatch(r"(\d+)v(\d+)", task)
    return (int(match[1]), int(match[2])) if match else None


def method_key(method: str) -> tuple:
    """Order 1NN first, then its variants, the networks by what they are trained for, then methods unknown here."""
    if is_neighbor(method):
        return -1, method
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
