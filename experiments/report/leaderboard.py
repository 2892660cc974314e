"""The report of a leaderboard: the table, whom 1NN beats, one norm against the other, and what failed.

Numbers are of one set of images, the same for every model. What attacks left of a network is an upper bound on its
robust accuracy; 1NN's figures are exact, or lie between bounds that are kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from experiments.report import figures
from experiments.report.labels import (
    MISSING,
    SPLIT_TITLES,
    condition_label,
    counted,
    method_label,
    norm_label,
    percent,
)
from experiments.report.page import Block, Bullets, Heading, Image, Panels, Table, Text, file_name
from experiments.report.provenance import alerts, provenance_blocks
from experiments.report.records import (
    CLEAN,
    PROVEN,
    WORST,
    Condition,
    Mean,
    Results,
    Row,
    Run,
    index,
    interval,
    share,
    standard_error,
    tidy,
)

TABLE = "leaderboard.csv"
NEIGHBOR = "1nn"
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
_BEATEN = (
    "1NN's figures are exact and those of networks upper bounds. A network below 1NN is less robust than 1NN on these "
    "images, whatever other attacks would find; one above may only not have been attacked hard enough. 'Clearly' means "
    "that their 95 % intervals (Wilson), as if their images were drawn apart, do not overlap. Train images are points "
    "that 1NN has stored."
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


class Comparison(NamedTuple):
    """1NN beside all networks in one column.

    Attributes:
      own: 1NN's share; certified where it is not exact.
      num_networks: that have a figure there.
      num_below: networks whose upper bound lies below 1NN's share: it is more robust than they are on these images.
      num_clearly_below: of those, with a 95 % interval below that of 1NN.
      best: name and upper bound of the network that keeps most.
    """

    split: str
    condition: Condition
    own: Mean
    num_networks: int
    num_below: int
    num_clearly_below: int
    best: tuple[str, Mean]


def table(run: Run) -> pd.DataFrame:
    """Return every accuracy of one or more models, in the order of the report, then a line for each that failed.

    Shares are of 1; published accuracies and the clean check, of test images before any attack, are in per cent.
    """
    (results,) = index(run.rows)
    numbers = tidy(run.rows).rename(columns={"method": "model"}).drop(columns=["task", "classes", "seed"])
    numbers["standard_error"] = list(map(standard_error, numbers["accuracy"], numbers["count"]))
    models = [
        {"model": row["method"], "architecture": row["model"]["architecture"], **_check(row["clean"], row["model"])}
        for row in run.rows
    ]
    failed = [
        {"unit": one["unit"], "model": _model(one), "dataset": results.dataset, "failed": one["reason"]}
        | _check(one.get("clean"), {})
        for one in run.failed
    ]
    order = {name: place for place, name in enumerate(ordered(results, _sort_by(run)))}
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


def _model(failure: Mapping[str, Any]) -> str:
    return failure["unit"].partition("/")[2]


def _sort_by(run: Run) -> str:
    return run.settings.get("sort_by", "linf")


def _conditions(results: Results) -> list[Condition]:
    """Return clean and each norm at its main epsilon, the columns of the table."""
    return [condition for condition in results.main_conditions if condition != WORST]


def ordered(results: Results, sort_by: str) -> list[str]:
    """Sort the models, the highest first, by a column of the test images (of the only split, where there is one).

    Args:
      results: of one dataset.
      sort_by: "clean", a norm, or "mean": over all columns but clean, of both splits.
    """
    split = "test" if "test" in results.splits else results.splits[0]
    wanted = [condition for condition in _conditions(results) if (condition.norm or "clean") == sort_by]
    if sort_by == "mean":
        split, wanted = results.splits[-1], [condition for condition in _conditions(results) if condition != CLEAN]

    def value(name: str) -> float:
        found = [cell.value for condition in wanted if (cell := share(results, name, split, condition))]
        return sum(found) / len(found) if found else -1.0

    return sorted(results.methods, key=lambda name: (-value(name), name))


def comparisons(results: Results) -> list[Comparison]:
    """Hold 1NN against all networks, column by column but clean; nothing without 1NN or without networks."""
    columns = [(split, condition) for split in results.splits for condition in _conditions(results)]
    found = [_compare(results, split, condition) for split, condition in columns if condition != CLEAN]
    return [comparison for comparison in found if comparison]


def _compare(results: Results, split: str, condition: Condition) -> Comparison | None:
    own = share(results, NEIGHBOR, split, condition, PROVEN)
    networks = [name for name in results.methods if name != NEIGHBOR]
    theirs = {name: cell for name in networks if (cell := share(results, name, split, condition))}
    if own is None or not theirs:
        return None
    below = [name for name, cell in theirs.items() if cell.value < own.value]
    lowest, _ = interval(results, NEIGHBOR, split, condition, PROVEN)
    clearly = [name for name in below if interval(results, name, split, condition)[1] < lowest]
    best = max(theirs, key=lambda name: theirs[name].value)
    return Comparison(split, condition, own, len(theirs), len(below), len(clearly), (best, theirs[best]))


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    (results,) = index(run.rows)
    names = ordered(results, _sort_by(run))
    rows = sorted(run.rows, key=lambda row: names.index(row["method"]))
    found: list[Block] = [Heading(f"Robust networks and 1NN on {results.dataset}", 1)]
    if absence := run.settings.get("absence"):
        found.append(Text(f"Not complete: {absence}.", "alert"))
    if run.num_missing:
        found.append(Text(f"Not complete: {counted(run.num_missing, 'model')} still to be run.", "alert"))
    found += alerts(run, noun="model")
    if warned := [f"{row['method']}: {text}" for row in rows for text in row["warnings"]]:
        found.append(Bullets(warned, "Warnings:"))
    reading = Text(_reading(results, rows, _sort_by(run)), "note")
    found += [_main_table(results, names), reading, *_beaten_blocks(results), *_scatter_blocks(results, names)]
    return [*found, *_curve_blocks(results, names), *_clean_blocks(results, rows), *provenance_blocks(rows, [results])]


def summary(run: Run) -> str:
    """Return the table as plain text, in the order of the report's, then whom 1NN beats."""
    (results,) = index(run.rows)
    main = _main_table(results, ordered(results, _sort_by(run)))
    cells = [[cell.partition(" ± ")[0].replace(" ", "") for cell in row[1:]] for row in main.rows]
    lines = [["", *main.header[1:]], *([row[0][:36], *shares] for row, shares in zip(main.rows, cells, strict=True))]
    first, width = max(len(line[0]) for line in lines) + 1, max(map(len, main.header[1:])) + 1
    text = [results.dataset, " " * first + "".join(f"{group:^{width * span}}" for group, span in main.groups[1:])]
    text += [f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell in shares) for name, *shares in lines]
    text += ["in %; ≤ attacked (upper bound), = exact", *(f"- {_sentence(one)}" for one in comparisons(results))]
    return "\n".join(line.rstrip() for line in text)


def _main_table(results: Results, names: Sequence[str]) -> Table:
    conditions = _conditions(results)
    columns = [(split, condition) for split in results.splits for condition in conditions]
    return Table(
        header=["model", *(condition_label(condition) for _, condition in columns)],
        groups=[("", 1), *((SPLIT_TITLES[split], len(conditions)) for split in results.splits)],
        rows=[[method_label(name), *(_percent(share(results, name, *column)) for column in columns)] for name in names],
        strong=frozenset((place, 0) for place, name in enumerate(names) if name == NEIGHBOR),
    )


def _reading(results: Results, rows: Sequence[Row], sort_by: str) -> str:
    counts = sorted({(item["split"], item["count"]) for row in rows for item in row["evaluations"]}, reverse=True)
    images = " and ".join(f"the first {count} {split} images" for split, count in counts)
    where = "test images" if "test" in results.splits else f"{results.splits[0]} images"
    sorted_by = "the mean of all robust columns" if sort_by == "mean" else f"{norm_label(sort_by)} on {where}"
    return _READING.format(images=images, sorted_by=sorted_by)


def _beaten_blocks(results: Results) -> list[Block]:
    lines = [
        [
            f"{SPLIT_TITLES[one.split]}, {condition_label(one.condition)}",
            _percent(one.own),
            f"{one.num_below} of {one.num_networks}",
            str(one.num_clearly_below),
            _percent(one.best[1]),
            method_label(one.best[0]),
        ]
        for one in comparisons(results)
    ]
    header = ["", "1NN", "networks below 1NN", "clearly", "the network that keeps most", ""]
    return [Heading("Whom 1NN beats"), Table(header, lines), Text(_BEATEN, "note")] if lines else []


def _sentence(one: Comparison) -> str:
    what = {"exact": "exactly ", "certified": "at least ", "attacked": ""}[one.own.kind]
    name, best = one.best
    most, above = f"{100 * best.value:.1f} % ({method_label(name)})", one.num_networks - one.num_below
    where = f"{SPLIT_TITLES[one.split].capitalize()}, {condition_label(one.condition)}"
    text = f"{where}: 1NN keeps {what}{100 * one.own.value:.1f} %"
    networks = "the one network" if one.num_networks == 1 else f"all {one.num_networks} networks"
    if not one.num_below:
        return f"{text}; attacks left as much or more of {networks}, at most {most}."
    if not above:
        return f"{text}, more than attacks left of {networks} ({one.num_clearly_below} clearly)."
    return (
        f"{text}, more than attacks left of {one.num_below} of {one.num_networks} networks "
        f"({one.num_clearly_below} clearly); of the other {above} they left at most {most}."
    )


def _scatter_blocks(results: Results, names: Sequence[str]) -> list[Block]:
    conditions = [condition for condition in _conditions(results) if condition != CLEAN][:2]
    if len(conditions) < 2:
        return []
    images = []
    for split in results.single_splits:
        pairs = {name: [share(results, name, split, condition) for condition in conditions] for name in names}
        points = {name: (across, up) for name, (across, up) in pairs.items() if across and up}
        title = f"{split} images"
        png = figures.scatter(points, conditions, focus=NEIGHBOR, title=title)
        alt = f"{condition_label(conditions[0])} against {condition_label(conditions[1])}, {title}"
        images.append(Image(file_name("leaderboard", "scatter", split), alt, png))
    return [Heading("One norm against the other"), Panels(images, _SCATTER)]


def _curve_blocks(results: Results, names: Sequence[str]) -> list[Block]:
    found: list[Block] = []
    for condition in (condition for condition in _conditions(results) if condition != CLEAN):
        images = []
        for split in results.single_splits:
            points = {name: points for name in names if len(points := _points(results, name, split, condition)) > 2}
            if set(points) - {NEIGHBOR}:
                title = f"{split} images, {norm_label(condition.norm or '')}"
                png = figures.accuracy_curves(_curves(points), condition, title=title)
                name = file_name("leaderboard", "curve", condition.norm, split)
                images.append(Image(name, f"Accuracy against the radius, {title}", png))
        caption = "Solid: 1NN, exact. Broken: what attacks left of the networks. Upright line: the main radius."
        found += [Panels(images, caption)] if images else []
    return [Heading("Accuracy against the radius"), *found] if found else []


def _points(results: Results, name: str, split: str, main: Condition) -> list[tuple[float, Mean]]:
    epsilons = [epsilon for epsilon in results.epsilons(main.norm or "") if epsilon]
    found = [(0.0, share(results, name, split, CLEAN))]
    found += [(epsilon, share(results, name, split, Condition(main.norm, epsilon))) for epsilon in epsilons]
    return [(epsilon, mean) for epsilon, mean in found if mean is not None]


def _curves(lines: Mapping[str, Sequence[tuple[float, Mean]]]) -> list[figures.Curve]:
    """Lay out a line per model; 1NN's is exact and solid, those of networks are broken and named if they are few."""
    are_named = len(lines) <= figures.MOST_NAMES
    colors = {name: figures.PALETTE[1 + place][0] for place, name in enumerate(sorted(set(lines) - {NEIGHBOR})[:8])}
    found = []
    for name, points in lines.items():
        kinds = {mean.kind for epsilon, mean in points if epsilon > 0} or {"clean"}
        label = f"{method_label(name)} ({'attacked' if 'attacked' in kinds else kinds.pop()})"
        style: dict[str, Any] = {"linestyle": figures.BROKEN, "linewidth": 1.4 if are_named else 0.7, "zorder": 2}
        color = colors[name] if are_named and name in colors else figures.PALETTE[1][0]
        if name == NEIGHBOR:
            color, style = figures.FOCUS_COLOR, {"linewidth": 2.0, "zorder": 3}
        elif not are_named:
            label, style = "networks (attacked)", style | {"alpha": 0.5}
        found.append(
            figures.Curve([(epsilon, 100 * mean.value) for epsilon, mean in points], label, color, None, style)
        )
    return found


def _clean_blocks(results: Results, rows: Sequence[Row]) -> list[Block]:
    """Hold the clean accuracy of networks against the published one, and show the published robust one beside ours."""
    networks = [row for row in rows if row["clean"]]
    if not networks:
        return []
    linf = next((condition for condition in _conditions(results) if condition.norm == "linf"), CLEAN)
    lines = [
        [
            method_label(row["method"]),
            row["model"]["architecture"],
            _listed_for(row["model"]),
            f"{100 * row['clean']['correct'] / row['clean']['count']:.2f} of {row['clean']['count']}",
            _accuracy(row["clean"]["published"]),
            row["clean"]["verdict"],
            _accuracy(row["model"].get("autoattack_accuracy")),
            _percent(share(results, row["method"], "test", linf)),
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


def _percent(mean: Mean | None) -> str:
    """Write a share; the standard error of none or all of the images would be 0, and say nothing."""
    return percent(mean, error=mean is not None and bool(mean.error))


def _accuracy(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
