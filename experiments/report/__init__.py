"""The report of a run, written from what lies in its workdir and from nothing else.

    python -m experiments.report runs/digits

writes it anew: without data, network or training.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pandas as pd

from experiments import configuration, failures, pictures, store
from experiments.checks import order_violations
from experiments.files import write_whole
from experiments.report import page
from experiments.report.provenance import REDRAW
from experiments.report.records import Run
from nn_adv.paths import as_path


class Report(NamedTuple):
    """The page of a report, the table of its numbers, and its main result as plain text."""

    page: Path
    table: Path
    summary: str


def read(workdir: str | os.PathLike) -> tuple[str, Run]:
    """Return the name of the experiment whose workdir this is, and what lies in it.

    Raises:
      ValueError: nothing has been run there, or what was cannot be read.
    """
    folder = as_path(workdir, "workdir")
    config = configuration.require_config(folder)["config"]
    rows, problems = store.read_rows(folder)
    asked = configuration.read_asked(folder)
    done = {row["unit"] for row in rows}
    recorded = {unit: one for unit, one in failures.read(folder).items() if unit not in done}
    units = set(recorded) if asked is None else set(asked["units"]) - done
    failed = [one for unit, one in recorded.items() if unit in units]
    settings = {} if asked is None else asked["settings"]
    shown, damaged = pictures.read(folder, rows)
    problems = [*problems, *damaged]
    run = Run(rows, problems, failed, order_violations(rows), len(units) - len(failed), settings, shown)
    return config["experiment"], run


def table(workdir: str | os.PathLike) -> pd.DataFrame:
    """Return the numbers of a run as a tidy table, which the report's CSV file holds rounded.

    Of networks and 1NN: a line for each unit (the index), split, norm, epsilon and kind of accuracy, with counts of
    images, see `records.tidy`. Of an audit: a line for each unit and epsilon. Of a small zoo: one for each network.

    Raises:
      ValueError: there are no rows.
    """
    experiment, run = read(workdir)
    _check_rows(run, workdir)
    return of(experiment).table(run)


def of(experiment: str) -> ModuleType:
    """Return the module of this name: TABLE, the name of its table's file, and functions of a `Run`."""
    return importlib.import_module(f"experiments.report.{experiment}")


def write(workdir: str | os.PathLike) -> Report:
    """Write `report/` in a workdir: report.html (self-contained), report.md with figures/*.png, and a table as CSV.

    Each file is replaced whole or not at all.

    Raises:
      ValueError: there are no rows.
    """
    experiment, run = read(workdir)
    return write_run(experiment, as_path(workdir, "workdir"), run)


def write_run(experiment: str, workdir: Path, run: Run) -> Report:
    """See `write`."""
    _check_rows(run, workdir)
    module = of(experiment)
    made, folder = module.blocks(run), workdir / "report"
    shown = page.signed(made, REDRAW)
    for image in page.images(shown):
        for name, content in image.files.items():
            write_whole(folder / "figures" / name, content)
    write_whole(folder / "report.md", page.to_markdown(shown, way="figures/"))
    table = module.table(run)
    shares = table.select_dtypes("float").columns.difference(["epsilon", "temperature"])
    write_whole(folder / module.TABLE, table.round(dict.fromkeys(shares, 6)).to_csv(index=False))
    write_whole(folder / "report.html", page.to_html(shown, title=made[0].text))
    return Report(folder / "report.html", folder / module.TABLE, module.summary(run))


def _check_rows(run: Run, workdir: str | os.PathLike) -> None:
    if not run.rows:
        found = f", but {run.problems[0]}" if run.problems else ": there is nothing to report"
        raise ValueError(f"{os.fspath(workdir)} has no finished units yet{found}")
