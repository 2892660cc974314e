"""The report of an audit: by how many points each attack overstates the robust accuracy of 1NN."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.report import figures, named
from experiments.report.labels import condition_label
from experiments.report.named import by_condition, exact, one_image, percent, points
from experiments.report.page import Block, Bullets, Heading, Image, Panels, Table, Text, file_name
from experiments.report.provenance import alerts, command_blocks, incomplete
from experiments.report.records import Row, Run, task_key
from nn_adv import evaluation

TABLE = "audit.csv"
_TITLE = "How far attacks overstate the robust accuracy of 1NN"
_READING = (
    "Points by which the share of images that an attack did not break exceeds the exact robust accuracy, which heads "
    "each column in %. One image is {step}. Where radii are only bounded the points are a range. "
    f"95 % intervals over images are in the report's {TABLE}."
)
_ATTACK = ["temperature", "num_steps", "num_restarts", "loss"]
_ABOUT = {"name", "sees", "finds", "package", "temperatures"}  # of an attack by its name; the others are settings
_COUNTS = ("certified", "at_most", "unbroken", "attacked", "attacked_inside")


def table(run: Run) -> pd.DataFrame:
    """Return what every attack says at every epsilon beside the truth; counts are of images.

    The robust accuracy lies between ``certified`` and ``at_most``, equal where every radius is exact; ``unbroken`` is
    what the attack leaves. It overstates by the shares ``overstated_least`` to ``overstated_most`` (it may have broken
    more than is known otherwise); the interval, of 95 %, is of the latter.
    """
    lines = []
    for row in run.rows:
        for item in row["audited"]:
            count, most = row["count"], item["unbroken"] - item["certified"]
            low, high = evaluation.wilson_interval(max(most, 0), count)
            line = {name: row[name] for name in ("unit", "dataset", "task", "norm")} | {"epsilon": item["epsilon"]}
            line |= {name: row["attack"][name] for name in _ATTACK} if _is_variant(row) else named.columns(row)
            line |= {"count": count, "correct": row["correct"]}
            line |= {name: item[name] for name in _COUNTS}
            line |= {"overstated_least": max(item["unbroken"] - item["at_most"], 0) / count}
            lines.append(line | {"overstated_most": most / count, "low95": low, "high95": high})
    return pd.DataFrame(lines).set_index("unit")


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    found: list[Block] = [Heading(_TITLE, 1), *incomplete(run, noun="attack"), *alerts(run)]
    for (dataset, task), all_of_task in _by_task(table(run)):
        found.append(Heading(f"{dataset}, {task}"))
        own, by_name = _split(all_of_task)
        if len(own):
            found += [
                Bullets(findings(own)),
                _table(own),
                Text(_READING.format(step=one_image(own)), "note"),
                *_figures(own, f"{dataset}-{task}"),
            ]
        if len(by_name):
            found += named.blocks(by_name)
    return [*found, *command_blocks(run), _provenance(run.rows)]


def summary(run: Run) -> str:
    """Return the findings as plain text of at most 100 columns."""
    parts = []
    for (dataset, task), own in _by_task(table(run)):
        variants, by_name = _split(own)
        sentences = [*(findings(variants) if len(variants) else ()), *(named.findings(by_name) if len(by_name) else ())]
        parts += [f"{dataset}, {task}", *(textwrap.fill(f"- {sentence}", 100) for sentence in sentences)]
    return "\n".join(parts)


def _is_variant(row: Row) -> bool:
    """Tell whether a row is of PGD with settings of the configuration, not of an attack by its name."""
    return "temperature" in row["attack"]


def _split(own: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    if "attack" not in own:
        return own, own[:0]
    is_named = own["attack"].notna()
    return own[~is_named], own[is_named]


def findings(own: pd.DataFrame) -> list[str]:
    """Say for each norm and epsilon of one task what is exact, and what the best and the worst attack say."""
    sentences = []
    for condition, items in by_condition(own):
        best, worst = (items.iloc[place(items["unbroken"])] for place in (np.argmin, np.argmax))
        text = f"{condition_label(condition)}: {exact(items)} % of the images are robust; the best of {len(items)} "
        text += f"attacks leaves {percent(best, 'unbroken')} % ({_attack_label(best)})"
        if worst["unbroken"] > best["unbroken"]:
            text += f", the worst {percent(worst, 'unbroken')} % ({_attack_label(worst)})"
        sentences.append(f"{text}.")
    return [
        *sentences,
        f"{own['attacked'].sum()} times an image was attacked at a radius above its own, "
        f"{own['attacked_inside'].sum()} times just below: none broke at a smaller distance than its proven radius.",
    ]


def _table(own: pd.DataFrame) -> Table:
    conditions = list(by_condition(own))
    attacks = own.drop_duplicates(_ATTACK).sort_values(["loss", "num_restarts", "num_steps", "temperature"])
    cells = {
        (condition, _attack_label(item)): points(item)
        for condition, items in conditions
        for _, item in items.iterrows()
    }
    labels = [_attack_label(attack) for _, attack in attacks.iterrows()]
    return Table(
        header=["attack", *(f"{condition_label(condition)} ({exact(items)})" for condition, items in conditions)],
        rows=[[label, *(cells.get((condition, label), "–") for condition, _ in conditions)] for label in labels],
    )


def _figures(own: pd.DataFrame, name: str) -> list[Block]:
    panels: dict[str | None, list[Image]] = {}
    for condition, items in by_condition(own):
        lines: dict[str, list[tuple[float, float]]] = {}
        for _, item in items.sort_values(_ATTACK).iterrows():
            lines.setdefault(_variant_label(item), []).append((item["temperature"], 100 * item["overstated_most"]))
        curves = [
            # lines that coincide stay visible
            figures.Curve(
                points,
                label,
                *figures.pen(number),
                {"linewidth": max(3.2 - 0.5 * number, 0.8)},
            )
            for number, (label, points) in enumerate(lines.items())
        ]
        title = condition_label(condition)
        xlabel, ylabel = "temperature of the soft 1NN", "points overstated"
        drawing = figures.curves(curves, title=title, xlabel=xlabel, ylabel=ylabel, xscale="log")
        file = file_name(name, condition.norm, f"{condition.epsilon:.4g}")
        image = Image(file, f"Points overstated against the temperature, {title}", drawing)
        panels.setdefault(condition.norm, []).append(image)
    caption = "{}: points by which PGD through the soft 1NN overstates robust accuracy (at most, of bounds)."
    return [Panels(images, caption.format(norm or "")) for norm, images in panels.items()]


def _provenance(rows: Sequence[Row]) -> Table:
    lines = {
        "configuration": [row["config_hash"] for row in rows],
        "data": [row["dataset"] + (f" ({row['dataset_note']})" if row["dataset_note"] else "") for row in rows],
        "training images": [row["num_train"] for row in rows],
        "test images": [f"{row['count']}, {row['correct']} correct" for row in rows],
        "step size": [f"{row['attack']['step_share']} x radius / steps" for row in rows if _is_variant(row)],
        "attacks": [_settings(row["attack"]) for row in rows if not _is_variant(row)],
        "radii": [f"{row['radii']['by']}, re-checked: {row['radii']['rechecked']}" for row in rows],
        "images only bounded": [
            f"{row['task']}, {row['norm']}: {row['radii']['images_only_bounded'][row['norm']]}" for row in rows
        ],
        "versions": [", ".join(f"{name}={version}" for name, version in row["versions"].items()) for row in rows],
        "device": [row["device"] for row in rows],
        "time of the attacks": [f"{sum(row['seconds']['attack'] for row in rows):.0f} s"],
    }
    told = [[name, ", ".join(dict.fromkeys(map(str, of)))] for name, of in lines.items() if of]
    return Table(["", ""], told, numeric=False)


def _settings(attack: Mapping[str, Any]) -> str:
    """Write the settings of an attack by its name, where they are not the library's own."""
    own = [f"{name}={value}" for name, value in attack.items() if name not in _ABOUT]
    return f"{attack['name']} ({', '.join(own) or 'as the library has it'})"


def _by_task(found: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    groups = list(found.groupby(["dataset", "task"], sort=False))
    return sorted(groups, key=lambda pair: (pair[0][0], task_key(pair[0][1])))


def _attack_label(item: pd.Series) -> str:
    return f"T {item['temperature']:g}, {_variant_label(item)}"


def _variant_label(item: pd.Series) -> str:
    restarts = f" x {item['num_restarts']:g}" if item["num_restarts"] > 1 else ""
    return f"{item['num_steps']:g} steps{restarts}" + (f", {item['loss']}" if item["loss"] != "margin" else "")
