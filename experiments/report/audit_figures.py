"""The figure of an audit: points overstated against the temperature, one panel per threat, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from experiments.report.figures import OTHER_STYLES, STYLE, png

_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#6B6B6B", *(color for color, _ in OTHER_STYLES))
_MARKERS = "os^Dv"


def panel(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str) -> bytes:
    """Draw one line per variant of the attack through its (temperature, points)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (label, points) in enumerate(curves.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=_COLORS[number % len(_COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linewidth=max(3.2 - 0.5 * number, 0.8),  # lines that coincide stay visible
                clip_on=False,
                label=label,
            )
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("temperature of the soft 1NN")
        axes.set_ylabel("points overstated")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        return png(figure)
