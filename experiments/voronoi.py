"""Draw 1NN in the plane: the radius around one point in each norm, the witness, and what the multipliers prove.

python -m experiments.voronoi docs/results/voronoi
"""

from __future__ import annotations

import sys

import matplotlib
import numpy as np

from nn_adv import certify, neighbors
from nn_adv.threat import float64_sizes

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

_SEED, _NUM_POINTS, _GRID = 7, 14, 400
_IMAGE = np.array([[0.32, 0.42]], np.float32)


def _ball(norm: str, radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 401)
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * directions / float64_sizes(norm, directions)[:, None]


def draw(stem: str) -> None:
    """Write the figure as ``stem.png`` and ``stem.svg``: one panel per norm."""
    rng = np.random.default_rng(_SEED)
    points = rng.uniform(0.05, 0.95, (_NUM_POINTS, 2)).astype(np.float32)
    labels = rng.integers(0, 2, _NUM_POINTS)
    reference = neighbors.fit(points, labels, 2)
    label = np.asarray(neighbors.predict(reference, _IMAGE))
    axis = np.linspace(0, 1, _GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    regions = np.asarray(neighbors.predict(reference, grid)).reshape(_GRID, _GRID)
    figure, panels = plt.subplots(1, 3, figsize=(13, 5.2), layout="constrained")
    for panel, norm in zip(panels, ("l2", "linf", "l1"), strict=True):
        found = certify.radius(reference, _IMAGE, label, norm=norm)
        _draw_panel(panel, points, labels, regions, found, norm)
    handles, names = panels[0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=9)
    for ending in ("png", "svg"):
        figure.savefig(f"{stem}.{ending}", dpi=130)


def _draw_panel(panel, points, labels, regions, found: certify.Radius, norm: str) -> None:
    panel.contourf(regions, levels=[-0.5, 0.5, 1.5], colors=["#dbe9f6", "#fde2cf"], extent=(0, 1, 0, 1))
    panel.contour(regions, levels=[0.5], colors="0.4", linewidths=1, extent=(0, 1, 0, 1))
    for value, color in ((0, "#1f77b4"), (1, "#d95f02")):
        panel.plot(*points[labels == value].T, "o", color=color, markersize=5, label=f"points of class {value}")
    panel.plot(*(_IMAGE[0] + _ball(norm, found.lower[0])).T, "k-", linewidth=1.5, label="no other prediction inside")
    panel.plot(*_IMAGE[0], "k*", markersize=11, label="image")
    panel.plot(*found.adversarial[0], "rX", markersize=9, label="witness")
    certificate = found.certificate
    chosen = np.flatnonzero(certificate.opponent == found.opponent[0])[0]
    opponent = points[certificate.opponent[chosen]]
    panel.plot(*opponent, "o", mec="red", mfc="none", markersize=12, label="its opponent")
    is_used = (certificate.constraints[chosen] >= 0) & (certificate.multipliers[chosen] > 0)
    for own in points[certificate.constraints[chosen][is_used]]:
        middle, along = (own + opponent) / 2, (opponent - own)[::-1] * [-1, 1]
        ends = middle + np.outer([-5, 5], along)
        panel.plot(*ends.T, "r--", linewidth=1, label="borders with a multiplier")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"{norm}: radius {found.lower[0]:.4f}")


if __name__ == "__main__":
    draw(sys.argv[1])
