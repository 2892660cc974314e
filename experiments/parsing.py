"""Parts of a plan: read from a configuration, and checked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from experiments.methods import NETWORKS
from nn_adv import attacks, data, models, training
from nn_adv.threat import Threat

# The least that the counts of an evaluation may be.
_LEAST_COUNTS = {"num_steps": 1, "num_restarts": 1, "num_queries": 1, "batch_size": 1, "images_per_split": 0}

# Settings of the training that are not its recipe.
NOT_IN_A_RECIPE = ("checkpoint_every", "group_size")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How many images are judged, against which threats; `read` makes and checks it."""

    epsilons: Mapping[str, float]  # the main one of each norm that is asked for
    # the growing epsilons of each norm that networks are attacked at, the main one among them
    curves: Mapping[str, tuple[float, ...]]
    fine_curves: Mapping[str, tuple[float, ...]]  # those, and more that only cost a look-up
    splits: tuple[str, ...]  # one or both of train, test
    images_per_split: int  # the first so many; 0: all
    attack_names: tuple[str, ...]  # those on networks; empty: the standard ensemble
    sizes: Mapping[str, int]  # num_steps, num_restarts and num_queries of the attacks
    batch_size: int  # images per call

    @classmethod
    def read(cls, config: ml_collections.ConfigDict) -> Evaluation:
        """Raise ValueError for epsilons, splits or counts that no evaluation could use.

        An experiment without networks has no settings of attacks, and no curve of theirs.
        """
        settings = config.evaluation
        if not settings.splits or set(settings.splits) - {"train", "test"}:
            raise ValueError(f"evaluation.splits must be one or both of train, test, got {settings.splits}")
        check_distinct(config, [f"evaluation.{name}" for name in ("splits", "attacks") if name in settings])
        for name in ("curve", "fine_curve"):
            multiples = config.get(name, ())
            if not all(isinstance(multiple, int | float) and 0 <= multiple < math.inf for multiple in multiples):
                raise ValueError(f"{name} must hold finite multiples >= 0 of the main epsilon, got {multiples}")
        for name, least in _LEAST_COUNTS.items():
            if settings.get(name, least) < least:
                raise ValueError(f"evaluation.{name} must be at least {least}, got {settings[name]}")
        epsilons = _main_epsilons(config)
        curve = {1.0, *config.get("curve", ())}
        fine = {*curve, *config.fine_curve}
        return cls(
            epsilons,
            {norm: tuple(sorted({multiple * main for multiple in curve})) for norm, main in epsilons.items()},
            {norm: tuple(sorted({multiple * main for multiple in fine})) for norm, main in epsilons.items()},
            tuple(settings.splits),
            settings.images_per_split,
            tuple(settings.get("attacks", ())),
            {name: settings[name] for name in ("num_steps", "num_restarts", "num_queries") if name in settings},
            settings.get("batch_size", 1),
        )

    @property
    def threats(self) -> list[Threat]:
        """Those that networks are attacked in: of each norm the main one, then the others from the largest.

        What no attack breaks at a radius is not attacked at a smaller one (`attacked.broken_by`), so the largest saves
        the most; the main figure is that of attacks on every image.
        """
        return [
            Threat(norm, epsilon)
            for norm, main in self.epsilons.items()
            for epsilon in (main, *(other for other in reversed(self.curves[norm]) if other != main))
        ]

    def suite(self, num_classes: int) -> tuple[attacks.Attack, ...]:
        """Return the attacks on networks in their order, as large as the configuration says."""
        names = self.attack_names or [attack.name for attack in attacks.standard_attacks(num_classes)]
        try:
            return tuple(self.attack(name, num_classes) for name in names)
        except ValueError as error:
            raise ValueError(f"evaluation.attacks: {error}") from error

    def attack(self, name: str, num_classes: int) -> attacks.Attack:
        """Return the attack of this name, as large as the configuration says."""
        known = inspect.signature(attacks.named_attack(name, num_classes).fn).parameters
        sizes = {size: value for size, value in self.sizes.items() if size in known}
        return attacks.named_attack(name, num_classes, **sizes)


def _main_epsilons(config: ml_collections.ConfigDict) -> dict[str, float]:
    epsilons = {norm: float(epsilon) for norm, epsilon in config.epsilons.items() if epsilon != 0}
    if not epsilons:
        raise ValueError("epsilons must give that of at least one norm, such as linf")
    for norm, epsilon in epsilons.items():
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilons.{norm} must be a finite number >= 0, got {epsilon}")
        Threat(norm, epsilon)
    return epsilons


def read_recipes(config: ml_collections.ConfigDict, methods: Sequence[str]) -> dict[str, training.Recipe]:
    """Make the recipe of each of these network methods; ValueError for settings that one of them could not use."""
    settings = {key: value for key, value in config.training.items() if key not in NOT_IN_A_RECIPE}
    recipes = {}
    for method in methods:
        objective, norms = NETWORKS[method]
        known = {norm: float(epsilon) for norm, epsilon in config.epsilons.items() if epsilon != 0}
        for norm in norms:
            if norm not in known:
                raise ValueError(f"method {method} needs epsilons.{norm}; there is only {', '.join(known)}")
        threats = tuple(Threat(norm, known[norm]) for norm in norms)
        recipes[method] = training.Recipe(objective=objective, threats=threats, **settings)
    return recipes


def recipe_settings(recipe: training.Recipe) -> dict[str, Any]:
    """Return the settings of a recipe without its threats, which the method names, and without what it ignores."""
    settings = dataclasses.asdict(recipe)
    ignored = ["threats", "step_sizes", *(["num_steps"] * (not recipe.threats))]
    ignored += ["batch_norm_groups"] * (recipe.batch_norm_groups == 1)
    ignored += ["beta"] * (recipe.objective != "trades") + ["drop_epochs"] * (recipe.schedule != "step")
    return {name: value for name, value in settings.items() if name not in ignored}


def model_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the name and the options of the network that is used, without those of the others."""
    model = config.model
    names = [name for name in models.NAMES if name in model]
    if model.name not in names:
        raise ValueError(f"model.name must be one of {', '.join(names)}, got {model.name!r}")
    return {"name": model.name, "dtype": model.dtype, **model[model.name].to_dict()}


def make_model(settings: Mapping[str, Any], dataset: data.Dataset, num_classes: int) -> nn.Module:
    """Make the network of `model_settings`, having tried it on the shape of one image."""
    options = {name: value for name, value in settings.items() if name != "name"}
    model = models.create(settings["name"], num_classes, **options)
    try:
        image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        if not all(leaf.size for leaf in jax.tree.leaves(shapes)):
            raise ValueError("nothing is left of them after the convolutions")
    except (TypeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"model.name {settings['name']} does not take images of shape {dataset.image_shape} ({reason}): choose "
            "another"
        ) from error
    return model


def make_identity(
    config: ml_collections.ConfigDict, dataset: data.Dataset, not_in_a_row: Sequence[str]
) -> dict[str, Any]:
    """Return what decides what a row says, the pixels included: the same name can stand for other ones.

    ``not_in_a_row`` are dotted names of what may change between two runs into one workdir: it decides which units are
    run, where or how fast, not what a row says (beyond rounding).
    """
    settings = config.to_dict()
    for name in not_in_a_row:
        *path, last = name.split(".")
        functools.reduce(dict.__getitem__, path, settings).pop(last)
    if "model" in settings:
        settings["model"] = model_settings(config)
    digest = hashlib.sha256()
    for array in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels):
        digest.update(array.tobytes())
    return settings | {"dataset": dataset_name(config), "data": digest.hexdigest()[:12], "note": dataset.note}


def dataset_name(config: ml_collections.ConfigDict) -> str:
    """Return the dataset's name in results, which belong to its pixels (`identity`), wherever an npz file lies."""
    return "npz" if config.dataset.startswith("npz:") else config.dataset


def check_named(name: str, values: Iterable[str], known: Iterable[str], *, may_be_empty: bool = False) -> None:
    """Raise ValueError for values that are not among the known ones, or for none."""
    values = list(values)
    unknown = [value for value in values if not isinstance(value, str) or value not in known]
    if unknown or not (values or may_be_empty):
        raise ValueError(f"{name} must be some of {', '.join(known)}, got {', '.join(map(str, unknown)) or 'none'}")


def check_seeds(name: str, seeds: Sequence[int]) -> None:
    """Raise ValueError for seeds that are none, or that JAX would take for others, or no seed."""
    wrong = [seed for seed in seeds if type(seed) is not int or not 0 <= seed < 2**32]
    if wrong or not seeds:
        raise ValueError(f"{name} must be in 0..{2**32 - 1}, got {wrong[0] if wrong else seeds!r}")


def check_distinct(config: ml_collections.ConfigDict, names: Sequence[str]) -> None:
    """Raise ValueError for the first of these dotted names whose value holds something twice."""
    for name in names:
        values = functools.reduce(getattr, name.split("."), config)
        if len(set(map(str, values))) < len(values):
            raise ValueError(f"{name} must not hold anything twice, got {values}")


def named_tasks(tasks: Sequence[data.Task], names: Sequence[str]) -> list[data.Task]:
    """Return the tasks of these names, in their order; all tasks if there are no names."""
    known = {task.name: task for task in tasks}
    check_named("tasks.names", names, known, may_be_empty=True)
    return [known[name] for name in names] or list(tasks)


def with_holdout(task: data.Task) -> data.Task:
    """Put the held-out images back among the training images: 1NN has nothing to select, so that it sees them all."""
    index = np.concatenate([task.train_index, task.holdout_index])
    order = np.argsort(index)  # ties between neighbours go to the first in the dataset
    labels = np.concatenate([task.train_labels, task.holdout_labels])[order]
    none = task.holdout_index[:0]
    return dataclasses.replace(
        task, train_index=index[order], train_labels=labels, holdout_index=none, holdout_labels=none
    )
