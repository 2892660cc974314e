"""1NN beside adversarially trained networks on many small tasks (Hagai & Weiss 2024, arXiv 2404.06313, section 4).

A unit is one method on one task with one seed, and gives one result row. Networks of a group of tasks are trained
in one program; then each unit of the group is evaluated and its row is stored before the next one starts.
"""

from __future__ import annotations

import datetime
import functools
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

import nn_adv
from experiments import classifiers, plan, report, results
from nn_adv import evaluation, training
from nn_adv.threat import Threat

_ROW_BYTES = 20_000


def run(config: ml_collections.ConfigDict, workdir: str | Path, *, shard: tuple[int, int] = (0, 1)) -> Path:
    """Run what is missing of an experiment, then write its report.

    Args:
      config: from `configs.binary_tasks`.
      workdir: folder of rows, checkpoints and report; made if needed.
      shard: (index, count): run every ``count``-th group of units, from the ``index``-th on.

    Returns:
      The path of the report's page.

    Raises:
      ValueError: anything wrong with the configuration, the data or the workdir, before the long work starts.
    """
    workdir = Path(workdir)
    experiment = plan.make_experiment(config)
    groups = plan.make_groups(config, experiment.tasks)
    mine = groups[shard[0] :: shard[1]]

    with results.open_store(workdir, plan.row_identity(config), shard=shard) as store:
        for problem in store.problems:
            tqdm.tqdm.write(problem)
        missing = [unit for group in mine for unit in group if unit.name not in store.done()]
        results.check_space(workdir, len(missing) * (_ROW_BYTES + _checkpoint_bytes(experiment)))
        num_units = sum(map(len, mine))
        with tqdm.tqdm(total=num_units, initial=num_units - len(missing), unit="unit", dynamic_ncols=True) as bar:
            for group in mine:
                names = {unit.name for unit in group} - store.done()
                for row in _rows(experiment, group, names, workdir, bar) if names else ():
                    store.append(row | {"config_hash": store.config_hash})
                    bar.update()
    rows, still_there = results.read_rows(workdir)
    problems = [*store.problems, *(line for line in still_there if line not in store.problems)]
    title = f"1NN and adversarially trained networks on {experiment.dataset.title}"
    return report.write_report(workdir, rows, problems, title=title, expected_units=sum(map(len, groups))).html


def _checkpoint_bytes(experiment) -> int:
    """Room for a network's parameters, momentum, average and best, twice: one checkpoint replaces another."""
    image = plan.one_image(experiment.dataset)
    variables = jax.eval_shape(experiment.model.init, jax.random.key(0), image)
    return 8 * sum(4 * leaf.size for leaf in jax.tree.leaves(variables))


def _rows(experiment, group, names, workdir, bar) -> Iterator[dict[str, Any]]:
    """Fit the classifiers of a group, then evaluate the units in ``names``, one by one."""
    start = time.perf_counter()
    if group[0].method == "1nn":
        fitted = [(_neighbors(experiment, unit.task), None) for unit in group]
    else:
        fitted = _networks(experiment, group, workdir, bar)
    train_seconds = (time.perf_counter() - start) / len(group)
    for unit, (classifier, made) in zip(group, fitted, strict=True):
        if unit.name in names:
            bar.set_postfix_str(f"attacking {unit.method} on {unit.task.name}")
            yield _row(experiment, unit, classifier, made, train_seconds)


def _row(experiment, unit, classifier, made, train_seconds) -> dict[str, Any]:
    config, dataset = experiment.config, experiment.dataset
    start = time.perf_counter()
    found = _evaluate(config, dataset, unit, classifier)
    return {
        "schema": 1,
        "unit": unit.name,
        "dataset": unit.dataset,
        "dataset_note": dataset.note,
        "task": unit.task.name,
        "classes": list(unit.task.class_names),
        "method": unit.method,
        "seed": unit.seed,
        "num_train": len(unit.task.train_index) + len(unit.task.holdout_index),
        "main_radii": config.radii.to_dict(),
        "evaluations": found,
        "attack": {"name": "pgd", **config.evaluation.to_dict()},
        "training": made,
        "seconds": {"train": round(train_seconds, 3), "evaluate": round(time.perf_counter() - start, 3)},
        "versions": {"nn_adv": nn_adv.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "device": jax.local_devices()[0].device_kind,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _neighbors(experiment, task):
    """1NN has nothing to select, so the held-out training images are among its points: both methods see them all."""
    index = np.concatenate([task.train_index, task.holdout_index])
    labels = np.concatenate([task.train_labels, task.holdout_labels])
    order = np.argsort(index)  # ties between neighbours go to the first in the dataset
    return classifiers.nearest_neighbor(
        experiment.dataset.train_images[index[order]],
        labels[order],
        task.num_classes,
        experiment.config.evaluation.temperature,
    )


def _networks(experiment, group, workdir, bar):
    """Train a network for each task of the group, or load them where that was done before."""
    config, method, seed = experiment.config, group[0].method, group[0].seed
    recipe = plan.make_recipe(config, method)
    tasks = [unit.task for unit in group]
    names = tasks[0].name if len(tasks) == 1 else f"{tasks[0].name}-to-{tasks[-1].name}"

    def show(epoch, _):
        bar.set_postfix_str(f"training {method} on {names}, epoch {epoch + 1}/{recipe.num_epochs}")

    trained = training.train(
        experiment.model,
        experiment.train_images,
        [
            training.Member(task.train_index, task.train_labels, task.holdout_index, task.holdout_labels)
            for task in tasks
        ],
        recipe,
        seeds=[unit.seed for unit in group],
        steps_per_epoch=experiment.steps_per_epoch,
        checkpoint_every=config.training.checkpoint_every,
        checkpoint_dir=workdir / "checkpoints" / f"{method}-{names}-seed{seed}",
        on_epoch=show,
    )
    settings = {"model": config.model.to_dict(), **config.training.to_dict()}
    return [
        (classifiers.network(experiment.model, variables), settings | {"selected_epoch": int(epoch)})
        for variables, epoch in zip(trained.variables, trained.selected_epoch, strict=True)
    ]


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
    for norm, radius in config.radii.items():
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
