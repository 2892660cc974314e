"""1NN beside adversarially trained networks on many small tasks (Hagai & Weiss 2024, arXiv 2404.06313, section 4).

A unit is one method on one task with one seed, and gives one result row. Networks of a group of tasks are trained
in one program; then each unit of the group is evaluated and its row is stored before the next one starts.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import platform
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

import nn_adv
from experiments import classifiers, plan, report, results, storage
from nn_adv import evaluation, training
from nn_adv.threat import Threat

_ROW_BYTES = 20_000
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
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts.
    """
    workdir = Path(workdir)
    experiment = plan.make_experiment(config)
    groups = plan.make_groups(config, experiment.tasks)
    mine = groups[shard[0] :: shard[1]]

    with results.open_store(workdir, plan.row_identity(config, experiment.dataset), shard=shard) as store:
        for problem in store.problems:
            tqdm.tqdm.write(problem)
        mine = [group for group in mine if {unit.name for unit in group} - store.done()]
        storage.check_space(workdir, _needed_bytes(experiment, mine))
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of a log file
        with tqdm.tqdm(total=sum(map(_effort, mine)), mininterval=pause, dynamic_ncols=True, bar_format=_BAR) as bar:
            for group in mine:
                for row in _rows(experiment, group, store.done(), workdir, bar):
                    store.append(row | {"config_hash": store.config_hash})
    return _report(experiment, workdir, store.problems, {unit.name for group in groups for unit in group})


def _report(experiment, workdir, problems, expected) -> Path | None:
    rows, still_there = results.read_rows(workdir)
    if not rows:
        return None
    return report.write_report(
        workdir,
        rows,
        [*problems, *(line for line in still_there if line not in problems)],
        title=f"1NN and adversarially trained networks on {experiment.dataset.title}",
        num_missing=len(expected - {row["unit"] for row in rows}),
    ).html


def _effort(group) -> int:
    """Steps of the progress bar: one to evaluate a unit, one more to train a network."""
    return len(group) * (1 if group[0].method == "1nn" else 2)


def _needed_bytes(experiment, groups) -> int:
    """Room for rows, and for the checkpoints of networks: parameters, momentum, average and best."""
    num_units = sum(map(len, groups))
    if experiment.model is None:
        return num_units * _ROW_BYTES
    num_networks = sum(len(group) for group in groups if group[0].method != "1nn")
    variables = jax.eval_shape(experiment.model.init, jax.random.key(0), plan.one_image(experiment.dataset))
    return num_units * _ROW_BYTES + num_networks * 4 * sum(4 * leaf.size for leaf in jax.tree.leaves(variables))


def _rows(experiment, group, done, workdir, bar) -> Iterator[dict[str, Any]]:
    """Fit the classifiers of a group, then evaluate those whose rows are missing, one by one."""
    if group[0].method == "1nn":
        fitted = [_neighbors(experiment, unit.task) for unit in group]
    else:
        fitted = _networks(experiment, group, workdir, bar)
    for unit, (classifier, made, train_seconds) in zip(group, fitted, strict=True):
        if unit.name not in done:
            bar.set_postfix_str(f"attacking {unit.method} on {unit.task.name}", refresh=False)
            yield _row(experiment, unit, classifier, made, train_seconds)
        bar.update()


def _row(experiment, unit, classifier, made, train_seconds) -> dict[str, Any]:
    config, dataset = experiment.config, experiment.dataset
    start = time.perf_counter()
    found = _evaluate(config, dataset, unit, classifier)
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
        "main_radii": plan.main_radii(config),
        "evaluations": found,
        "attack": _attack_settings(config, unit.method),
        "training": made,
        "seconds": {"train": round(train_seconds, 3), "evaluate": round(time.perf_counter() - start, 3)},
        "versions": {"nn_adv": nn_adv.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "device": jax.local_devices()[0].device_kind,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _attack_settings(config, method) -> dict[str, Any]:
    names = ["images_per_split", "num_restarts", "num_steps", "step_share"] + ["temperature"] * (method == "1nn")
    judge = "hard 1NN" if method == "1nn" else "the network"
    return {"name": "pgd", "loss": "margin", "judge": judge} | {name: config.evaluation[name] for name in names}


def _neighbors(experiment, task):
    """1NN has nothing to select, so the held-out training images are among its points: both methods see them all."""
    index = np.concatenate([task.train_index, task.holdout_index])
    labels = np.concatenate([task.train_labels, task.holdout_labels])
    order = np.argsort(index)  # ties between neighbours go to the first in the dataset
    start = time.perf_counter()
    classifier = classifiers.nearest_neighbor(
        experiment.dataset.train_images[index[order]],
        labels[order],
        task.num_classes,
        experiment.config.evaluation.temperature,
    )
    return classifier, None, time.perf_counter() - start


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
            {"model": plan.model_settings(config), **_recipe_settings(recipe), "selected_epoch": int(epoch) + 1},
            float(np.nansum(seconds)),
        )
        for variables, epoch, seconds in zip(
            trained.variables, trained.selected_epoch, trained.history.seconds, strict=True
        )
    ]


def _recipe_settings(recipe) -> dict[str, Any]:
    """Return the settings of a recipe without its threats, which the method names, and without what it ignores."""
    settings = dataclasses.asdict(recipe)
    ignored = ["threats", "step_sizes", *(["num_steps"] * (not recipe.threats))]
    ignored += ["beta"] * (recipe.objective != "trades") + ["drop_epochs"] * (recipe.schedule != "step")
    return {name: value for name, value in settings.items() if name not in ignored}


def _evaluate(config, dataset, unit, classifier) -> list[dict[str, Any]]:
    """Count correct and unbroken images of both splits, attacked together."""
    task, settings = unit.task, config.evaluation
    train = _balanced(task.train_labels, settings.images_per_split)
    test = _balanced(task.test_labels, settings.images_per_split)
    images = np.concatenate([dataset.train_images[task.train_index[train]], dataset.test_images[task.test_index[test]]])
    labels = np.concatenate([task.train_labels[train], task.test_labels[test]])
    splits = {"train": slice(0, len(train)), "test": slice(len(train), None)}

    predict = functools.partial(classifiers.predict, classifier)
    attack = functools.partial(
        classifiers.pgd_attack,
        classifier,
        num_steps=settings.num_steps,
        num_restarts=settings.num_restarts,
        step_share=settings.step_share,
    )
    clean = evaluation.correct(predict, images, labels, batch_size=settings.batch_size)
    found = [_counts(splits, None, 0.0, "clean", clean)]
    at_main_radius = []
    for norm, radius in plan.main_radii(config).items():
        radii = sorted({radius, *(multiple * radius for multiple in config.curve)})
        unbroken = evaluation.unbroken_curve(
            attack,
            images,
            labels,
            threats=[Threat(norm, epsilon) for epsilon in radii],
            key=jax.random.key(unit.seed),
            start_from=clean,
            batch_size=settings.batch_size,
        )
        for epsilon, flags in zip(radii, unbroken, strict=True):
            found.append(_counts(splits, norm, epsilon, "attacked", flags))
        at_main_radius.append(unbroken[radii.index(radius)])
    found.append(_counts(splits, "worst", None, "attacked", np.logical_and.reduce(at_main_radius)))
    return [row for rows in found for row in rows]


def _counts(splits, norm, epsilon, kind, flags) -> list[dict[str, Any]]:
    return [
        {
            "split": split,
            "norm": norm,
            "epsilon": epsilon,
            "kind": kind,
            "count": int(flags[rows].size),
            "robust": int(flags[rows].sum()),
        }
        for split, rows in splits.items()
    ]


def _balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first images of each class, ``count`` in all (0: all rows), in their order."""
    if count == 0 or count >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    share = [len(part) for part in np.array_split(np.arange(count), len(classes))]
    rows = [np.flatnonzero(labels == label)[:size] for label, size in zip(classes, share, strict=True)]
    return np.sort(np.concatenate(rows))
