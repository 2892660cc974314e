"""Curves against the radius, and 1NN beside the best network pair by pair, as a table and as pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from experiments.methods import NEIGHBOR, is_neighbor
from experiments.report import figures
from experiments.report.labels import (
    MISSING,
    SPLIT_TITLES,
    condition_label,
    counted,
    method_label,
    percent,
    signed_points,
)
from experiments.report.means import (
    PROVEN,
    SHOWN,
    Accuracy,
    Mean,
    interval_over_tasks,
    mean_and_error,
    mean_of,
    points_of_curve,
    task_accuracies,
)
from experiments.report.page import Block, Heading, Image, Panels, Table, Text, file_name
from experiments.report.records import CEILING, CLEAN, Condition, Results, parse_pair

_METHODS = ("1nn", "trades-linf", "trades-l2", "trades-both", "standard")  # each with a colour of its own
_CEILING_LINE = ("#000000", None)


def curve_blocks(results: Results, tasks: Sequence[str]) -> list[Block]:
    """Draw the accuracy against the radius, norm by norm and split by split, as means over ``tasks``."""
    found: list[Block] = []
    for norm, epsilon in results.main_epsilons.items():
        title = f"Accuracy against the {norm} radius"
        images = []
        for split in results.single_splits:
            if lines := _curves(results, split, norm, tasks):
                panel = f"{split} images, {norm}"
                drawing = figures.accuracy_curves(lines, Condition(norm, epsilon), title=panel)
                images.append(
                    Image(file_name(results.dataset, "curve", norm, split), f"{title}, {split} images", drawing)
                )
        caption = (
            f"{title}: mean over {counted(len(tasks), 'task')}, the band is ± one standard error. "
            "Solid: exact, through the radii at which all images are. Dashed: attacked, an upper bound. "
            "Dotted: certified, a lower bound. Upright line: the main radius."
        ) + " Black: what no classifier can exceed on these images." * (CEILING in results.methods)
        found += [Panels(images, caption)] if images else []
    return [Heading("Accuracy against the radius"), *found] if found else []


def _curves(results: Results, split: str, norm: str, tasks: Sequence[str]) -> list[figures.Curve]:
    """Lay out a line per method with a band of one standard error, and one of lower bounds where not all are exact."""
    others = [method for method in results.methods if method not in _METHODS]
    lines = []
    for method in results.methods:
        known = _METHODS.index(method) if method in _METHODS else len(_METHODS) + others.index(method)
        color, marker = _CEILING_LINE if method == CEILING else figures.pen(known)
        for kinds in (SHOWN, ("clean", *PROVEN)):
            mean_at = functools.partial(mean_of, results, method, split, tasks=tasks, kinds=kinds)
            points = points_of_curve(mean_at, norm, results.epsilons(norm))
            exact = [(epsilon, mean) for epsilon, mean in points if mean.kind in ("clean", "exact")]
            if 2 * len(exact) > len(points):  # an image that is only bounded at an epsilon does not undo the others
                points = exact
            if not points or (kinds != SHOWN and points is exact):
                continue
            line = figures.curve_of_means(points, method_label(method), color, marker)
            label = "highest possible" if method == CEILING else line.label
            lines.append(line._replace(label=label, errors=[100 * (mean.error or 0.0) for _, mean in points]))
    return lines


def pair_scores(results: Results, split: str, condition: Condition) -> dict[tuple[int, int], tuple[Accuracy, Accuracy]]:
    """Return the accuracies of 1NN and of the best TRADES network for each pair of classes that has both.

    The best network is chosen anew for each pair; without TRADES among the methods, from all other methods.
    """
    rivals = [method for method in results.methods if method.startswith("trades")]
    rivals = rivals or [method for method in results.classifiers if not is_neighbor(method)]
    networks = [task_accuracies(results, method, split, condition) for method in rivals]
    scores = {}
    for task, accuracy in task_accuracies(results, NEIGHBOR, split, condition).items():
        pair = parse_pair(task)
        found = [network[task] for network in networks if task in network]
        if pair is not None and found:
            scores[pair] = accuracy, max(found, key=lambda network: network.value)
    return scores


def pair_differences(results: Results, split: str, condition: Condition) -> dict[tuple[int, int], float]:
    """Return 1NN's accuracy minus the best network's for each pair of classes, see `pair_scores`."""
    return {pair: own.value - best.value for pair, (own, best) in pair_scores(results, split, condition).items()}


def tally_blocks(results: Results) -> list[Block]:
    """Say on how many pairs 1NN is ahead of the best network of the pair, and by how much."""
    lines = []
    for split in results.splits:
        for condition in results.main_conditions:
            values = list(pair_differences(results, split, condition).values())
            if condition != CLEAN and values:
                mean, error = mean_and_error(values)
                interval = interval_over_tasks(mean, error, len(values))
                ends = MISSING if interval is None else " to ".join(map(signed_points, interval))
                ahead, behind = (sum(sign * value > 0 for value in values) for sign in (1, -1))
                counts = map(str, (len(values), ahead, len(values) - ahead - behind, behind))
                where = f"{SPLIT_TITLES[split]}, {condition_label(condition)}"
                lines.append([where, *counts, signed_points(mean), ends])
    header = ["", "pairs", "1NN ahead", "equal", "1NN behind", "difference", "95 % interval"]
    note = (
        f"{_difference_title(results)}, in points: the mean over pairs and its 95 % interval (Student's t; pairs share "
        "classes, so it may be too narrow). The network is chosen anew for each line and pair, which favours the "
        "networks; 1NN ahead of an upper bound is ahead whatever other attacks would find."
    )
    return [Heading("How many pairs each wins"), Table(header, lines), Text(note, "note")] if lines else []


def _difference_title(results: Results) -> str:
    return f"{method_label(NEIGHBOR)} minus the best {_rival(results)} of each pair"


def _rival(results: Results) -> str:
    return "TRADES network" if any(name.startswith("trades") for name in results.methods) else "other method"


def heat_map_blocks(results: Results) -> list[Block]:
    """Draw how far 1NN is ahead of the best network on each pair of classes."""
    title = _difference_title(results)
    pairs = {task: pair for task in results.classes if (pair := parse_pair(task))}
    names = {
        number: name for task, pair in pairs.items() for number, name in zip(pair, results.classes[task], strict=True)
    }
    found: list[Block] = []
    for split in reversed(results.single_splits):
        differences = {
            condition: values
            for condition in results.main_conditions
            if condition != CLEAN and (values := pair_differences(results, split, condition))
        }
        # One scale for the panels that stand side by side.
        limit = max((abs(value) for values in differences.values() for value in values.values()), default=0.0) or 0.01
        images = []
        for condition, values in differences.items():
            label = condition_label(condition)
            drawing = figures.heat_map(values, names, limit=limit, title=f"{split} images, {label}")
            name = file_name(results.dataset, "pairs", condition.norm, split)
            images.append(Image(name, f"{title}, {label}, {split} images", drawing))
        caption = (
            f"{split.capitalize()} images: {title}, in points. The network is chosen anew for each pair and "
            "panel, which favours the networks. Differences of upper bounds, except where both are exact."
        )
        found += [Panels(images, caption)] if images else []
    return [Heading("Pair by pair"), *found] if found else []


def pair_table_blocks(results: Results) -> list[Block]:
    """List 1NN, the best network and their difference on each pair of classes, at each main epsilon."""
    conditions = results.robust_conditions
    scores = {
        (split, condition): found
        for split in results.single_splits
        for condition in conditions
        if (found := pair_scores(results, split, condition))
    }
    if not scores:
        return []
    tasks = {pair: task for task in results.tasks if (pair := parse_pair(task))}
    lines = []
    for pair, task in tasks.items():
        if any(pair in found for found in scores.values()):
            classes = results.classes[task]
            label = task if "v".join(classes) == task else f"{task} {' / '.join(classes)}"
            lines.append([label, *(text for found in scores.values() for text in _score_texts(found.get(pair)))])
    groups = [(f"{split} images, {condition_label(condition)}", 3) for split, condition in scores]
    rival = _rival(results)
    note = (
        f"Accuracy in percent, ≤ attacked and = exact, and 1NN minus the best {rival} in points. The network is chosen "
        "anew for each pair, split and radius."
    )
    header = ["pair", *("1NN", "best", "points") * len(scores)]
    table = Table(header, lines, groups=[("", 1), *groups], sortable=True)
    return [Heading(f"1NN and the best {rival} of each pair", 3), table, Text(note, "note")]


def _score_texts(scores: tuple[Accuracy, Accuracy] | None) -> list[str]:
    if scores is None:
        return [MISSING] * 3
    own, best = scores
    shares = [percent(Mean(one.value, None, 1, one.kind), error=False) for one in scores]
    return [*shares, signed_points(own.value - best.value)]
