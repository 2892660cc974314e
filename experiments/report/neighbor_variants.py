"""The report on variants of 1NN: training images against d0 / 2, growth with the training set, and a table."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pandas as pd

from experiments.methods import NEIGHBOR
from experiments.report import figures, rates
from experiments.report.labels import condition_label, counted, method_label, percent
from experiments.report.means import PROVEN, mean_of, points_of_curve
from experiments.report.page import Block, Bullets, Heading, Image, Panels, Table, Text, file_name, text_table
from experiments.report.provenance import alerts, incomplete, provenance_blocks
from experiments.report.records import CLEAN, Condition, Results, Run, index, tidy

TABLE = "variants.csv"
_MOST_COLUMNS = 8
_READING = (
    "Accuracy in percent{over}. = exact: the robust accuracy itself. ≥ certified: proven, a lower bound. The names of "
    "the variants are those of experiments/variants.py."
)


def table(run: Run) -> pd.DataFrame:
    """Return every accuracy that was measured, with the numbers of training images and of points of 1NN."""
    names = ["unit", "num_train", "num_points"]
    sizes = pd.DataFrame([[row[name] for name in names] for row in run.rows], columns=names)
    return tidy(run.rows).join(sizes.set_index("unit"))


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    results = _comparable(run)
    found: list[Block] = [Heading(f"Variants of 1NN on {results.dataset}", 1), *incomplete(run)]
    growth = rates.growth_blocks([row for row in run.rows if row["task"] in results.tasks], results)
    found += [*alerts(run), *_separation_blocks(run, results), *growth, *_table_blocks(results)]
    if not growth:  # which is drawn against the number of images instead
        found += _curve_blocks(results)
    found += _choice_blocks(run)
    return [*found, *provenance_blocks(run, results)]


def summary(run: Run) -> str:
    """Return the robust accuracies at the main epsilons as plain text."""
    results = _comparable(run)
    split, conditions = results.single_splits[-1], results.main_conditions
    lines = [[method_label(method), *_cells(results, method, split, conditions)] for method in results.methods]
    header = ["", *map(condition_label, conditions)]
    return "\n".join([f"{results.dataset}, {split} images, %", *text_table([header, *lines])])


def _comparable(run: Run) -> Results:
    """Index the rows of the tasks that every variant was run on, or all where there is no such task."""
    results = index(run.rows)
    if not results.common_tasks:
        return results
    return index([row for row in run.rows if row["task"] in results.common_tasks])


def _table_blocks(results: Results) -> list[Block]:
    conditions = _conditions(results)
    found: list[Block] = [Heading("Robust accuracy")]
    for split in results.single_splits:
        lines = [[method_label(method), *_cells(results, method, split, conditions)] for method in results.methods]
        header = [f"{split} images", *map(condition_label, conditions)]
        found.append(Table(header, [line for line in lines if set(line[1:]) != {"–"}]))
    several = f": mean over {counted(len(results.tasks), 'task')} ± its standard error" if _several(results) else ""
    return [*found, Text(_READING.format(over=several), "note")]


def _curve_blocks(results: Results) -> list[Block]:
    """Draw robust accuracy against the radius, variant by variant, on the split that the table ends with."""
    split = results.single_splits[-1]
    alt = f"Robust accuracy on {split} images"
    images = [
        _panel(results, split, Condition(norm, main), file_name("curve", split, norm), f"{alt}, {norm}")
        for norm, main in results.main_epsilons.items()
    ]
    over = f", mean over {counted(len(results.tasks), 'task')}" if _several(results) else ""
    note = f"{results.dataset}, {split} images{over}. Solid: exact. Dotted: certified. Upright line: the main radius."
    return [Panels(images, note)]


def _conditions(results: Results) -> list[Condition]:
    """List every radius up to the main one where they are few, else the main one alone."""
    conditions = [CLEAN]
    for norm, main in results.main_epsilons.items():
        up_to = [Condition(norm, epsilon) for epsilon in results.epsilons(norm) if epsilon <= main]
        conditions += up_to if len(up_to) * len(results.main_epsilons) <= _MOST_COLUMNS else up_to[-1:]
    return conditions


def _cells(results: Results, method: str, split: str, conditions: Sequence[Condition]) -> list[str]:
    means = [mean_of(results, method, split, one, results.tasks, ("clean", *PROVEN)) for one in conditions]
    return [percent(mean, error=_several(results)) for mean in means]


def _several(results: Results) -> bool:
    return len(results.tasks) > 1


def lead_table(results: Results, networks: Results) -> Table:
    """Say how much of the lead of the best TRADES network on test images each variant wins back.

    Args:
      results: of variants, plain 1NN among them.
      networks: of the same tasks; those of both are compared, at the radii of both.
    """
    rivals = [method for method in networks.methods if method.startswith("trades")]
    tasks = [task for task in results.common_tasks if task in networks.common_tasks]
    means = {
        condition: [mean for rival in rivals if (mean := mean_of(networks, rival, "test", condition, tasks))]
        for condition in _conditions(results)
    }
    highest = {condition: max(of, key=lambda mean: mean.value) for condition, of in means.items() if of}
    lines = []
    for method in results.methods:
        cells = []
        for condition, best in highest.items():
            found, plain = (mean_of(results, name, "test", condition, tasks) for name in (method, NEIGHBOR))
            lead = best.value - plain.value if plain else 0.0
            won = f" ({round(100 * (found.value - plain.value) / lead)} %)" if found and plain and lead > 0 else ""
            cells.append(percent(found, error=False) + (won if method != NEIGHBOR else ""))
        lines.append([method_label(method), *cells])
    lines.append(["TRADES network with the highest mean", *(percent(best, error=False) for best in highest.values())])
    return Table([f"mean over {counted(len(tasks), 'pair')}", *map(condition_label, highest)], lines)


def _choice_blocks(run: Run) -> list[Block]:
    chosen = [(row["method"], row["chosen"]["variant"]) for row in run.rows if row["chosen"]]
    counts = pd.Series(chosen, dtype=object).value_counts(sort=False)
    lines = [[method_label(method), method_label(variant), str(count)] for (method, variant), count in counts.items()]
    return [Heading("What held-out images chose"), Table(["", "chosen", "pairs"], sorted(lines))] if lines else []


def _separation_blocks(run: Run, results: Results) -> list[Block]:
    """Draw the share of training images that keep their label at each radius beside d0 / 2, norm by norm."""
    plain = [row for row in run.rows if row["method"] == NEIGHBOR and row["separation"]]
    if not plain:
        return []
    lines = [
        [
            method_label(row["method"]),
            norm,
            *map(_size, (distance, distance / 2)),
            f"{share.split()[0]} {_size(least)}",  # exact or a bound, as the share is
            share,
        ]
        for row in sorted(run.rows, key=lambda row: results.methods.index(row["method"]))
        for norm, distance in row["separation"].items()
        if (least := row["least_radius"].get("train", {}).get(norm)) is not None
        and (share := _share(results, row["method"], Condition(norm, results.main_epsilons[norm])))
    ]
    header = [
        "1NN of",
        "norm",
        "d0",
        "d0 / 2",
        "smallest radius of a train image",
        "train images at the main radius, %",
    ]
    found: list[Block] = [Heading("Training images against half the distance of the classes")]
    found += [Bullets(_promises(results, plain[0])), Table(header, lines)]
    halves = {norm: distance / 2 for norm, distance in plain[0]["separation"].items()}
    alt = "Share of training images that keep their label"
    images = [
        _panel(results, "train", Condition(norm, half), file_name("train", norm), f"{alt}, {norm}")
        for norm, half in halves.items()
    ]
    note = (
        f"{results.dataset}: share of training images that keep their label at every perturbation below a radius. "
        "Solid: exact. Dotted: certified, a lower bound. Upright line: d0 / 2 of the true labels. Swapped labels "
        "count as right: they are what 1NN was given."
    )
    return [*found, Panels(images, note)]


def _share(results: Results, method: str, condition: Condition) -> str:
    (cell,) = _cells(results, method, "train", [condition])
    return cell


def _promises(results: Results, row) -> list[str]:
    """Say up to where the theorem promises, and what the main radius is beside it."""
    found = []
    for norm, distance in row["separation"].items():
        main = results.main_epsilons[norm]
        if (least := row["least_radius"].get("train", {}).get(norm)) is None:
            continue
        text = f"{norm}: d0 / 2 is {_size(distance / 2)}; the smallest radius of the training images judged "
        text += f"is {_size(least)}. At {condition_label(Condition(norm, main))}, "
        text += "beyond" if main > distance / 2 else "within"
        share = _share(results, row["method"], Condition(norm, main)).removeprefix("= ")
        found.append(f"{text} d0 / 2, {share} % of them keep their label.")
    return found


def _panel(results: Results, split: str, marked: Condition, name: str, alt: str) -> Image:
    """Draw what is proven of each variant's accuracy against a norm's epsilons, one of them marked."""
    norm = marked.norm or ""
    lines = []
    for place, method in enumerate(results.methods):
        color, marker = figures.pen(place)
        mean_at = functools.partial(mean_of, results, method, split, tasks=results.tasks, kinds=("clean", *PROVEN))
        if points := points_of_curve(mean_at, norm, results.epsilons(norm)):
            lines.append(figures.curve_of_means(points, method_label(method), color, marker))
    drawing = figures.accuracy_curves(lines, marked, title=f"{split} images, {norm}")
    return Image(name, alt, drawing)


def _size(value: float) -> str:
    return f"{value:.4g}"
