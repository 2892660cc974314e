"""From the rows of a leaderboard to its numbers: accuracies with binomial errors, the order, and whom 1NN beats.

Numbers are of one set of images, the same for every model. What attacks left of a network is an upper bound on its
robust accuracy; 1NN's figures are exact, or lie between bounds that are kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.report.tables import CLEAN, SPLITS, Mean, Row, Threat
from nn_adv import evaluation

NEIGHBOR = "1nn"
_CLEAN_COLUMNS = ("clean_count", "clean_measured", "clean_difference", "clean_verdict")
CSV_COLUMNS = (
    "model",
    "architecture",
    "dataset",
    "split",
    "norm",
    "epsilon",
    "kind",
    "count",
    "robust",
    "accuracy",
    "standard_error",
    "low95",
    "high95",
    "published_clean",
    "published_autoattack",
    *_CLEAN_COLUMNS,
    "failed",
)
_SHOWN = ("clean", "exact", "attacked")  # the first that there is
_PROVEN = ("exact", "certified")


class Comparison(NamedTuple):
    """1NN beside all networks in one column.

    Attributes:
      own: 1NN's share; certified where it is not exact.
      num_networks: that have a figure there.
      num_below: networks whose upper bound lies below 1NN's share: it is more robust than they are on these images.
      num_clearly_below: of those, with a 95 % interval below that of 1NN.
      best: name and upper bound of the network that keeps most.
    """

    split: str
    threat: Threat
    own: Mean
    num_networks: int
    num_below: int
    num_clearly_below: int
    best: tuple[str, Mean]


def splits(rows: Sequence[Row]) -> list[str]:
    """Return the splits that were evaluated, then "both" where there are two."""
    found = [split for split in SPLITS if any(item["split"] == split for row in rows for item in row["evaluations"])]
    return [*found, "both"] if len(found) == 2 else found


def main_threats(rows: Sequence[Row]) -> list[Threat]:
    """Return clean and each norm at its main radius, the columns of the table."""
    norms = {norm: radius for row in rows for norm, radius in row["main_radii"].items()}
    return [CLEAN, *(Threat(norm, norms[norm]) for norm in ("linf", "l2", "l1") if norm in norms)]


def share(row: Row, split: str, threat: Threat, kinds: Sequence[str] = _SHOWN) -> Mean | None:
    """Return the share of a split's images, of the first of these kinds that a row has; its error is binomial.

    split "both" is the mean over train and test; it is exact only if both are.
    """
    if split == "both":
        return _mean_of([share(row, name, threat, kinds) for name in ("train", "test")])
    item = _item(row, split, threat, kinds)
    if item is None:
        return None
    value = item["robust"] / item["count"]
    return Mean(value, standard_error(value, item["count"]), 1, item["kind"])


def _item(row: Row, split: str, threat: Threat, kinds: Sequence[str]) -> Mapping[str, Any] | None:
    for kind in kinds:
        for item in row["evaluations"]:
            if (item["split"], item["norm"], item["epsilon"], item["kind"]) == (split, *threat, kind):
                return item
    return None


def _interval(row: Row, split: str, threat: Threat, kinds: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of a share that there is; of both splits as if their images were one sample."""
    names = ("train", "test") if split == "both" else (split,)
    items = [item for name in names if (item := _item(row, name, threat, kinds))]
    return evaluation.wilson_interval(sum(item["robust"] for item in items), sum(item["count"] for item in items))


def standard_error(value: float, count: int) -> float:
    """Return the standard error of a share of so many images drawn at random."""
    return math.sqrt(value * (1 - value) / count)


def ordered(rows: Sequence[Row], sort_by: str) -> list[Row]:
    """Sort rows, the highest first, by a column of the test images (of the only split, where there is one).

    Args:
      rows: of one dataset.
      sort_by: "clean", a norm, or "mean": over all columns but clean, of both splits.
    """
    robust = [threat for threat in main_threats(rows) if threat != CLEAN]

    def value(row: Row) -> float:
        if sort_by == "mean":
            cells = [share(row, splits(rows)[-1], threat) for threat in robust]
        else:
            split = "test" if "test" in splits(rows) else splits(rows)[0]
            wanted = [threat for threat in main_threats(rows) if (threat.norm or "clean") == sort_by]
            cells = [share(row, split, threat) for threat in wanted]
        found = [cell.value for cell in cells if cell is not None]
        return sum(found) / len(found) if found else -1.0

    return sorted(rows, key=lambda row: (-value(row), row["method"]))


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Hold 1NN against all networks, column by column but clean; nothing without 1NN or without networks."""
    own = [row for row in rows if row["method"] == NEIGHBOR]
    networks = [row for row in rows if row["method"] != NEIGHBOR]
    found = []
    for split in splits(rows):
        for threat in main_threats(rows):
            ours = share(own[0], split, threat, _PROVEN) if own else None
            theirs = [(row, cell) for row in networks if (cell := share(row, split, threat))]
            if threat != CLEAN and ours is not None and theirs:
                found.append(_compare(split, threat, own[0], ours, theirs))
    return found


def csv_lines(rows: Sequence[Row], failed: Sequence[Mapping[str, Any]] = ()) -> list[tuple]:
    """List every accuracy of one or more rows, with `CSV_COLUMNS`, then a line for each model that failed.

    Shares are of 1; published accuracies and the clean check, of test images before any attack, are in per cent.
    """
    lines: list[tuple] = []
    for row in rows:
        published = [row["model"].get(name) for name in ("clean_accuracy", "autoattack_accuracy")]
        for item in row["evaluations"]:
            accuracy = item["robust"] / item["count"]
            interval = evaluation.wilson_interval(item["robust"], item["count"])
            numbers = (accuracy, standard_error(accuracy, item["count"]), *interval)
            lines.append(
                (
                    *(row["method"], row["model"]["architecture"], row["dataset"], item["split"]),
                    *(item["norm"] or "", "" if item["epsilon"] is None else item["epsilon"]),
                    *(item["kind"], item["count"], item["robust"]),
                    *(round(number, 6) for number in numbers),
                    *(*published, *_clean_check(row["clean"]), None),
                )
            )
    for failure in failed:
        known = {"model": failure["model"], "dataset": rows[0]["dataset"], "failed": failure["reason"]}
        if failure["clean"]:
            known |= dict(zip(_CLEAN_COLUMNS, _clean_check(failure["clean"]), strict=True))
            known["published_clean"] = failure["clean"]["published"]
        lines.append(tuple(known.get(column) for column in CSV_COLUMNS))
    return lines


def _clean_check(clean: Mapping[str, Any] | None) -> tuple:
    """Return the values of `_CLEAN_COLUMNS`."""
    if clean is None:
        return (None,) * len(_CLEAN_COLUMNS)
    measured = 100 * clean["correct"] / clean["count"]
    difference = None if clean["published"] is None else round(measured - clean["published"], 4)
    return clean["count"], round(measured, 4), difference, clean["verdict"]


def _compare(split: str, threat: Threat, own_row: Row, own: Mean, theirs: Sequence[tuple[Row, Mean]]) -> Comparison:
    below = [row for row, cell in theirs if cell.value < own.value]
    lowest, _ = _interval(own_row, split, threat, _PROVEN)
    clearly = [row for row in below if _interval(row, split, threat, _SHOWN)[1] < lowest]
    best, most = max(theirs, key=lambda pair: pair[1].value)
    return Comparison(split, threat, own, len(theirs), len(below), len(clearly), (best["method"], most))


def _mean_of(cells: Sequence[Mean | None]) -> Mean | None:
    found = [cell for cell in cells if cell is not None]
    if len(found) < len(cells):
        return None
    value = sum(cell.value for cell in found) / len(found)
    error = math.hypot(*(cell.error or 0.0 for cell in found)) / len(found)
    kinds = {cell.kind for cell in found}
    kind = next(kind for kind in ("attacked", "certified", "exact", "clean") if kind in kinds)
    return Mean(value, error, 1, kind)
