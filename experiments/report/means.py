"""From accuracies per task to means, differences and their errors.

Every task weighs the same and standard errors are over tasks. Five kinds of accuracy are kept apart:
`clean`; `attacked`, an upper bound on robust accuracy (no attack that was tried broke these images); `certified`, a
lower bound; `exact`; `ceiling`, what no classifier exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.report.records import CLEAN, Condition, Results
from nn_adv import evaluation

# Of several kinds that are known for the same images the first is taken: what is shown, and what is proven.
SHOWN = ("clean", "exact", "attacked", "ceiling")
PROVEN = ("exact", "certified")


class Accuracy(NamedTuple):
    """The share of images (mean over seeds) and what it means: clean, attacked, certified, exact or ceiling."""

    value: float
    kind: str


class Mean(NamedTuple):
    """A mean over tasks; error is its standard error, None for a single task."""

    value: float
    error: float | None
    num_tasks: int
    kind: str


def task_accuracies(
    results: Results, method: str, split: str, condition: Condition, kinds: Sequence[str] = SHOWN
) -> dict[str, Accuracy]:
    """Return the accuracy of each task, of the first of these kinds that is known for it.

    split "both" is the mean of a task's train and test accuracies; it counts as exact only if both are.
    """
    if split == "both":
        train, test = (task_accuracies(results, method, name, condition, kinds) for name in ("train", "test"))
        return {
            task: Accuracy((train[task].value + test[task].value) / 2, weakest([train[task], test[task]]))
            for task in train
            if task in test
        }
    found = {}
    for kind in reversed(kinds):  # An earlier one replaces a later one.
        for task, value in results.accuracies.get((method, split, condition, kind), {}).items():
            found[task] = Accuracy(value, kind)
    return found


def mean_of(
    results: Results,
    method: str,
    split: str,
    condition: Condition,
    tasks: Iterable[str],
    kinds: Sequence[str] = SHOWN,
) -> Mean | None:
    """Average the `task_accuracies` of a method over those of `tasks` that it was evaluated on; None if none was.

    A mean of exact and attacked accuracies is an upper bound, hence 'attacked'; one of exact and certified ones is a
    lower bound, hence 'certified'.
    """
    accuracies = task_accuracies(results, method, split, condition, kinds)
    found = [accuracies[task] for task in tasks if task in accuracies]
    return _mean(found) if found else None


def points_of_curve(
    mean_at: Callable[[Condition], Mean | None], norm: str, epsilons: Iterable[float]
) -> list[tuple[float, Mean]]:
    """Return what there is at each epsilon of a norm, from the clean images at 0 on; nothing where that is all."""
    found = [(epsilon, mean) for epsilon in epsilons if epsilon and (mean := mean_at(Condition(norm, epsilon)))]
    clean = mean_at(CLEAN) if found else None
    return [(0.0, clean), *found] if clean else found


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
    mean = mean_of(results, method, split, condition, results.tasks, kinds)
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
                split: {one: mean_of(results, method, split, one, tasks, kinds) for one in results.main_conditions}
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


def _mean(accuracies: Sequence[Accuracy]) -> Mean:
    value, error = mean_and_error([accuracy.value for accuracy in accuracies])
    return Mean(value, error, len(accuracies), weakest(accuracies))


def weakest(accuracies: Iterable[Accuracy | Mean]) -> str:
    """Return the kind of several accuracies together, that of the one that says least; "clean" of none."""
    kinds = {accuracy.kind for accuracy in accuracies}
    return next((kind for kind in ("attacked", "certified", "exact", "ceiling") if kind in kinds), "clean")
