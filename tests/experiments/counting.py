"""An experiment without mathematics for the tests of the runner: units by name, of which some fail in their own way."""

import os
import signal
import sys
import threading
import time

from experiments import plan
from experiments.files import ResultsError
from experiments.plan import Unit


def make_plan(config):
    """Make the plan of the units that ``config`` names; "a+b" are two units of one group."""
    return Plan(
        identity={"experiment": "counting", "note": config.note},
        groups=[[Unit(name, name) for name in names.split("+")] for names in config.units],
        dataset=None,
        skipped=frozenset(config.skipped),
    )


class Plan(plan.Plan):
    """See `plan.Plan`."""

    def absence(self, left_out, part):
        return f"left out here: {', '.join(unit.name for unit in left_out)}"

    def share(self, group, num_missing, workdir, progress):
        if any(unit.name.startswith("shares-badly") for unit in group):
            raise ValueError("nothing to share")

    def row(self, unit, shared, workdir, show):
        show(unit.name)
        marker = workdir / f"begun-{unit.name}"
        was_begun = marker.exists()
        marker.touch()
        if unit.name.startswith("fails"):
            raise ValueError(f"{unit.name}\nsays why")
        if unit.name.startswith("finds-the-workdir-full"):
            raise ResultsError(f"no space left in {workdir}")
        if unit.name.startswith("exits"):
            sys.exit("as a network of the user's may")
        if unit.name.startswith("endless"):
            return {"unit": unit.name, "value": float("inf")}
        if unit.name.startswith("dies") and not was_begun:
            os.kill(os.getpid(), signal.SIGKILL)
        if unit.name.startswith("waits"):
            time.sleep(600)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        if unit.name.startswith("ends"):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return {"unit": unit.name, "process": os.getpid(), "cores": cores}

    def clear(self, unit, workdir):
        (workdir / f"stored-{unit.name}").touch()  # once the runner has the row


class Report:
    """What `experiments.report` has for an experiment; workers do without what it imports."""

    TABLE = "units.csv"

    @staticmethod
    def table(run):
        import pandas as pd

        return pd.DataFrame({"unit": [row["unit"] for row in run.rows]})

    @staticmethod
    def blocks(run):
        from experiments.report import page

        lines = [f"{row['unit']} done" for row in run.rows]
        lines += [f"{one['unit']}: {one['reason']}" for one in run.failed]
        missing = [f"{run.num_missing} missing"] * bool(run.num_missing)
        return [page.Heading("Units", 1), *map(page.Text, [*lines, *run.problems, *missing])]

    @staticmethod
    def summary(run):
        return f"{len(run.rows)} rows"
