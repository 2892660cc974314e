"""1NN beside adversarially trained networks on many small tasks (Hagai & Weiss 2024, arXiv 2404.06313, section 4).

A unit is one method on one task with one seed, and gives one result row. Networks of a group of tasks are trained
in one program; then each unit of the group is evaluated and its row is stored before the next one starts.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments import accuracies, attacked, classifiers, plan, radii, report, runner
from nn_adv import neighbors, training
from nn_adv.pixels import as_float

_ROW_BYTES = 30_000
_RADIUS_BYTES = 64  # an image, its radii in all norms
_TRAINING_SHARE = 0.5  # of the time of a network, in the bar


def prepare(config: ml_collections.ConfigDict) -> runner.Experiment:
    """Check the configuration, load the data and build the network, so that mistakes show before long work starts."""
    shared = plan.prepare_tasks(config)
    return runner.Experiment(
        identity=plan.row_identity(config, shared.dataset),
        groups=plan.make_groups(config, shared.tasks),
        rows=functools.partial(_rows, shared),
        needed_bytes=functools.partial(_needed_bytes, shared),
        report=functools.partial(_report, shared),
        summary=report.terminal_table,
    )


def _report(shared, workdir, rows, problems, failed, missing, _) -> Path:
    told = [f"{failure['unit']} failed: {failure['reason']}" for failure in failed]
    return report.write_report(
        workdir,
        rows,
        [*problems, *told],
        title=f"1NN and adversarially trained networks on {rows[0]['dataset']}",
        num_missing=len(missing) + len(failed),
    ).html


def _needed_bytes(shared, groups) -> int:
    """Room for rows, for radii, and for two checkpoints of networks: parameters, momentum, average and best."""
    num_units = sum(map(len, groups))
    num_images = sum(
        len(unit.task.train_index) + len(unit.task.test_index)
        for group in groups
        for unit in group
        if unit.method == "1nn"
    )
    needed = num_units * _ROW_BYTES + num_images * _RADIUS_BYTES
    if shared.model is None:
        return needed
    num_networks = sum(len(group) for group in groups if group[0].method != "1nn")
    variables = jax.eval_shape(shared.model.init, jax.random.key(0), plan.one_image(shared.dataset))
    return needed + num_networks * 8 * sum(4 * leaf.size for leaf in jax.tree.leaves(variables))


def _rows(shared, group, done, workdir, progress) -> Iterator[dict[str, Any]]:
    """Fit the classifiers of a group, then evaluate those whose rows are missing, one by one."""
    missing = [unit for unit in group if unit.name not in done]
    if group[0].method == "1nn":
        for unit in missing:
            progress.show(f"radii of 1nn on {unit.task.name}")
            yield _neighbor_row(shared, unit, workdir)
            progress.advance(1)
        return
    fitted = _networks(shared, group, workdir, progress, len(missing))
    for unit, (classifier, made, train_seconds) in zip(group, fitted, strict=True):
        if unit in missing:
            progress_file = workdir / "attacks" / f"{unit.method}-seed{unit.seed}-{unit.task.name}.npz"

            def show(text, what=f"attacking {unit.method} on {unit.task.name}"):
                progress.show(f"{what}: {text}")

            yield _network_row(shared, unit, classifier, made, train_seconds, progress_file, show)
            progress_file.unlink(missing_ok=True)  # the row is stored
            progress.advance(1 - _TRAINING_SHARE)


def _row(shared, unit, found, **fields) -> dict[str, Any]:
    config, dataset = shared.config, shared.dataset
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


def _network_row(shared, unit, classifier, made, train_seconds, progress_file, show) -> dict[str, Any]:
    start = time.perf_counter()
    config, chosen = shared.config, _images(shared, unit.task)
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
        indices=chosen.image + len(shared.dataset.train_images) * (chosen.split == "test"),
        batch_size=config.evaluation.batch_size,
        progress_file=progress_file,
        show=show,
    )
    counts = ("images_per_split", "num_steps", "num_restarts", "num_queries")
    return _row(
        shared,
        unit,
        accuracies.attacked(config, chosen.split, places, names),
        attack={"attacks": names} | {name: config.evaluation[name] for name in counts},
        radii=None,
        training=made,
        seconds=_seconds(train_seconds, time.perf_counter() - start),
    )


def _neighbor_row(shared, unit, workdir) -> dict[str, Any]:
    """Compute 1NN's radii and look its robust accuracy up in them; the radii lie in a file of their own."""
    start = time.perf_counter()
    reference = _neighbors(shared.dataset, unit.task)
    fitted = time.perf_counter()
    chosen = _images(shared, unit.task)
    norms = list(plan.main_epsilons(shared.config))
    known = radii.measure(reference, chosen.images, chosen.labels, norms, split=chosen.split, image=chosen.image)
    file = f"radii/{unit.task.name}.npz"
    radii.save(workdir / file, known)
    return _row(
        shared,
        unit,
        accuracies.exact(shared.config, known),
        attack=None,
        radii=radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
        training=None,
        files=[file],
        seconds=_seconds(fitted - start, time.perf_counter() - fitted),
    )


def _images(shared, task) -> accuracies.Images:
    settings = shared.config.evaluation
    return accuracies.choose_images(shared.dataset, task, settings.splits, settings.images_per_split)


def _seconds(train, evaluate) -> dict[str, float]:
    return {"train": round(train, 3), "evaluate": round(evaluate, 3)}


def _neighbors(dataset, task) -> neighbors.Reference:
    """1NN has nothing to select, so the held-out training images are among its points: both methods see them all."""
    index = np.concatenate([task.train_index, task.holdout_index])
    labels = np.concatenate([task.train_labels, task.holdout_labels])
    order = np.argsort(index)  # ties between neighbours go to the first in the dataset
    return neighbors.fit(dataset.train_images[index[order]], labels[order], task.num_classes)


def _networks(shared, group, workdir, progress, num_missing):
    """Train a network for each task of the group, or load them where that was done before."""
    config, method, seed = shared.config, group[0].method, group[0].seed
    recipe = plan.make_recipe(config, method)
    tasks = [unit.task for unit in group]
    shown = tasks[0].name + f" and {len(tasks) - 1} more" * (len(tasks) > 1)

    def show(epoch, _):
        progress.show(f"training {method} on {shown}, epoch {epoch + 1}/{recipe.num_epochs}")
        progress.advance(_TRAINING_SHARE * num_missing / recipe.num_epochs)

    names = "-".join(task.name for task in tasks)
    folder = f"{method}-seed{seed}-{tasks[0].name}-{zlib.crc32(names.encode()):08x}"
    trained = training.train(
        shared.model,
        shared.train_images,
        [
            training.Member(task.train_index, task.train_labels, task.holdout_index, task.holdout_labels)
            for task in tasks
        ],
        recipe,
        # Each task has its own weights and order, so that means over tasks average over them too.
        seeds=[zlib.crc32(f"{seed}/{task.name}".encode()) >> 1 for task in tasks],  # 31 bits: an int32
        steps_per_epoch=shared.steps_per_epoch,
        checkpoint_every=config.training.checkpoint_every,
        checkpoint_dir=workdir / "checkpoints" / folder,
        on_epoch=show,
    )
    return [
        (
            classifiers.network(shared.model, variables),
            {"model": plan.model_settings(config), **plan.recipe_settings(recipe), "selected_epoch": int(epoch) + 1},
            float(np.nansum(seconds)),
        )
        for variables, epoch, seconds in zip(
            trained.variables, trained.selected_epoch, trained.history.seconds, strict=True
        )
    ]
