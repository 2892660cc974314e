"""The report of a leaderboard: the table, whom 1NN beats, one norm against the other, and what failed."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.checks import order_violations
from experiments.report import leaderboard_figures as figures
from experiments.report.labels import (
    MISSING,
    SPLIT_TITLES,
    counted,
    method_label,
    norm_label,
    percent,
    threat_label,
)
from experiments.report.leaderboard_tables import (
    CSV_COLUMNS,
    NEIGHBOR,
    Comparison,
    comparisons,
    csv_lines,
    main_threats,
    ordered,
    share,
    splits,
)
from experiments.report.page import Block, Bullets, Heading, Image, Images, Table, Text, to_html, to_markdown
from experiments.report.provenance import provenance_blocks
from experiments.report.tables import CLEAN, Mean, Row, Threat
from experiments.storage import write_whole

__all__ = ["terminal_text", "write"]

_READING = (
    "Percent of {images} ± its standard error over images, where it is neither 0 nor 100. ≤ attacked: the share that "
    "no attack tried here broke, an upper bound on robust accuracy that a stronger attack can lower. = exact: the "
    "robust accuracy itself, from the radius of every image. Sorted by {sorted_by}, bounds taken as they stand. {csv} "
    "has all radii and 95 % intervals."
)
_BEATEN = (
    "1NN's figures are exact and those of networks upper bounds. A network below 1NN is less robust than 1NN on these "
    "images, whatever other attacks would find; one above may only not have been attacked hard enough. 'Clearly' means "
    "that their 95 % intervals (Wilson), as if their images were drawn apart, do not overlap. Train images are points "
    "that 1NN has stored."
)
_CSV_FILE = "leaderboard.csv"


def write(
    workdir: Path,
    rows: Sequence[Row],
    problems: Sequence[str] = (),
    *,
    failed: Sequence[Mapping[str, Any]] = (),
    absence: str = "",
    num_missing: int = 0,
    sort_by: str = "linf",
) -> Path:
    """Write `report/` in a workdir: report.html (self-contained), report.md with figures/*.png, leaderboard.csv.

    Args:
      workdir: the folder of the run.
      rows: what `results.read_rows` returned; at least one.
      problems: likewise.
      failed: from `failures.read`, models without a row.
      absence: which models were left out, in words.
      num_missing: further models without a row.
      sort_by: see `leaderboard_tables.ordered`.

    Returns:
      The path of the page.
    """
    rows = ordered(rows, sort_by)
    title = f"Robust networks and 1NN on {rows[0]['dataset']}"
    blocks = _blocks(rows, problems, failed, absence, num_missing, title, sort_by)
    folder = workdir / "report"
    for block in blocks:
        for image in block.images if isinstance(block, Images) else ():
            write_whole(folder / "figures" / image.name, image.png)
    page = folder / "report.html"
    write_whole(page, to_html(blocks, title=title))
    write_whole(folder / "report.md", to_markdown(blocks, folder="figures"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([CSV_COLUMNS, *csv_lines(rows, failed)])
    write_whole(folder / _CSV_FILE, text.getvalue())
    return page


def terminal_text(rows: Sequence[Row], sort_by: str) -> str:
    """Return the table as plain text, in the order of the report's, then whom 1NN beats."""
    rows = ordered(rows, sort_by)
    table = _main_table(rows)
    lines = [[name[:36], *(cell.partition(" ± ")[0].replace(" ", "") for cell in cells)] for name, *cells in table.rows]
    first = max(len(line[0]) for line in lines) + 1
    width = max(len(text) for text in table.header[1:]) + 1
    groups = "".join(f"{text:^{width * span}}" for text, span in table.groups[1:])
    text = [rows[0]["dataset"], " " * first + groups]
    text += [
        f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell in cells) for name, *cells in [["", *table.header[1:]]]
    ]
    text += [f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell in cells) for name, *cells in lines]
    text += ["in %; ≤ attacked (upper bound), = exact", *(f"- {_sentence(found)}" for found in comparisons(rows))]
    return "\n".join(line.rstrip() for line in text)


def _blocks(rows, problems, failed, absence, num_missing, title, sort_by) -> list[Block]:
    blocks: list[Block] = [Heading(title, 1)]
    if absence:
        blocks.append(Text(f"Not complete: {absence}.", "alert"))
    if num_missing:
        blocks.append(Text(f"Not complete: {counted(num_missing, 'model')} still to be run.", "alert"))
    if failed:
        lines = [f"{item['model']}: {item['reason']}" for item in failed]
        blocks.append(Bullets(lines, f"{counted(len(failed), 'model')} failed and not in the table:"))
    violations = order_violations(rows)
    if violations:
        blocks.append(Bullets(violations, "Bounds that contradict each other; trust nothing before this is explained:"))
    if problems:
        blocks.append(Bullets(problems, "Found while reading the stored rows:"))
    warned = [f"{row['method']}: {text}" for row in rows for text in row["warnings"]]
    if warned:
        blocks.append(Bullets(warned, "Warnings:"))
    blocks += [_main_table(rows), Text(_reading(rows, sort_by), "note"), *_beaten_blocks(rows), *_scatter_blocks(rows)]
    blocks += [*_curve_blocks(rows), *_clean_blocks(rows), *provenance_blocks(rows)]
    return blocks


def _main_table(rows: Sequence[Row]) -> Table:
    columns = [(split, threat) for split in splits(rows) for threat in main_threats(rows)]
    return Table(
        header=["model", *(threat_label(threat) for _, threat in columns)],
        groups=[("", 1), *((SPLIT_TITLES[split], len(main_threats(rows))) for split in splits(rows))],
        rows=[
            [method_label(row["method"]), *(_percent(share(row, split, threat)) for split, threat in columns)]
            for row in rows
        ],
        strong=frozenset((place, 0) for place, row in enumerate(rows) if row["method"] == NEIGHBOR),
    )


def _reading(rows: Sequence[Row], sort_by: str) -> str:
    counts = sorted({(item["split"], item["count"]) for row in rows for item in row["evaluations"]}, reverse=True)
    images = " and ".join(f"the first {count} {split} images" for split, count in counts)
    where = "test images" if "test" in splits(rows) else f"{splits(rows)[0]} images"
    sorted_by = "the mean of all robust columns" if sort_by == "mean" else f"{norm_label(sort_by)} on {where}"
    return _READING.format(images=images, sorted_by=sorted_by, csv=_CSV_FILE)


def _beaten_blocks(rows: Sequence[Row]) -> list[Block]:
    found = comparisons(rows)
    if not found:
        return []
    lines = [
        [
            f"{SPLIT_TITLES[one.split]}, {threat_label(one.threat)}",
            _percent(one.own),
            f"{one.num_below} of {one.num_networks}",
            str(one.num_clearly_below),
            _percent(one.best[1]),
            method_label(one.best[0]),
        ]
        for one in found
    ]
    header = ["", "1NN", "networks below 1NN", "clearly", "the network that keeps most", ""]
    return [Heading("Whom 1NN beats"), Table(header, lines), Text(_BEATEN, "note")]


def _sentence(one: Comparison) -> str:
    what = {"exact": "exactly ", "certified": "at least ", "attacked": ""}[one.own.kind]
    name, best = one.best
    most, above = f"{100 * best.value:.1f} % ({method_label(name)})", one.num_networks - one.num_below
    where = f"{SPLIT_TITLES[one.split].capitalize()}, {threat_label(one.threat)}"
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


def _scatter_blocks(rows: Sequence[Row]) -> list[Block]:
    threats = [threat for threat in main_threats(rows) if threat != CLEAN][:2]
    if len(threats) < 2:
        return []
    images = []
    for split in (split for split in splits(rows) if split != "both"):
        points: dict[str, tuple[Mean, Mean]] = {}
        for row in rows:
            across, up = (share(row, split, threat) for threat in threats)
            if across is not None and up is not None:
                points[row["method"]] = across, up
        title = f"{split} images"
        png = figures.scatter(points, (threats[0], threats[1]), focus=NEIGHBOR, title=title)
        alt = f"{threat_label(threats[0])} against {threat_label(threats[1])}, {title}"
        images.append(Image(_file_name("scatter", split), alt, png))
    caption = (
        "A dot is a network, what attacks left of it in both norms (upper bounds); the star is 1NN, exact. It beats "
        "the networks on the left of its upright line in the one norm, those below its level line in the other. Bars: "
        "one standard error."
    )
    return [Heading("One norm against the other"), Images(images, caption)]


def _curve_blocks(rows: Sequence[Row]) -> list[Block]:
    blocks: list[Block] = []
    for threat in (threat for threat in main_threats(rows) if threat != CLEAN):
        images = []
        for split in (split for split in splits(rows) if split != "both"):
            lines = {row["method"]: points for row in rows if len(points := _points(row, split, threat)) > 2}
            if set(lines) - {NEIGHBOR}:
                title = f"{split} images, {norm_label(threat.norm or '')}"
                png = figures.curves(lines, threat, focus=NEIGHBOR, title=title)
                images.append(
                    Image(_file_name("curve", threat.norm, split), f"Accuracy against the radius, {title}", png)
                )
        caption = "Solid: 1NN, exact. Broken: what attacks left of the networks. Upright line: the main radius."
        blocks += [Images(images, caption)] if images else []
    return [Heading("Accuracy against the radius"), *blocks] if blocks else []


def _points(row: Row, split: str, main: Threat) -> list[tuple[float, Mean]]:
    radii = {item["epsilon"] for item in row["evaluations"] if item["norm"] == main.norm and item["split"] == split}
    found = [(0.0, share(row, split, CLEAN))]
    found += [(radius, share(row, split, Threat(main.norm, radius))) for radius in sorted(radii) if radius]
    return [(radius, mean) for radius, mean in found if mean is not None]


def _clean_blocks(rows: Sequence[Row]) -> list[Block]:
    """Hold the clean accuracy of networks against the published one, and show the published robust one beside ours."""
    networks = [row for row in rows if row["clean"]]
    if not networks:
        return []
    linf = next((threat for threat in main_threats(rows) if threat.norm == "linf"), CLEAN)
    lines = [
        [
            method_label(row["method"]),
            row["model"]["architecture"],
            _listed_for(row["model"]),
            f"{100 * row['clean']['correct'] / row['clean']['count']:.2f} of {row['clean']['count']}",
            _published(row["clean"]["published"]),
            row["clean"]["verdict"],
            _published(row["model"].get("autoattack_accuracy")),
            _percent(share(row, "test", linf)),
            "; ".join(row["model"].get("notes") or ()),
        ]
        for row in networks
    ]
    header = ["model", "network", "listed for", "clean, %", "published", "", "AutoAttack, published"]
    header += [f"{threat_label(linf)}, here", "to know"]
    note = (
        "Clean accuracy on test images before any attack. 'other pixels': the published figure is of the original "
        "images and these are not: the two were not compared and do not tell whether the weights are the right ones."
    )
    others = sum(row["clean"]["verdict"] == "other pixels" for row in networks)
    alert = [
        Text(
            f"The published accuracies of {counted(others, 'network')} are of the original images, not of "
            f"{rows[0]['dataset']}: they could not be checked.",
            "alert",
        )
    ] * bool(others)
    return [
        Heading("Clean accuracy, published and here"),
        *alert,
        Table(header, lines, numeric=False),
        Text(note, "note"),
    ]


def _listed_for(model: Mapping[str, Any]) -> str:
    """Write the threat that a catalogue lists a network for, and whether it was trained on more images."""
    if not model.get("epsilon"):
        return MISSING
    return threat_label(Threat(model["threat"].lower(), model["epsilon"])) + ", extra data" * model["extra_data"]


def _percent(mean: Mean | None) -> str:
    """Write a share; the standard error of none or all of the images would be 0, and say nothing."""
    return percent(mean, error=mean is not None and bool(mean.error))


def _published(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _file_name(*parts: str | None) -> str:
    return re.sub(r"[^\w.]+", "-", "-".join(["leaderboard", *map(str, parts)])) + ".png"
