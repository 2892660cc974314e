"""Draw 1NN beside a plain network and a TRADES network on four blobs in the plane, some of whose labels are swapped.

    python -m experiments.plane docs/results/plane docs/benchmarks/plane.json

writes the figure as PNG and SVG, and its numbers. A square of side 2 epsilon is what a perturbation in linf reaches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

from nn_adv import certify, models, neighbors, training
from nn_adv.threat import Threat

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.collections import PatchCollection  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402
from matplotlib.patches import Circle, Rectangle  # noqa: E402

_SEED, _PER_BLOB, _SPREAD, _SWAPPED = 3, 20, 0.085, 0.1
_CENTRES = np.array([[0.27, 0.27], [0.73, 0.73], [0.27, 0.73], [0.73, 0.27]])  # two of each class, crosswise
_EPSILON = 0.03
_GRID = 500  # the plane is looked at in so many places a side
_REGIONS, _CLASSES, _MARKERS = ["#dbe9f6", "#fde2cf"], ["#1f77b4", "#d95f02"], "os"

Predict = Callable[[np.ndarray], np.ndarray]


def blobs(rng: np.random.Generator, per_blob: int, swapped: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw points ``[4 per_blob, 2]`` in the unit square and their classes, a share of which are swapped."""
    points = np.repeat(_CENTRES, per_blob, axis=0) + _SPREAD * rng.standard_normal((4 * per_blob, 2))
    labels = np.repeat([0, 0, 1, 1], per_blob)
    wrong = rng.choice(len(labels), round(swapped * len(labels)), replace=False)
    labels[wrong] = 1 - labels[wrong]
    return np.clip(points, 0, 1).astype(np.float32), labels.astype(np.int32)


def network(points: np.ndarray, labels: np.ndarray, objective: str, threats: tuple[Threat, ...]) -> Predict:
    """Train a small network on the points; its predictions as a function."""
    model = models.create("mlp", 2, hidden_sizes=(100, 100))
    recipe = training.Recipe(
        objective=objective, threats=threats, beta=6.0, num_steps=10, num_epochs=300, batch_size=20, learning_rate=0.05
    )
    images = points.reshape(-1, 1, 1, 2)
    member = training.Member(np.arange(len(points)), labels)
    (variables,) = training.train(model, jnp.asarray(images), [member], recipe, seeds=[_SEED]).variables
    return lambda places: np.asarray(model.apply(variables, places.reshape(-1, 1, 1, 2))).argmax(-1)


def robust_on_grid(regions: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tell which points have their own label at every place of the grid in their square: an upper bound."""
    axis = np.linspace(0, 1, len(regions))
    inside = np.abs(axis - points[:, :, None]) < _EPSILON  # [n, 2, grid]
    return np.array(
        [np.all(regions[np.ix_(y, x)] == label) for (x, y), label in zip(inside, labels, strict=True)], bool
    )


def draw(stem: str, numbers_file: str) -> None:
    """Write the figure, and its numbers: the shares of training and of fresh points that are right and robust."""
    rng = np.random.default_rng(_SEED)
    points, labels = blobs(rng, _PER_BLOB, _SWAPPED)
    fresh, truth = blobs(rng, 500, 0.0)
    reference = neighbors.fit(points, labels, 2)
    predictors: dict[str, Predict] = {
        "1NN": lambda places: np.asarray(neighbors.predict(reference, places)),
        "standard": network(points, labels, "standard", ()),
        "TRADES": network(points, labels, "trades", (Threat("linf", _EPSILON),)),
    }
    axis = np.linspace(0, 1, _GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    figure, panels = plt.subplots(2, 2, figsize=(10, 10.6), layout="constrained")
    numbers: dict[str, dict[str, float]] = {}
    for panel, (name, predict) in zip(panels.flat[1:], predictors.items(), strict=True):
        regions = predict(grid).reshape(_GRID, _GRID)
        robust = {"training": robust_on_grid(regions, points, labels), "fresh": robust_on_grid(regions, fresh, truth)}
        if name == "1NN":  # whose robustness is known exactly
            robust = {
                "training": certify.radius(reference, points, labels, norm="linf").lower >= _EPSILON,
                "fresh": certify.radius(reference, fresh, truth, norm="linf").lower >= _EPSILON,
            }
            _draw_regions(panels.flat[0], regions, points, labels, "1NN: exact radii in l2")
            _draw_discs(panels.flat[0], points, certify.radius(reference, points, labels, norm="l2").lower)
        _draw_regions(panel, regions, points, labels, f"{name}: squares of linf {_EPSILON:g}")
        _draw_squares(panel, points, robust["training"])
        numbers[name] = {
            "training_clean": float(np.mean(predict(points) == labels)),
            "training_robust": float(np.mean(robust["training"])),
            "fresh_clean": float(np.mean(predict(fresh) == truth)),
            "fresh_robust": float(np.mean(robust["fresh"])),
        }
    handles, names = panels.flat[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    for ending in ("png", "svg"):
        figure.savefig(f"{stem}.{ending}", dpi=110)
    settings = {"epsilon": _EPSILON, "points": len(points), "swapped": _SWAPPED, "fresh": len(fresh)}
    Path(numbers_file).write_text(json.dumps(settings | numbers, indent=1) + "\n")


def _draw_regions(panel, regions, points, labels, title: str) -> None:
    panel.imshow(regions, cmap=ListedColormap(_REGIONS), extent=(0, 1, 0, 1), origin="lower", interpolation="nearest")
    panel.contour(regions, levels=[0.5], colors="0.4", linewidths=1, extent=(0, 1, 0, 1))
    for value in (0, 1):
        style = {"marker": _MARKERS[value], "color": _CLASSES[value], "markersize": 3, "linestyle": ""}
        panel.plot(*points[labels == value].T, **style, label=f"training points of class {value}")
    panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=title)


def _draw_squares(panel, points, robust) -> None:
    styles = (
        ("another class than the point's in its square", "red", 1.4),
        ("its class all over its square", "0.25", 0.5),
    )
    for is_robust, (label, color, width) in enumerate(styles):
        corners = points[robust == bool(is_robust)] - _EPSILON
        squares = [Rectangle(corner, 2 * _EPSILON, 2 * _EPSILON) for corner in corners]
        panel.add_collection(PatchCollection(squares, facecolor="none", edgecolor=color, linewidth=width))
        panel.plot([], [], color=color, linewidth=width, label=label)


def _draw_discs(panel, points, radii) -> None:
    discs = [Circle(point, radius) for point, radius in zip(points, radii, strict=True)]
    panel.add_collection(PatchCollection(discs, facecolor="none", edgecolor="0.25", linewidth=0.5))


if __name__ == "__main__":
    draw(*sys.argv[1:])
