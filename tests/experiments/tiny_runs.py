"""The comparison on a few digits, small enough for seconds, and its command line."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from configs import binary_tasks as config_file
from experiments import store

ROOT = pathlib.Path(__file__).parents[2]

# Every part of the run is there.
TINY = {
    "methods": ("1nn", "trades-both"),
    "curve": (0.5,),
    "fine_curve": (0.25,),
    "tasks": {"holdout": 0.1, "names": ("3v8", "1v7"), "train_per_class": 20},
    "evaluation": {
        "attacks": ("fab-t", "square"),
        "num_steps": 3,
        "num_queries": 3,
        "images_per_split": 20,
        "batch_size": 16,
    },
    "training": {"num_epochs": 2, "group_size": 2, "num_steps": 2, "select_every": 1, "checkpoint_every": 1},
}


def tiny_config(**changes):
    config = config_file.get_config("digits")
    config.model.mlp.hidden_sizes = (8,)
    config.update(TINY)
    config.update(changes)
    return config


def counted(workdir):
    """What the rows of a workdir say, without times."""
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["unit"]: row["evaluations"] for row in rows}


def command(workdir, *flags):
    small = [f"--config.tasks.{key}={value!r}" for key, value in TINY["tasks"].items()]
    small += [f"--config.evaluation.{key}={value!r}" for key, value in TINY["evaluation"].items()]
    small += [f"--config.training.{key}={value!r}" for key, value in TINY["training"].items()]
    small += [f"--config.{key}={TINY[key]!r}" for key in ("methods", "curve", "fine_curve")]
    small += ["--config.model.mlp.hidden_sizes=(8,)", f"--workdir={workdir}"]
    return [sys.executable, "-m", "experiments.main", "--config=configs/binary_tasks.py:digits", *small, *flags]


def kill_when(command, happened):
    """Start a run and kill it with SIGKILL as soon as ``happened()``; tell whether it was still running."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not happened():
        time.sleep(0.02)
    was_running = process.poll() is None
    if was_running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_running
