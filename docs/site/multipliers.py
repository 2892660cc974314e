"""Draw what multipliers prove: any weighted sum of two borders is a border of its own, which the cell lies beyond.

python docs/site/multipliers.py docs/site/multipliers.png
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

_OWN, _OPPONENT = np.array([[-0.3, 0.85], [-0.1, -1.0]]), np.array([1.6, 0.1])
_GAPS = _OPPONENT - _OWN  # the image is the origin
_HEIGHTS = (_OPPONENT @ _OPPONENT - np.sum(_OWN**2, axis=1)) / 2
_SIDE = (-1.3, 1.9)


def draw(path: str) -> None:
    """Write the figure: the best multipliers beside others."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    best = np.linalg.solve(_GAPS @ _GAPS.T, _HEIGHTS)  # both borders hold with equality at the nearest point
    for panel, multipliers, title in zip(panels, (best, best * [0.1, 1.0]), ("the best", "any others"), strict=True):
        _draw_panel(panel, multipliers, title)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


def _draw_panel(panel, multipliers: np.ndarray, title: str) -> None:
    axis = np.linspace(*_SIDE, 500)
    plane = np.stack(np.meshgrid(axis, axis), axis=-1)
    is_cell = np.all(plane @ _GAPS.T >= _HEIGHTS, axis=-1)
    panel.contourf(axis, axis, is_cell, levels=[0.5, 1.5], colors=["#fde2cf"])
    for place, (gap, height) in enumerate(zip(_GAPS, _HEIGHTS, strict=True)):
        panel.plot(*_border(gap, height), "-", color="0.5", linewidth=1, label=None if place else "borders")
    combined, height = multipliers @ _GAPS, multipliers @ _HEIGHTS
    bound = height / np.linalg.norm(combined)
    panel.plot(*_border(combined, height), "r--", linewidth=1.5, label="their sum, weighted")
    panel.add_patch(plt.Circle((0, 0), bound, fill=False, linewidth=1.5, label="ball that the sum excludes"))
    panel.plot(*_OWN.T, "o", color="#1f77b4", label="own points")
    panel.plot(*_OPPONENT, "o", color="#d95f02", label="opponent, and its cell")
    panel.plot(0, 0, "k*", markersize=11, label="image")
    panel.set(xlim=_SIDE, ylim=_SIDE, aspect="equal", xticks=[], yticks=[])
    panel.set_title(f"{title}: radius ≥ {bound:.3f}")


def _border(gap: np.ndarray, height: float) -> np.ndarray:
    normal = gap / np.linalg.norm(gap)
    along = np.array([-normal[1], normal[0]])
    return (height / np.linalg.norm(gap) * normal + np.outer([-9, 9], along)).T


if __name__ == "__main__":
    draw(sys.argv[1])
