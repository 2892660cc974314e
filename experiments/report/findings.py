"""What the numbers say, in sentences computed from them, whichever method they favour."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.methods import NEIGHBOR, is_neighbor
from experiments.report.labels import condition_phrase, error_points, method_label, percent, signed_points
from experiments.report.means import Difference, interval_over_tasks, mean_of, paired_difference
from experiments.report.records import CLEAN, Condition, Results


def findings(results: Results, tasks: Sequence[str]) -> list[str]:
    """Say for train and for test images which method is ahead under each condition, and what their mean would hide."""
    conditions = [condition for condition in results.main_conditions if condition != CLEAN]
    splits = results.single_splits
    sentences = [comparison(results, split, condition, tasks) for split in splits for condition in conditions]
    if len(splits) == 2:
        sentences += [hidden(results, condition, tasks) for condition in conditions]
    return [sentence for sentence in sentences if sentence]


def best_of(
    results: Results, methods: Sequence[str], split: str, condition: Condition, tasks: Sequence[str]
) -> str | None:
    """Return the method with the highest mean over `tasks`, the first of equals; None if none was evaluated."""
    means = {method: mean_of(results, method, split, condition, tasks) for method in methods}
    found = {method: mean.value for method, mean in means.items() if mean is not None}
    return max(found, key=found.__getitem__) if found else None


def _rivals(results: Results, split: str, condition: Condition, tasks: Sequence[str]) -> tuple[str, str] | None:
    """Choose what to compare: 1NN with the best other method, or without 1NN the two best; None if there are no two."""
    focus = NEIGHBOR if NEIGHBOR in results.methods else best_of(results, results.classifiers, split, condition, tasks)
    rivals = [method for method in results.classifiers if method != focus and not is_neighbor(method)]
    rival = best_of(results, rivals, split, condition, tasks)
    return (focus, rival) if focus and rival else None


def comparison(results: Results, split: str, condition: Condition, tasks: Sequence[str]) -> str | None:
    """Say whether 1NN is ahead of the best other method, and by how much; None where there is nothing to compare."""
    rivals = _rivals(results, split, condition, tasks)
    difference = paired_difference(results, *rivals, split, condition, tasks) if rivals else None
    if rivals is None or difference is None:
        return None
    focus, rival = rivals
    where = f"{split.capitalize()} images, {condition_phrase(condition)}"
    return (
        f"{where}: {method_label(focus)} is {_verdict(difference)} {method_label(rival)}, {_points(difference)} points "
        f"({percent(difference.first, error=False)} % against {percent(difference.second, error=False)} %)."
    )


def hidden(results: Results, condition: Condition, tasks: Sequence[str]) -> str | None:
    """Say where the mean over train and test images hides that they disagree."""
    rivals = _rivals(results, "both", condition, tasks)
    if rivals is None:
        return None
    focus, rival = rivals
    by_split = {
        split: difference
        for split in ("train", "test", "both")
        if (difference := paired_difference(results, focus, rival, split, condition, tasks))
    }
    verdicts = {split: _verdict(difference) for split, difference in by_split.items()}
    if len(by_split) < 3 or verdicts["train"] == verdicts["test"]:
        return None
    return (
        f"Mean over train and test images, {condition_phrase(condition)}: {method_label(focus)} is {verdicts['both']} "
        f"{method_label(rival)} ({_points(by_split['both'])} points). It hides a difference: on train images "
        f"{method_label(focus)} is {verdicts['train']} it ({_points(by_split['train'])}), "
        f"on test images {verdicts['test']} it ({_points(by_split['test'])})."
    )


def _verdict(difference: Difference) -> str:
    interval = interval_over_tasks(difference.value, difference.error, difference.first.num_tasks)
    if difference.value == 0 or (interval and interval[0] <= 0 <= interval[1]):
        return "level with"
    return "ahead of" if difference.value > 0 else "behind"


def _points(difference: Difference) -> str:
    error = "" if difference.error is None else f" ± {error_points(difference.error)}"
    return signed_points(difference.value) + error
