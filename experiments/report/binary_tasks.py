"""The report of many small tasks: findings and tables first, then figures, then how it was made."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence

import pandas as pd

from experiments.report import pairs
from experiments.report.findings import findings
from experiments.report.gallery import picture_blocks
from experiments.report.labels import (
    SPLIT_TITLES,
    condition_label,
    counted,
    error_points,
    method_label,
    percent,
)
from experiments.report.means import Line, Mean, main_table
from experiments.report.page import TEXT_WIDTH, Block, Bullets, Heading, Table, Text, text_table
from experiments.report.provenance import alerts, provenance_blocks
from experiments.report.records import CEILING, Condition, Results, Row, Run, index, method_key, parse_pair, tidy
from nn_adv import evaluation

TABLE = "pairs.csv"
_READING = (
    "Accuracy in percent: mean over tasks ± its standard error over tasks, every task weighing the same. "
    "≤ attacked: the share of images that no attack tried here broke, an upper bound on robust accuracy that a "
    "stronger attack can lower. = exact: the robust accuracy itself. ≥ certified: proven, a lower bound. "
    "Worst: an image counts only if it holds in every norm, each at its radius. "
    "Bold: the highest of a column, bounds compared as they stand. "
    "Pairs share classes, so tasks are not independent and the standard errors may be too small. "
    f"{TABLE} has each task's 95 % interval over images."
)
_CEILING = (
    " ≤ of the ceiling: what no classifier exceeds, on the same images at the same radius: two images of different "
    "classes less than two radii apart have a perturbed image in common (Bhagoji et al. 2019)."
)
_COMPARING = (
    "Each time beside the method that does best there, which can be another one for each line. Differences are paired: "
    "mean over {tasks} ± standard error of the task-by-task difference; level: 0 is in its 95 % interval (Student's "
    "t). "
    "≤ marks attacked accuracy: what no attack tried here broke, an upper bound that a stronger attack can lower. "
    "= marks exact accuracy."
)
_ONE_TASK = (
    " One task has no such interval, and any difference is told as ahead or behind: hold it against the intervals over "
    "images."
)
_COLLAPSED = 0.1  # above half of the clean images of a pair
_LEGEND = "in %, ± standard error over tasks; ≤ attacked (upper bound), = exact, ≥ certified (lower bound)"


def table(run: Run) -> pd.DataFrame:
    """Return every accuracy that was measured, tasks and methods in the order of the tables."""
    return tidy(run.rows)


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    rows, results = run.rows, index(run.rows)
    title = f"1NN and adversarially trained networks on {results.dataset}"
    found: list[Block] = [Heading(title, 1), _completeness(len(rows), run.num_missing + len(run.failed)), *alerts(run)]
    if collapsed := collapsed_networks(rows):
        most = f"at most {100 * (0.5 + _COLLAPSED):.0f} % of the clean images"
        found.append(Bullets(collapsed, f"Hardly better than a constant prediction ({most}):"))
    if warned := [f"{row['unit']}: {text}" for row in rows for text in row.get("warnings", ())]:
        found.append(Bullets(warned, "Warnings:"))
    found += [*_table_blocks(results), *attack_blocks(results, rows), *_interval_blocks(results, rows)]
    found += pairs.tally_blocks(results)
    found += [*pairs.curve_blocks(results, _shown_tasks(results)), *pairs.heat_map_blocks(results)]
    found += pairs.pair_table_blocks(results)
    return [*found, *picture_blocks(rows, run.pictures), *provenance_blocks(run, results)]


def collapsed_networks(rows: Sequence[Row]) -> list[str]:
    """Name the classifiers of pairs that are hardly better than a constant prediction, which has half of them."""
    found = []
    for row in rows:
        clean = [item["robust"] / item["count"] for item in row["evaluations"] if item["kind"] == "clean"]
        if parse_pair(row["task"]) and any(accuracy <= 0.5 + _COLLAPSED for accuracy in clean):
            seed = f", seed {row['seed']}" * (row["seed"] > 0)
            found.append(f"{method_label(row['method'])} on {row['task']}{seed}")
    return found


def accuracy_table(results: Results, tasks: Sequence[str], *, comparable: bool = True) -> Table:
    """Lay out the main table: one line per method; train, test and the mean over both side by side.

    The highest of each column is set in bold if the lines are comparable, that is over the same tasks.
    """
    lines = main_table(results, tasks)
    columns = [(split, condition) for split in results.splits for condition in results.main_conditions]
    return Table(
        header=["method", *(condition_label(condition) for _, condition in columns)],
        groups=[("", 1), *((SPLIT_TITLES[split], len(results.main_conditions)) for split in results.splits)],
        rows=[
            [line_label(line), *(percent(line.cells[split][condition]) for split, condition in columns)]
            for line in lines
        ],
        strong=frozenset(
            (row, column) for column, key in enumerate(columns, start=1) for row in _highest(lines, *key) if comparable
        ),
    )


def line_label(line: Line) -> str:
    """Write the method of a line of the main table."""
    return method_label(line.method) + (" (certified)" if line.certified else "")


def _tasks_note(results: Results) -> str:
    if _even(results):
        return f"Means over {counted(len(results.tasks), 'task')}."
    start = f"The methods were not all run on the same tasks ({_task_numbers(results)})"
    if results.common_tasks:
        return f"{start}: the means are over the {counted(len(results.common_tasks), 'task')} common to all."
    return f"{start} and have none in common: each mean is over the method's own tasks, compare no line with another."


def _shown_tasks(results: Results) -> tuple[str, ...]:
    """Return the tasks of the main table: those common to all methods, or all tasks if there are none."""
    return results.common_tasks or results.tasks


def _table_blocks(results: Results) -> list[Block]:
    tasks = _shown_tasks(results)
    comparable = bool(results.common_tasks)
    found: list[Block] = [Heading(f"Mean over {counted(len(tasks), 'task')}" if comparable else "Mean over tasks")]
    if not _even(results):
        found.append(Text(_tasks_note(results), "alert"))
    main = accuracy_table(results, tasks, comparable=comparable)
    found += [main, Text(_READING + _CEILING * (CEILING in results.methods), "note")]
    if comparable and (sentences := findings(results, tasks)):
        note = _COMPARING.format(tasks=counted(len(tasks), "task")) + _ONE_TASK * (len(tasks) == 1)
        found += [Heading("What the numbers say"), Bullets(sentences), Text(note, "note")]
    if comparable and not _even(results):
        found += [
            Heading("Each method over all of its own tasks"),
            Text(f"Each line is over other tasks ({_task_numbers(results)}): compare no line with another.", "alert"),
            accuracy_table(results, results.tasks, comparable=False),
        ]
    return found


def _interval_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Give the intervals over images where one task leaves no standard error over tasks."""
    if len(results.tasks) > 1:
        return []
    lines = []
    of_classifiers = [row for row in rows if row["method"] != CEILING]
    for row in sorted(of_classifiers, key=lambda row: (method_key(row["method"]), row["seed"])):
        for item in row["evaluations"]:
            condition = Condition(item["norm"], item["epsilon"])
            if condition in results.main_conditions:
                low, high = evaluation.wilson_interval(item["robust"], item["count"])
                share = percent(Mean(item["robust"] / item["count"], None, 1, item["kind"]), error=False)
                interval = f"{100 * low:.1f} to {100 * high:.1f}"
                what = f"{method_label(row['method'])}, seed {row['seed']}, {item['split']} images"
                lines.append([what, condition_label(condition), share, str(item["count"]), interval])
    header = ["", "threat", "%", "images", "95 % interval (Wilson)"]
    return [Heading("Intervals over images", 3), Table(header, lines)]


def attack_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Say what each attack left at the main epsilons, over the images of the shown tasks and all seeds together."""
    tasks = _shown_tasks(results)
    totals: dict[tuple[str, str, Condition], Counter] = defaultdict(Counter)
    for row in sorted(rows, key=lambda row: method_key(row["method"])):
        for item in row["evaluations"]:
            condition = Condition(item["norm"], item["epsilon"])
            if "left" in item and condition in results.main_conditions and row["task"] in tasks:
                totals[row["method"], item["split"], condition].update(item["left"] | {"images": item["count"]})
    names = list(dict.fromkeys(name for remaining in totals.values() for name in remaining if name != "images"))
    if len(names) < 3:  # the clean images and one attack: the main table says as much
        return []
    lines = [
        [
            f"{method_label(method)}, {split} images, {condition_label(condition)}",
            *(f"{100 * remaining[name] / remaining['images']:.1f}" if name in remaining else "–" for name in names),
        ]
        for (method, split, condition), remaining in totals.items()
    ]
    note = (
        f"Percent of the images of {counted(len(tasks), 'task')} that are classified correctly and left after each "
        "attack, from the left to the right."
    )
    return [Heading("What each attack left", 3), Table(["", *names], lines), Text(note, "note")]


def _completeness(num_rows: int, num_missing: int) -> Text:
    units = "units (method × task × seed)"
    if not num_missing:
        return Text(f"{num_rows} {units}.", "note")
    return Text(
        f"Not complete: {num_missing} of {num_rows + num_missing} {units} are missing. "
        "Everything below is over the rest.",
        "alert",
    )


def _highest(lines: Sequence[Line], split: str, condition: Condition) -> list[int]:
    means = {
        row: line.cells[split][condition]
        for row, line in enumerate(lines)
        if not line.certified and line.method != CEILING
    }
    values = {row: mean.value for row, mean in means.items() if mean is not None}
    return [row for row, value in values.items() if value == max(values.values())] if len(values) > 1 else []


def _task_numbers(results: Results) -> str:
    return ", ".join(f"{method_label(method)} {len(tasks)}" for method, tasks in results.method_tasks.items())


def _even(results: Results) -> bool:
    return set(results.common_tasks) == set(results.tasks)


def summary(run: Run) -> str:
    """Return the main table in at most 100 columns; the groups wrap if there are many norms."""
    results = index(run.rows)
    heads = ["clean" if one.norm is None else one.norm for one in results.main_conditions]
    lines = [["", *heads * len(results.splits)]]
    for line in main_table(results, _shown_tasks(results)):
        means = [mean for split in results.splits for mean in line.cells[split].values()]
        label = "  certified" if line.certified else line_label(line)
        lines.append([label, *(percent(mean, error=False).replace(" ", "") for mean in means)])
        lines.append(["", *(f"±{error_points(mean.error)}" if mean else "" for mean in means)])
    shown = text_table(lines, [SPLIT_TITLES[split] for split in results.splits])
    epsilons = ", ".join(condition_label(Condition(*pair)) for pair in results.main_epsilons.items())
    over, legend = (textwrap.wrap(text, TEXT_WIDTH) for text in (_tasks_note(results), f"{epsilons}; {_LEGEND}"))
    return "\n".join([results.dataset, *over, "", *shown, "", *legend])
