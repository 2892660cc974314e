"""The rows of a leaderboard: how one model is evaluated on the images that all of them share."""

from __future__ import annotations

import functools
import io
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments import accuracies, admission, attacked, contestants, failures, plan, radii
from experiments.storage import write_whole
from nn_adv import data, neighbors
from nn_adv.pixels import as_float
from nn_adv.threat import Threat

_RADII_AT_ONCE = 200  # images between two saves


class Unit(NamedTuple):
    """One model."""

    dataset: str
    model: contestants.Contestant

    @property
    def name(self) -> str:
        """Name of the model's row, the same in every run."""
        return f"{self.dataset}/{self.model.name}"


class Board(NamedTuple):
    """What all models of a run share.

    Attributes:
      images: those that every model is evaluated on.
      units: the models, in the order in which they are run.
    """

    config: ml_collections.ConfigDict
    dataset: data.Dataset
    images: accuracies.Images
    units: list[Unit]


def _row(board: Board, unit: Unit, found, **fields) -> dict[str, Any]:
    dataset = board.dataset
    return {
        "schema": 1,
        "unit": unit.name,
        "dataset": dataset.title,
        "dataset_note": dataset.note,
        "task": "all",
        "classes": list(dataset.class_names),
        "method": unit.model.name,
        "seed": board.config.seed,
        "main_radii": plan.main_epsilons(board.config),
        "evaluations": found,
        **plan.circumstances(),
    } | fields


def network_row(board: Board, unit: Unit, workdir: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """Load a network, check what it returns and its clean accuracy, then attack it.

    Args:
      board: images and settings.
      unit: the network.
      workdir: what broke each image is kept there, and the progress until the caller has stored the row.
      show: called with a few words on where it is.

    Raises:
      ValueError: the network does not return logits, or is not as accurate as was published (`admission`).
    """
    start = time.perf_counter()
    model = unit.model
    config, chosen, threats = board.config, board.images, plan.make_threats(board.config)
    classifier = contestants.load(model, config, board.dataset)
    facts = contestants.about(model, classifier, config)  # now: the files may have been replaced when it is done
    loaded = time.perf_counter()
    show("clean accuracy")
    admission.check_outputs(model, classifier, chosen.images[: config.evaluation.batch_size])
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
            threats=threats,
            key=jax.random.key(config.seed),
            # An image has the same random numbers whether one split is evaluated or both.
            indices=chosen.image + len(board.dataset.train_images) * (chosen.split == "test"),
            batch_size=config.evaluation.batch_size,
            progress_file=progress_file(workdir, unit),
            show=show,
        )
    file = f"outcomes/{failures.file_name(unit.name)}.npz"
    _save_outcomes(workdir / file, chosen, names, threats, places)
    counts = ("images_per_split", "num_steps", "num_restarts", *["num_queries"] * ("square" in names))
    return _row(
        board,
        unit,
        accuracies.attacked(config, chosen.split, places, names),
        model=facts,
        clean=clean,
        attack={"attacks": names} | {name: config.evaluation[name] for name in counts},
        radii=None,
        files=[file],
        warnings=sorted({str(item.message) for item in caught}),
        seconds={
            "load": round(loaded - start, 3),
            "clean": round(checked - loaded, 3),
            "attack": round(time.perf_counter() - checked, 3),
        },
    )


def _save_outcomes(
    path: Path,
    images: accuracies.Images,
    attack_names: Sequence[str],
    threats: Sequence[Threat],
    places: Sequence[np.ndarray],
) -> None:
    """Keep what broke each image: with the radii of 1NN it allows paired comparisons that the counts of a row do not.

    ``broken_by`` is ``[T, N]``: for each threat and image the place of an attack in ``attacks``, or -1 where the clean
    image is wrong, or -2 where no attack broke it.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        norm=np.array([threat.norm for threat in threats]),
        epsilon=np.array([float(threat.epsilon) for threat in threats]),
        attacks=np.array(attack_names),
        split=images.split,
        image=images.image,
        broken_by=np.array(places),
    )
    write_whole(path, buffer.getvalue())


def neighbor_row(board: Board, unit: Unit, workdir: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """Compute 1NN's radii, those that an earlier run has not, and look its robust accuracy up in them."""
    start = time.perf_counter()
    dataset = board.dataset
    reference = neighbors.fit(dataset.train_images, dataset.train_labels, dataset.num_classes)
    fitted = time.perf_counter()
    file = "radii/all.npz"
    known = _radii(board, reference, workdir / file, show)
    return _row(
        board,
        unit,
        accuracies.exact(board.config, known),
        num_train=len(dataset.train_images),
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
    chosen, norms = board.images, list(plan.main_epsilons(board.config))
    known = [radii.load(path)] if path.exists() else []
    for begin in range(sum(len(part.correct) for part in known), len(chosen.labels), _RADII_AT_ONCE):
        show(f"radii, {begin} of {len(chosen.labels)}")
        images, labels, split, image = (array[begin : begin + _RADII_AT_ONCE] for array in chosen)
        found = radii.measure(reference, images, labels, norms, split=split, image=image)
        known = [functools.reduce(radii.join, [*known, found])]
        radii.save(path, known[0])
    return known[0]


def progress_file(workdir: Path, unit: Unit) -> Path:
    """Return where the attacks on a network keep their progress."""
    return workdir / "attacks" / f"{failures.file_name(unit.name)}.npz"
