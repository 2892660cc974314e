"""Published robust networks beside 1NN, in another norm than they were trained for (Hagai & Weiss, arXiv 2404.06313).

A unit is one model, and gives one result row: its clean accuracy, held against the published one before anything else,
then what the attacks leave of the first images of each split. 1NN's figures are exact.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from experiments import accuracies, contestants, plan, runner
from experiments.leaderboard_rows import Board, Unit, neighbor_row, network_row, progress_file
from experiments.report import leaderboard as report
from nn_adv import data

_ROW_BYTES = 30_000
_RADIUS_BYTES = 64  # an image, its radii in all norms
# What may change between two runs into one workdir: which models are run, where and how fast, not what a row says
# (`_before` sees to what a catalogue says of a network that has a row).
_NOT_IN_A_ROW = (
    "data_dir",
    "catalogue",
    "weights_dir",
    "download",
    "models",
    "only_in_paper",
    "sort_by",
    "clean.tolerance",
    "evaluation.batch_size",
)


def load(config: ml_collections.ConfigDict) -> Board:
    """Check the configuration, load the data and find the models, so that mistakes show before long work starts."""
    _check(config)
    models = contestants.choose(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    plan.make_attacks(config, dataset.num_classes)
    settings = config.evaluation
    images = accuracies.first_images(dataset, settings.splits, settings.images_per_split)
    return Board(config, dataset, images, [Unit(plan.dataset_name(config), model) for model in models])


def prepare(config: ml_collections.ConfigDict) -> runner.Experiment:
    """See `runner.Experiment`."""
    board = load(config)
    absent = [
        unit.name for unit in board.units if unit.model.is_optional and contestants.lacks_weights(unit.model, config)
    ]
    return runner.Experiment(
        identity=plan.without(config.to_dict(), _NOT_IN_A_ROW) | plan.identity(config, board.dataset),
        groups=[[unit] for unit in board.units],
        rows=functools.partial(_rows, board),
        needed_bytes=lambda groups: _ROW_BYTES * len(groups) + _RADIUS_BYTES * len(board.images.labels),
        report=functools.partial(_report, board, absent),
        summary=functools.partial(report.terminal_text, sort_by=config.sort_by),
        skipped=frozenset(absent),
        before=functools.partial(_before, board, absent),
    )


def _check(config) -> None:
    plan.check_evaluation(config)
    plan.check_distinct(config, ("models",))
    allowed = ("clean", *plan.main_epsilons(config), "mean")
    if config.sort_by not in allowed:
        raise ValueError(f"sort_by must be one of {', '.join(allowed)}, got {config.sort_by!r}")
    for name, value in config.clean.items():
        if not value >= 0:
            raise ValueError(f"clean.{name} must be at least 0, got {value}")


def _rows(board: Board, group, done, workdir: Path, progress) -> Iterator[dict[str, Any]]:
    (unit,) = group
    model = unit.model

    def show(text: str) -> None:
        progress.show(f"{model.name}: {text}")

    show("loading")
    try:
        make = neighbor_row if model.name == contestants.NEIGHBOR else network_row
        yield make(board, unit, workdir, show)
        progress_file(workdir, unit).unlink(missing_ok=True)  # the row is stored
    finally:
        gc.collect()
        following = board.units[board.units.index(unit) + 1 :][:1]
        if not following or following[0].model.architecture != model.architecture:
            jax.clear_caches()  # programs hold memory, and those of plain functions their weights


def _before(board: Board, absent: Sequence[str], workdir: Path, rows, share) -> list[str]:
    """Refuse rows of another network than the one that has its name now; tell which networks lack their weights."""
    stored = {row["unit"]: row for row in rows}
    changed = [
        f"{unit.model.name} ({', '.join(what)})"
        for unit in board.units
        if (row := stored.get(unit.name))
        and (what := contestants.changed_since(unit.model, row["model"], board.config))
    ]
    if changed:
        raise ValueError(
            f"workdir {workdir} has rows of other networks of these names, changed since: {', '.join(changed)}; choose "
            "another --workdir, or put back what was there"
        )
    mine = [unit for (unit,) in share if unit.name not in stored]
    lacking = [
        unit.model.name
        for unit in mine
        if unit.name not in absent and contestants.lacks_weights(unit.model, board.config)
    ]
    told = [f"no weights in {board.config.weights_dir}, so these will fail: {', '.join(lacking)}"] if lacking else []
    return [line for line in (_absence(board, absent, share, stored), *told) if line]


def _absence(board: Board, absent: Sequence[str], share, done: Mapping[str, Any]) -> str:
    """Say how many networks of a shard are left out for want of weights; nothing if none is, or all have rows."""
    left_out = {unit.name for (unit,) in share} & set(absent) - set(done)
    if not left_out:
        return ""
    total = sum(unit.model.is_optional for (unit,) in share)
    networks = "networks" if len(share) == len(board.units) else "networks of this shard"
    return (
        f"{len(left_out)} of {total} {networks} have no weights in {board.config.weights_dir} and are left out: put "
        "them there (docs/leaderboard.md says where from) or set download, and run the same command again"
    )


def _report(board: Board, absent: Sequence[str], workdir: Path, rows, problems, failed, missing, share) -> Path:
    names = {unit.name: unit.model.name for unit in board.units}
    return report.write(
        workdir,
        rows,
        problems,
        failed=[{"clean": None} | failure | {"model": names[failure["unit"]]} for failure in failed],
        absence=_absence(board, absent, share, {row["unit"]: row for row in rows}),
        num_missing=len(missing),
        sort_by=board.config.sort_by,
    )
