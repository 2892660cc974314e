"""What do the other bounds give: the vote of k neighbours, 1NN on features; and exactly, 1NN after a linear map?

  python -m benchmarks.bounds vote --dataset=digits --images=599 --output=docs/benchmarks/votes_digits.json
  python -m benchmarks.bounds embedding --images=300 --data_dir=DATA_DIR --output=docs/benchmarks/features_cifar10.json
  python -m benchmarks.bounds linear --images=500 --data_dir=DATA_DIR --output=docs/benchmarks/linear_cifar10.json

Each prints one line per setting and writes them. Vote and embedding figures are bounds; those of pixels and of linear
maps are exact.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.timing import command, environment, keep
from nn_adv import certify, data, neighbors

_LINF_RADII = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
_RADII = {"cifar10": (0.25, 0.5, 1.0), "mnist": (0.5, 1.0, 1.5, 2.0), "digits": (0.25, 0.5, 0.8)}


def vote(dataset: data.Dataset, arguments: argparse.Namespace) -> dict:
    """Return bounds on the radius of the vote of k neighbours: means over what is right for every k."""
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, len(dataset.class_names))
    images, labels = dataset.test_images[: arguments.images], dataset.test_labels[: arguments.images]
    found = {k: certify.vote_bounds(reference, images, labels, k=k, norm=arguments.norm) for k in (1, 3, 5, 11)}
    known = np.all([one.correct & np.isfinite(one.upper) for one in found.values()], axis=0)
    rows = [
        _said(k=k, correct=int(one.correct.sum()), lower=float(one.lower[known].mean()),
              upper=float(one.upper[known].mean()))
        for k, one in found.items()
    ]  # fmt: skip
    return {"norm": arguments.norm, "images": len(labels), "known": int(known.sum()), "rows": rows}


def _said(**row) -> dict:
    print(row, flush=True)
    return row


def _task(dataset: data.Dataset, arguments: argparse.Namespace) -> tuple[data.Task, np.ndarray, np.ndarray, np.ndarray]:
    """Return a task, its points, and its first test images with their labels."""
    kind = "all" if arguments.task == "all" else "pairs"
    task = next(task for task in data.tasks(dataset, kind) if task.name == arguments.task)
    images = dataset.test_images[task.test_index[: arguments.images]]
    return task, dataset.train_images[task.train_index], images, task.test_labels[: arguments.images]


def linear(dataset: data.Dataset, arguments: argparse.Namespace) -> dict:
    """Return clean and robust accuracy of 1NN on pixels and in the metric of a linear map, exact, and their time."""
    task, points, images, labels = _task(dataset, arguments)
    maps = {"pixels": None, "PCA 32": certify.pca(points, 32).linear_map(points.shape[1:])}
    rows = []
    for norm, radii in (("l2", _RADII[dataset.name]), ("linf", _LINF_RADII)):
        for name, linear_map in maps.items():
            reference = neighbors.fit(points, task.train_labels, task.num_classes, linear_map=linear_map)
            certify.radius(reference, images, labels, norm=norm)  # compiles
            started = time.process_time()
            found = certify.radius(reference, images, labels, norm=norm)
            milliseconds = round(1000 * (time.process_time() - started) / len(labels), 1)
            shares = _robust(found, radii)
            rows.append(_said(name=name, norm=norm, exact=int(found.is_exact.sum()), **shares, cpu_ms=milliseconds))
    return {"task": task.name, "images": len(labels), "rows": rows}


def _robust(found: certify.Radius, radii) -> dict:
    """Return the share of images that are right, and of those that are proven to stay so below each radius."""
    robust = {f"{radius:.6g}": float(np.mean(found.correct & (found.lower >= radius))) for radius in radii}
    return {"clean": float(found.correct.mean()), "robust": robust}


def embedding(dataset: data.Dataset, arguments: argparse.Namespace) -> dict:
    """Return clean and certified accuracy in pixel l2 of 1NN on pixels (exact) and on features (bounds)."""
    task, points, images, labels = _task(dataset, arguments)
    rows = []
    for embed in _embeddings(points):
        reference = neighbors.fit(points if embed is None else embed(points), task.train_labels, task.num_classes)
        if embed is None:
            found = certify.radius(reference, images, labels, norm="l2")
        else:
            found = certify.embedded_radius(reference, images, labels, norm="l2", embed=embed)
        rows.append(
            _said(name="pixels, exact" if embed is None else embed.name, **_robust(found, _RADII[dataset.name]))
        )
    return {"task": task.name, "images": len(labels), "rows": rows}


def _embeddings(points: np.ndarray) -> Iterator[certify.Embedding | None]:
    shape = points.shape[1:]
    yield None
    for count in (8, 32, 128):
        yield certify.pca(points, count)
    for window in (2, 4):
        yield certify.average_pool(shape, window)
    for cutoff in (4, 8, 16):
        yield certify.low_pass(shape, cutoff)


def main() -> None:
    parser = command(__doc__, required=True)
    parser.add_argument("question", choices=["vote", "embedding", "linear"])
    parser.add_argument("--data_dir", help="tensorflow-datasets folder")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--task", default="0v1", help="for embedding and linear: a pair such as 0v1, or all")
    parser.add_argument("--norm", default="l2", help="for vote")
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    found = {"vote": vote, "embedding": embedding, "linear": linear}[arguments.question](dataset, arguments)
    found = {"environment": environment(), "data": dataset.title} | found
    keep(arguments.output, found)


if __name__ == "__main__":
    main()
