"""Run an experiment; the same command line goes on where it was stopped.

    python -m experiments.main --config=configs/binary_tasks.py:digits --workdir=runs/digits

configs/binary_tasks.py:DATA     1NN beside TRADES on all pairs of classes; DATA,cpu: networks that a CPU can train
configs/corruptions.py:DATA      the same networks on shifted, rotated, brighter, noisy, compressed images
configs/audit.py:DATA            how far attacks on 1NN are from its exact radii
configs/leaderboard.py:cifar10   RobustBench's networks, or your own, beside 1NN
configs/small_zoo.py:cifar10     small networks for a leaderboard
configs/neighbor_variants.py:QUESTION,DATA   exact robust accuracy of variants of 1NN
configs/ablations.py:base        TRADES on pairs of digits; with --sweep one setting after the other is changed
DATA: digits (nothing to download), mnist, fashion_mnist, cifar10 or npz:/my/data.npz. Each file says what else it
takes, and every value in it is a flag: --config.training.num_epochs=5. docs/guide.md tells the rest.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import console, failures, runner
from nn_adv.paths import as_path

# Modules of this package, each with a report of that name.
_EXPERIMENTS = (
    "audit",
    "binary_tasks",
    "corruptions",
    "leaderboard",
    "neighbor_variants",
    "small_zoo",
)
# Seconds that a process of a cluster waits at its end for the others: shards may end days apart.
_LONGEST_WAIT = 30 * 24 * 3600

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: FILE.py:ARGUMENT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results; a run that was interrupted continues there.")
_SHARD = flags.DEFINE_string("shard", "0/1", "Run part i of n, as i/n; machines sharing a workdir take one part each.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes that share the units; default: one for each core of a CPU, one on an accelerator."
)
_MERGE = flags.DEFINE_list("merge", [], "First copy the rows of these workdirs, run elsewhere, into --workdir.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from, not only what it says.")
_SWEEP = flags.DEFINE_bool("sweep", False, "Run every item of the config file's sweep(), each in a folder of its own.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a jax.distributed cluster; each process runs one shard.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0; default: from the cluster.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in the cluster; default: from the cluster.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process; default: from the cluster.")


def parse_shard(text: str) -> tuple[int, int]:
    """Read "i/n" as (i, n)."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard must be i/n with 0 <= i < n, got {text!r}")
    return int(index), int(count)


def sweep_items(config_file: str, overrides: dict[str, Any]) -> list[tuple[str, ml_collections.ConfigDict]]:
    """List the runs a config file's ``sweep`` adds, as (folder name, configuration); ValueError where it has none.

    An ":ARGUMENT" behind its path is replaced by those of the sweep; ``overrides`` hold for every run.
    """
    path = config_file.partition(":")[0]
    module = types.SimpleNamespace(**runpy.run_path(path))
    if not hasattr(module, "sweep"):
        raise ValueError(f"--sweep needs a function sweep(add) in {path}, which has none")
    items: list[tuple[str, ml_collections.ConfigDict]] = []

    def add(arg: str, **changes) -> None:
        config = module.get_config(arg)
        config.update(changes)
        config.update_from_flattened_dict(overrides)
        items.append((f"{len(items):02d}-{arg.replace(',', '-')}", config))

    module.sweep(add)
    return items


def main(argv: list[str]) -> None:
    """Run what the flags say.

    A mistake of the user's ends in one line on stderr and exit status 2. Where some of a sweep failed and the rest is
    done and reported, the exit status is 1.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    console.shorten_warnings()
    try:
        _run(as_path(_WORKDIR.value or "", "--workdir"))
    except failures.SomeFailed as error:
        _stop(error, status=1)
    except KeyboardInterrupt:
        _stop(RuntimeError("interrupted; all rows are kept, and the same command goes on from them"), status=130)
    except (ValueError, OSError) as error:
        if _TRACEBACK.value:
            raise
        _stop(error)


def _stop(error: Exception, *, status: int = 2) -> NoReturn:
    console.say(" ".join(["error:", *str(error).split()]), file=sys.stderr)
    sys.exit(status)


def _run(workdir: Path) -> None:
    logging.set_verbosity(logging.WARNING)  # the checkpoint library tells of every file at INFO
    for one, other in (
        ("merge", "sweep"),
        ("distributed", "shard"),
        ("distributed", "merge"),
        ("distributed", "workers"),
    ):
        if flags.FLAGS[one].present and flags.FLAGS[other].present:
            raise ValueError(f"--{one} and --{other} do not go together: leave one out")
    for name in ("coordinator_address", "num_processes", "process_id"):
        if flags.FLAGS[name].present and not _DISTRIBUTED.value:
            raise ValueError(f"--{name} belongs to --distributed: give that too")
    shard = parse_shard(_SHARD.value)
    if _DISTRIBUTED.value:
        jax.distributed.initialize(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, shutdown_timeout_seconds=_LONGEST_WAIT
        )
        shard = (jax.process_index(), jax.process_count())
    num_workers = 1 if _DISTRIBUTED.value else _WORKERS.value
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"--workers must be at least 1, got {num_workers}")
    runs = [(workdir, _CONFIG.value)]
    if _SWEEP.value:
        flag = flags.FLAGS["config"]
        items = sweep_items(config_flags.get_config_filename(flag), config_flags.get_override_values(flag))
        runs = [(workdir / name, config) for name, config in items]
        for _, config in runs:  # a mistake in the last item should not show after days
            _experiment(config).make_plan(config)
    failed, command = [], console.command("experiments.main", sys.argv[1:])
    for folder, config in runs:
        experiment = _experiment(config)
        try:
            report = runner.run(
                experiment, config, folder, shard=shard, num_workers=num_workers, merge=_MERGE.value, command=command
            )
            if report is None:
                console.say(f"Nothing to do for shard {shard[0]}/{shard[1]}, and no rows yet in {folder}")
        except failures.SomeFailed as error:
            failed.append(str(error))
            report = error.report
        if report is not None:
            console.say(report.summary, f"Report: {report.page}", f"All numbers: {report.table}")
    if failed:
        raise failures.SomeFailed("; ".join(failed), report)


def _experiment(config: ml_collections.ConfigDict) -> types.ModuleType:
    name = config.get("experiment")
    if "radii" in config:
        raise ValueError("the configuration's radii is named epsilons: rename it")
    if name not in _EXPERIMENTS:
        raise ValueError(f"the configuration's experiment must be one of {', '.join(_EXPERIMENTS)}, got {name!r}")
    return importlib.import_module(f"experiments.{name}")


def parse_flags(argv: list[str]) -> list[str]:
    """Read the flags; a mistake in them, or in the configuration they name, ends in one line and exit status 2."""
    try:
        rest = flags.FLAGS(argv)
    except AttributeError as error:
        _stop(
            ValueError(
                f"the configuration has no {str(error).strip(chr(34))}: see its file for what there is to change"
            )
        )
    except flags.Error as error:
        _stop(ValueError(str(error).strip().splitlines()[-1]))  # the end of the traceback of a configuration file
    if _CONFIG.value is None:
        console.say(__doc__ or "", file=sys.stderr)
        _stop(ValueError("--config is missing: name one of the files above"))
    if _WORKDIR.value is None:
        _stop(ValueError("--workdir is missing: name a folder for the results, such as --workdir=runs/digits"))
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
