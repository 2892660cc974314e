"""How fast is exact nearest-neighbour search, beside faiss, scikit-learn, PyTorch and SciPy?

Every case has one shape and one norm. All answers are first checked against exact distances; then the peers take
turns, and medians over the turns are reported, of wall and of processor time (which other programs on the machine
disturb less). Peers that would take minutes get fewer queries: every figure is per 1,000 queries. Memory is the
high-water mark of a fresh process beyond the arrays it searches.

  python -m benchmarks.nearest --data_dir=DATA_DIR
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.timing import command, environment, keep, take_turns
from nn_adv import data, neighbors

_PEERS = ("faiss-cpu", "scikit-learn", "torch", "scipy")
_MODULES = {"faiss-cpu": "faiss", "scikit-learn": "sklearn"}
_SKLEARN = {"l2": "euclidean", "l1": "manhattan", "linf": "chebyshev"}
_SCIPY = {"l2": "sqeuclidean", "l1": "cityblock", "linf": "chebyshev"}
_ORDER = {"l2": 2.0, "l1": 1.0, "linf": float("inf")}
_BRUTE_FORCE = 50  # queries whose exact distances to all points are computed
_OPERATIONS = {"l2": 2, "l1": 3, "linf": 3}  # per pixel and pair: multiply, add; subtract, absolute value, add or max


class Case(NamedTuple):
    """One comparison: our points and queries, and how many queries each peer answers (0: left out)."""

    norm: str
    query_kind: str  # "uint8", "float": moved off the pixel grid; points are uint8, or as named after "float to"
    ours: int
    faiss: int = 0
    sklearn: int = 0
    torch: int = 0
    scipy: int = 0

    @property
    def name(self) -> str:
        return f"{self.norm}, {self.query_kind}, {self.ours} queries"


CASES = (
    Case("l2", "uint8", 10_000, faiss=10_000),
    Case("l2", "uint8", 1_000, faiss=1_000, sklearn=1_000, torch=1_000, scipy=4),
    Case("l2", "float to uint8", 1_000, faiss=1_000),
    Case("l2", "float to float", 1_000, faiss=1_000, sklearn=1_000, torch=1_000),
    Case("l1", "uint8", 200, sklearn=8, torch=8, scipy=4),
    Case("l1", "float to uint8", 200, sklearn=8, torch=8),
    Case("linf", "uint8", 200, sklearn=8, torch=8, scipy=4),
    Case("linf", "float to uint8", 200, sklearn=8, torch=8),
)
_MEMORY_CASES = (0, 2, 3, 5)  # one for each way to screen


def _limit(case: Case, num_queries: int) -> Case:
    """Return a case in which nobody answers more queries than there are."""
    return case._replace(**{name: min(getattr(case, name), num_queries) for name in Case._fields[2:]})


class Images(NamedTuple):
    points: np.ndarray  # [n, d] uint8
    queries: np.ndarray  # [Q, d] uint8
    moved: np.ndarray  # [Q, d] float32: queries plus noise of up to 8/255, as an attack would make
    source: str


def load_images(data_dir: str | None, num_points: int, num_queries: int) -> Images:
    """Read CIFAR-10 images, or make random ones of its size where it is not there."""
    try:
        dataset = data.load("cifar10", data_dir=data_dir)
        points, queries, source = dataset.train_images, dataset.test_images, dataset.note or "cifar10"
    except (ValueError, OSError) as error:
        print(f"random images instead of CIFAR-10: {error}", file=sys.stderr)
        rng = np.random.default_rng(0)
        points, queries = (rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (num_points, num_queries))
        source = "random uint8"
    points, queries = (x[:n].reshape(min(n, len(x)), -1) for x, n in ((points, num_points), (queries, num_queries)))
    noise = np.random.default_rng(1).uniform(-8 / 255, 8 / 255, queries.shape).astype(np.float32)
    return Images(points, queries, np.clip(_pixels(queries) + noise, 0, 1), source)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255)


def _make_peers(case: Case, points: np.ndarray, queries: np.ndarray) -> dict[str, tuple[int, Callable]]:
    """Return, for each peer, how many queries it answers and a function that answers them with indices."""
    peers: dict[str, tuple[int, Callable]] = {}
    if case.faiss and importlib.util.find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatL2(points.shape[1])
        index.add(points)
        peers["faiss IndexFlatL2"] = (case.faiss, lambda: index.search(queries[: case.faiss], 1)[1][:, 0])
    if case.sklearn and importlib.util.find_spec("sklearn"):
        from sklearn.neighbors import NearestNeighbors

        model = NearestNeighbors(n_neighbors=1, algorithm="brute", metric=_SKLEARN[case.norm]).fit(points)
        peers["scikit-learn brute"] = (
            case.sklearn,
            lambda: model.kneighbors(queries[: case.sklearn], return_distance=False)[:, 0],
        )
    if case.torch and importlib.util.find_spec("torch"):
        import torch

        tensors = torch.from_numpy(queries[: case.torch]), torch.from_numpy(points)
        peers["torch.cdist"] = (
            case.torch,
            lambda: torch.cdist(*tensors, p=_ORDER[case.norm]).argmin(dim=1).numpy(),
        )
    if case.scipy and importlib.util.find_spec("scipy"):
        from scipy.spatial.distance import cdist

        peers["scipy cdist"] = (
            case.scipy,
            lambda: cdist(queries[: case.scipy], points, _SCIPY[case.norm]).argmin(axis=1),
        )
    return peers


def _exact_distances(points: np.ndarray, queries: np.ndarray, norm: str) -> np.ndarray:
    """Return distances [n] (squared for l2) of rows to rows, or to one query; integers between uint8, else float64."""
    is_integer = points.dtype == np.uint8 and queries.dtype == np.uint8
    results = []
    slices = max(1, points.size // 2**23)  # bounds memory
    rows = np.array_split(queries, slices) if queries.ndim > 1 else [queries] * slices
    for part, query in zip(np.array_split(points, slices), rows, strict=True):
        if is_integer:
            difference: np.ndarray = part.astype(np.int32) - query.astype(np.int32)
        else:
            values = _pixels(part) if part.dtype == np.uint8 else part
            difference = values.astype(np.float64) - query.astype(np.float64)
        size = np.square(difference) if norm == "l2" else np.abs(difference)
        results.append(size.max(axis=1) if norm == "linf" else size.sum(axis=1))
    return np.concatenate(results)


def _check(case: Case, points: np.ndarray, queries: np.ndarray, answers: dict[str, np.ndarray]) -> dict[str, int]:
    """Return how many answers of each name are farther than ours, which must be the first nearest by brute force."""
    for row in range(min(_BRUTE_FORCE, len(queries))):
        if answers["nn_adv"][row] != _exact_distances(points, queries[row], case.norm).argmin():
            raise SystemExit(f"nn_adv is wrong at query {row} of {case.name}")
    best = _exact_distances(points[answers["nn_adv"]], queries, case.norm)
    wrong = {}
    for name, indices in answers.items():
        found = _exact_distances(points[indices], queries[: len(indices)], case.norm)
        if (found < best[: len(indices)]).any():
            raise SystemExit(f"nn_adv is farther than {name} in {case.name}")
        wrong[name] = int((found > best[: len(indices)]).sum())
    return wrong


def run_case(case: Case, images: Images, repeats: int) -> dict:
    """Check, then time a case."""
    uint8_queries = case.query_kind == "uint8"
    floats = _pixels(images.points)
    points = floats if case.query_kind == "float to float" else images.points
    queries = (images.queries if uint8_queries else images.moved)[: case.ours]
    reference = neighbors.fit(points, np.zeros(len(points), np.int32), 1)
    on_device = jax.device_put(queries)

    def ours() -> np.ndarray:
        return np.asarray(neighbors.nearest(reference, on_device, norm=case.norm).indices[:, 0])

    contestants = {"nn_adv": (case.ours, ours)}
    contestants |= _make_peers(case, floats, _pixels(queries) if uint8_queries else queries)
    wrong = _check(case, points, queries, {name: answer() for name, (_, answer) in contestants.items()})
    turns = take_turns({name: answer for name, (_, answer) in contestants.items()}, repeats)  # the check warmed up
    seconds = {name: values * 1000 / contestants[name][0] for name, values in turns.items()}
    medians = {name: np.median(turns, axis=0) for name, turns in seconds.items()}
    operations = _OPERATIONS[case.norm] * 1000 * points.size
    rows = []
    for name, (wall, processor) in medians.items():
        ratio, processor_ratio = medians[name] / medians["nn_adv"]
        rows.append(
            {
                "name": name,
                "queries": contestants[name][0],
                "seconds_per_1000": round(wall, 3),
                "spread": [round(x, 3) for x in (seconds[name][:, 0].min(), seconds[name][:, 0].max())],
                "processor_seconds_per_1000": round(processor, 3),
                "ratio": round(ratio, 2),
                "processor_ratio": round(processor_ratio, 2),
                "giga_operations_per_second": round(operations / wall / 1e9),
                "wrong": wrong[name],
            }
        )
        numbers = f"{wall:8.3f} s/1000 x{ratio:6.2f}  {processor:8.3f} s of processor x{processor_ratio:6.2f}"
        print(f"{case.name:34s} {name:20s} {numbers}  wrong {wrong[name]}", flush=True)
    return {
        "case": case.name,
        "points": [*points.shape, str(points.dtype)],
        "queries": str(queries.dtype),
        "products": reference.products._asdict(),
        "giga_operations_per_1000": round(operations / 1e9),
        "rows": rows,
    }


def _status_mib(field: str) -> float:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"no {field} in /proc/self/status: memory is measured on Linux only")


def probe_memory(arguments: argparse.Namespace, case_number: int) -> None:
    """Print the high-water mark, in MiB, of fitting and searching beyond the arrays; run in a fresh process."""
    case = _limit(CASES[case_number], arguments.queries)
    images = load_images(arguments.data_dir, arguments.points, arguments.queries)
    queries = images.queries if case.query_kind == "uint8" else images.moved
    points = _pixels(images.points) if case.query_kind == "float to float" else images.points
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(8)))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark of reading the data
    before = _status_mib("VmRSS")
    reference = neighbors.fit(points, np.zeros(len(points), np.int32), 1)
    jax.block_until_ready(neighbors.nearest(reference, queries[: case.ours], norm=case.norm))
    print(json.dumps({"case": case.name, "beyond_data_mib": round(_status_mib("VmHWM") - before)}))


def _measure_memory(arguments: argparse.Namespace) -> list[dict]:
    results = []
    for number in _MEMORY_CASES:
        program = [sys.executable, "-m", "benchmarks.nearest", f"--probe_memory={number}"]
        program += [f"--points={arguments.points}", f"--queries={arguments.queries}"]
        program += [f"--data_dir={arguments.data_dir}"] if arguments.data_dir else []
        output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
        print(f"{results[-1]['case']:34s} {results[-1]['beyond_data_mib']} MiB beyond the data", flush=True)
    return results


def main() -> None:
    parser = command(__doc__, repeats=3)
    parser.add_argument("--data_dir", help="tensorflow-datasets folder with cifar10; random images without it")
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--probe_memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe_memory is not None:
        probe_memory(arguments, arguments.probe_memory)
        return
    installed = sorted(name for name in _PEERS if importlib.util.find_spec(_MODULES.get(name, name)))
    images = load_images(arguments.data_dir, arguments.points, arguments.queries)
    report: dict = {
        "environment": environment(*installed),
        "data": images.source,
        "memory": _measure_memory(arguments),
        "cases": [],
    }
    for case in (_limit(case, arguments.queries) for case in CASES):
        report["cases"].append(run_case(case, images, arguments.repeats))
        keep(arguments.output, report)


if __name__ == "__main__":
    main()
