"""Published robust networks beside 1NN, in another norm than they were trained for (Hagai & Weiss, arXiv 2404.06313).

A unit is one model, and gives one result row: its clean accuracy, held against the published one before anything else,
then what the attacks leave of the first images of each split. 1NN's figures are exact. A model that cannot be
evaluated is recorded and the others go on; the next run tries it again.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import tqdm

from experiments import accuracies, admission, attacked, contestants, failures, plan, radii, results, storage
from experiments.report import leaderboard as report
from nn_adv import data, neighbors
from nn_adv.pixels import as_float

_ROW_BYTES = 30_000
_RADIUS_BYTES = 64  # an image, its radii in all norms
_RADII_AT_ONCE = 200  # images between two saves
# What may change between two runs into one workdir: which models are run, where and how fast, not what a row says.
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


class Board(NamedTuple):
    """What all models of a run share.

    Attributes:
      images: those that every model is evaluated on.
      models: in the order in which they are run.
      absent: those of them that are left out, for want of weights.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    images: accuracies.Images
    models: list[contestants.Contestant]
    absent: list[contestants.Contestant]


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
    workdir = Path(workdir)
    board = prepare(config)
    share = board.models[shard[0] :: shard[1]]
    with results.open_store(workdir, _row_identity(board), shard=shard) as store:
        told = _absence(board, share, store.done())
        mine = [model for model in share if model not in board.absent and unit_name(config, model) not in store.done()]
        storage.check_space(workdir, _ROW_BYTES * len(mine) + _RADIUS_BYTES * len(board.images.labels))
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of a log file
        with tqdm.tqdm(total=len(mine), mininterval=pause, miniters=0, dynamic_ncols=True, unit="model") as bar:
            failed = []
            if told:
                bar.write(told, file=sys.stderr)
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
    return Board(config, dataset, images, models, contestants.without_weights(config, models))


def summary(config: ml_collections.ConfigDict, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the table as plain text, for the end of a run."""
    return report.terminal_text(rows, config.sort_by)


def unit_name(config: ml_collections.ConfigDict, model: contestants.Contestant) -> str:
    """Return the name of a model's row, the same in every run."""
    return f"{config.dataset}/{model.name}"


def _check(config) -> None:
    plan.check_evaluation(config)
    plan.check_distinct(config, ("models",))
    allowed = ("clean", *plan.main_radii(config), "mean")
    if config.sort_by not in allowed:
        raise ValueError(f"sort_by must be one of {', '.join(allowed)}, got {config.sort_by!r}")
    for name, value in config.clean.items():
        if not value >= 0:
            raise ValueError(f"clean.{name} must be at least 0, got {value}")


def _row_identity(board: Board) -> dict[str, Any]:
    return plan.without(board.config.to_dict(), _NOT_IN_A_ROW) | plan.identity(board.dataset)


def _finish(board: Board, model, workdir: Path, store, bar) -> bool:
    """Store the row of a model, or record why there is none; tell which."""
    unit = unit_name(board.config, model)

    def show(text: str) -> None:
        bar.set_postfix_str(f"{model.name}: {text}", refresh=False)
        bar.update(0)  # shown when it is time for the next line

    show("loading")
    try:
        make = _neighbor_row if model.name == contestants.NEIGHBOR else _network_row
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
    _progress_file(workdir, unit).unlink(missing_ok=True)
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
        names = _units(board, failed)
        reasons = "; ".join(f"{item['model']}: {item['reason']}" for item in known if item["unit"] in names)
        total = len(share) - len(absent)
        told.append(
            f"{len(failed)} of {total} models failed ({reasons}): mend them, run the same command again; it tries "
            "these alone"
        )
    if told:
        text = "; ".join(told)
        raise ValueError(text) if wrong else failures.SomeFailed(text, page)
    return page


def _row(board: Board, contestant, found, **fields) -> dict[str, Any]:
    dataset = board.dataset
    return {
        "schema": 1,
        "unit": unit_name(board.config, contestant),
        "dataset": dataset.title,
        "dataset_note": dataset.note,
        "task": "all",
        "classes": list(dataset.class_names),
        "method": contestant.name,
        "seed": board.config.seed,
        "num_train": len(dataset.train_images),
        "main_radii": plan.main_radii(board.config),
        "evaluations": found,
        **plan.circumstances(),
    } | fields


def _network_row(board: Board, model, workdir: Path, show) -> dict[str, Any]:
    start = time.perf_counter()
    config, chosen = board.config, board.images
    classifier = contestants.load(model, config, board.dataset)
    loaded = time.perf_counter()
    show("clean accuracy")
    admission.refuse_probabilities(model, classifier, chosen.images[: config.evaluation.batch_size])
    clean = admission.clean_accuracy(model, classifier, config, board.dataset)
    checked = time.perf_counter()
    suite = plan.make_attacks(config, board.dataset.num_classes)
    names = [attack.name for attack in suite]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        places = attacked.broken_by(
            classifier,
            np.asarray(as_float(chosen.images)),
            chosen.labels,
            suite=suite,
            threats=plan.make_threats(config),
            key=jax.random.key(config.seed),
            # An image has the same random numbers whether one split is evaluated or both.
            indices=chosen.image + len(board.dataset.train_images) * (chosen.split == "test"),
            batch_size=config.evaluation.batch_size,
            progress_file=_progress_file(workdir, unit_name(config, model)),
            show=show,
        )
    counts = ("images_per_split", "num_steps", "num_restarts", "num_queries")
    return _row(
        board,
        model,
        accuracies.attacked(config, chosen.split, places, names),
        model=contestants.about(model, classifier),
        clean=clean,
        attack={"attacks": names} | {name: config.evaluation[name] for name in counts},
        radii=None,
        warnings=sorted({str(item.message) for item in caught}),
        seconds={
            "load": round(loaded - start, 3),
            "clean": round(checked - loaded, 3),
            "attack": round(time.perf_counter() - checked, 3),
        },
    )


def _neighbor_row(board: Board, model, workdir: Path, show) -> dict[str, Any]:
    """Compute 1NN's radii, those that an earlier run has not, and look its robust accuracy up in them."""
    start = time.perf_counter()
    dataset = board.dataset
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, dataset.num_classes)
    fitted = time.perf_counter()
    file = "radii/all.npz"
    known = _radii(board, reference, workdir / file, show)
    return _row(
        board,
        model,
        accuracies.exact(board.config, known),
        model={"architecture": "1NN", "num_values": int(np.prod(dataset.train_images.shape))},
        clean=None,
        attack=None,
        radii=radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
        warnings=[],
        files=[file],
        seconds={"fit": round(fitted - start, 3), "radii": round(time.perf_counter() - fitted, 3)},
    )


def _radii(board: Board, reference: neighbors.Reference, path: Path, show) -> radii.Radii:
    """Compute the radii of all images, going on where ``path`` ends; they are kept there."""
    chosen, norms = board.images, list(plan.main_radii(board.config))
    known = [radii.load(path)] if path.exists() else []
    for begin in range(sum(len(part.correct) for part in known), len(chosen.labels), _RADII_AT_ONCE):
        show(f"radii, {begin} of {len(chosen.labels)}")
        images, labels, split, image = (array[begin : begin + _RADII_AT_ONCE] for array in chosen)
        found = radii.measure(reference, images, labels, norms, split=split, image=image)
        known = [functools.reduce(radii.join, [*known, found])]
        radii.save(path, known[0])
    return known[0]


def _progress_file(workdir: Path, unit: str) -> Path:
    return workdir / "attacks" / f"{failures.file_name(unit)}.npz"
