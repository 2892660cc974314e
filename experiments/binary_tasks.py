"""1NN beside adversarially trained networks on many small tasks (Hagai & Weiss 2024, arXiv 2404.06313, section 4).

A unit is one method on one task with one seed, and gives one result row. Networks of a group of tasks are trained
in one program; then each unit of the group is evaluated and its row is stored before the next one starts.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.tree_util import Partial

from experiments import evaluate, parsing, pictures, plan, radii, variants
from experiments.failures import file_name
from experiments.methods import CEILING, METHODS, NEIGHBOR, NETWORKS, is_neighbor
from experiments.parsing import NOT_IN_A_RECIPE
from experiments.plan import Unit
from nn_adv import attacks, certify, data, neighbors, training
from nn_adv.pixels import as_float
from nn_adv.threat import Threat

NOT_IN_A_ROW = (
    *("data_dir", "methods", "seeds", "tasks.names", "evaluation.batch_size"),
    *("training.checkpoint_every", "training.group_size"),
)


def check(config: ml_collections.ConfigDict) -> tuple[parsing.Evaluation, dict[str, training.Recipe]]:
    """Raise ValueError for the first value that no run could use, with its name and what is allowed."""
    others = [method for method in config.methods if not is_neighbor(method)]
    parsing.check_named("methods", others, METHODS, may_be_empty=len(others) < len(config.methods))
    for method in set(config.methods) - set(others):
        variants.check_exact(method)
    parsing.check_seeds("seeds", config.seeds)
    parsing.check_distinct(config, ("methods", "seeds", "tasks.names"))
    evaluation = parsing.Evaluation.read(config)
    for name in NOT_IN_A_RECIPE:
        if config.training[name] < 1:
            raise ValueError(f"training.{name} must be at least 1, got {config.training[name]}")
    networks = [method for method in config.methods if method in NETWORKS]
    if networks and config.training.select_every and not config.tasks.holdout:
        raise ValueError("tasks.holdout must be above 0 to choose an epoch by it; or set training.select_every to 0")
    return evaluation, parsing.read_recipes(config, networks)


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """Check the configuration, load the data and build the network, so that mistakes show before long work starts."""
    evaluation, recipes = check(config)
    dataset = data.load(config.dataset, data_dir=config.data_dir or None)
    tasks = data.tasks(
        dataset,
        config.tasks.kind,
        train_per_class=config.tasks.train_per_class or None,
        holdout=config.tasks.holdout,
    )
    num_classes, settings = tasks[0].num_classes, parsing.model_settings(config)
    named = parsing.named_tasks(tasks, config.tasks.names)
    for method in filter(is_neighbor, config.methods):
        variants.check_sizes(method, named, dataset.image_shape)
    return Plan(
        identity=parsing.make_identity(config, dataset, NOT_IN_A_ROW),
        groups=_make_groups(config, named),
        dataset=dataset,
        evaluation=evaluation,
        suite=evaluation.suite(num_classes) if recipes else (),
        recipes=recipes,
        model=parsing.make_model(settings, dataset, num_classes) if recipes else None,
        model_settings=settings,
        train_images=jnp.asarray(dataset.train_images),
        steps_per_epoch=-(-max(len(task.train_index) for task in tasks) // config.training.batch_size),
        checkpoint_every=config.training.checkpoint_every,
        pictured=frozenset((task.name, seed) for task in (named[0], named[-1]) for seed in (0, config.seeds[0])),
    )


def _make_groups(config: ml_collections.ConfigDict, tasks: Sequence[data.Task]) -> list[list[Unit]]:
    """List all units in groups of one method and one seed; the tasks of a group are trained together.

    Task after task, every method, so that what is there of an unfinished run can be compared. Only networks are run
    with every seed; 1NN, its variants and the ceiling have the seed 0.
    """

    def unit(task: data.Task, method: str, seed: int) -> Unit:
        return Unit(f"{parsing.dataset_name(config)}/{task.name}/{method}/{seed}", method, task, seed)

    groups = []
    for start in range(0, len(tasks), config.training.group_size):
        together = tasks[start : start + config.training.group_size]
        for method in config.methods:
            if method not in NETWORKS:
                groups += [[unit(task, method, 0)] for task in together]
            else:
                groups += [[unit(task, method, seed) for task in together] for seed in config.seeds]
    return groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(plan.Plan):
    """See `plan.Plan`."""

    evaluation: parsing.Evaluation  # of every unit
    suite: tuple[attacks.Attack, ...]  # attacks on networks
    recipes: Mapping[str, training.Recipe]  # of each network method
    model: Any  # the network, untrained; None if only 1NN is run
    model_settings: Mapping[str, Any]  # what a row says of it
    train_images: jax.Array  # those of the dataset, resident on the device
    steps_per_epoch: int  # enough for the largest task of its kind, so that one program trains every task
    checkpoint_every: int  # so many epochs
    pictured: frozenset[tuple[str, int]]  # (name of a task, seed) of which pictures are kept

    shared_part: ClassVar[float] = 0.5

    def share(self, group: Sequence[Unit], num_missing: int, workdir: Path, show: plan.Show) -> Any:
        """Train a network for each task of the group, or load them where that was done before."""
        first = group[0]
        if first.subject not in NETWORKS:
            return None
        recipe, tasks = self.recipes[first.subject], [unit.task for unit in group]
        shown = first.task.name + f" and {len(tasks) - 1} more" * (len(tasks) > 1)

        def on_epoch(epoch: int, _: Any) -> None:
            text = f"training {first.subject} on {shown}, epoch {epoch + 1}/{recipe.num_epochs}"
            show(text, self.shared_part * num_missing / recipe.num_epochs)

        names = "-".join(task.name for task in tasks)
        folder = f"{first.subject}-seed{first.seed}-{first.task.name}-{zlib.crc32(names.encode()):08x}"
        trained = training.train(
            self.model,
            self.train_images,
            [
                training.Member(task.train_index, task.train_labels, task.holdout_index, task.holdout_labels)
                for task in tasks
            ],
            recipe,
            # Each task has its own weights and order, so that means over tasks average over them too.
            seeds=[zlib.crc32(f"{first.seed}/{task.name}".encode()) >> 1 for task in tasks],  # 31 bits: an int32
            steps_per_epoch=self.steps_per_epoch,
            checkpoint_every=self.checkpoint_every,
            checkpoint_dir=workdir / "checkpoints" / folder,
            on_epoch=on_epoch,
        )
        members = zip(trained.variables, trained.selected_epoch, trained.history.seconds, strict=True)
        return {unit.name: member for unit, member in zip(group, members, strict=True)}

    def about(self, unit: Unit) -> dict[str, Any]:
        """See `plan.Plan.about`; a row of a method says also how many images it had."""
        num_train = len(unit.task.train_index) + len(unit.task.holdout_index)
        return super().about(unit) | {"method": unit.subject, "seed": unit.seed, "num_train": num_train}

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Any) -> dict[str, Any]:
        """Evaluate 1NN or a network of the group, or say what no classifier exceeds."""
        task, start = unit.task, time.perf_counter()
        chosen = evaluate.choose_images(self.dataset, task, self.evaluation)
        if is_neighbor(unit.subject):
            show(f"radii of {unit.subject} on {task.name}")
            fields = self._neighbor_fields(unit, chosen, workdir)
        elif unit.subject == CEILING:
            records = [record.stored() for record in evaluate.ceiling_records(self.evaluation, chosen)]
            fields = {"evaluations": records, "files": [], "seconds": _seconds(0.0, time.perf_counter() - start)}
        else:
            fields = self._network_fields(unit, chosen, shared[unit.name], workdir, show)
        none = {"attack": None, "radii": None, "training": None}
        return self.about(unit) | {"main_radii": self.evaluation.epsilons} | none | fields

    def _neighbor_fields(self, unit: Unit, chosen: evaluate.Images, workdir: Path) -> dict[str, Any]:
        start, task = time.perf_counter(), unit.task
        reference = self.fit_neighbors(unit)
        fitted = time.perf_counter()
        norms = list(self.evaluation.epsilons)
        found = [certify.radius(reference, chosen.images, chosen.labels, norm=norm) for norm in norms]
        known = radii.collect(norms, found, split=chosen.split, image=chosen.image)
        is_solved = np.all(known.exact & (known.lower > 0), axis=0)
        examples = self._examples(unit, chosen)
        witnesses = {norm: radius.adversarial[examples] for norm, radius in zip(norms, found, strict=True)}
        file = f"radii/{task.name}{file_name(unit.subject.removeprefix(NEIGHBOR))}.npz"
        radii.save(workdir / file, known)
        return {
            "evaluations": [record.stored() for record in evaluate.exact_records(self.evaluation, known)],
            "radii": radii.SETTINGS | {"images_only_bounded": radii.num_bounded(known)},
            "files": [file, *self._keep_pictures(unit, chosen, is_solved, witnesses, workdir)],
            "seconds": _seconds(fitted - start, time.perf_counter() - fitted),
        }

    def _network_fields(self, unit: Unit, chosen: evaluate.Images, member, workdir: Path, show) -> dict[str, Any]:
        start = time.perf_counter()
        variables, epoch, seconds = member
        names, what = [attack.name for attack in self.suite], f"attacking {unit.subject} on {unit.task.name}"
        logits_fn = Partial(self.model.apply, variables)
        outcomes, records, flags = evaluate.attack(
            self.evaluation, self.suite, logits_fn, chosen, unit, workdir, lambda text: show(f"{what}: {text}")
        )
        made = {"model": self.model_settings, **parsing.recipe_settings(self.recipes[unit.subject])}
        sizes = {"images_per_split": self.evaluation.images_per_split, **self.evaluation.sizes}
        is_correct = outcomes[0].attack_index != attacks.CLEAN
        changed = self._least_changes(unit, chosen, logits_fn)
        return {
            "evaluations": [record.stored() for record in records],
            "attack": {"attacks": names} | sizes,
            "training": made | {"selected_epoch": int(epoch) + 1},
            "files": self._keep_pictures(unit, chosen, is_correct, changed, workdir),
            **({"warnings": list(flags)} if flags else {}),
            "seconds": _seconds(float(np.nansum(seconds)), time.perf_counter() - start),
        }

    def fit_neighbors(self, unit: Unit) -> neighbors.Reference:
        """Fit 1NN, or a variant, on all training images of a task, the held-out ones too."""
        task = variants.of_task(unit.subject, parsing.with_holdout(unit.task), unit.seed)
        images, epsilons = self.dataset.train_images[task.train_index], self.evaluation.epsilons
        made = variants.make(unit.subject, images, task.train_labels, seed=unit.seed, epsilons=epsilons)
        return neighbors.fit(made.points, made.labels, task.num_classes, linear_map=made.linear_map)

    def _examples(self, unit: Unit, chosen: evaluate.Images) -> np.ndarray:
        """Return the places of the images of which pictures of this unit may be kept."""
        return pictures.candidates(chosen)[: None if (unit.task.name, unit.seed) in self.pictured else 0]

    def _least_changes(self, unit: Unit, chosen: evaluate.Images, logits_fn) -> dict[str, np.ndarray]:
        """Return the nearest points with another label that FAB finds of the images of which pictures are kept."""
        examples = self._examples(unit, chosen)
        if not len(examples):
            return {}
        images, labels = np.asarray(as_float(chosen.images[examples])), chosen.labels[examples]
        everywhere = float(images[0].size)
        options: dict[str, Any] = {
            "key": jax.random.key(unit.seed),
            "attacks": [self.evaluation.attack("fab-t", unit.task.num_classes)],
            "batch_size": self.evaluation.batch_size,
        }
        return {
            norm: attacks.ensemble(logits_fn, images, labels, threat=Threat(norm, everywhere), **options).adversarial
            for norm in self.evaluation.epsilons
        }

    def _keep_pictures(self, unit: Unit, chosen, is_solved, adversarial, workdir: Path) -> list[str]:
        """Write the pictures of a unit that is pictured, see `pictures.make`; return the name of their file."""
        examples = self._examples(unit, chosen)
        if not len(examples):
            return []
        task = parsing.with_holdout(unit.task)
        points = self.dataset.train_images[task.train_index], task.train_labels
        made = pictures.make(chosen, examples, is_solved, adversarial, *points)
        file = f"{pictures.FOLDER}/{task.name}-{file_name(unit.subject)}-seed{unit.seed}.npz"
        pictures.save(workdir / file, made)
        return [file]


def _seconds(train: float, evaluating: float) -> dict[str, float]:
    return {"train": round(train, 3), "evaluate": round(evaluating, 3)}
