"""The part of an audit's report on attacks by their names: what they leave, how far they go, and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.report.labels import condition_label
from experiments.report.page import Block, Bullets, Table, Text
from experiments.report.records import Condition, Row, norm_key

_READING = (
    "Points by which the share of images that an attack did not break exceeds the exact robust accuracy, which heads "
    "each column in %. One image is {step}. Ratio: the median of found distance over exact radius, of all "
    "images that are classified correctly; within 1 %: the share whose distance is; – stands where half or more were "
    "not broken at all. Queries and gradients: for each image, at each radius of an attack at a radius. An attack by "
    "gradients goes through the soft 1NN at the temperatures {temperatures}, and the best point of each image counts; "
    "one by scores sees the lowest temperature; one by labels sees 1NN's classes alone. 1NN decides what is broken."
)


def columns(row: Row) -> dict[str, Any]:
    """Return what a row says of its attack, and of the distances that it found."""
    attack = row["attack"]
    found: Mapping[str, Any] = row.get("distances", {})
    return {
        "attack": attack["name"],
        "package": attack["package"],
        "sees": attack["sees"],
        "finds": attack["finds"],
        "temperatures": ", ".join(f"{value:g}" for value in attack["temperatures"]),
        "queries": row["spent"]["queries"],
        "gradients": row["spent"]["gradients"],
        "median_ratio": found.get("median_ratio"),
        "within_one_percent": found.get("within_one_percent"),
        "not_found": found.get("not_found"),
    }


def blocks(own: pd.DataFrame) -> list[Block]:
    """Return a table for each norm of a task, best attacks first, with what there is to say of it."""
    found: list[Block] = [Bullets(findings(own))]
    groups = sorted(own.groupby("norm", sort=False), key=lambda pair: norm_key(str(pair[0])))
    found += [_table(str(norm), items) for norm, items in groups]
    reading = _READING.format(step=one_image(own), temperatures=own["temperatures"].iloc[0])
    return [*found, Text(reading, "note")]


def one_image(own: pd.DataFrame) -> str:
    """Write what one image counts: 1 point, 0.5 points."""
    points = f"{100 / own['count'].iloc[0]:.2g}"
    return f"{points} point" if points == "1" else f"{points} points"


def findings(own: pd.DataFrame) -> list[str]:
    """Say of each norm which attack leaves the least, which distances are the nearest, and how far off others are."""
    sentences = []
    for norm, items in sorted(own.groupby("norm", sort=False), key=lambda pair: norm_key(str(pair[0]))):
        mean = _mean_points(items)
        best, worst = mean.index[0], mean.index[-1]
        text = f"{norm}, {len(mean)} attacks. In the mean over the radii {best} overstates least "
        text += f"({mean.iloc[0]:.1f} points) and {worst} most ({mean.iloc[-1]:.1f})"
        ratios = items.drop_duplicates("attack").dropna(subset=["median_ratio"]).set_index("attack")["median_ratio"]
        if len(ratios):
            text += f". The nearest points are those of {ratios.idxmin()} (median {ratios.min():.3f} times the radius)"
            text += f", the farthest those of {ratios.idxmax()} ({ratios.max():.3f} times)"
        sentences.append(f"{text}.")
    return sentences


def _mean_points(items: pd.DataFrame) -> pd.Series:
    """Return by how many points each attack overstates in the mean over the radii, the least first."""
    return (100 * items.groupby("attack")["overstated_most"].mean()).sort_values(kind="stable")


def _table(norm: str, items: pd.DataFrame) -> Table:
    rows = []
    for name in _mean_points(items).index:
        own = items[items["attack"] == name].sort_values("epsilon")
        first = own.iloc[0]
        library = f" ({first['package']})" if first["package"] else ""
        rows.append([f"{name}{library}", first["sees"], *(points(item) for _, item in own.iterrows()), *_found(first)])
    radii = [f"{condition_label(condition)} ({exact(own)})" for condition, own in by_condition(items)]
    header = [f"{norm} attack", "sees", *radii, "ratio", "within 1 %", "queries", "gradients"]
    return Table(header=header, rows=rows)


def _found(item: pd.Series) -> list[str]:
    asked = [f"{item['queries']:,.0f}", f"{item['gradients']:,.0f}"]
    if item["finds"] == "radius":
        return ["", "", *asked]
    ratio = "–" if pd.isna(item["median_ratio"]) else f"{item['median_ratio']:.3f}"
    return [ratio, f"{100 * item['within_one_percent'] / item['correct']:.0f} %", *asked]


def by_condition(own: pd.DataFrame) -> list[tuple[Condition, pd.DataFrame]]:
    """Return the lines of each norm and epsilon, in their order."""
    groups = [(Condition(*key), items) for key, items in own.groupby(["norm", "epsilon"], sort=False)]
    return sorted(groups, key=lambda pair: (norm_key(pair[0].norm or ""), pair[0].epsilon))


def exact(items: pd.DataFrame) -> str:
    """Write the exact robust accuracy of one condition, in %, or what it lies between."""
    first = items.iloc[0]
    least, most = percent(first, "certified"), percent(first, "at_most")
    return f"= {least}" if first["certified"] == first["at_most"] else f"{least} to {most}"


def percent(item: pd.Series, name: str) -> str:
    """Write a count of images as a share."""
    return f"{100 * item[name] / item['count']:.1f}"


def points(item: pd.Series) -> str:
    """Write by how many points an attack overstates, from least to most."""
    ends = np.round([100 * item["overstated_least"], 100 * item["overstated_most"]], 1)
    return " to ".join(dict.fromkeys(f"{value:+.1f}".replace("-", "−") if value else "0" for value in ends))
