"""What one answer costs: 1NN over the training images of a CIFAR-10 pair beside the network that a CPU trains.

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python -m benchmarks.cost --output docs/benchmarks/cost.json

The images are random: nothing here depends on what they show. Both answer the same batches of float32 images in turn,
and medians of processor time are reported. The operations of 1NN are those of its distances, two for each pixel of each
point; those of the network are XLA's count.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import command, environment, keep, take_turns
from nn_adv import models, neighbors

_NUM_POINTS, _SHAPE, _BATCH = 10_000, (32, 32, 3), 500


def main() -> None:
    """Print the cost of an answer of each, and with ``--output`` write it."""
    parser = command(__doc__, repeats=15)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    points = rng.integers(0, 256, (_NUM_POINTS, *_SHAPE), np.uint8)
    queries = rng.random((_BATCH, *_SHAPE), np.float32)
    reference = neighbors.fit(points, np.arange(_NUM_POINTS) % 2, 2)
    model = models.create("strided_cnn", 2)
    variables = model.init(jax.random.key(0), queries[:1])
    logits = jax.jit(model.apply)
    flops = logits.lower(variables, queries).cost_analysis()["flops"] / _BATCH
    contestants = {
        "1nn": lambda: neighbors.predict(reference, queries),
        "network": lambda: logits(variables, jnp.asarray(queries)),
    }
    take_turns(contestants, 2)  # compiles
    seconds = take_turns(contestants, arguments.repeats)
    report = {
        "environment": environment(),
        "points": _NUM_POINTS,
        "image": _SHAPE,
        "batch": _BATCH,
        "milliseconds": {name: float(1e3 * np.median(turns[:, 1]) / _BATCH) for name, turns in seconds.items()},
        "flop": {"1nn": 2 * _NUM_POINTS * int(np.prod(_SHAPE)), "network": round(flops)},
    }
    print(json.dumps(report, indent=1))
    keep(arguments.output, report)


if __name__ == "__main__":
    main()
