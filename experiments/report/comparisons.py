"""Whom 1NN beats on a leaderboard: its share beside those of all networks, column by column."""

from __future__ import annotations

from typing import NamedTuple

from experiments.methods import NEIGHBOR
from experiments.report.labels import SPLIT_TITLES, condition_label, method_label, percent
from experiments.report.means import PROVEN, Mean, interval, share
from experiments.report.page import Block, Heading, Table, Text
from experiments.report.records import Condition, Results

_BEATEN = (
    "1NN's figures are exact and those of networks upper bounds. A network below 1NN is less robust than 1NN on these "
    "images, whatever other attacks would find; one above may only not have been attacked hard enough. 'Clearly' means "
    "that their 95 % intervals (Wilson), as if their images were drawn apart, do not overlap. Train images are points "
    "that 1NN has stored."
)


class Comparison(NamedTuple):
    """1NN beside all networks in one column."""

    split: str
    condition: Condition
    own: Mean  # 1NN's share; certified where it is not exact
    num_networks: int  # that have a figure there
    num_below: int  # networks whose upper bound lies below 1NN's share: it is more robust than they are on these images
    num_clearly_below: int  # of those, with a 95 % interval below that of 1NN
    best: tuple[str, Mean]  # name and upper bound of the network that keeps most


def comparisons(results: Results) -> list[Comparison]:
    """Hold 1NN against all networks, column by column but clean; nothing without 1NN or without networks."""
    columns = [(split, condition) for split in results.splits for condition in results.robust_conditions]
    found = [_compare(results, split, condition) for split, condition in columns]
    return [comparison for comparison in found if comparison]


def _compare(results: Results, split: str, condition: Condition) -> Comparison | None:
    own = share(results, NEIGHBOR, split, condition, PROVEN)
    networks = [name for name in results.methods if name != NEIGHBOR]
    theirs = {name: cell for name in networks if (cell := share(results, name, split, condition))}
    if own is None or not theirs:
        return None
    below = [name for name, cell in theirs.items() if cell.value < own.value]
    lowest, _ = interval(results, NEIGHBOR, split, condition, PROVEN)
    clearly = [name for name in below if interval(results, name, split, condition)[1] < lowest]
    best = max(theirs, key=lambda name: theirs[name].value)
    return Comparison(split, condition, own, len(theirs), len(below), len(clearly), (best, theirs[best]))


def beaten_blocks(results: Results) -> list[Block]:
    """Say in a table how many networks 1NN beats in each column."""
    lines = [
        [
            f"{SPLIT_TITLES[one.split]}, {condition_label(one.condition)}",
            share_percent(one.own),
            f"{one.num_below} of {one.num_networks}",
            str(one.num_clearly_below),
            share_percent(one.best[1]),
            method_label(one.best[0]),
        ]
        for one in comparisons(results)
    ]
    header = ["", "1NN", "networks below 1NN", "clearly", "the network that keeps most", ""]
    return [Heading("Whom 1NN beats"), Table(header, lines), Text(_BEATEN, "note")] if lines else []


def sentence(one: Comparison) -> str:
    """Say in one sentence whom 1NN beats in a column."""
    what = {"exact": "exactly ", "certified": "at least "}[one.own.kind]
    name, best = one.best
    most, above = f"{100 * best.value:.1f} % ({method_label(name)})", one.num_networks - one.num_below
    where = f"{SPLIT_TITLES[one.split].capitalize()}, {condition_label(one.condition)}"
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


def share_percent(mean: Mean | None) -> str:
    """Write a share; the standard error of none or all of the images would be 0, and say nothing."""
    return percent(mean, error=mean is not None and bool(mean.error))
