"""How long do exact radii of 1NN take, beside the distance product they need and beside a textbook QP?

Five questions, each a sub-command; in the first two, radii are of the predicted class: every image is searched.

  floor   seconds per image of `certify.radius`, with and without the recheck of screened-out opponents, over the time
          of the products that the screening of all opponents against 4 own points would need: 5 n d multiplications
          and additions per image.
  peer    against dual coordinate ascent on one image and opponent at a time (n=2,000, d=784, ten classes).
  full    every test image of a dataset in one run, ten classes: time and the curve of exact robust accuracy.
  pairs   every test image of each of the 45 pairs of classes; goes on from what its output file holds.
  saved   the first pair again, among 8-bit images: how many images change sides at an epsilon.

  python -m benchmarks.certify floor --data_dir=DATA_DIR --output=docs/benchmarks/certify_floor.json
  python -m benchmarks.certify peer --data_dir=DATA_DIR --output=docs/benchmarks/certify_peer.json
  python -m benchmarks.certify full --norm=l2 --data_dir=DATA_DIR --output=docs/benchmarks/certify_full_l2.json
  python -m benchmarks.certify saved --data_dir=DATA_DIR --output=docs/benchmarks/certify_saved.json
  python -m benchmarks.certify pairs --norm=l2 --data_dir=DATA_DIR --output=docs/benchmarks/certify_pairs_l2.json
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import command, environment, keep, kept, take_turns
from nn_adv import certify, data, evaluation, neighbors, precision

_CURVES = {
    "digits": {
        "l2": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
        "linf": [0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25],
        "l1": [0.25, 0.5, 1, 1.5, 2, 2.5, 3, 4],
    },
    "mnist": {
        "l2": [0.25, 0.3, 0.5, 1.0, 1.5, 1.58, 2.0, 2.5, 2.8, 3.0],
        "linf": [0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35],
        "l1": [1, 2, 4, 6, 8, 12, 16, 24],
    },
    "cifar10": {
        "l2": [0.05, 0.1, 36 / 255, 0.25, 72 / 255, 108 / 255, 0.5, 0.75, 1.0, 1.74, 2.5],
        "linf": [k / 255 for k in (0.5, 1, 2, 4, 6, 8, 12, 16)],
        "l1": [0.5, 1, 2, 4, 8, 12, 16, 24],
    },
}


@functools.partial(jax.jit, static_argnames="product")
def _products(queries, blocks, product):
    """The products of the floor: 5 rows per image with all points, exact, in what is fastest here."""
    rows = precision.centered_pixels(jnp.tile(queries, (5, 1)), product)

    def highest(block):
        return precision.integer_products(rows, precision.centered_pixels(block, product), product).max(axis=1)

    return jax.lax.map(highest, blocks)


def _timed(fn) -> tuple[float, object]:
    start = time.perf_counter()
    result = fn()
    return time.perf_counter() - start, result


def floor(arguments: argparse.Namespace) -> dict:
    """Time radii in each norm beside the products, taking turns."""
    dataset = data.load("cifar10", data_dir=arguments.data_dir)
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, 10)
    images = dataset.test_images[: arguments.images]
    labels = np.asarray(neighbors.predict(reference, images))
    queries = jnp.asarray(images.reshape(len(images), -1))
    product = reference.products.integers
    contestants = {"products": functools.partial(_products, queries, reference.blocks, product)}
    for norm in arguments.norms.split(","):
        for recheck_all in (False, True):
            call = functools.partial(certify.radius, reference, images, labels, norm=norm, recheck_all=recheck_all)
            contestants[f"{norm}, all opponents rechecked" if recheck_all else norm] = call
    found = {name: jax.block_until_ready(fn()) for name, fn in contestants.items()}  # warm-up, and the answers
    turns = take_turns(contestants, arguments.repeats)
    turns = {name: seconds * 1000 / len(images) for name, seconds in turns.items()}
    base = np.median(turns["products"], axis=0)
    rows = []
    for name, milliseconds in turns.items():
        wall, processor = np.median(milliseconds, axis=0)
        row = {"name": name, "ms_per_image": round(wall, 2), "ratio_to_products": round(wall / base[0], 2),
               "spread": [round(end, 2) for end in (milliseconds[:, 0].min(), milliseconds[:, 0].max())],
               "processor_ms_per_image": round(processor, 2),
               "processor_ratio": round(processor / base[1], 2)}  # fmt: skip
        if name != "products":
            row["exact"] = int(np.sum(found[name].status == "exact"))
        rows.append(row)
        print(row, flush=True)
    return {"data": dataset.title, "images": len(images), "points": 50_000, "product": product,
            "rows": rows, "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}  # fmt: skip


def coordinate_ascent(gaps: np.ndarray, heights: np.ndarray, low, high, *, tolerance: float = 1e-7) -> float:
    """Return the l2 radius of one opponent by dual coordinate ascent over all own points and bounds (Hildreth 1957)."""
    lengths = np.einsum("md,md->m", gaps, gaps)
    multipliers = np.zeros(len(heights))
    w = np.zeros(gaps.shape[1])
    for _ in range(2000):
        before = multipliers.copy()
        for row in np.flatnonzero(lengths > 0):
            # In one multiplier the dual is concave and piecewise quadratic: a few Newton steps on its derivative.
            for _ in range(8):
                v = np.clip(w, low, high)
                free = v == w
                slope = heights[row] - gaps[row] @ v
                curvature = max(float(np.sum(np.square(gaps[row][free]))), 1e-12)
                value = max(0.0, multipliers[row] + slope / curvature)
                step = value - multipliers[row]
                if abs(step) <= tolerance * 1e-2:
                    break
                w += step * gaps[row]
                multipliers[row] = value
        if np.max(np.abs(multipliers - before)) <= tolerance:
            break
    return float(np.linalg.norm(np.clip(w, low, high)))


def peer(arguments: argparse.Namespace) -> dict:
    """Compare with one problem per opponent, opponents in the order of their bound, all own points as constraints."""
    dataset = data.load("mnist", data_dir=arguments.data_dir)
    points, labels = dataset.train_images[:2000], dataset.train_labels[:2000]
    reference = neighbors.fit(points, labels, 10)
    images = dataset.test_images[: arguments.images]
    image_labels = np.asarray(neighbors.predict(reference, images))

    def textbook(image, label):
        x = image.reshape(-1) / 255.0
        z = points.reshape(len(points), -1) / 255.0
        sq = np.sum(np.square(z - x), axis=1)
        own, other = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
        bound = (np.sqrt(sq[other]) - np.sqrt(sq[own].min())) / 2
        best = np.inf
        for j in other[np.argsort(bound)]:
            if (np.sqrt(sq[j]) - np.sqrt(sq[own].min())) / 2 >= best:
                break
            gaps = z[j] - z[own]
            heights = (sq[j] - sq[own]) / 2
            single = np.max(heights / np.linalg.norm(gaps, axis=1))
            if single < best:
                best = min(best, coordinate_ascent(gaps, heights, -x, 1 - x))
        return best

    ours = certify.radius(reference, images, image_labels, norm="l2")
    seconds = [_timed(lambda: certify.radius(reference, images, image_labels, norm="l2"))[0] for _ in range(3)]
    few = arguments.peer_images
    theirs, truth = [], []
    for image, label in zip(images[:few], image_labels[:few], strict=True):
        taken, value = _timed(lambda image=image, label=label: textbook(image, label))
        theirs.append(taken)
        truth.append(value)
    difference = float(np.max(np.abs(np.array(truth) / ours.lower[:few] - 1)))
    ms = float(np.median(seconds)) * 1000 / len(images)
    row = {"ours_ms": round(ms, 3), "textbook_ms": round(float(np.mean(theirs)) * 1000, 1),
           "ratio": round(float(np.mean(theirs)) * 1000 / ms, 1), "largest_relative_difference": difference,
           "images": len(images), "textbook_images": few}  # fmt: skip
    print(row)
    return {"data": dataset.title, "points": 2000, "pixels": 784, "rows": [row]}


def full(arguments: argparse.Namespace) -> dict:
    """Compute the radius of every test image, ten classes, and the curve."""
    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, 10)
    images, labels = dataset.test_images[: arguments.images], dataset.test_labels[: arguments.images]
    seconds, found = _timed(lambda: certify.radius(reference, images, labels, norm=arguments.norm))
    summary = _summary(found, _CURVES[arguments.dataset][arguments.norm])
    for counts in summary["robust"].values():
        counts["interval"] = [round(end, 4) for end in evaluation.wilson_interval(counts["lower"], len(images))]
    print(json.dumps(summary), f"{seconds:.0f} s")
    return {"data": dataset.title, "norm": arguments.norm, "seconds": round(seconds, 1), **summary,
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}  # fmt: skip


def pairs(arguments: argparse.Namespace) -> dict:
    """Compute the radius of every test image of each pair of classes; a pair that ``output`` holds is not run again."""
    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    known = (kept(arguments.output) or {"pairs": {}})["pairs"]
    tasks = data.tasks(dataset, "pairs")
    for task in tasks:
        if task.name not in known:
            reference = neighbors.fit(dataset.train_images[task.train_index], task.train_labels, 2)
            images = dataset.test_images[task.test_index][: arguments.images]
            labels = task.test_labels[: arguments.images]
            call = functools.partial(certify.radius, reference, images, labels, norm=arguments.norm)
            seconds, found = _timed(call)
            known[task.name] = {
                "seconds": round(seconds, 1),
                **_summary(found, _CURVES[arguments.dataset][arguments.norm]),
            }
            keep(arguments.output, {"pairs": known})
        print(task.name, json.dumps(known[task.name]), flush=True)
    known = {task.name: known[task.name] for task in tasks}
    means = {
        epsilon: {
            end: round(float(np.mean([pair["robust"][epsilon][end] / pair["images"] for pair in known.values()])), 5)
            for end in ("lower", "upper")
        }
        for epsilon in known[tasks[0].name]["robust"]
    }
    print("mean over pairs", json.dumps(means))
    return {"data": dataset.title, "norm": arguments.norm, "mean_over_pairs": means, "pairs": known}


def saved(arguments: argparse.Namespace) -> dict:
    """Count the robust images of the first pair of classes: among all perturbed images, and among 8-bit ones."""
    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    task = data.tasks(dataset, "pairs")[0]
    reference = neighbors.fit(dataset.train_images[task.train_index], task.train_labels, 2)
    images = dataset.test_images[task.test_index][: arguments.images]
    labels = task.test_labels[: arguments.images]
    rows = []
    for norm, epsilon in (("linf", 8 / 255), ("l2", 0.5)):
        found = certify.radius(reference, images, labels, norm=norm)
        levels = certify.eight_bit_radius(reference, images, labels, found, norm=norm)
        # "Within" is at most epsilon for what is saved, since its distances can be epsilon itself.
        robust = found.lower >= epsilon
        least, most = levels.lower > epsilon * (1 + 1e-9), levels.upper > epsilon * (1 + 1e-9)
        gain = levels.lower[found.correct] - found.lower[found.correct]
        gap = levels.upper[found.correct] - levels.lower[found.correct]
        rows.append({"norm": norm, "epsilon": epsilon, "images": len(images), "correct": int(found.correct.sum()),
                     "robust": int(robust.sum()), "robust_saved": [int(least.sum()), int(most.sum())],
                     "change_sides": [int((least & ~robust).sum()), int((most & ~robust).sum())],
                     "become_broken": int((robust & ~most).sum()), "bounds_meet": int((gap == 0).sum()),
                     "median_raise": float(np.median(gain)), "median_gap": float(np.median(gap)),
                     "largest_gap": float(np.max(gap))})  # fmt: skip
        print(rows[-1], flush=True)
    return {"data": dataset.title, "task": task.name, "classes": task.class_names, "rows": rows}


def _summary(found: certify.Radius, epsilons: list[float]) -> dict:
    """Count the images: correct, exactly known, and robust at each epsilon, at least (lower) and at most (upper)."""
    robust = {
        f"{epsilon:.6g}": {
            "lower": int(np.sum(found.correct & (found.lower >= epsilon))),
            "upper": int(np.sum(found.correct & (found.upper >= epsilon))),
        }
        for epsilon in [0.0, *epsilons]
    }
    bounded = np.flatnonzero(found.status == "bounded")
    return {
        "images": len(found.correct),
        "correct": int(found.correct.sum()),
        "status_of_correct": {
            name: int(np.sum((found.status == name) & found.correct)) for name in ("exact", "bounded")
        },
        "bounded": {int(b): [float(found.lower[b]), float(found.upper[b])] for b in bounded[:20]},
        "robust": robust,
        "median_radius_of_correct": float(np.median(found.lower[found.correct])),
    }


def main() -> None:
    parser = command(__doc__, repeats=3)
    parser.add_argument("question", choices=["floor", "peer", "full", "pairs", "saved"])
    parser.add_argument("--data_dir", help="tensorflow-datasets folder")
    parser.add_argument("--dataset", default="cifar10", choices=sorted(_CURVES), help="for full and pairs")
    parser.add_argument("--norm", default="l2", help="for full and pairs")
    parser.add_argument("--norms", default="l2,linf,l1", help="for floor")
    parser.add_argument("--images", type=int, help="images (floor 512, peer 256, saved 300, else all)")
    parser.add_argument("--peer_images", type=int, default=5)
    arguments = parser.parse_args()
    arguments.images = arguments.images or {"floor": 512, "peer": 256, "saved": 300}.get(arguments.question)
    report = {"floor": floor, "peer": peer, "full": full, "pairs": pairs, "saved": saved}[arguments.question](arguments)
    report = {"environment": environment("scipy"), **report}
    keep(arguments.output, report)


if __name__ == "__main__":
    main()
