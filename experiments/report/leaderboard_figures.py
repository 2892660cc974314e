"""The figures of a leaderboard: one norm against the other, and accuracy against the radius, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.report.figures import OTHER_STYLES, STYLE, png
from experiments.report.labels import in_grey_levels, method_label, norm_label, threat_label
from experiments.report.tables import Mean, Threat

_FOCUS_COLOR, _NETWORK_COLOR = "#D55E00", "#0072B2"
_COLORS = (_NETWORK_COLOR, "#009E73", "#CC79A7", "#6B6B6B", *(color for color, _ in OTHER_STYLES))
_MOST_NAMES = 9  # more names than that cannot be told apart
_LETTER_WIDTH, _LINE_HEIGHT, _GAP = 0.0145, 0.045, 0.02  # of names in a scatter, as shares of the axes


def scatter(
    points: Mapping[str, tuple[Mean, Mean]], threats: tuple[Threat, Threat], *, focus: str, title: str
) -> bytes:
    """Draw a dot per model with its binomial errors; lines through 1NN part those it beats in each norm.

    Args:
      points: name -> its shares under the two threats.
      threats: of the axes, across and up.
      focus: the name that is marked.
      title: of the panel.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        for name, (across, up) in points.items():
            is_focus = name == focus
            axes.errorbar(
                100 * across.value,
                100 * up.value,
                xerr=100 * (across.error or 0.0),
                yerr=100 * (up.error or 0.0),
                fmt="*" if is_focus else "o",
                markersize=13 if is_focus else 4,
                color=_FOCUS_COLOR if is_focus else _NETWORK_COLOR,
                elinewidth=0.5,
                alpha=1.0 if is_focus else 0.75,
                zorder=3 if is_focus else 2,
            )
        if focus in points:
            across, up = points[focus]
            axes.axvline(100 * across.value, color=_FOCUS_COLOR, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            axes.axhline(100 * up.value, color=_FOCUS_COLOR, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        width, height = (_limits([pair[place] for pair in points.values()]) for place in (0, 1))
        axes.set_xlim(width)
        axes.set_ylim(height)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= 100 else ""))
        dots = {name: (100 * across.value, 100 * up.value) for name, (across, up) in points.items()}
        named = list(dots) if len(dots) <= _MOST_NAMES else _extremes(dots, focus)
        for name, place in _label_places(dots, named, width[1], height[1]).items():
            axes.annotate(
                method_label(name),
                dots[name],
                place,
                fontsize=8,
                ha="center",
                va="center",
                zorder=1,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#888888", "shrinkA": 0, "shrinkB": 3},
            )
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{threat_label(threats[0])}, % (≤ attacked; 1NN = exact)")
        axes.set_ylabel(f"{threat_label(threats[1])}, % (≤ attacked; 1NN = exact)")
        axes.set_title(title)
        return png(figure)


def _extremes(dots: Mapping[str, tuple[float, float]], focus: str) -> list[str]:
    """Name 1NN and the most robust in each norm."""
    best = [max(dots, key=lambda name: dots[name][axis]) for axis in (0, 1)]
    return [name for name in dict.fromkeys([focus, *best]) if name in dots]


def _label_places(
    dots: Mapping[str, tuple[float, float]], names: Sequence[str], right: float, top: float
) -> dict[str, tuple[float, float]]:
    """Give each name the middle of a place beside its dot, in the axes, where no other name or dot is if there is one.

    Args:
      dots: name -> where its dot is.
      names: to be written.
      right: where the axis across ends; it begins near 0.
      top: where the axis up ends, likewise.
    """
    half = {name: _LETTER_WIDTH / 2 * len(method_label(name)) * right for name in names}
    line = _LINE_HEIGHT * top
    places: dict[str, tuple[float, float]] = {}

    def is_free(name, x, y):
        return (
            half[name] <= x <= right - half[name]
            and 0 <= y <= top - line / 2
            and not any(abs(x - a) < half[name] and abs(y - b) < line / 2 for a, b in dots.values())
            and not any(abs(x - a) < half[name] + half[other] and abs(y - b) < line for other, (a, b) in places.items())
        )

    for name in names:
        x, y = dots[name]
        beside = [
            (x + side * (half[name] + _GAP * right), y + level * line)
            for level in (0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.5, -3.5)
            for side in (1, -1)
        ]
        places[name] = next((place for place in beside if is_free(name, *place)), beside[0])
    return places


def _limits(means: Sequence[Mean]) -> tuple[float, float]:
    """From nothing to beyond the most robust, with room for its name."""
    most = max(1.0, *(100 * (mean.value + (mean.error or 0.0)) for mean in means))
    return -0.03 * most, 1.25 * most


def curves(lines: Mapping[str, Sequence[tuple[float, Mean]]], main: Threat, *, focus: str, title: str) -> bytes:
    """Draw a line per model through its (radius, share); 1NN's is exact and solid, those of networks are broken.

    Args:
      lines: name -> its points, radii growing.
      main: norm and main radius.
      focus: the name that is marked.
      title: of the panel.
    """
    scale = 255 if in_grey_levels(main) else 1
    are_named = len(lines) <= _MOST_NAMES
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        colors = dict(zip([name for name in lines if name != focus], _COLORS, strict=False)) if are_named else {}
        for name, points in lines.items():
            is_focus = name == focus
            axes.plot(
                [scale * epsilon for epsilon, _ in points],
                [100 * mean.value for _, mean in points],
                color=_FOCUS_COLOR if is_focus else colors.get(name, _NETWORK_COLOR),
                linewidth=2.0 if is_focus else (1.4 if are_named else 0.7),
                linestyle="-" if is_focus else (0, (5, 1.5)),
                alpha=1.0 if is_focus or are_named else 0.5,
                zorder=3 if is_focus else 2,
                clip_on=False,
                label=_legend(name, points, is_focus or are_named),
            )
        axes.axvline(scale * (main.epsilon or 0.0), color="#444444", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100.5)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{norm_label(main.norm or '')} radius" + (" in 1/255" if scale == 255 else ""))
        axes.set_ylabel("accuracy in %")
        axes.set_title(title)
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))  # all networks share one entry where there are many
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=2, fontsize=8)
        return png(figure)


def _legend(name: str, points, is_named: bool) -> str:
    if not is_named:
        return "networks (attacked)"
    kinds = {mean.kind for epsilon, mean in points if epsilon > 0} or {"clean"}
    return f"{method_label(name)} ({'attacked' if 'attacked' in kinds else kinds.pop()})"
