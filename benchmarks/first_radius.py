"""How long does it take from a cold process to the first exact radii, and how much of that is the import of JAX?

A process loads the digits, fits 1NN to 1,697 of them and finds the radii of 50 others. What XLA compiles is not kept
from one process to the next, the bytecode of Python is. Medians of wall seconds, norms and the import in turns.

  python -m benchmarks.first_radius
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.timing import command, environment, keep, take_turns

_JAX = "import jax; jax.devices()"
_RADIUS = """
import numpy as np
from nn_adv import certify, data, neighbors
digits = data.load("digits")
images = np.concatenate([digits.train_images, digits.test_images])
labels = np.concatenate([digits.train_labels, digits.test_labels])
reference = neighbors.fit(images[100:], labels[100:], 10)
assert certify.radius(reference, images[:50], labels[:50], norm="{norm}").is_exact.all()
"""


def main() -> None:
    """Time the processes in turns and write the medians."""
    parser = command(__doc__, repeats=5)
    arguments = parser.parse_args()
    root = str(pathlib.Path(__file__).resolve().parents[1])
    programs = {"the import of JAX": _JAX} | {norm: _RADIUS.format(norm=norm) for norm in ("l2", "l1", "linf")}
    with tempfile.TemporaryDirectory() as bytecode:
        settings = {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": bytecode}
        forgotten = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_DISABLE", "XLA_FLAGS")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(forgotten)}
        run = functools.partial(subprocess.run, check=True, env=inherited | settings)
        calls = {name: functools.partial(run, [sys.executable, "-c", text]) for name, text in programs.items()}
        calls["l2"]()  # which writes the bytecode
        turns = take_turns(calls, arguments.repeats)
    seconds = {name: round(float(np.median(times[:, 0])), 2) for name, times in turns.items()}
    result = {"environment": environment(), "repeats": arguments.repeats, "seconds": seconds}
    print(json.dumps(result, indent=1))
    keep(arguments.output, result)


if __name__ == "__main__":
    main()
