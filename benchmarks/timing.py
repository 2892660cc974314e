"""What all benchmarks share: options and a file, turns (a noisy machine disturbs all alike), and what ran where."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def command(doc: str | None, *, repeats: int = 0, required: bool = False) -> argparse.ArgumentParser:
    """Return a parser of ``--output``, which may be required, and, if there is a default, of ``--repeats``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats:
        parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--output", type=pathlib.Path, required=required, help="JSON file to write")
    return parser


def kept(path: pathlib.Path | None) -> dict:
    """Return what a file of earlier runs holds, nothing without one."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def keep(path: pathlib.Path | None, report: dict) -> None:
    """Replace the file, if there is to be one, as a whole: what it held is not lost if this is interrupted."""
    if path:
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(report, indent=1) + "\n")
        unfinished.replace(path)


def take_turns(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Return wall and processor seconds of each call and of the wait for what it returns, ``[repeats, 2]``."""
    seconds: dict[str, list] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            started = np.array([time.perf_counter(), time.process_time()])
            _wait(call())
            seconds[name].append(np.array([time.perf_counter(), time.process_time()]) - started)
    return {name: np.stack(turns) for name, turns in seconds.items()}


def _wait(result: object) -> None:
    """Wait for the arrays of a result, and for what PyTorch does on a GPU; other results are there already."""
    jax.block_until_ready(result)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def environment(*packages: str) -> dict:
    """Return device, processor, versions (of JAX, NumPy and the packages named), commit and time."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "device": str(jax.devices()[0]),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", *packages)},
        "commit": commit.stdout.strip(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
