"""Growth with the number of training images: curves, a rate that is fitted, and where it would lead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from experiments.report import figures
from experiments.report.labels import MISSING, condition_label, number, signed_points
from experiments.report.means import task_accuracies
from experiments.report.page import Block, Heading, Image, Panels, Table, Text, file_name
from experiments.report.records import CLEAN, Condition, Results, Row, tidy

_SUBSET = r"1nn\+subset:\d+"
_MOST = 1e12  # images, beyond which a number says no more
_FITTED = (
    "Fitted to the mean over draws: 1 − accuracy = a n^−b, by least squares in the logarithms; the 95 % interval of b "
    "is that of the jackknife over draws (Student's t). All draws are judged on the same test images. "
    "Points per doubling: the slope of accuracy against log2 n over the three largest n."
)


class Growth(NamedTuple):
    """Accuracies of one task under one condition."""

    sizes: np.ndarray  # numbers of training images ``[S]``, growing
    shares: np.ndarray  # accuracies ``[draws, S]``

    @property
    def mean(self) -> np.ndarray:
        """Over draws ``[S]``."""
        return self.shares.mean(axis=0)

    def power(self) -> tuple[float, float]:
        """Return (a, b) of 1 - accuracy = a n^-b, fitted where the mean is not 1."""
        return _power(self.sizes, self.mean)

    def power_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of b."""
        count = len(self.shares)
        without = [_power(self.sizes, np.delete(self.shares, draw, axis=0).mean(axis=0))[1] for draw in range(count)]
        error = math.sqrt((count - 1) * float(np.var(without)))
        half = error * float(stats.t.ppf(0.975, count - 1))
        return self.power()[1] - half, self.power()[1] + half

    def per_doubling(self) -> float:
        """Return the slope of accuracy against log2 n over the three largest n."""
        return _line(np.log2(self.sizes[-3:]), self.mean[-3:])[0]

    def needed(self, target: float) -> tuple[float, float]:
        """Return the n at which the power law, and the straight line, reach an accuracy; inf: never."""
        if target <= self.mean[-1]:
            return float(self.sizes[-1]), float(self.sizes[-1])
        slope = self.per_doubling()
        doublings = (target - self.mean[-1]) / slope if slope > 0 else math.inf
        by_line = float(self.sizes[-1] * 2.0**doublings) if doublings < 1000 else math.inf
        return self.at_rate(self.power()[1], target), by_line

    def at_rate(self, rate: float, target: float) -> float:
        """Return the n at which a power of this rate, through the accuracy at the largest n, reaches another one."""
        if target <= self.mean[-1]:
            return float(self.sizes[-1])
        if not rate > 0 or target >= 1:
            return math.inf
        powers = math.log10((1 - self.mean[-1]) / (1 - target)) / rate
        return float(self.sizes[-1] * 10.0**powers) if powers < 300 else math.inf


def _power(sizes: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    inside = mean < 1
    if inside.sum() < 2:
        return math.nan, math.nan
    slope, start = _line(np.log(sizes[inside]), np.log(1 - mean[inside]))
    return math.exp(start), -slope


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and start of the straight line of least squares."""
    # Rounded, as processors differ in the last bits, and what is written from the same rows should not.
    slope, start = np.round(np.polyfit(x, y, 1), 9).tolist()
    return slope, start


def growth(rows: Sequence[Row]) -> dict[tuple[str, Condition], Growth]:
    """Return the exact and clean accuracies on test images of nested subsets, by task and condition."""
    sizes = {row["unit"]: row["num_train"] for row in rows if re.fullmatch(_SUBSET, row["method"])}
    found = tidy([row for row in rows if row["unit"] in sizes]) if sizes else pd.DataFrame()
    if not len(found):
        return {}
    found = found[(found["split"] == "test") & found["kind"].isin(("clean", "exact"))]
    found = found.assign(size=[sizes[unit] for unit in found.index])
    grown = {}
    for (task, norm, epsilon), of in found.groupby(["task", "norm", "epsilon"], dropna=False, sort=False):
        if norm != "worst":
            shares = of.pivot(index="seed", columns="size", values="accuracy").dropna()
            condition = CLEAN if pd.isna(norm) else Condition(norm, epsilon)
            grown[task, condition] = Growth(shares.columns.to_numpy(float), shares.to_numpy())
    return {key: one for key, one in grown.items() if len(one.sizes) > 2 and len(one.shares) > 1}


def growth_blocks(rows: Sequence[Row], results: Results) -> list[Block]:
    """Draw accuracy, and what is missing to 1, against the number of training images, with the fitted rates."""
    grown = growth(rows)
    if not grown:
        return []
    found: list[Block] = [Heading("Robust accuracy against the number of training images"), _rates(grown, results)]
    found.append(Text(_FITTED, "note"))
    for norm, epsilon in results.main_epsilons.items():
        condition = Condition(norm, epsilon)
        of = {task: grown[task, condition] for task in results.tasks if (task, condition) in grown}
        if not of:
            continue
        draws = " or ".join(dict.fromkeys(str(len(one.shares)) for one in of.values()))
        names = {task: _task_label(results, task) for task in of}
        found.append(
            Panels(
                [_accuracy_panel(of, names, condition), _missing_panel(of, names, condition)],
                f"Test images, {condition_label(condition)}, exact. Left: accuracy; the band is ± one standard "
                f"deviation over {draws} draws. Right: the share that is not robust, both axes logarithmic; "
                "broken: the fitted power of n.",
            )
        )
    return found


def _rates(grown: Mapping[tuple[str, Condition], Growth], results: Results) -> Table:
    lines = []
    for (task, condition), one in grown.items():
        if condition == CLEAN or condition in results.main_conditions:
            low, high = one.power_interval()
            lines.append(
                [
                    f"{_task_label(results, task)}, {condition_label(condition)}",
                    *(f"{100 * share:.1f}" for share in (one.mean[0], one.mean[-1])),
                    MISSING if math.isnan(high) else _interval(*(number(b, 3) for b in (one.power()[1], low, high))),
                    signed_points(one.per_doubling()),
                ]
            )
    first, last = (next(iter(grown.values())).sizes[place] for place in (0, -1))
    header = ["", f"{first:.0f} images, %", f"{last:.0f} images, %", "b (95 %)", "points per doubling"]
    return Table(header, lines)


def _task_label(results: Results, task: str) -> str:
    """Name the classes; two that differ after a comma only are one kind."""
    kinds = dict.fromkeys(name.partition(",")[0] for name in results.classes[task])
    return task if task == "all" else " / ".join(kinds)


def _accuracy_panel(of: Mapping[str, Growth], names: Mapping[str, str], condition: Condition) -> Image:
    lines = [
        figures.Curve(
            list(zip(one.sizes, 100 * one.mean, strict=True)),
            names[task],
            *figures.pen(place),
            errors=100 * one.shares.std(axis=0, ddof=1),
        )
        for place, (task, one) in enumerate(of.items())
    ]
    return _panel(lines, condition, "growth", "exact robust accuracy in %", xscale="log")


def _missing_panel(of: Mapping[str, Growth], names: Mapping[str, str], condition: Condition) -> Image:
    lines = []
    for place, (task, one) in enumerate(of.items()):
        color, marker = figures.pen(place)
        inside = one.mean < 1
        sizes, missing = one.sizes[inside], 100 * (1 - one.mean[inside])
        if len(sizes) > 1:
            lines.append(figures.Curve(list(zip(sizes, missing, strict=True)), names[task], color, marker))
            a, b = one.power()
            style = {"linestyle": figures.BROKEN, "linewidth": 0.9}
            fitted = list(zip(sizes, 100 * a * sizes**-b, strict=True))
            lines.append(figures.Curve(fitted, f"n to the power {number(-b, 2)}", color, None, style))
    return _panel(lines, condition, "missing", "share not robust in %", xscale="log", yscale="log")


def _panel(lines: Sequence[figures.Curve], condition: Condition, name: str, ylabel: str, **scales: str) -> Image:
    sizes = sorted({size for line in lines for size, _ in line.points})
    title = f"test images, {condition_label(condition)}"
    drawing = figures.curves(lines, title=title, xlabel="training images", ylabel=ylabel, **scales, xticks=sizes)
    alt = f"{ylabel} against the number of training images, {title}"
    return Image(file_name(name, condition.norm or ""), alt, drawing)


def needed_table(rows: Sequence[Row], networks: Results) -> Table:
    """Say how many training images 1NN would need to reach the best TRADES network of a task, if its growth went on.

    Args:
      rows: of nested subsets.
      networks: results of the same tasks, whose TRADES networks were attacked at the same radii.
    """
    rivals = [method for method in networks.methods if method.startswith("trades")]
    lines = []
    for (task, condition), one in growth(rows).items():
        known = [task_accuracies(networks, rival, "test", condition).get(task) for rival in rivals]
        target = max((accuracy.value for accuracy in known if accuracy), default=0.0)
        if target and (condition == CLEAN or condition in networks.main_conditions):
            by_power, by_line = one.needed(target)
            few, many = (one.at_rate(rate, target) for rate in reversed(one.power_interval()))
            told = [_needed_text(count, one.sizes[-1]) for count in (by_power, few, many, by_line)]
            classes = " / ".join(networks.classes[task])
            lines.append(
                [
                    f"{classes}, {condition_label(condition)}",
                    f"{100 * one.mean[-1]:.1f} of {one.sizes[-1]:,.0f}",
                    f"{'≤ ' * (condition != CLEAN)}{100 * target:.1f}",
                    _interval(*told[:3]),
                    told[3],
                ]
            )
    header = ["", "1NN, % of n", "TRADES, %", "n by the power law (95 %)", "n by the straight line in log n"]
    return Table(header, lines)


def _needed_text(count: float, measured: float) -> str:
    if count <= measured:
        return "reached"
    return "never" if math.isinf(count) else f"10^{math.log10(count):.1f}" if count <= _MOST else "beyond 10^12"


def _interval(value: str, low: str, high: str) -> str:
    return value if value == low == high else f"{value} ({low} to {high})"
