"""The report's numbers unit by unit: every accuracy with its interval."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.report.tables import Row, method_key, task_key
from nn_adv import evaluation

PAIR_COLUMNS = (
    "dataset",
    "task",
    "classes",
    "method",
    "seed",
    "split",
    "norm",
    "epsilon",
    "kind",
    "count",
    "robust",
    "accuracy",
    "low95",
    "high95",
)


def pair_lines(rows: Iterable[Row]) -> list[tuple]:
    """List every accuracy that was measured, with `PAIR_COLUMNS`, tasks and methods in the order of the tables."""

    def order(row: Row) -> tuple:
        return row["dataset"], task_key(row["task"]), method_key(row["method"]), row["seed"]

    lines = []
    for row in sorted(rows, key=order):
        for item in row["evaluations"]:
            low, high = evaluation.wilson_interval(item["robust"], item["count"])
            lines.append(
                (
                    row["dataset"],
                    row["task"],
                    " / ".join(row["classes"]),
                    row["method"],
                    row["seed"],
                    item["split"],
                    item["norm"] or "",
                    "" if item["epsilon"] is None else item["epsilon"],
                    item["kind"],
                    item["count"],
                    item["robust"],
                    round(item["robust"] / item["count"], 6),
                    round(low, 6),
                    round(high, 6),
                )
            )
    return lines
