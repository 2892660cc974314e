"""What does a search over a mesh of devices cost, and what does it send?

On simulated devices of one CPU: they share its cores, so more of them do not make it faster. What can be seen is what
the splitting costs: the same work on 1, 2, 4 and 8 devices (strong), or as much work for each (weak). The collectives,
their bytes and the memory of a device are read from the compiled program. A model of the time, from the measured rate
of products, stands beside each measurement.

  python -m benchmarks.scaling --output=docs/benchmarks/scaling.json
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np

from benchmarks.timing import command, environment, keep, take_turns
from nn_adv import neighbors
from nn_adv.neighbors import search

_DEVICES = (1, 2, 4, 8)
_COLLECTIVE = re.compile(
    r" = (?P<dtype>[a-z]+\d+)\[(?P<shape>[\d,]*)\]\S* "
    r"(?P<name>all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)


def collectives(text: str) -> list[dict]:
    """List the collectives of a compiled program, each with the bytes of its result."""
    found = []
    for match in _COLLECTIVE.finditer(text):
        count = math.prod(int(size) for size in match["shape"].split(",") if size)
        found.append({"name": match["name"], "bytes": count * int(re.sub(r"\D", "", match["dtype"])) // 8})
    return found


def _task(num_points: int, num_queries: int, size: int) -> tuple[neighbors.Reference, np.ndarray]:
    rng = np.random.default_rng(0)
    points, queries = (rng.integers(0, 256, (n, size)).astype(np.uint8) for n in (num_points, num_queries))
    # Products are fixed, so that all runs of this compare.
    reference = neighbors.fit(points, np.zeros(num_points, int), 1, products=neighbors.Products("float32", "float32"))
    return reference, queries


def measure(arguments: argparse.Namespace, *, weak: bool) -> list[dict]:
    """Measure searches on more and more devices; they take turns."""
    contestants, rows = {}, []
    for count in _DEVICES:
        num_points = arguments.points * count // _DEVICES[-1] if weak else arguments.points
        reference, queries = _task(num_points, arguments.queries, arguments.size)
        mesh = jax.make_mesh((count, 1), ("points", "queries"), devices=jax.devices()[:count])
        split = neighbors.shard(reference, mesh)
        compiled = search._nearest.lower(split, queries, k=arguments.k, norm="l2").compile()
        expected = neighbors.nearest(reference, queries, arguments.k)
        jax.tree.map(np.testing.assert_array_equal, neighbors.nearest(split, queries, arguments.k), expected)
        contestants[str(count)] = functools.partial(neighbors.nearest, split, queries, arguments.k)
        rows.append(
            {
                "devices": count,
                "points": num_points,
                "collectives": collectives(compiled.as_text() or ""),
                "temporary_bytes": getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
            }
        )
    turns = take_turns(contestants, arguments.repeats)
    for row in rows:
        wall, processor = np.median(turns[str(row["devices"])], axis=0)
        row |= {"seconds": round(wall, 3), "processor_seconds": round(processor, 3)}
    # The model: products at the rate of one device, and nothing else that grows with the devices.
    rate = 2 * arguments.queries * arguments.size * rows[0]["points"] / rows[0]["processor_seconds"]
    for row in rows:
        row["modelled_processor_seconds"] = round(2 * arguments.queries * arguments.size * row["points"] / rate, 3)
        print("weak" if weak else "strong", json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = command(__doc__, repeats=5)
    parser.add_argument("--points", type=int, default=32_768)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--k", type=int, default=5)
    arguments = parser.parse_args()
    report = {
        "environment": environment(),
        "arguments": {name: value for name, value in vars(arguments).items() if name != "output"},
        "strong": measure(arguments, weak=False),
        "weak": measure(arguments, weak=True),
    }
    keep(arguments.output, report)


if __name__ == "__main__":
    main()
