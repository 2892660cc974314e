"""How far apart are the classes? The distance from every image to the nearest one of another class, exactly.

Train to train, test to train and test to test; in l1, l2 and linf; with equal images named, and the errors of 1NN. A
norm that the output file holds is not measured again.

  python -m benchmarks.separation --dataset=mnist --data_dir=DATA_DIR --output=docs/benchmarks/separation_mnist.json
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.timing import command, environment, keep, kept
from nn_adv import data, neighbors

NORMS = ("l2", "linf", "l1")
_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 60
_SETS = {"train to train": ("train", "train"), "test to train": ("test", "train"), "test to test": ("test", "test")}
_QUERIES_AT_A_TIME = 4096  # one compilation serves all classes of a size

# Of the original pixels: the figure, where it stands in what `measure` finds, and who published it.
_YANG = "Yang et al. 2020 (arXiv 2003.02460)"
_GEORGSIEDEL = "Georgsiedel, minimal-separation-corruption-robustness"
PUBLISHED = {
    "mnist": [
        ("least linf distance, train to train", 0.737, 3, _YANG),
        ("least linf distance, test to train", 0.812, 3, _YANG),
        ("mean linf distance, train to train", 0.990, 3, _YANG),
        ("mean linf distance, test to train", 0.990, 3, _YANG),
    ],
    "cifar10": [
        ("mean linf distance, train to train", 0.47948, 5, _GEORGSIEDEL),
        ("half of the least linf distance of all sets", 27 / 255, 5, _GEORGSIEDEL),
        ("half of the least l2 distance of all sets", 1.37532, 5, _GEORGSIEDEL),
        ("half of the least l1 distance of all sets", 32.93333, 5, _GEORGSIEDEL),
    ],
}


def nearest_others(points, labels, queries, query_labels, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from each query to the nearest point of another class, and that point's position."""
    distances, positions = np.full(len(queries), np.inf), np.full(len(queries), -1)
    for label in np.unique(query_labels):
        own, others = np.flatnonzero(query_labels == label), np.flatnonzero(labels != label)
        if not len(others):
            continue
        reference = neighbors.fit(points[others], np.zeros(len(others), np.int32), 1)
        for start in range(0, len(own), _QUERIES_AT_A_TIME):
            rows = own[start : start + _QUERIES_AT_A_TIME]
            filled = np.resize(rows, min(_QUERIES_AT_A_TIME, 1 << (len(rows) - 1).bit_length()))
            found = neighbors.nearest(reference, queries[filled], norm=norm)
            distances[rows] = np.asarray(found.distances, np.float64)[: len(rows), 0]
            positions[rows] = others[np.asarray(found.indices)[: len(rows), 0]]
    return distances, positions


def equal_images(train: np.ndarray, train_labels, test: np.ndarray, test_labels) -> list[list[str]]:
    """Return each group of equal images, an image as its set, its index and its class."""
    names = [f"{split} {index} (class {label})" for split, labels in (("train", train_labels), ("test", test_labels))
             for index, label in enumerate(labels)]  # fmt: skip
    groups: dict[bytes, list[str]] = {}
    for name, image in zip(names, (image for images in (train, test) for image in images), strict=True):
        groups.setdefault(image.tobytes(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def measure(dataset: data.Dataset, norm: str) -> dict:
    """Return for each pair of sets the least distances, their mean, quantiles and histogram."""
    images, labels = ({split: getattr(dataset, f"{split}_{what}") for split in ("train", "test")}
                      for what in ("images", "labels"))  # fmt: skip
    found = {}
    for name, (one, other) in _SETS.items():
        started = time.perf_counter()
        found[name] = nearest_others(images[other], labels[other], images[one], labels[one], norm)
        print(f"{dataset.title}, {norm}, {name}: {time.perf_counter() - started:.0f} s", flush=True)
    most = max(distances.max() for distances, _ in found.values())
    # In linf distances are multiples of 1/255: a bin for each.
    edges = (np.arange(257) - 0.5) / 255 if norm == "linf" else np.linspace(0, most, _BINS + 1)
    edges[-1] = np.inf if norm != "linf" else edges[-1]
    return {
        "edges": [round(float(edge), 6) for edge in edges[:-1]],
        **{name: _summary(*found[name], labels[one], labels[other], edges) for name, (one, other) in _SETS.items()},
    }


def _summary(distances, positions, labels, other_labels, edges) -> dict:
    least = int(np.argmin(distances))
    return {
        "images": len(distances),
        "least": float(distances[least]),
        "between": [least, int(positions[least])],
        "classes": [int(labels[least]), int(other_labels[positions[least]])],
        "mean": float(distances.mean()),
        "quantiles": {f"{share:g}": float(np.quantile(distances, share)) for share in _QUANTILES},
        "histogram": np.histogram(distances, edges)[0].tolist(),
    }


def compare(name: str, norms: dict) -> list[dict]:
    """Put published figures of the original pixels beside those of the norms that were measured."""
    rows = []
    for what, published, digits, source in PUBLISHED.get(name, ()):
        kind, norm = ("least" if "least" in what else "mean"), next(norm for norm in NORMS if f" {norm} " in what)
        if norm not in norms:
            continue
        of_sets = {sets: norms[norm][sets][kind] for sets in _SETS}
        ours = min(of_sets.values()) / 2 if what.startswith("half") else of_sets[what.partition(", ")[2]]
        published, ours = round(published, digits), round(ours, digits)
        rows.append({"what": what, "published": published, "source": source, "here": ours, "equal": ours == published})
    if name == "cifar10" and "linf" in norms:
        counts = np.cumsum(norms["linf"]["train to train"]["histogram"])
        for level, published in {54: 2, 58: 8, 70: 58, 80: 356, 100: 4413}.items():
            what = f"training images within linf {level}/255 of another class"
            row = {"what": what, "published": published, "source": _GEORGSIEDEL, "here": int(counts[level])}
            rows.append(row | {"equal": row["here"] == published})
    return rows


def main() -> None:
    parser = command(__doc__, required=True)
    parser.add_argument("--data_dir", help="tensorflow-datasets folder")
    parser.add_argument("--dataset", default="digits", choices=("digits", "mnist", "fashion_mnist", "cifar10"))
    arguments = parser.parse_args()
    dataset = data.load(arguments.dataset, data_dir=arguments.data_dir)
    known = (kept(arguments.output) or {"norms": {}})["norms"]
    report = {"environment": environment(), "data": dataset.title, "note": dataset.note, "norms": known}
    report["equal_images"] = equal_images(
        dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    )
    for norm in NORMS:
        if norm not in known:
            known[norm] = measure(dataset, norm)
        report["published"] = compare(dataset.name, known)
        keep(arguments.output, report)
    for row in report["published"]:
        print(row)
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, dataset.num_classes)
    errors = np.flatnonzero(np.asarray(neighbors.predict(reference, dataset.test_images)) != dataset.test_labels)
    report["errors_of_1nn"] = {"count": len(errors), "first": errors[:6].tolist()}
    keep(arguments.output, report)


if __name__ == "__main__":
    main()
