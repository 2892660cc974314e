"""What corruptions leave of each method: a table and a curve for each corruption, train and test images apart."""

from __future__ import annotations

import pandas as pd

from experiments.report import figures
from experiments.report.labels import SPLIT_TITLES, counted, method_label
from experiments.report.page import Block, Heading, Image, Panels, Table, Text, file_name, text_table
from experiments.report.provenance import alerts, command_blocks, incomplete
from experiments.report.records import Run, method_key

TABLE = "corruptions.csv"
_TITLES = {
    "shift": ("shifted to the right", "pixels"),
    "rotation": ("rotated", "degrees"),
    "brightness": ("brighter", "added to each pixel"),
    "noise": ("Gaussian noise", "standard deviation"),
    "jpeg": ("JPEG", "100 less the quality"),
}
_READING = (
    "Per cent of the images that are classified correctly, means over {}. Nobody searches for the worst change here: "
    "these are accuracies, not robust ones. mean l2: how far the change moves an image, on average."
)


def table(run: Run) -> pd.DataFrame:
    """Return a line for each unit, split, corruption and strength, with its counts and the mean size of the change."""
    lines = [
        {name: row[name] for name in ("unit", "dataset", "task", "method", "seed")}
        | item
        | {"accuracy": item["correct"] / item["count"]}
        for row in run.rows
        for item in row["corrupted"]
    ]
    return pd.DataFrame(lines).set_index("unit")


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    found, tasks = _comparable(run)
    title = Heading(f"1NN and networks on corrupted images of {run.rows[0]['dataset']}", 1)
    parts: list[Block] = [title, *incomplete(run), *alerts(run)]
    for split, own in found.groupby("split", sort=False):
        parts += [Heading(SPLIT_TITLES[str(split)].capitalize()), *_tables(own), _panels(own, str(split))]
        parts.append(Text(_READING.format(counted(len(tasks), "task")), "note"))
    return [*parts, *command_blocks(run)]


def summary(run: Run) -> str:
    """Return the accuracies of the test images, or of those there are, at each strength as plain text."""
    found, tasks = _comparable(run)
    split = found["split"].iloc[-1]
    lines = [f"{run.rows[0]['dataset']}, {SPLIT_TITLES[split]}, {counted(len(tasks), 'task')}, % correct"]
    for name, own in _by_corruption(found[found["split"] == split]):
        means = _means(own)
        lines += ["", *text_table([[name, *(f"{strength:g}" for strength in means.columns)], *_texts(means)])]
    return "\n".join(lines)


def _comparable(run: Run) -> tuple[pd.DataFrame, list[str]]:
    """Return the table over the tasks that every method was run on, or all where there is none, and those tasks."""
    found = table(run)
    by_task = found.groupby("task")["method"].nunique()
    shared = by_task.index[by_task == found["method"].nunique()]
    tasks = sorted(shared if len(shared) else by_task.index)
    return found[found["task"].isin(tasks)], tasks


def _by_corruption(own: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Part the lines by corruption, each with the clean images at strength 0."""
    clean = own[own["corruption"] == "clean"]
    names = [name for name in own["corruption"].unique() if name != "clean"]
    return [(name, pd.concat([clean, own[own["corruption"] == name]])) for name in names]


def _means(own: pd.DataFrame) -> pd.DataFrame:
    """Return per cent by method and strength, each task weighing the same."""
    means = 100 * own.pivot_table("accuracy", "method", "strength", sort=False)
    return means.sort_index(key=lambda methods: methods.map(method_key)).sort_index(axis=1)


def _texts(means: pd.DataFrame) -> list[list[str]]:
    return [[method_label(str(method)), *(f"{x:.1f}" for x in line)] for method, line in means.iterrows()]


def _tables(own: pd.DataFrame) -> list[Block]:
    found: list[Block] = []
    for name, lines in _by_corruption(own):
        means, (title, unit) = _means(lines), _TITLES[name]
        sizes = lines.groupby("strength")["mean_l2"].mean()
        rows = [*_texts(means), ["mean l2", *(f"{sizes[strength]:.2f}" for strength in means.columns)]]
        found.append(Table([f"{title} ({unit})", *(f"{strength:g}" for strength in means.columns)], rows))
    return found


def _panels(own: pd.DataFrame, split: str) -> Panels:
    images = []
    for name, lines in _by_corruption(own):
        title, unit = _TITLES[name]
        curves = [
            figures.Curve(list(line.items()), method_label(str(method)), *figures.pen(number))
            for number, (method, line) in enumerate(_means(lines).iterrows())
        ]
        drawing = figures.curves(curves, title=f"{title}, {split} images", xlabel=unit, ylabel="correct in %")
        images.append(Image(file_name(name, split), f"Accuracy under {title}, {split} images", drawing))
    return Panels(images, f"Accuracy on {SPLIT_TITLES[split]} under growing corruptions.")
