"""The report of a run, written from its rows and from nothing else."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.report.content import report_blocks
from experiments.report.page import Images, to_html, to_markdown
from experiments.report.tables import Row
from experiments.report.terminal import terminal_table
from experiments.report.units import PAIR_COLUMNS, pair_lines
from experiments.storage import write_whole

__all__ = ["ReportPaths", "terminal_table", "write_report"]


class ReportPaths(NamedTuple):
    """The files of a report."""

    html: Path
    markdown: Path
    pairs_csv: Path
    figures: tuple[Path, ...]


def write_report(
    workdir: str | os.PathLike,
    rows: Sequence[Row],
    problems: Sequence[str] = (),
    *,
    title: str = "1-nearest-neighbour beside adversarially trained networks",
    num_missing: int = 0,
) -> ReportPaths:
    """Write `report/` in a workdir: report.html (self-contained), report.md with figures/*.png, pairs.csv.

    Each file is replaced whole or not at all.

    Args:
      workdir: the folder of the run.
      rows: what `results.read_rows` returned, of one dataset or several.
      problems: likewise; repeated in the report.
      title: heading of the page.
      num_missing: how many units the run still lacks; the report says so.

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{workdir} has no finished units yet: there is nothing to report")
    blocks = report_blocks(rows, problems, title=title, num_missing=num_missing)
    folder = Path(workdir) / "report"
    figures = folder / "figures"
    images = [image for block in blocks if isinstance(block, Images) for image in block.images]
    for image in images:
        write_whole(figures / image.name, image.png)
    paths = ReportPaths(
        folder / "report.html",
        folder / "report.md",
        folder / "pairs.csv",
        tuple(figures / image.name for image in images),
    )
    write_whole(paths.html, to_html(blocks, title=title))
    write_whole(paths.markdown, to_markdown(blocks, folder="figures"))
    write_whole(paths.pairs_csv, _csv(rows))
    return paths


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([PAIR_COLUMNS, *pair_lines(rows)])
    return text.getvalue()
