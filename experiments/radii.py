"""Exact radii of 1NN: computed once for the images of a task, kept in a file, then looked up at any radius."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.files import read_arrays, write_arrays
from nn_adv import certify, evaluation
from nn_adv.neighbors import Reference

# What a row says of its radii.
SETTINGS = {"by": "certify.radius", "bounds": [0, 1], "rechecked": "every opponent, in float64"}


class Radii(NamedTuple):
    """Radii of N images in P norms, in pixel units."""

    norms: np.ndarray  # ``[P]`` names
    lower: np.ndarray  # ``[P, N]`` proven: no smaller perturbation changes the prediction
    # ``[P, N]`` size of a perturbation that does; inf where none was found. 0 where the image is misclassified.
    upper: np.ndarray
    exact: np.ndarray  # ``[P, N]`` whether the two agree to the solver's tolerance
    correct: np.ndarray  # ``[N]`` whether 1NN classifies the clean image correctly
    split: np.ndarray  # ``[N]`` "train" or "test"
    image: np.ndarray  # ``[N]`` number of the image in its split of the dataset


def measure(
    reference: Reference,
    images: np.ndarray,
    labels: np.ndarray,
    norms: Sequence[str],
    *,
    split: np.ndarray,
    image: np.ndarray,
) -> Radii:
    """Compute the radius of every image in every norm, pixels kept in [0, 1]; arguments as in `Radii`."""
    found = [certify.radius(reference, images, labels, norm=norm) for norm in norms]
    return collect(norms, found, split=split, image=image)


def collect(norms: Sequence[str], found: Sequence[certify.Radius], *, split: np.ndarray, image: np.ndarray) -> Radii:
    """Put what was found in each norm into one table; arguments as in `Radii`."""
    return Radii(
        np.array(norms),
        np.stack([radius.lower for radius in found]),
        np.stack([radius.upper for radius in found]),
        np.stack([radius.status == "exact" for radius in found]),
        found[0].correct,
        np.asarray(split),
        np.asarray(image),
    )


def join(first: Radii, second: Radii) -> Radii:
    """Put the images of the second behind those of the first; the norms are the same."""
    arrays = (np.concatenate(pair, axis=-1) for pair in zip(first[1:], second[1:], strict=True))
    return Radii(first.norms, *arrays)


def save(path: Path, radii: Radii) -> None:
    """Write radii to an .npz file, whole or not at all."""
    write_arrays(path, **radii._asdict())


def load(path: Path) -> Radii:
    """Read what `save` wrote.

    Raises:
      ValueError: the file cannot be read; the message says what to do.
    """
    try:
        return Radii(**read_arrays(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{error}: remove it and run the same command again") from error


def num_bounded(radii: Radii) -> dict[str, int]:
    """Count, per norm, the images whose radius is only known to lie between two bounds that differ."""
    return {str(norm): int(np.sum(~known)) for norm, known in zip(radii.norms, radii.exact, strict=True)}


def robust_between(radii: Radii, norm: str, epsilons: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Tell which images are robust, by their proven and by their possible radius.

    Returns:
      (at least these, at most these), booleans ``[E, N]``; where an image's two agree its robustness is decided.
    """
    row = radii.norms.tolist().index(norm)
    lower, upper = (evaluation.robust_curve(ends[row], radii.correct, epsilons) for ends in (radii.lower, radii.upper))
    return lower, upper
