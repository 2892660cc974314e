"""What stands in the report, block by block: findings and tables first, then figures, then how it was made."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from experiments.checks import order_violations
from experiments.report import figures
from experiments.report.findings import FOCUS, findings
from experiments.report.labels import SPLIT_TITLES, counted, method_label, norm_label, percent, threat_label
from experiments.report.page import Block, Bullets, Heading, Image, Images, Table, Text
from experiments.report.provenance import provenance_blocks
from experiments.report.tables import CLEAN, Line, Mean, Results, Row, Threat, index_rows, main_table, method_key
from nn_adv import evaluation

_READING = (
    "Accuracy in percent: mean over tasks ± its standard error over tasks, every task weighing the same. "
    "≤ attacked: the share of images that no attack tried here broke, an upper bound on robust accuracy that a "
    "stronger attack can lower. = exact: the robust accuracy itself. ≥ certified: proven, a lower bound. "
    "Worst: an image counts only if it holds in every norm, each at its radius. "
    "Bold: the highest of a column, bounds compared as they stand. "
    "Pairs share classes, so tasks are not independent and the standard errors may be too small. "
    "pairs.csv has each task's 95 % interval over images."
)
_COMPARING = (
    "Each time beside the method that does best there, which can be another one for each line. Differences are paired: "
    "mean over {tasks} ± standard error of the task-by-task difference; level means less than two standard errors. "
    "≤ marks attacked accuracy: what no attack tried here broke, an upper bound that a stronger attack can lower. "
    "= marks exact accuracy."
)
_MAX_LISTED = 50


def report_blocks(rows: Sequence[Row], problems: Sequence[str], *, title: str, num_missing: int = 0) -> list[Block]:
    """Assemble the report of `rows`; the problems come from reading them."""
    indexed = index_rows(rows)
    blocks: list[Block] = [Heading(title, 1), _completeness(len(rows), num_missing)]
    violations = order_violations(rows)
    if violations:
        blocks.append(
            _alert(
                "certified ≤ exact ≤ attacked ≤ clean is violated as follows. At least one of these numbers is wrong: "
                "trust nothing in this report before it is explained.",
                violations,
            )
        )
    if problems:
        blocks.append(_alert("Found while reading the stored rows:", problems))
    for results in indexed:
        if len(indexed) > 1:
            blocks.append(Heading(f"Dataset {results.dataset}"))
        own = [row for row in rows if row["dataset"] == results.dataset]
        blocks += [*_table_blocks(results), *_attack_blocks(results, own), *_interval_blocks(results, own)]
        blocks += [*_curve_blocks(results), *_heat_map_blocks(results)]
    return [*blocks, *provenance_blocks(rows)]


def accuracy_table(results: Results, tasks: Sequence[str], *, comparable: bool = True) -> Table:
    """Lay out the main table: one line per method; train, test and the mean over both side by side.

    The highest of each column is set in bold if the lines are comparable, that is over the same tasks.
    """
    lines = main_table(results, tasks)
    columns = [(split, threat) for split in results.splits for threat in results.main_threats]
    return Table(
        header=["method", *(threat_label(threat) for _, threat in columns)],
        groups=[("", 1), *((SPLIT_TITLES[split], len(results.main_threats)) for split in results.splits)],
        rows=[[line_label(line), *(percent(line.cells[split][threat]) for split, threat in columns)] for line in lines],
        strong=frozenset(
            (row, column) for column, key in enumerate(columns, start=1) for row in _highest(lines, *key) if comparable
        ),
    )


def line_label(line: Line) -> str:
    """Write the method of a line of the main table."""
    return method_label(line.method) + (" (certified)" if line.certified else "")


def tasks_note(results: Results) -> str:
    """Say over which tasks the means are taken."""
    if _even(results):
        return f"Means over {counted(len(results.tasks), 'task')}."
    start = f"The methods were not all run on the same tasks ({_task_numbers(results)})"
    if results.common_tasks:
        return f"{start}: the means are over the {counted(len(results.common_tasks), 'task')} common to all."
    return f"{start} and have none in common: each mean is over the method's own tasks, compare no line with another."


def shown_tasks(results: Results) -> tuple[str, ...]:
    """Return the tasks of the main table: those common to all methods, or all tasks if there are none."""
    return results.common_tasks or results.tasks


def _table_blocks(results: Results) -> list[Block]:
    tasks = shown_tasks(results)
    comparable = bool(results.common_tasks)
    blocks: list[Block] = [Heading(f"Mean over {counted(len(tasks), 'task')}" if comparable else "Mean over tasks")]
    if not _even(results):
        blocks.append(Text(tasks_note(results), "alert"))
    table = accuracy_table(results, tasks, comparable=comparable)
    blocks += [table, *_thin_cells(results, tasks), Text(_READING, "note")]
    if comparable and (sentences := findings(results, tasks)):
        note = _COMPARING.format(tasks=counted(len(tasks), "task"))
        blocks += [Heading("What the numbers say"), Bullets(sentences), Text(note, "note")]
    if comparable and not _even(results):
        blocks += [
            Heading("Each method over all of its own tasks"),
            Text(f"Each line is over other tasks ({_task_numbers(results)}): compare no line with another.", "alert"),
            accuracy_table(results, results.tasks, comparable=False),
        ]
    return blocks


def _interval_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Give the intervals over images where one task leaves no standard error over tasks."""
    if len(results.tasks) > 1:
        return []
    lines = []
    for row in sorted(rows, key=lambda row: (method_key(row["method"]), row["seed"])):
        for item in row["evaluations"]:
            threat = Threat(item["norm"], item["epsilon"])
            if threat in results.main_threats:
                low, high = evaluation.wilson_interval(item["robust"], item["count"])
                share = percent(Mean(item["robust"] / item["count"], None, 1, item["kind"]), error=False)
                interval = f"{100 * low:.1f} to {100 * high:.1f}"
                what = f"{method_label(row['method'])}, seed {row['seed']}, {item['split']} images"
                lines.append([what, threat_label(threat), share, str(item["count"]), interval])
    return [
        Heading("Intervals over images", 3),
        Table(["", "threat", "%", "images", "95 % interval (Wilson)"], lines),
    ]


def _attack_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Say what each attack left at the main radii, over the images of the shown tasks and all seeds together."""
    tasks = shown_tasks(results)
    totals: dict[tuple[str, str, Threat], Counter] = defaultdict(Counter)
    for row in sorted(rows, key=lambda row: method_key(row["method"])):
        for item in row["evaluations"]:
            threat = Threat(item["norm"], item["epsilon"])
            if "left" in item and threat in results.main_threats and row["task"] in tasks:
                totals[row["method"], item["split"], threat].update(item["left"] | {"images": item["count"]})
    names = list(dict.fromkeys(name for left in totals.values() for name in left if name != "images"))
    if len(names) < 3:  # the clean images and one attack: the main table says as much
        return []
    lines = [
        [
            f"{method_label(method)}, {split} images, {threat_label(threat)}",
            *(f"{100 * left[name] / left['images']:.1f}" if name in left else "–" for name in names),
        ]
        for (method, split, threat), left in totals.items()
    ]
    note = (
        f"Percent of the images of {counted(len(tasks), 'task')} that are classified correctly and left after each "
        "attack, from the left to the right; an image broken at a smaller radius of the norm counts for the attack "
        "that broke it there."
    )
    table = Table(["", *names], lines)
    return [Heading("What each attack left", 3), table, Text(note, "note")]


def _curve_blocks(results: Results) -> list[Block]:
    tasks = shown_tasks(results)
    blocks: list[Block] = []
    for norm in results.main_radii:
        title = f"Accuracy against the {norm_label(norm)} radius"
        images = [
            Image(_file_name(results, "curve", norm, split), f"{title}, {split} images", png)
            for split in _single_splits(results)
            if (png := figures.curves(results, split, norm, tasks))
        ]
        caption = (
            f"{title}: mean over {counted(len(tasks), 'task')}, the band is ± one standard error. "
            "Solid: exact. Dashed: attacked, an upper bound. Dotted: certified, a lower bound. Upright line: the main "
            "radius."
        )
        blocks += [Images(images, caption)] if images else []
    return [Heading("Accuracy against the radius"), *blocks] if blocks else []


def _heat_map_blocks(results: Results) -> list[Block]:
    threats = [threat for threat in results.main_threats if threat != CLEAN]
    blocks: list[Block] = []
    for split in reversed(_single_splits(results)):
        values = [value for threat in threats for value in figures.pair_differences(results, split, threat).values()]
        limit = max(map(abs, values), default=0.0) or 0.01  # One scale for the panels that stand side by side.
        title = f"{method_label(FOCUS)} minus the best {figures.rivals_label(results)} of each pair"
        images = []
        for threat in threats:
            if png := figures.heat_map(results, split, threat, limit=limit):
                alt = f"{title}, {threat_label(threat)}, {split} images"
                images.append(Image(_file_name(results, "pairs", threat.norm, split), alt, png))
        caption = (
            f"{split.capitalize()} images: {title}, in points. The network is chosen anew for each pair and "
            "panel, which favours the networks. Differences of upper bounds, except where both are exact."
        )
        blocks += [Images(images, caption)] if images else []
    return [Heading("Pair by pair"), *blocks] if blocks else []


def _completeness(num_rows: int, num_missing: int) -> Text:
    units = "units (method × task × seed)"
    if not num_missing:
        return Text(f"{num_rows} {units}.", "note")
    return Text(
        f"Not complete: {num_missing} of {num_rows + num_missing} {units} are missing. "
        "Everything below is over the rest.",
        "alert",
    )


def _thin_cells(results: Results, tasks: Sequence[str]) -> list[Block]:
    """Name the cells that average fewer tasks than the table says."""
    thin = []
    for line in main_table(results, tasks):
        expected = len(set(tasks) & set(results.method_tasks[line.method]))
        for split, by_threat in line.cells.items():
            where = f"{line_label(line)}, {SPLIT_TITLES[split]}"
            thin += [
                f"{where}, {threat_label(threat)}: {mean.num_tasks} of {expected} tasks"
                for threat, mean in by_threat.items()
                if mean is not None and mean.num_tasks < expected
            ]
    return [_alert("Cells over fewer tasks:", thin)] if thin else []


def _highest(lines: Sequence[Line], split: str, threat: Threat) -> list[int]:
    means = {row: line.cells[split][threat] for row, line in enumerate(lines) if not line.certified}
    values = {row: mean.value for row, mean in means.items() if mean is not None}
    return [row for row, value in values.items() if value == max(values.values())] if len(values) > 1 else []


def _alert(title: str, items: Sequence[str]) -> Bullets:
    more = len(items) - _MAX_LISTED
    return Bullets([*items[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else [])], title)


def _task_numbers(results: Results) -> str:
    return ", ".join(f"{method_label(method)} {len(tasks)}" for method, tasks in results.method_tasks.items())


def _file_name(results: Results, *parts: str | None) -> str:
    return re.sub(r"[^\w.]+", "-", "-".join([results.dataset, *map(str, parts)])).strip("-") + ".png"


def _single_splits(results: Results) -> list[str]:
    return [split for split in results.splits if split != "both"]


def _even(results: Results) -> bool:
    return set(results.common_tasks) == set(results.tasks)
