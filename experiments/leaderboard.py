"""Published robust networks beside 1NN, in another norm than they were trained for (Hagai & Weiss, arXiv 2404.06313).

A unit is one model, and gives one result row: its clean accuracy, held against the published one before anything else,
then what the attacks leave of the first images of each split. 1NN's figures are exact. A model that cannot be
evaluated is recorded and the others go on; the next run tries it again.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import ml_collections
import tqdm

from experiments import accuracies, admission, console, contestants, failures, plan, results, storage
from experiments.leaderboard_rows import Board, neighbor_row, network_row, progress_file, unit_name
from experiments.report import leaderboard as report
from nn_adv import data
from nn_adv.border import as_path

_ROW_BYTES = 30_000
_RADIUS_BYTES = 64  # an image, its radii in all norms
# What may change between two runs into one workdir: which models are run, where and how fast, not what a row says
# (`_check_unchanged` sees to what a catalogue says of a network that has a row).
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


def run(config: ml_collections.ConfigDict, workdir: str | Path, *, shard: tuple[int, int] = (0, 1)) -> Path | None:
    """Evaluate the models that have no row yet, then write the report.

    Args:
      config: from `configs.leaderboard`.
      workdir: folder of rows, progress and report; made if needed.
      shard: (index, count): evaluate every ``count``-th model, from the ``index``-th on.

    Returns:
      The path of the report's page; None if there is no row yet.

    Raises:
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts; or bounds
        that contradict each other.
      SomeFailed: all is done and reported but for the models that it names.
    """
    workdir = as_path(workdir, "workdir")
    board = prepare(config)
    share = board.models[shard[0] :: shard[1]]
    with results.open_store(workdir, _row_identity(board), shard=shard) as store:
        board = board._replace(dataset=plan.titled(board.dataset, store.title))
        _check_unchanged(board, workdir)
        mine = [model for model in share if model not in board.absent and unit_name(config, model) not in store.done()]
        storage.check_space(workdir, _ROW_BYTES * len(mine) + _RADIUS_BYTES * len(board.images.labels))
        for line in filter(None, (_absence(board, share, store.done()), _lacking(board, mine))):
            console.say(line, file=sys.stderr)
        failed = []
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of a log file
        with tqdm.tqdm(
            total=len(mine), mininterval=pause, miniters=0, dynamic_ncols=True, unit="model", disable=not mine
        ) as bar:
            for model, following in itertools.zip_longest(mine, mine[1:]):
                if not _finish(board, model, workdir, store, bar):
                    failed.append(model)
                gc.collect()
                if following is None or following.architecture != model.architecture:
                    jax.clear_caches()  # programs hold memory, and those of plain functions their weights
    return _report(board, share, workdir, failed)


def prepare(config: ml_collections.ConfigDict) -> Board:
    """Check the configuration, load the data and find the models, so that mistakes show before long work starts."""
    _check(config)
    models = contestants.choose(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    plan.make_attacks(config, dataset.num_classes)
    settings = config.evaluation
    images = accuracies.first_images(dataset, settings.splits, settings.images_per_split)
    absent = [model for model in models if model.is_optional and contestants.lacks_weights(model, config)]
    return Board(config, dataset, images, models, absent)


def summary(config: ml_collections.ConfigDict, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the table as plain text, for the end of a run."""
    return report.terminal_text(rows, config.sort_by)


def _check(config) -> None:
    plan.check_evaluation(config)
    plan.check_distinct(config, ("models",))
    allowed = ("clean", *plan.main_epsilons(config), "mean")
    if config.sort_by not in allowed:
        raise ValueError(f"sort_by must be one of {', '.join(allowed)}, got {config.sort_by!r}")
    for name, value in config.clean.items():
        if not value >= 0:
            raise ValueError(f"clean.{name} must be at least 0, got {value}")


def _row_identity(board: Board) -> dict[str, Any]:
    return plan.without(board.config.to_dict(), _NOT_IN_A_ROW) | plan.identity(board.config, board.dataset)


def _check_unchanged(board: Board, workdir: Path) -> None:
    """Raise ValueError if a row of the workdir is of another network than the one that has its name now."""
    rows = {row["unit"]: row for row in results.read_rows(workdir)[0]}
    changed = [
        f"{model.name} ({', '.join(what)})"
        for model in board.models
        if (row := rows.get(unit_name(board.config, model)))
        and (what := contestants.changed_since(model, row["model"], board.config))
    ]
    if changed:
        raise ValueError(
            f"workdir {workdir} has rows of other networks of these names, changed since: {', '.join(changed)}; choose "
            "another --workdir, or put back what was there"
        )


def _finish(board: Board, model, workdir: Path, store, bar) -> bool:
    """Store the row of a model, or record why there is none; tell which."""
    unit = unit_name(board.config, model)

    def show(text: str) -> None:
        bar.set_postfix_str(f"{model.name}: {text}", refresh=False)
        bar.update(0)  # shown when it is time for the next line

    show("loading")
    try:
        make = neighbor_row if model.name == contestants.NEIGHBOR else network_row
        row = make(board, model, workdir, show)
    except storage.ResultsError:  # of the workdir, where nothing else can be stored either
        raise
    except Exception as error:  # whatever is wrong with one model is no reason to leave out the others
        clean = error.clean if isinstance(error, admission.WrongAccuracy) else None
        failure = failures.record(workdir, unit, error, model=model.name, clean=clean)
        bar.write(f"{model.name} failed: {failure['reason']}", file=sys.stderr)
        return False
    finally:
        bar.update()
    store.append(row | {"config_hash": store.config_hash})
    failures.forget(workdir, unit)
    progress_file(workdir, unit).unlink(missing_ok=True)
    return True


def _absence(board: Board, share: Sequence[contestants.Contestant], done: Set[str]) -> str:
    """Say how many networks of a shard are left out for want of weights; nothing if none is, or all have rows."""
    absent = _units(board, share) & _units(board, board.absent) - done
    if not absent:
        return ""
    total = sum(model.is_optional for model in share)
    networks = "networks" if len(share) == len(board.models) else "networks of this shard"
    return (
        f"{len(absent)} of {total} {networks} have no weights in {board.config.weights_dir} and are left out: put them "
        "there (docs/leaderboard.md says where from) or set download, and run the same command again"
    )


def _lacking(board: Board, mine: Sequence[contestants.Contestant]) -> str:
    """Say which networks, asked for by name, will fail for want of weights."""
    names = [model.name for model in mine if contestants.lacks_weights(model, board.config)]
    return f"no weights in {board.config.weights_dir}, so these will fail: {', '.join(names)}" if names else ""


def _units(board: Board, models: Iterable[contestants.Contestant]) -> set[str]:
    return {unit_name(board.config, model) for model in models}


def _report(board: Board, share: Sequence, workdir: Path, failed: Sequence[contestants.Contestant]) -> Path | None:
    rows, problems = results.read_rows(workdir)
    done = {row["unit"] for row in rows}
    absent = _units(board, share) & _units(board, board.absent)
    missing = _units(board, board.models) - absent - done
    known = [failure for unit, failure in failures.read(workdir).items() if unit in missing]
    page, wrong, told = None, [], []
    if rows:
        page = report.write(
            workdir,
            rows,
            problems,
            failed=known,
            absence=_absence(board, share, done),
            num_missing=len(missing) - len(known),
            sort_by=board.config.sort_by,
        )
        wrong = report.order_violations(rows)
    if wrong:
        told.append(f"certified <= exact <= attacked does not hold: {'; '.join(wrong)}; see {page}")
    if failed:
        names = ", ".join(model.name for model in failed)
        told.append(
            f"{len(failed)} of {len(share) - len(absent)} models failed, for the reasons given above: {names}; mend "
            "them, and run the same command again; it tries these alone"
        )
    if told:
        text = "; ".join(told)
        raise ValueError(text) if wrong else failures.SomeFailed(text, page)
    return page
