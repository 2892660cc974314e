"""An experiment without mathematics for the tests of the runner: units by name, of which some fail in their own way."""

import os
import signal
import time
from typing import NamedTuple

from experiments import runner


class Unit(NamedTuple):
    """A unit, whose name says what it does."""

    name: str


def prepare(config):
    """Make the experiment of the units that ``config`` names; "a+b" are two units of one group."""
    return runner.Experiment(
        identity={"note": config.note},
        groups=[[Unit(name) for name in names.split("+")] for names in config.units],
        rows=_rows,
        needed_bytes=lambda groups: 1000 * len(groups),
        report=_report,
        summary=lambda rows: f"{len(rows)} rows",
        skipped=frozenset(config.skipped),
    )


def _rows(group, done, workdir, progress):
    for unit in group:
        if unit.name in done:
            continue
        progress.show(unit.name)
        marker = workdir / f"begun-{unit.name}"
        was_begun = marker.exists()
        marker.touch()
        if unit.name.startswith("fails"):
            raise ValueError(f"{unit.name}\nsays why")
        if unit.name.startswith("dies") and not was_begun:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.name.startswith("waits"):
            time.sleep(600)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        yield {"unit": unit.name, "process": os.getpid(), "cores": cores}
        (workdir / f"stored-{unit.name}").touch()  # once the runner has the row
        progress.advance(1)


def _report(workdir, rows, problems, failed, missing, share):
    page = workdir / "report.txt"
    lines = [f"{row['unit']} done" for row in rows] + [f"{one['unit']}: {one['reason']}" for one in failed]
    page.write_text("\n".join([*lines, *problems, *sorted(missing)]))
    return page
