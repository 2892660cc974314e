"""What a small zoo shows: its networks, the accuracy of each and the time it took."""

from __future__ import annotations

import pandas as pd

from experiments.report.page import Block, Heading, Table, text_table
from experiments.report.provenance import alerts, command_blocks, incomplete
from experiments.report.records import Run

TABLE = "networks.csv"
_HEADER = ["network", "clean, %", "training, s"]


def table(run: Run) -> pd.DataFrame:
    """Return a line for each network: its clean accuracy on test images, in per cent, and the seconds of training."""
    lines = [
        {name: row[name] for name in ("unit", "dataset", "method", "clean_accuracy")}
        | {"train": row["seconds"]["train"]}
        for row in run.rows
    ]
    return pd.DataFrame(lines).set_index("unit")


def blocks(run: Run) -> list[Block]:
    """Assemble the report."""
    title = Heading(f"Networks trained on {run.rows[0]['dataset']}", 1)
    return [title, *incomplete(run), *alerts(run), Table(_HEADER, _lines(run)), *command_blocks(run)]


def summary(run: Run) -> str:
    """Return the table as plain text."""
    return "\n".join([f"{run.rows[0]['dataset']}, test images", *text_table([_HEADER, *_lines(run)])])


def _lines(run: Run) -> list[list[str]]:
    return [[line.method, f"{line.clean_accuracy:.2f}", f"{line.train:.0f}"] for line in table(run).itertuples()]
