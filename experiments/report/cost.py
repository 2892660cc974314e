"""Robust accuracy beside what it costs to train and to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.methods import NEIGHBOR, NETWORKS
from experiments.report import figures
from experiments.report.labels import SPLIT_TITLES, condition_label, method_label, percent
from experiments.report.means import mean_of
from experiments.report.page import Block, Image, Panels, Table, file_name
from experiments.report.records import Results, Row

_STEP = 3  # forward passes' worth of a forward and a backward one


def blocks(results: Results, rows: Sequence[Row], measured: Mapping[str, Any]) -> list[Block]:
    """Lay out the cost of each method and its robust accuracy, and draw one against the other.

    Args:
      results: of a study of pairs.
      rows: its rows.
      measured: what `benchmarks/cost.py` wrote: milliseconds and floating-point operations of an answer.
    """
    conditions = results.robust_conditions
    lines, dots = [], {}
    for method in (method for method in results.methods if method == NEIGHBOR or method in NETWORKS):
        own = [row for row in rows if row["method"] == method]
        kind = "1nn" if method == NEIGHBOR else "network"
        seconds = float(np.median([row["seconds"]["train"] for row in own]))
        means = {
            (split, one): mean_of(results, method, split, one, results.tasks)
            for split in results.single_splits
            for one in conditions
        }
        dots[method] = (seconds, means)
        operations = training_flop(own[0], measured["flop"]["network"])
        lines.append(
            [
                method_label(method),
                f"{operations / 1e12:.2f}",
                f"{seconds:.0f}",
                f"{measured['flop'][kind] / 1e6:.1f}",
                f"{measured['milliseconds'][kind]:.3f}",
                *(percent(means["test", one], error=False) for one in conditions),
            ]
        )
    header = ["", "training, TFLOP", "training, s", "an answer, MFLOP", "an answer, ms"]
    table = Table([*header, *(f"test, {condition_label(one)}" for one in conditions)], lines)
    return [table, Panels([_figure(dots, results, one) for one in conditions], "Each method at its main radius.")]


def training_flop(row: Row, forward: float) -> float:
    """Return the floating-point operations of a network's training by its row; 0 for 1NN, which only stores images.

    In forward passes an image of plain training takes 3, one of adversarial training with K steps 2 K + 3, one of
    TRADES 2 K + 7 in one norm and 4 K + 10 in two (`nn_adv.training.trades`).
    """
    if row["method"] == NEIGHBOR:
        return 0.0
    objective, norms = NETWORKS[row["method"]]
    settings = row["training"]
    passes = _STEP
    if norms:  # each step of the inner maximisation goes forward and back
        passes = (2 * settings["num_steps"] + _STEP) * len(norms)
    if objective == "trades":
        passes += _STEP + 1
    return forward * passes * settings["num_epochs"] * row["num_train"]


def _figure(dots: Mapping[str, tuple], results: Results, condition) -> Image:
    curves = []
    for number, (method, (seconds, means)) in enumerate(dots.items()):
        for split in results.single_splits:
            mean = means[split, condition]
            style = {"linestyle": "", "markersize": 8, "fillstyle": "full" if split == "test" else "none"}
            label = f"{method_label(method)}, {SPLIT_TITLES[split]}"
            curves.append(figures.Curve([(seconds, 100 * mean.value)], label, *figures.pen(number), style))
    title = condition_label(condition)
    drawing = figures.curves(
        curves, title=title, xlabel="seconds of training", ylabel="robust accuracy in %", xscale="log"
    )
    return Image(file_name(results.dataset, "cost", condition.norm), f"Robust accuracy against cost, {title}", drawing)
