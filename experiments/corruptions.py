"""Networks and 1NN on images that are changed as cameras and programs change them, at growing strength.

No attacker chooses these changes, and most lie outside any small norm ball (Hendrycks & Dietterich 2019,
arXiv 1903.12261). Units and networks are those of `binary_tasks`: with its ``checkpoints`` in the workdir, nothing is
trained again.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import PIL.Image
from jax.tree_util import Partial
from scipy import ndimage

from experiments import attacked, binary_tasks, evaluate, parsing
from experiments.methods import CEILING, is_neighbor
from experiments.plan import Unit
from nn_adv import evaluation, neighbors
from nn_adv.pixels import as_float


def _shifted(images: np.ndarray, strength: float, _: np.ndarray) -> np.ndarray:
    """To the right by so many pixels; the edge is repeated."""
    return ndimage.shift(images, (0, 0, strength, 0), order=1, mode="nearest")


def _rotated(images: np.ndarray, strength: float, _: np.ndarray) -> np.ndarray:
    """By so many degrees about the middle, bilinear; the edge is repeated."""
    return ndimage.rotate(images, strength, axes=(1, 2), reshape=False, order=1, mode="nearest")


def _brightened(images: np.ndarray, strength: float, _: np.ndarray) -> np.ndarray:
    """By so much in every pixel."""
    return images + np.float32(strength)


def _noisy(images: np.ndarray, strength: float, numbers: np.ndarray) -> np.ndarray:
    """By Gaussian noise of this standard deviation; each image has its own, whatever the others are."""
    noise = [np.random.default_rng(number).standard_normal(images.shape[1:], np.float32) for number in numbers]
    return images + np.float32(strength) * np.stack(noise)


def _as_jpeg(images: np.ndarray, strength: float, _: np.ndarray) -> np.ndarray:
    """By writing them as JPEG of the quality 100 - strength."""
    changed = []
    for image in np.round(255 * images).astype(np.uint8):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            buffer, "jpeg", quality=round(100 - strength)
        )
        changed.append(np.asarray(PIL.Image.open(buffer), np.float32).reshape(image.shape) / 255)
    return np.stack(changed)


CORRUPTIONS: dict[str, Callable[[np.ndarray, float, np.ndarray], np.ndarray]] = {
    "shift": _shifted,
    "rotation": _rotated,
    "brightness": _brightened,
    "noise": _noisy,
    "jpeg": _as_jpeg,
}


def corrupt(images: np.ndarray, name: str, strength: float, numbers: np.ndarray) -> np.ndarray:
    """Change images ``[N, H, W, C]`` in [0, 1], which they stay in; ``numbers`` ``[N]`` seed what is random."""
    return np.clip(CORRUPTIONS[name](images, strength, numbers), 0, 1).astype(np.float32)


def check(config: ml_collections.ConfigDict) -> dict[str, tuple[float, ...]]:
    """Return the strengths of each corruption; ValueError for those that no run could use."""
    parsing.check_named("corruptions", config.corruptions, CORRUPTIONS)
    if CEILING in config.methods:
        raise ValueError(f"methods must not hold {CEILING}: what no classifier exceeds is known of threats only")
    for name, strengths in config.corruptions.items():
        most = 99 if name == "jpeg" else np.inf
        if not strengths or not all(0 < strength <= most for strength in strengths):
            limit = " and at most 99" if name == "jpeg" else ""
            raise ValueError(f"corruptions.{name} must hold strengths above 0{limit}, got {strengths}")
    return {name: tuple(sorted(map(float, strengths))) for name, strengths in config.corruptions.items()}


def make_plan(config: ml_collections.ConfigDict) -> Plan:
    """See `binary_tasks.make_plan`."""
    corruptions = check(config)
    base = binary_tasks.make_plan(config)
    return Plan(**vars(base), corruptions=corruptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(binary_tasks.Plan):
    """See `binary_tasks.Plan`; with the strengths of each corruption."""

    corruptions: Mapping[str, Sequence[float]]

    def row(self, unit: Unit, shared: Any, workdir: Path, show: Any) -> dict[str, Any]:
        """Count the images that are classified correctly, clean and under each corruption."""
        start, task = time.perf_counter(), unit.task
        chosen = evaluate.choose_images(self.dataset, task, self.evaluation)
        clean = np.asarray(as_float(chosen.images))
        predict = self._predictor(unit, shared)
        found = self._counts(predict, chosen, clean, clean, {"corruption": "clean", "strength": 0.0})
        for name, strengths in self.corruptions.items():
            for strength in strengths:
                show(f"{unit.subject} on {task.name}: {name} {strength:g}")
                changed = corrupt(clean, name, strength, chosen.number)
                found += self._counts(predict, chosen, clean, changed, {"corruption": name, "strength": strength})
        return self.about(unit) | {
            "corrupted": found,
            "files": [],
            "seconds": {"evaluate": round(time.perf_counter() - start, 3)},
        }

    def _predictor(self, unit: Unit, shared: Any) -> Callable[[np.ndarray], np.ndarray]:
        if is_neighbor(unit.subject):
            reference = self.fit_neighbors(unit)
            return lambda images: np.asarray(neighbors.predict(reference, images))
        predict = functools.partial(attacked.predict, Partial(self.model.apply, shared[unit.name][0]))
        return lambda images: evaluation.map_batches(predict, images, batch_size=self.evaluation.batch_size)

    def _counts(self, predict, chosen: evaluate.Images, clean, changed, what: dict[str, Any]) -> list[dict[str, Any]]:
        is_right = predict(changed) == chosen.labels
        sizes = np.linalg.norm((changed - clean).reshape(len(clean), -1), axis=1)
        return [
            {"split": split, **what, "count": int(np.sum(of)), "correct": int(np.sum(is_right[of]))}
            | {"mean_l2": round(float(np.mean(sizes[of])), 4)}
            for split in evaluate.SPLITS
            if np.any(of := chosen.split == split)
        ]
