"""The report of a leaderboard: the table, whom 1NN beats, one norm against the other, and what failed.

Numbers are of one set of images, the same for every model. What attacks left of a network is an upper bound on its
robust accuracy; 1NN's figures are exact, or lie between bounds that are kept apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.report import figures
from experiments.report.comparisons import (
    NEIGHBOR,
    beaten_blocks,
    comparisons,
    sentence,
    share_percent,
)
from experiments.report.labels import (
    MISSING,
    SPLIT_TITLES,
    condition_label,
    counted,
    method_label,
)
from experiments.report.means import Mean, points_of_curve, share, standard_error
from experiments.report.page import Block, Bullets, Heading, Image, Panels, Table, Text, file_name, text_table
from experiments.report.provenance import alerts, incomplete, provenance_blocks
from experiments.report.records import CLEAN, Condition, Results, Row, Run, index, tidy

TABLE = "leaderboard.csv"
_COLUMNS = (
    *("model", "architecture", "dataset", "split", "norm", "epsilon", "kind", "count", "robust"),
    *("accuracy", "standard_error", "low95", "high95", "published_clean", "published_autoattack"),
    *("clean_count", "clean_measured", "clean_difference", "clean_verdict", "failed"),
)
_READING = (
    "Percent of {images} ± its standard error over images, where it is neither 0 nor 100. ≤ attacked: the share that "
    "no attack tried here broke, an upper bound on robust accuracy that a stronger attack can lower. = exact: the "
    f"robust accuracy itself, from the radius of every image. Sorted by {{sorted_by}}, bounds taken as they stand. "
    f"{TABLE} has all radii and 95 % intervals."
)
_SCATTER = (
    "A dot is a network, what attacks left of it in both norms (upper bounds); the star is 1NN, exact. It beats "
    "the networks on the left of its upright line in the one norm, those below its level line in the other. Bars: "
    "one standard error."
)
_CLEAN = (
    "Clean accuracy on test images before any attack. 'other pixels': the published figure is of the original "
    "images and these are not: the two were not compared and do not tell whether the weights are the right ones."
)


def table(run: Run) -> pd.DataFrame:
    """Return every accuracy of one or more models, in the order of the report, then a line for each that failed.

    Shares are of 1; published accuracies and the clean check, of test images before any attack, are in per cent.
    """
    results = index(run.rows)
    numbers = tidy(run.rows).rename(columns={"method": "model"}).drop(columns=["task", "classes", "seed"])
    numbers["standard_error"] = list(map(standard_error, numbers["accuracy"], numbers["count"]))
    models = [
        {"model": row["method"], "architecture": row["model"]["architecture"], **_check(row["clean"], row["model"])}
        for row in run.rows
    ]
    failed = [
        {
            "unit": one["unit"],
            "model": one["unit"].partition("/")[2],
            "dataset": results.dataset,
            "failed": one["reason"],
        }
        | _check(one.get("clean"), {})
        for one in run.failed
    ]
    order = {name: place for place, name in enumerate(_ordered(results))}
    found = numbers.reset_index().merge(pd.DataFrame(models), on="model")
    found = found.sort_values("model", key=lambda names: names.map(order), kind="stable")
    found = pd.concat([found, pd.DataFrame(failed)]).reindex(columns=["unit", *_COLUMNS])
    return found.astype(dict.fromkeys(("count", "robust", "clean_count"), "Int64")).set_index("unit")


def _check(clean: Mapping[str, Any] | None, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the published accuracies, and the clean one held against them, as columns of the table."""
    found = {"published_clean": model.get("clean_accuracy"), "published_autoattack": model.get("autoattack_accuracy")}
    if clean is None:
        return found
    measured, published = 100 * clean["correct"] / clean["count"], clean["published"]
    return found | {
        "published_clean": published,
        "clean_count": clean["count"],
        "clean_measured": round(measured, 4),
        "clean_difference": None if published is None else round(measured - published, 4),
        "clean_verdict": clean["verdict"],
    }


def _ordered(results: Results) -> list[str]:
    """Sort the models, the highest first, by the first norm on test images (on the only split, where there is one)."""
    column = _split(results), results.robust_conditions[0]
    shares = {name: share(results, name, *column) for name in results.methods}
    return sorted(shares, key=lambda name: (-cell.value if (cell := shares[name]) else 1.0, name))


def _split(results: Results) -> str:
    return "test" if "test" in results.splits else results.splits[0]


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    results = index(run.rows)
    names = _ordered(results)
    rows = sorted(run.rows, key=lambda row: names.index(row["method"]))
    found: list[Block] = [Heading(f"Robust networks and 1NN on {results.dataset}", 1)]
    found += [*incomplete(run, noun="model"), *alerts(run, noun="model")]
    if warned := [f"{row['method']}: {text}" for row in rows for text in row["warnings"]]:
        found.append(Bullets(warned, "Warnings:"))
    reading = Text(_reading(results, rows), "note")
    found += [_main_table(results, names), reading, *beaten_blocks(results), *_scatter_blocks(results, names)]
    found += [*_curve_blocks(results, names), *_clean_blocks(results, rows)]
    return [*found, *provenance_blocks(run._replace(rows=rows), results)]


def summary(run: Run) -> str:
    """Return the table as plain text, in the order of the report's, then whom 1NN beats."""
    results = index(run.rows)
    main = _main_table(results, _ordered(results))
    rows = [list(map(str, row)) for row in main.rows]
    cells = [[cell.partition(" ± ")[0].replace(" ", "") for cell in row[1:]] for row in rows]
    lines = [["", *main.header[1:]], *([row[0][:36], *shares] for row, shares in zip(rows, cells, strict=True))]
    shown = text_table(lines, [title for title, _ in main.groups[1:]])
    beaten = [f"- {sentence(one)}" for one in comparisons(results)]
    return "\n".join([results.dataset, *shown, "in %; ≤ attacked (upper bound), = exact", *beaten])


def _main_table(results: Results, names: Sequence[str]) -> Table:
    conditions = results.single_conditions
    columns = [(split, condition) for split in results.splits for condition in conditions]
    return Table(
        header=["model", *(condition_label(condition) for _, condition in columns)],
        groups=[("", 1), *((SPLIT_TITLES[split], len(conditions)) for split in results.splits)],
        rows=[
            [method_label(name), *(share_percent(share(results, name, *column)) for column in columns)]
            for name in names
        ],
        strong=frozenset((place, 0) for place, name in enumerate(names) if name == NEIGHBOR),
        sortable=True,
    )


def _reading(results: Results, rows: Sequence[Row]) -> str:
    counts = sorted({(item["split"], item["count"]) for row in rows for item in row["evaluations"]}, reverse=True)
    images = " and ".join(f"the first {count} {split} images" for split, count in counts)
    sorted_by = f"{results.robust_conditions[0].norm} on {_split(results)} images"
    return _READING.format(images=images, sorted_by=sorted_by)


def _scatter_blocks(results: Results, names: Sequence[str]) -> list[Block]:
    conditions = results.robust_conditions[:2]
    if len(conditions) < 2:
        return []
    images = []
    for split in results.single_splits:
        pairs = {name: [share(results, name, split, condition) for condition in conditions] for name in names}
        points = {name: (across, up) for name, (across, up) in pairs.items() if across and up}
        title = f"{split} images"
        drawing = figures.scatter(points, conditions, focus=NEIGHBOR, title=title)
        alt = f"{condition_label(conditions[0])} against {condition_label(conditions[1])}, {title}"
        images.append(Image(file_name("leaderboard", "scatter", split), alt, drawing))
    return [Heading("One norm against the other"), Panels(images, _SCATTER)]


def _curve_blocks(results: Results, names: Sequence[str]) -> list[Block]:
    found: list[Block] = []
    for condition in results.robust_conditions:
        norm, images = condition.norm or "", []
        for split in results.single_splits:
            of_models = {name: functools.partial(share, results, name, split) for name in names}
            points = {name: points_of_curve(one, norm, results.epsilons(norm)) for name, one in of_models.items()}
            lines = {name: line for name, line in points.items() if len(line) > 2}
            if set(lines) - {NEIGHBOR}:
                title = f"{split} images, {norm}"
                drawing = figures.accuracy_curves(_curves(lines), condition, title=title)
                name = file_name("leaderboard", "curve", norm, split)
                images.append(Image(name, f"Accuracy against the radius, {title}", drawing))
        caption = "Solid: 1NN, exact. Broken: what attacks left of the networks. Upright line: the main radius."
        found += [Panels(images, caption)] if images else []
    return [Heading("Accuracy against the radius"), *found] if found else []


def _curves(lines: Mapping[str, Sequence[tuple[float, Mean]]]) -> list[figures.Curve]:
    """Lay out a line per model; 1NN's is exact and solid, those of networks are broken and named if they are few."""
    are_named = len(lines) <= figures.MOST_NAMES
    colors = {name: figures.PALETTE[1 + place][0] for place, name in enumerate(sorted(set(lines) - {NEIGHBOR})[:8])}
    found = []
    for name, points in lines.items():
        label, color = method_label(name), colors.get(name, figures.PALETTE[1][0])
        style: dict[str, Any] = {"linewidth": 1.4, "zorder": 2}
        if name == NEIGHBOR:
            color, style = figures.FOCUS_COLOR, {"linewidth": 2.0, "zorder": 3}
        elif not are_named:
            label, color, style = "networks", figures.PALETTE[1][0], {"linewidth": 0.7, "zorder": 2, "alpha": 0.5}
        found.append(figures.curve_of_means(points, label, color, **style))
    return found


def _clean_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Hold the clean accuracy of networks against the published one, and show the published robust one beside ours."""
    networks = [row for row in rows if row["clean"]]
    if not networks:
        return []
    linf = next((condition for condition in results.single_conditions if condition.norm == "linf"), CLEAN)
    lines = [
        [
            method_label(row["method"]),
            row["model"]["architecture"],
            _listed_for(row["model"]),
            f"{100 * row['clean']['correct'] / row['clean']['count']:.2f} of {row['clean']['count']}",
            _accuracy(row["clean"]["published"]),
            row["clean"]["verdict"],
            _accuracy(row["model"].get("autoattack_accuracy")),
            share_percent(share(results, row["method"], "test", linf)),
            "; ".join(row["model"].get("notes") or ()),
        ]
        for row in networks
    ]
    header = ["model", "network", "listed for", "clean, %", "published", "", "AutoAttack, published"]
    header += [f"{condition_label(linf)}, here", "to know"]
    found: list[Block] = [Heading("Clean accuracy, published and here")]
    if others := sum(row["clean"]["verdict"] == "other pixels" for row in networks):
        text = f"The published accuracies of {counted(others, 'network')} are of the original images, not of "
        found.append(Text(f"{text}{results.dataset}: they could not be checked.", "alert"))
    return [*found, Table(header, lines, numeric=False), Text(_CLEAN, "note")]


def _listed_for(model: Mapping[str, Any]) -> str:
    """Write the threat that a catalogue lists a network for, and whether it was trained on more images."""
    if not model.get("epsilon"):
        return MISSING
    return condition_label(Condition(model["threat"].lower(), model["epsilon"])) + ", extra data" * model["extra_data"]


def _accuracy(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
