"""The report of an audit: by how many points each attack overstates the robust accuracy of 1NN."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report import audit_figures
from experiments.report.labels import norm_label, threat_label
from experiments.report.page import Block, Bullets, Heading, Image, Images, Table, Text, to_html, to_markdown
from experiments.report.tables import Row, Threat, task_key
from experiments.storage import write_whole
from nn_adv import evaluation

_TITLE = "How far attacks overstate the robust accuracy of 1NN"
_READING = (
    "Points by which the share of images that an attack did not break exceeds the exact robust accuracy, which heads "
    "each column in %. One image is {step:.2g} points. Where radii are only bounded the points are a range. "
    "audit.csv has 95 % intervals over images."
)
_COLUMNS = (
    "dataset",
    "task",
    "norm",
    "epsilon",
    "temperature",
    "num_steps",
    "num_restarts",
    "loss",
    "count",
    "correct",
    "certified",
    "at_most",
    "unbroken",
    "attacked",
    "attacked_inside",
    "overstated_least",
    "overstated_most",
    "low95",
    "high95",
)


class Overstated(NamedTuple):
    """What one attack says at one radius beside the truth; counts of images.

    Attributes:
      attack: temperature, steps, restarts, loss.
      num_images: of which the others are counts.
      certified, at_most: the exact robust accuracy lies between; they are equal where every radius is exact.
      unbroken: what the attack leaves.
    """

    threat: Threat
    attack: tuple[float, int, int, str]
    num_images: int
    certified: int
    at_most: int
    unbroken: int

    @property
    def points(self) -> tuple[float, float]:
        """Least and most points by which the attack overstates; it may have broken more than is known otherwise."""
        least, most = (100 * (self.unbroken - bound) / self.num_images for bound in (self.at_most, self.certified))
        return max(least, 0.0), most


def write(workdir: Path, rows: Sequence[Row], problems: Sequence[str] = (), *, num_missing: int = 0) -> Path:
    """Write `report/` in a workdir: report.html (self-contained), report.md with figures/*.png, audit.csv.

    Returns:
      The path of the page.
    """
    blocks = _blocks(rows, problems, num_missing)
    folder = workdir / "report"
    for block in blocks:
        for image in block.images if isinstance(block, Images) else ():
            write_whole(folder / "figures" / image.name, image.png)
    page = folder / "report.html"
    write_whole(page, to_html(blocks, title=_TITLE))
    write_whole(folder / "report.md", to_markdown(blocks, folder="figures"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *csv_lines(rows)])
    write_whole(folder / "audit.csv", text.getvalue())
    return page


def terminal_text(rows: Sequence[Row]) -> str:
    """Return the findings as plain text of at most 100 columns."""
    parts = []
    for (dataset, task), own in _by_task(rows).items():
        sentences = [*findings(own), _soundness(own)]
        parts += [f"{dataset}, {task}", *(textwrap.fill(f"- {sentence}", 100) for sentence in sentences)]
    return "\n".join(parts)


def overstated(rows: Sequence[Row]) -> list[Overstated]:
    """List what each attack of one task says at each of its radii."""
    return [
        Overstated(
            Threat(row["norm"], item["epsilon"]),
            _attack(row),
            row["count"],
            item["certified"],
            item["at_most"],
            item["unbroken"],
        )
        for row in rows
        for item in row["audited"]
    ]


def findings(rows: Sequence[Row]) -> list[str]:
    """Say for each norm and radius of one task what is exact, and what the best and the worst attack say."""
    sentences = []
    for threat, items in _by_threat(rows).items():
        best = min(items, key=lambda item: item.unbroken)
        worst = max(items, key=lambda item: item.unbroken)
        text = (
            f"{threat_label(threat)}: {_exact(items[0])} % of the images are robust; the best of {len(items)} attacks"
        )
        text += f" leaves {_share(best.unbroken, best.num_images)} % ({_attack_label(best.attack)})"
        if worst.unbroken > best.unbroken:
            text += f", the worst {_share(worst.unbroken, worst.num_images)} % ({_attack_label(worst.attack)})"
        sentences.append(f"{text}.")
    return sentences


def csv_lines(rows: Sequence[Row]) -> list[tuple]:
    """List every attack at every radius; the interval is of the share of images that is overstated at most."""
    lines = []
    for row in rows:
        attack = [row["attack"][name] for name in ("temperature", "num_steps", "num_restarts", "loss")]
        for item in row["audited"]:
            count = row["count"]
            least, most = max(item["unbroken"] - item["at_most"], 0), item["unbroken"] - item["certified"]
            interval = evaluation.wilson_interval(max(most, 0), count)
            lines.append(
                (
                    *(row["dataset"], row["task"], row["norm"], item["epsilon"], *attack, count, row["correct"]),
                    *(item["certified"], item["at_most"], item["unbroken"]),
                    *(item["attacked"], item["attacked_inside"]),
                    *(round(value, 6) for value in (least / count, most / count, *interval)),
                )
            )
    return lines


def _blocks(rows: Sequence[Row], problems: Sequence[str], num_missing: int) -> list[Block]:
    blocks: list[Block] = [Heading(_TITLE, 1)]
    if num_missing:
        blocks.append(Text(f"Not complete: {num_missing} of {num_missing + len(rows)} attacks are missing.", "alert"))
    if problems:
        blocks.append(Bullets(problems, "Found while reading the stored rows:"))
    for (dataset, task), own in _by_task(rows).items():
        step = 100 / own[0]["count"]
        blocks += [
            Heading(f"{dataset}, {task}"),
            Bullets([*findings(own), _soundness(own)]),
            _table(own),
            Text(_READING.format(step=step), "note"),
            *_figures(own, f"{dataset}-{task}"),
        ]
    return [*blocks, Heading("How it was made"), _provenance(rows)]


def _table(rows: Sequence[Row]) -> Table:
    by_threat = _by_threat(rows)
    attacks = sorted({item.attack for items in by_threat.values() for item in items}, key=_attack_order)
    cells = {(threat, item.attack): _points(item) for threat, items in by_threat.items() for item in items}
    return Table(
        header=["attack", *(f"{threat_label(threat)} ({_exact(items[0])})" for threat, items in by_threat.items())],
        rows=[
            [_attack_label(attack), *(cells.get((threat, attack), "–") for threat in by_threat)] for attack in attacks
        ],
    )


def _figures(rows: Sequence[Row], name: str) -> list[Block]:
    panels: dict[str | None, list[Image]] = {}
    for threat, items in _by_threat(rows).items():
        curves: dict[str, list[tuple[float, float]]] = {}
        for item in sorted(items, key=lambda item: item.attack):
            curves.setdefault(_variant_label(item.attack), []).append((item.attack[0], item.points[1]))
        title = threat_label(threat)
        file = re.sub(r"[^\w.]+", "-", f"{name}-{threat.norm}-{threat.epsilon:.4g}").strip("-") + ".png"
        alt = f"Points overstated against the temperature, {title}"
        panels.setdefault(threat.norm, []).append(Image(file, alt, audit_figures.panel(curves, title=title)))
    caption = "{}: points by which PGD through the soft 1NN overstates robust accuracy (at most)."
    return [Images(images, caption.format(norm_label(norm or ""))) for norm, images in panels.items()]


def _soundness(rows: Sequence[Row]) -> str:
    inside = sum(item["attacked_inside"] for row in rows for item in row["audited"])
    outside = sum(item["attacked"] for row in rows for item in row["audited"])
    return (
        f"{outside} times an image was attacked at a radius above its own, {inside} times just below: none broke at a "
        "smaller distance than its proven radius."
    )


def _provenance(rows: Sequence[Row]) -> Table:
    def values(found) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in found if value not in (None, "")))

    seconds = sum(row["seconds"]["attack"] for row in rows)
    return Table(
        ["", ""],
        [
            ["configuration", values(row["config_hash"] for row in rows)],
            ["data", values(_data(row) for row in rows)],
            ["training images", values(row["num_train"] for row in rows)],
            ["test images", values(f"{row['count']}, {row['correct']} correct" for row in rows)],
            ["step size", values(f"{row['attack']['step_share']} x radius / steps" for row in rows)],
            ["radii", values(f"{row['radii']['by']}, re-checked: {row['radii']['rechecked']}" for row in rows)],
            ["images only bounded", values(_bounded(row) for row in rows)],
            ["versions", values(", ".join(f"{k}={v}" for k, v in row["versions"].items()) for row in rows)],
            ["device", values(row["device"] for row in rows)],
            ["time of the attacks", f"{seconds:.0f} s"],
        ],
        numeric=False,
    )


def _data(row: Row) -> str:
    return f"{row['dataset']} ({row['dataset_note']})" if row["dataset_note"] else str(row["dataset"])


def _bounded(row: Row) -> str:
    number = row["radii"]["images_only_bounded"][row["norm"]]
    return f"{row['task']}, {norm_label(row['norm'])}: {number}"


def _by_task(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["dataset"], task_key(row["task"]))):
        found.setdefault((row["dataset"], row["task"]), []).append(row)
    return found


def _by_threat(rows: Sequence[Row]) -> dict[Threat, list[Overstated]]:
    order = ("linf", "l2", "l1")
    found: dict[Threat, list[Overstated]] = {}
    for item in sorted(overstated(rows), key=lambda item: (order.index(item.threat.norm), item.threat.epsilon)):
        found.setdefault(item.threat, []).append(item)
    return found


def _attack(row: Row) -> tuple[float, int, int, str]:
    settings: Mapping[str, Any] = row["attack"]
    return settings["temperature"], settings["num_steps"], settings["num_restarts"], settings["loss"]


def _attack_order(attack) -> tuple:
    temperature, *variant = attack
    return variant[2], variant[1], variant[0], temperature


def _attack_label(attack) -> str:
    return f"T {attack[0]:g}, {_variant_label(attack)}"


def _variant_label(attack) -> str:
    _, steps, restarts, loss = attack
    return f"{steps} steps" + (f" x {restarts}" if restarts > 1 else "") + (f", {loss}" if loss != "margin" else "")


def _exact(item: Overstated) -> str:
    if item.certified == item.at_most:
        return f"= {_share(item.certified, item.num_images)}"
    return f"{_share(item.certified, item.num_images)} to {_share(item.at_most, item.num_images)}"


def _share(number: int, count: int) -> str:
    return f"{100 * number / count:.1f}"


def _points(item: Overstated) -> str:
    ends = dict.fromkeys(f"{value:+.1f}".replace("-", "−") if value else "0" for value in np.round(item.points, 1))
    return " to ".join(ends)
