"""The report's numbers unit by unit: every accuracy with its interval, and whether bounds are in order."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from experiments.report.tables import Row, method_key, task_key


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a binomial share (Wilson, 1927)."""
    z = 1.959963984540054
    share, spread = successes / count, z * z / count
    centre = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


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
            low, high = wilson_interval(item["robust"], item["count"])
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


_BOUND_ORDER = ("certified", "exact", "attacked", "clean")


def order_violations(rows: Iterable[Row]) -> list[str]:
    """List where certified <= exact <= attacked <= clean fails for one unit, split and threat: never by rights."""
    problems = []
    for row in rows:
        found: dict[tuple, dict[str, Mapping]] = defaultdict(dict)
        clean = {item["split"]: item for item in row["evaluations"] if item["kind"] == "clean"}
        for item in row["evaluations"]:
            found[item["split"], item["norm"], item["epsilon"]][item["kind"]] = item
        for (split, norm, epsilon), kinds in found.items():
            present = kinds | ({"clean": clean[split]} if split in clean else {})
            ordered = [present[kind] for kind in _BOUND_ORDER if kind in present]
            for lower, upper in zip(ordered, ordered[1:], strict=False):
                if lower["count"] == upper["count"] and lower["robust"] > upper["robust"]:
                    radius = "" if epsilon is None else f" {epsilon:g}"
                    problems.append(
                        f"{row['unit']}, {split} images, {norm}{radius}: {lower['kind']} {lower['robust']} > "
                        f"{upper['kind']} {upper['robust']} of {lower['count']}"
                    )
    return problems
