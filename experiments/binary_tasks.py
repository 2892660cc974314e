"""1NN beside adversarially trained networks on many small tasks (Hagai & Weiss 2024, arXiv 2404.06313, section 4).

A unit is one method on one task with one seed, and gives one result row. Networks of a group of tasks are trained
in one program; then each unit of the group is evaluated and its row is stored before the next one starts.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from experiments import accuracies, attacked, classifiers, console, plan, radii, report, results, storage
from nn_adv import neighbors, training
from nn_adv.border import as_path
from nn_adv.pixels import as_float

_ROW_BYTES = 30_000
_RADIUS_BYTES = 64  # an image, its radii in all norms
_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


def run(config: ml_collections.ConfigDict, workdir: str | Path, *, shard: tuple[int, int] = (0, 1)) -> Path | None:
    """Run what is missing of an experiment, then write its report.

    Args:
      config: from `configs.binary_tasks`.
      workdir: folder of rows, checkpoints and report; made if needed.
      shard: (index, count): run every ``count``-th group of units, from the ``index``-th on.

    Returns:
      The path of the report's page; None if there is no row yet, which a shard without work may find.

    Raises:
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts; or, when
        all is done and reported, bounds that contradict each other.
    """
    workdir = as_path(workdir, "workdir")
    experiment = prepare(config)
    groups = plan.make_groups(config, experiment.tasks)
    mine = groups[shard[0] :: shard[1]]

    with results.open_store(workdir, plan.row_identity(config, experiment.dataset), shard=shard) as store:
        experiment = experiment._replace(dataset=plan.titled(experiment.dataset, store.title))
        for problem in store.problems:
            console.say(problem, file=sys.stderr)
        mine = [group for group in mine if {unit.name for unit in group} - store.done()]
        storage.check_space(workdir, _needed_bytes(experiment, mine))
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of a log file
        with tqdm.tqdm(
            total=sum(map(_effort, mine)), mininterval=pause, miniters=0, dynamic_ncols=True, bar_format=_BAR
        ) as bar:
            for group in mine:
                for row in _rows(experiment, group, store.done(), workdir, bar):
                    store.append(row | {"config_hash": store.config_hash})
    return _report(experiment, workdir, store.problems, {unit.name for group in groups for unit in group})


# Checks a configuration and loads its data, so that mistakes show before long work starts.
prepare = plan.make_experiment


def summary(config: ml_collections.ConfigDict, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the main table as plain text, for the end of a run."""
    return report.terminal_table(rows)


def _report(experiment, workdir, problems, expected) -> Path | None:
    rows, still_there = results.read_rows(workdir)
    if not rows:
        return None
    page = report.write_report(
        workdir,
        rows,
        [*problems, *(line for line in still_there if line not in problems)],
        title=f"1NN and adversarially trained networks on {experiment.dataset.title}",
        num_missing=len(expected - {row["unit"] for row in rows}),
    ).html
    wrong = report.order_violations(rows)
    if wrong:
        more = f" ({len(wrong)} in all)" if len(wrong) > 1 else ""
        raise ValueError(
            f"certified <= exact <= attacked does not hold: {wrong[0]}{more}; all rows are kept, see {page}"
        )
    return page


def _effort(group) -> int:
    """Steps of the progress bar: one to evaluate a unit, one more to train a network."""
    return len(group) * (1 if group[0].method == "1nn" else 2)


def _needed_bytes(experiment, groups) -> int:
    """Room for rows, for radii, and for two checkpoints of networks: parameters, momentum, average and best."""
    num_units = sum(map(len, groups))
    num_images = sum(
        len(unit.task.train_index) + len(unit.task.test_index)
        for group in groups
        for unit in group
        if unit.method == "1nn"
    )
    needed = num_units * _ROW_BYTES + num_images * _RADIUS_BYTES
    if experiment.model is None:
        return needed
    num_networks = sum(len(group) for group in groups if group[0].method != "1nn")
    variables = jax.eval_shape(experiment.model.init, jax.random.key(0), plan.one_image(experiment.dataset))
    return needed + num_networks * 8 * sum(4 * leaf.size for leaf in jax.tree.leaves(variables))


def _rows(experiment, group, done, workdir, bar) -> Iterator[dict[str, Any]]:
    """Fit the classifiers of a group, then evaluate those whose rows are missing, one by one."""
    if group[0].method == "1nn":
        (unit,) = group
        if unit.name not in done:
            bar.set_postfix_str(f"radii of 1nn on {unit.task.name}", refresh=False)
            yield _neighbor_row(experiment, unit, workdir)
        bar.update()
        return
    fitted = _networks(experiment, group, workdir, bar)
    for unit, (classifier, made, train_seconds) in zip(group, fitted, strict=True):
        if unit.name not in done:
            progress_file = workdir / "attacks" / f"{unit.method}-seed{unit.seed}-{unit.task.name}.npz"

            def show(text, what=f"attacking {unit.method} on {unit.task.name}"):
                bar.set_postfix_str(f"{what}: {text}", refresh=False)
                bar.update(0)  # shown when it is time for the next line

            yield _network_row(experiment, unit, classifier, made, train_seconds, progress_file, show)
            progress_file.unlink(missing_ok=True)  # the row is stored
        bar.update()


def _row(experiment, unit, found, **fields) -> dict[str, Any]:
    config, dataset = experiment.config, experiment.dataset
    return {
        "schema": 1,
        "unit": unit.name,
        "dataset": dataset.title,
        "dataset_note": dataset.note,
        "task": unit.task.name,
        "classes": list(unit.task.class_names),
        "method": unit.method,
        "seed": unit.seed,
        "num_train": len(unit.task.train_index) + len(unit.task.holdout_index),
        "main_radii": plan.main_epsilons(config),
        "evaluations": found,
        **plan.circumstances(),
    } | fields


def _network_row(experiment, unit, classifier, made, train_seconds, progress_file, show) -> dict[str, Any]:
    start = time.perf_counter()
    config, chosen = experiment.config, _images(experiment, unit.task)
    suite = plan.make_attacks(config, unit.task.num_classes)
    names = [attack.name for attack in suite]
    places = attacked.broken_by(
        classifier,
        np.asarray(as_float(chosen.images)),
        chosen.labels,
        suite=suite,
        threats=plan.make_threats(config),
        key=jax.random.key(unit.seed),
        # An image has the same random numbers whether one split is evaluated or both.
        indices=chosen.image + len(experiment.dataset.train_images) * (chosen.split == "test"),
        batch_size=config.evaluation.batch_size,
        progress_file=progress_file,
        show=show,
    )
    counts = ("images_per_split", "num_steps", "num_restarts", "num_queries")
    return _row(
        experiment,
        unit,
        accuracies.attacked(config, chosen.split, places, names),
        attack={"attacks": names} | {name: config.evaluation[name] for name in counts},
        radii=None,
        training=made,
        seconds=_seconds(train_seconds, time.perf_counter() - start),
    )


def _neighbor_row(experiment, unit, workdir) -> dict[str, Any]:
    """Compute 1NN's radii and look its robust accuracy up in them; the radii lie in a file of their own."""
    start = time.perf_counter()
    reference = _neighbors(experiment.dataset, unit.task)
    fitted = time.perf_counter()
    chosen = _images(experiment, unit.task)
    norms = list(plan.main_epsilons(experiment.config))
    known = radii.measure(reference, chosen.images, chosen.labels, norms, split=chosen.split, image=chosen.image)
    file = f"radii/{unit.task.name}.npz"
    radii.save(workdir / file, known)
    return _row(
        experiment,
        unit,
        accuracies.exact(experiment.config, known),
        attack=None,
        radii=radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
        training=None,
        files=[file],
        seconds=_seconds(fitted - start, time.perf_counter() - fitted),
    )


def _images(experiment, task) -> accuracies.Images:
    settings = experiment.config.evaluation
    return accuracies.choose_images(experiment.dataset, task, settings.splits, settings.images_per_split)


def _seconds(train, evaluate) -> dict[str, float]:
    return {"train": round(train, 3), "evaluate": round(evaluate, 3)}


def _neighbors(dataset, task) -> neighbors.Reference:
    """1NN has nothing to select, so the held-out training images are among its points: both methods see them all."""
    index = np.concatenate([task.train_index, task.holdout_index])
    labels = np.concatenate([task.train_labels, task.holdout_labels])
    order = np.argsort(index)  # ties between neighbours go to the first in the dataset
    return neighbors.fit(dataset.train_images[index[order]], labels[order], task.num_classes)


def _networks(experiment, group, workdir, bar):
    """Train a network for each task of the group, or load them where that was done before."""
    config, method, seed = experiment.config, group[0].method, group[0].seed
    recipe = plan.make_recipe(config, method)
    tasks = [unit.task for unit in group]
    shown = tasks[0].name + f" and {len(tasks) - 1} more" * (len(tasks) > 1)
    before = bar.n

    def show(epoch, _):
        bar.set_postfix_str(f"training {method} on {shown}, epoch {epoch + 1}/{recipe.num_epochs}", refresh=False)
        bar.update(before + len(group) * (epoch + 1) / recipe.num_epochs - bar.n)

    names = "-".join(task.name for task in tasks)
    folder = f"{method}-seed{seed}-{tasks[0].name}-{zlib.crc32(names.encode()):08x}"
    trained = training.train(
        experiment.model,
        experiment.train_images,
        [
            training.Member(task.train_index, task.train_labels, task.holdout_index, task.holdout_labels)
            for task in tasks
        ],
        recipe,
        # Each task has its own weights and order, so that means over tasks average over them too.
        seeds=[zlib.crc32(f"{seed}/{task.name}".encode()) >> 1 for task in tasks],  # 31 bits: an int32
        steps_per_epoch=experiment.steps_per_epoch,
        checkpoint_every=config.training.checkpoint_every,
        checkpoint_dir=workdir / "checkpoints" / folder,
        on_epoch=show,
    )
    bar.update(before + len(group) - bar.n)  # a finished training is loaded without a call for its epochs
    return [
        (
            classifiers.network(experiment.model, variables),
            {"model": plan.model_settings(config), **plan.recipe_settings(recipe), "selected_epoch": int(epoch) + 1},
            float(np.nansum(seconds)),
        )
        for variables, epoch, seconds in zip(
            trained.variables, trained.selected_epoch, trained.history.seconds, strict=True
        )
    ]
