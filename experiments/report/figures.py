"""The figures: heat maps over pairs of classes and curves over radii, as PNG bytes.

Drawn without pyplot, so nothing global (backend, open figures) is touched. Each panel is an image of its own: a page
sets them side by side where there is room and one under the other on a phone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from experiments.report.findings import FOCUS
from experiments.report.labels import in_grey_levels, method_label, norm_label, radius, threat_label
from experiments.report.tables import (
    CLEAN,
    Mean,
    Results,
    Threat,
    lower_bounds,
    mean_over_tasks,
    parse_pair,
    task_accuracies,
)

# Okabe and Ito's palette, safe for colour-blind readers; markers tell the methods apart without colour.
_STYLES = {
    "1nn": ("#D55E00", "o"),
    "trades-linf": ("#0072B2", "s"),
    "trades-l2": ("#009E73", "^"),
    "trades-both": ("#CC79A7", "D"),
    "standard": ("#6B6B6B", "v"),
}
# How a line says what it is: the truth is solid, a bound is broken.
_LINES = {"exact": "-", "attacked": (0, (5, 1.5)), "certified": (0, (1, 1.5)), "clean": "-"}
_MOST_MARKERS = 12  # A finer curve is a line without markers.
OTHER_STYLES = (("#56B4E9", "P"), ("#E69F00", "X"), ("#000000", "*"), ("#8C6D31", "<"))
_DIVERGING = LinearSegmentedColormap.from_list(
    "network_to_1nn", ["#0072B2", "#A9CCE3", "#FAFAFA", "#F2BC94", "#D55E00"]
)
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def rivals_label(results: Results) -> str:
    """Name what 1NN is compared with in the heat maps."""
    return "TRADES network" if any(name.startswith("trades") for name in results.methods) else "other method"


def pair_differences(results: Results, split: str, threat: Threat) -> dict[tuple[int, int], float]:
    """Return 1NN's accuracy minus the best TRADES network's for each pair of classes that has both.

    The best network is chosen anew for each pair; without TRADES among the methods, from all other methods.
    """
    focus = task_accuracies(results, FOCUS, split, threat)
    networks = [task_accuracies(results, method, split, threat) for method in _rivals(results)]
    differences = {}
    for task, accuracy in focus.items():
        pair = parse_pair(task)
        values = [network[task].value for network in networks if task in network]
        if pair is not None and values:
            differences[pair] = accuracy.value - max(values)
    return differences


def heat_map(results: Results, split: str, threat: Threat, *, limit: float) -> bytes | None:
    """Draw `pair_differences` in points, colours centred on 0 and ending at +-limit; None without pairs."""
    differences = pair_differences(results, split, threat)
    if not differences:
        return None
    names = {
        index: name
        for task, labels in results.classes.items()
        if (pair := parse_pair(task))
        for index, name in zip(pair, labels, strict=True)
    }
    shown = sorted({index for pair in differences for index in pair})
    grid = np.full((len(shown), len(shown)), np.nan)
    for (one, two), value in differences.items():
        row, column = shown.index(one), shown.index(two)
        grid[row, column] = grid[column, row] = 100 * value
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.9), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(grid, cmap=_DIVERGING, vmin=-100 * limit, vmax=100 * limit)
        for row, column in np.argwhere(~np.isnan(grid)):
            value = grid[row, column]
            axes.text(
                column,
                row,
                f"{round(value):+d}".replace("-", "−").replace("+0", "0"),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if abs(value) > 75 * limit else "#222222",
            )
        labels = [names[index] for index in shown]
        axes.set_xticks(
            range(len(shown)),
            labels,
            rotation=45 if max(map(len, labels)) > 2 else 0,
            ha="right" if max(map(len, labels)) > 2 else "center",
            rotation_mode="anchor",
        )
        axes.set_yticks(range(len(shown)), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{split} images, {threat_label(threat)}")
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.8, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("← other ahead      points      1NN ahead →")
        return png(figure)


def curves(results: Results, split: str, norm: str, tasks: Sequence[str]) -> bytes | None:
    """Draw mean accuracy against the radius, a line per method with a band of one standard error."""
    main = Threat(norm, results.main_radii.get(norm))
    scale = 255 if in_grey_levels(main) else 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        drawn = 0
        for method in results.methods:
            for certified in (False, True):
                points = _curve_points(results, method, split, norm, tasks, certified=certified)
                if points:
                    _draw_curve(axes, results, method, points, scale=scale)
                    drawn += 1
        if not drawn:
            return None
        if main.epsilon is not None:
            axes.axvline(scale * main.epsilon, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                radius(main),
                (scale * main.epsilon, 101),
                ha="center",
                fontsize=9,
                color="#444444",
                annotation_clip=False,
            )
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100.5)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{norm_label(norm)} radius" + (" in 1/255" if scale == 255 else ""))
        axes.set_ylabel("accuracy in %")
        axes.set_title(f"{split} images, {norm_label(norm)}", pad=16)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        return png(figure)


def _rivals(results: Results) -> list[str]:
    others = [method for method in results.methods if method != FOCUS]
    return [method for method in others if method.startswith("trades")] or others


def _curve_points(
    results: Results, method: str, split: str, norm: str, tasks: Sequence[str], *, certified: bool
) -> list[tuple[float, Mean]]:
    """Return (radius, mean) of a method's curve; empty for a certified one that the exact one would hide."""
    source = lower_bounds if certified else task_accuracies
    means = [
        (epsilon, mean_over_tasks(source(results, method, split, Threat(norm, epsilon)), tasks))
        for epsilon in results.radii(norm)
    ]
    points = [(epsilon, mean) for epsilon, mean in means if mean is not None]
    if certified and all(mean.kind == "exact" for _, mean in points):
        return []
    clean = mean_over_tasks(task_accuracies(results, method, split, CLEAN), tasks)
    if points and points[0][0] > 0 and clean is not None:
        points.insert(0, (0.0, clean))
    return points


def _draw_curve(axes, results: Results, method: str, points: Sequence[tuple[float, Mean]], *, scale: int):
    kinds = [mean.kind for epsilon, mean in points if epsilon > 0] or ["clean"]
    kind = next((kind for kind in ("attacked", "certified") if kind in kinds), kinds[0])  # a curve is its weakest point
    others = [name for name in results.methods if name not in _STYLES]
    color, marker = _STYLES.get(method) or OTHER_STYLES[others.index(method) % len(OTHER_STYLES)]
    radii = [scale * epsilon for epsilon, _ in points]
    values = np.array([100 * mean.value for _, mean in points])
    errors = np.array([100 * (mean.error or 0.0) for _, mean in points])
    axes.plot(
        radii,
        values,
        color=color,
        marker=marker if len(points) <= _MOST_MARKERS else None,
        markersize=4,
        linewidth=1.6,
        clip_on=False,
        linestyle=_LINES[kind],
        label=f"{method_label(method)} ({kind})",
    )
    axes.fill_between(radii, values - errors, values + errors, color=color, alpha=0.18, linewidth=0)


def png(figure: Figure) -> bytes:
    """Return a finished figure as PNG bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
