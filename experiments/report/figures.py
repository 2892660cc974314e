"""The figures: curves, dots in two norms, heat maps over pairs of classes, images of the data.

Drawn without pyplot, so nothing global (backend, open figures) is touched. Each panel is an image of its own: a page
sets them side by side where there is room and one under the other on a phone.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, NullLocator

from experiments.report.labels import condition_label, in_grey_levels, method_label, radius
from experiments.report.means import Mean, weakest
from experiments.report.records import Condition

# Okabe and Ito's palette, safe for colour-blind readers; markers tell lines apart without colour.
FOCUS_COLOR = "#D55E00"
PALETTE = (
    *((FOCUS_COLOR, "o"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#6B6B6B", "v")),
    *(("#56B4E9", "P"), ("#E69F00", "X"), ("#000000", "*"), ("#8C6D31", "<")),
)
BROKEN = (0, (5, 1.5))
# How a line says what it is: the truth is solid, a bound is broken.
LINE_STYLES: dict[str, Any] = {
    "exact": "-",
    "attacked": BROKEN,
    "certified": (0, (1, 1.5)),
    "ceiling": (0, (3, 1, 1, 1)),
    "clean": "-",
}
MOST_NAMES = 9  # more names than that cannot be told apart
_PIXELS_ACROSS = 96
_MOST_MARKERS = 12  # A finer curve is a line without markers.
_DIVERGING = LinearSegmentedColormap.from_list(
    "network_to_1nn", ["#0072B2", "#A9CCE3", "#FAFAFA", "#F2BC94", FOCUS_COLOR]
)
_MARK: dict[str, Any] = {"color": "#444444", "linewidth": 0.8, "linestyle": (0, (4, 3)), "zorder": 0}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "nn_adv",  # names inside an SVG file are otherwise drawn at random
}


def pen(place: int) -> tuple[str, str]:
    """Return a colour and a marker of `PALETTE`, which begins anew at its end."""
    return PALETTE[place % len(PALETTE)]


class Curve(NamedTuple):
    """A line of a panel."""

    points: Sequence[tuple[float, float]]  # (x, y), x growing
    label: str  # in the legend; curves of one label have one entry
    color: str  # see `PALETTE`
    marker: str | None = None  # likewise
    style: Mapping[str, Any] = {}  # further options of matplotlib's
    errors: Sequence[float] = ()  # of each point, drawn as a band


class Drawing:
    """A panel that is drawn when its ``png`` or ``svg`` is first asked for: one that nobody shows costs nothing.

    Args:
      draw: draws into axes.
      size: width and height in inches.
    """

    def __init__(self, draw: Callable[[Axes], object], size: tuple[float, float] = (5.2, 4.4)):
        self._draw, self._size = draw, size

    @property
    def png(self) -> bytes:
        """The content of a PNG file."""
        return self._saved[0]

    @property
    def svg(self) -> bytes:
        """The content of an SVG file."""
        return self._saved[1]

    @functools.cached_property
    def _saved(self) -> tuple[bytes, bytes]:
        png, svg = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=self._size, layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.add_subplot()
            axes.set_axisbelow(True)
            self._draw(axes)
            # What a file would say of when and by what it was made is left unsaid, so that a figure has one file.
            options: dict[str, Any] = {"dpi": 150, "facecolor": "white"}
            figure.savefig(png, format="png", metadata={"Software": None}, **options)
            figure.set_layout_engine("none")  # which keeps the layout, the dearest part
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, **options)
        return png.getvalue(), svg.getvalue()


class Pixels(NamedTuple):
    """A picture made of pixels, as the content of a PNG file; there is no SVG of it."""

    png: bytes
    svg: None = None


def curves(lines: Sequence[Curve], *, title: str, xlabel: str, ylabel: str, **axes_options: Any) -> Drawing:
    """Draw lines with a legend below them."""

    def draw(axes: Axes) -> None:
        _draw_curves(axes, lines)
        if axes_options.get("yscale") != "log":
            axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **axes_options)
        if "xticks" in axes_options:
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if axes_options.get("yscale") == "log":
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter())  # which writes all of few and none of many

    return Drawing(draw)


def accuracy_curves(lines: Sequence[Curve], main: Condition, *, title: str) -> Drawing:
    """Draw accuracies in percent against a norm's epsilons, in 1/255 where its main one is a whole number of them."""
    scale = 255 if in_grey_levels(main) else 1

    def draw(axes: Axes) -> None:
        _draw_curves(axes, [line._replace(points=[(scale * x, y) for x, y in line.points]) for line in lines])
        if main.epsilon is not None:
            axes.axvline(scale * main.epsilon, **_MARK)
            place = (scale * main.epsilon, 101)
            axes.annotate(radius(main), place, ha="center", fontsize=9, color="#444444", annotation_clip=False)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100.5)
        axes.set_xlabel(f"{main.norm or ''} radius" + (" in 1/255" if scale == 255 else ""))
        axes.set_ylabel("accuracy in %")
        axes.set_title(title, pad=16)

    return Drawing(draw)


def curve_of_means(
    points: Sequence[tuple[float, Mean]], name: str, color: str, marker: str | None = None, **style: Any
) -> Curve:
    """Lay out means at radii in percent, as a line that says by its style and in its label of what kind they are."""
    kind = weakest(mean for epsilon, mean in points if epsilon > 0)
    in_percent = [(epsilon, 100 * mean.value) for epsilon, mean in points]
    return Curve(in_percent, f"{name} ({kind})", color, marker, {"linestyle": LINE_STYLES[kind]} | style)


def _draw_curves(axes: Axes, lines: Sequence[Curve]) -> None:
    for line in lines:
        x, y = np.array(line.points).T
        marker = line.marker if len(line.points) <= _MOST_MARKERS else None
        style = {"linewidth": 1.6, "markersize": 4, "clip_on": False} | dict(line.style)
        axes.plot(x, y, color=line.color, marker=marker, label=line.label, **style)
        if len(line.errors):
            axes.fill_between(x, y - line.errors, y + line.errors, color=line.color, alpha=0.18, linewidth=0)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _legend(axes)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=2, fontsize=9)


def heat_map(values: Mapping[tuple[int, int], float], names: Mapping[int, str], *, limit: float, title: str) -> Drawing:
    """Draw a number in points for each pair of classes, colours centred on 0 and ending at +-limit."""
    shown = sorted({number for pair in values for number in pair})
    grid = np.full((len(shown), len(shown)), np.nan)
    for (one, two), value in values.items():
        row, column = shown.index(one), shown.index(two)
        grid[row, column] = grid[column, row] = 100 * value

    def draw(axes: Axes) -> None:
        image = axes.imshow(grid, cmap=_DIVERGING, vmin=-100 * limit, vmax=100 * limit)
        for row, column in np.argwhere(~np.isnan(grid)):
            value = grid[row, column]
            text = f"{round(value):+d}".replace("-", "−").replace("+0", "0")
            color = "white" if abs(value) > 75 * limit else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
        labels = [names[number] for number in shown]
        turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, labels)) > 2 else {}
        axes.set_xticks(range(len(shown)), labels, rotation_mode="anchor", **turned)
        axes.set_yticks(range(len(shown)), labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        bar = axes.figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.8, aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("← other ahead      points      1NN ahead →")

    return Drawing(draw, (5.6, 5.9))


def scatter(
    points: Mapping[str, tuple[Mean, Mean]], conditions: Sequence[Condition], *, focus: str, title: str
) -> Drawing:
    """Draw a dot per model with its binomial errors; lines through 1NN part those it beats in each norm.

    Args:
      points: name -> its shares under the two conditions.
      conditions: of the axes, across and up.
      focus: the name that is marked.
      title: of the panel.
    """
    dots = {name: (100 * across.value, 100 * up.value) for name, (across, up) in points.items()}

    def draw(axes: Axes) -> None:
        for place, (name, (across, up)) in enumerate(points.items()):
            color, marker = pen(1 + place % 8) if len(points) <= MOST_NAMES else PALETTE[1]
            label = method_label(name) if len(points) <= MOST_NAMES or name == focus else "networks"
            style: dict[str, Any] = {"fmt": marker, "markersize": 5, "color": color, "alpha": 0.75, "zorder": 2}
            if name == focus:
                style = {"fmt": "*", "markersize": 13, "color": FOCUS_COLOR, "zorder": 3}
            style |= {"xerr": 100 * (across.error or 0.0), "yerr": 100 * (up.error or 0.0), "label": label}
            axes.errorbar(*dots[name], elinewidth=0.5, **style)
        if focus in dots:
            axes.axvline(dots[focus][0], **_MARK | {"color": FOCUS_COLOR})
            axes.axhline(dots[focus][1], **_MARK | {"color": FOCUS_COLOR})
        width, height = (_limits([pair[place] for pair in points.values()]) for place in (0, 1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= 100 else ""))
        _legend(axes)
        axes.grid(color="#E5E5E5", linewidth=0.6)
        xlabel, ylabel = (f"{condition_label(one)}, % (≤ attacked; 1NN = exact)" for one in conditions)
        axes.set(xlim=width, ylim=height, xlabel=xlabel, ylabel=ylabel, title=title)

    return Drawing(draw, (5.2, 4.8))


def pixels(image: np.ndarray) -> Pixels:
    """Show an image ``[H, W, 1 or 3]`` in [0, 1] as it is, each pixel a square of so many that it can be seen."""
    size = max(1, _PIXELS_ACROSS // image.shape[1])
    levels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).repeat(size, axis=0).repeat(size, axis=1)
    buffer = io.BytesIO()
    PIL.Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, "png", optimize=True)
    return Pixels(buffer.getvalue())


def _limits(means: Sequence[Mean]) -> tuple[float, float]:
    """From nothing to beyond the most robust."""
    most = max(1.0, *(100 * (mean.value + (mean.error or 0.0)) for mean in means))
    return -0.03 * most, 1.05 * most
