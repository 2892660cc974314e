"""What an experiment runs: methods, tasks and units, read from a configuration and checked before anything starts."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import hashlib
import math
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import nn_adv
from nn_adv import attacks, data, models, training
from nn_adv.threat import Threat

# Each network method: its training objective and the norms it is trained for.
NETWORKS = {
    "standard": ("standard", ()),
    "pgd-linf": ("adversarial", ("linf",)),
    "pgd-l2": ("adversarial", ("l2",)),
    "trades-linf": ("trades", ("linf",)),
    "trades-l2": ("trades", ("l2",)),
    "trades-both": ("trades", ("linf", "l2")),
}
METHODS = ("1nn", *NETWORKS)

# What may change between two runs into one workdir: it decides which units are run, where or how fast, not what a
# row says (beyond rounding).
_NOT_IN_A_ROW = (
    "data_dir",
    "methods",
    "seeds",
    "tasks.names",
    "evaluation.batch_size",
    "training.checkpoint_every",
    "training.group_size",
)

# The least that the counts of an evaluation may be.
_LEAST_COUNTS = {"num_steps": 1, "num_restarts": 1, "num_queries": 1, "batch_size": 1, "images_per_split": 0}

# Settings of the training that are not its recipe.
_NOT_IN_A_RECIPE = ("checkpoint_every", "group_size")


class Unit(NamedTuple):
    """One method on one task with one seed."""

    dataset: str
    task: data.Task
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the unit's row, the same in every run."""
        return f"{self.dataset}/{self.task.name}/{self.method}/{self.seed}"


class Shared(NamedTuple):
    """What all units of a run share.

    Attributes:
      config: from `configs`, checked.
      dataset: resident on the host.
      train_images: those of the dataset, resident on the device.
      tasks: those to be run.
      model: the network, untrained; None if only 1NN is run.
      steps_per_epoch: enough for the largest task of its kind, so that one program trains every task.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    train_images: jax.Array
    tasks: list[data.Task]
    model: nn.Module | None
    steps_per_epoch: int


def make_groups(config: ml_collections.ConfigDict, tasks: Sequence[data.Task]) -> list[list[Unit]]:
    """List all units in groups of one method and one seed; the tasks of a group are trained together.

    Task after task, every method, so that what is there of an unfinished run can be compared. 1NN and its radii hold no
    random numbers, so 1NN has the seed 0 only.
    """
    name, groups = dataset_name(config), []
    for start in range(0, len(tasks), config.training.group_size):
        together = tasks[start : start + config.training.group_size]
        for method in config.methods:
            if method == "1nn":
                groups += [[Unit(name, task, method, 0)] for task in together]
            else:
                groups += [[Unit(name, task, method, seed) for task in together] for seed in config.seeds]
    return groups


def row_identity(config: ml_collections.ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """Return what decides what a row says, the pixels included; rows of one workdir share it."""
    settings = without(config.to_dict(), _NOT_IN_A_ROW)
    return settings | {"model": model_settings(config)} | identity(config, dataset)


def without(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a nested configuration without the values of these dotted names."""
    settings = copy.deepcopy(settings)
    for name in names:
        *path, last = name.split(".")
        functools.reduce(dict.__getitem__, path, settings).pop(last)
    return settings


def dataset_name(config: ml_collections.ConfigDict) -> str:
    """Return the dataset's name in results, which belong to its pixels (`identity`), wherever an npz file lies."""
    return "npz" if config.dataset.startswith("npz:") else config.dataset


def identity(config: ml_collections.ConfigDict, dataset: data.Dataset) -> dict[str, Any]:
    """Return what tells a dataset from others: the same name can stand for other pixels."""
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(array.tobytes())
    return {"dataset": dataset_name(config), "data": digest.hexdigest()[:12], "note": dataset.note}


def circumstances() -> dict[str, Any]:
    """Return what a row says of the machine and the moment that made it."""
    return {
        "versions": {"nn_adv": nn_adv.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "device": jax.local_devices()[0].device_kind,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def model_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the name and the options of the network that is used, without those of the others."""
    model = config.model
    names = [name for name in models.NAMES if name in model]
    if model.name not in names:
        raise ValueError(f"model.name must be one of {', '.join(names)}, got {model.name!r}")
    return {"name": model.name, "dtype": model.dtype, **model[model.name].to_dict()}


def main_epsilons(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Return the main epsilon of each norm that is asked for."""
    return {norm: float(epsilon) for norm, epsilon in config.epsilons.items() if epsilon != 0}


def curve_epsilons(config: ml_collections.ConfigDict, main: float, *, fine: bool = False) -> list[float]:
    """Return a norm's growing epsilons, its main one given; ``fine`` adds those that only cost a look-up."""
    multiples = {1.0, *config.curve, *(config.fine_curve if fine else ())}
    return sorted({multiple * main for multiple in multiples})


def make_recipe(config: ml_collections.ConfigDict, method: str) -> training.Recipe:
    """Translate a method's name and the training settings into a recipe."""
    objective, norms = NETWORKS[method]
    threats = tuple(Threat(norm, main_epsilons(config)[norm]) for norm in norms)
    settings = {key: value for key, value in config.training.items() if key not in _NOT_IN_A_RECIPE}
    return training.Recipe(objective=objective, threats=threats, **settings)


def recipe_settings(recipe: training.Recipe) -> dict[str, Any]:
    """Return the settings of a recipe without its threats, which the method names, and without what it ignores."""
    settings = dataclasses.asdict(recipe)
    ignored = ["threats", "step_sizes", *(["num_steps"] * (not recipe.threats))]
    ignored += ["beta"] * (recipe.objective != "trades") + ["drop_epochs"] * (recipe.schedule != "step")
    return {name: value for name, value in settings.items() if name not in ignored}


def make_threats(config: ml_collections.ConfigDict) -> list[Threat]:
    """Return the threats that networks are attacked in: of each norm the main one, then the others from the largest.

    What no attack breaks at a radius is not attacked at a smaller one (`attacked.broken_by`), so the largest saves the
    most; the main figure is that of attacks on every image.
    """
    threats = []
    for norm, main in main_epsilons(config).items():
        others = [epsilon for epsilon in curve_epsilons(config, main) if epsilon != main]
        threats += [Threat(norm, epsilon) for epsilon in (main, *reversed(others))]
    return threats


def make_attacks(config: ml_collections.ConfigDict, num_classes: int) -> tuple[attacks.Attack, ...]:
    """Return the attacks on networks in their order, as large as the configuration says; by default the ensemble."""
    settings = config.evaluation
    names = settings.attacks or [attack.name for attack in attacks.standard_attacks(num_classes)]
    gradient = {"num_steps": settings.num_steps, "num_restarts": settings.num_restarts}
    counts = {name: {"num_queries": settings.num_queries} if name == "square" else gradient for name in names}
    try:
        return tuple(attacks.named_attack(name, num_classes, **counts[name]) for name in names)
    except ValueError as error:
        raise ValueError(f"evaluation.attacks: {error}") from error


def check(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError for the first value that no run could use, with its name and what is allowed."""
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown or not config.methods:
        raise ValueError(f"methods must be some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    if not config.seeds or any(not isinstance(seed, int) or seed < 0 for seed in config.seeds):
        raise ValueError(f"seeds must hold one or more integers >= 0, got {config.seeds}")
    check_distinct(config, ("methods", "seeds", "tasks.names"))
    check_evaluation(config)
    for name in _NOT_IN_A_RECIPE:
        if config.training[name] < 1:
            raise ValueError(f"training.{name} must be at least 1, got {config.training[name]}")
    networks = [method for method in config.methods if method in NETWORKS]
    if networks and config.training.select_every and not config.tasks.holdout:
        raise ValueError("tasks.holdout must be above 0 to choose an epoch by it; or set training.select_every to 0")
    check_recipes(config, networks)


def check_recipes(config: ml_collections.ConfigDict, methods: Sequence[str]) -> None:
    """Raise ValueError for training settings that one of these network methods could not use."""
    for method in methods:
        for norm in NETWORKS[method][1]:
            known = main_epsilons(config)
            if norm not in known:
                raise ValueError(f"method {method} needs epsilons.{norm}; there is only {', '.join(known)}")
        make_recipe(config, method)


def check_evaluation(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError for epsilons, splits or counts that no evaluation could use."""
    if not config.evaluation.splits or set(config.evaluation.splits) - {"train", "test"}:
        raise ValueError(f"evaluation.splits must be one or both of train, test, got {config.evaluation.splits}")
    check_distinct(config, ("evaluation.splits", "evaluation.attacks"))
    epsilons = main_epsilons(config)
    if not epsilons:
        raise ValueError("epsilons must give that of at least one norm, such as linf")
    for norm, epsilon in epsilons.items():
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilons.{norm} must be a finite number >= 0, got {epsilon}")
        Threat(norm, epsilon)
    for name in ("curve", "fine_curve"):
        if not all(isinstance(multiple, int | float) and 0 <= multiple < math.inf for multiple in config[name]):
            raise ValueError(f"{name} must hold finite multiples >= 0 of the main epsilon, got {config[name]}")
    for name, least in _LEAST_COUNTS.items():
        if config.evaluation[name] < least:
            raise ValueError(f"evaluation.{name} must be at least {least}, got {config.evaluation[name]}")


def check_distinct(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
    """Raise ValueError for the first of these dotted names whose value holds something twice."""
    for name in names:
        values = functools.reduce(getattr, name.split("."), config)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must not hold anything twice, got {values}")


def prepare_tasks(config: ml_collections.ConfigDict) -> Shared:
    """Check the configuration, load the data and build the network, so that mistakes show before long work starts."""
    check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    everything = data.tasks(
        dataset,
        config.tasks.kind,
        train_per_class=config.tasks.train_per_class or None,
        holdout=config.tasks.holdout,
    )
    if set(config.methods) & set(NETWORKS):
        make_attacks(config, everything[0].num_classes)
    most_images = max(len(task.train_index) for task in everything)
    return Shared(
        config,
        dataset,
        jnp.asarray(dataset.train_images),
        named_tasks(everything, config.tasks.names),
        make_model(config, dataset, everything[0].num_classes) if set(config.methods) & set(NETWORKS) else None,
        -(-most_images // config.training.batch_size),
    )


def named_tasks(tasks: Sequence[data.Task], names: Sequence[str]) -> list[data.Task]:
    """Return the tasks of these names, in their order; all tasks if there are no names."""
    known = {task.name: task for task in tasks}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"tasks.names must be some of {', '.join(known)}, got {', '.join(unknown)}")
    return [known[name] for name in names] or list(tasks)


def make_model(config: ml_collections.ConfigDict, dataset: data.Dataset, num_classes: int) -> nn.Module:
    """Make the network, having tried it on the shape of one image."""
    settings = model_settings(config)
    model = models.create(settings.pop("name"), num_classes, **settings)
    image = one_image(dataset)
    try:
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        if not all(leaf.size for leaf in jax.tree.leaves(variables)):
            raise ValueError("nothing is left of them after the convolutions")
    except (TypeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model.name {config.model.name} does not take images of shape {image.shape[1:]} ({reason}): choose another"
        ) from error
    return model


def one_image(dataset: data.Dataset) -> jax.ShapeDtypeStruct:
    """Shape of a batch of one image, as networks take it."""
    return jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
