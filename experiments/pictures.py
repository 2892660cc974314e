"""Pictures for the report: a few images, what changes their label, and their nearest points; kept in a small file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.files import read_arrays, write_arrays
from nn_adv.pixels import as_float
from nn_adv.threat import float64_sizes

if TYPE_CHECKING:
    from experiments.evaluate import Images  # a report reads pictures without all that an evaluation imports

FOLDER = "pictures"  # in a workdir
_AT_ONCE = 1024  # points that are compared as floats
_CLASSES, _CANDIDATES = 2, 4  # the first classes of a task, and so many images of each; one of each is shown


class Pictures(NamedTuple):
    """K images that a method classifies correctly, in P norms; pixels are float32 in [0, 1]."""

    split: np.ndarray  # ``[K]`` "train" or "test"
    image: np.ndarray  # ``[K]`` number of the image in its split of the dataset
    label: np.ndarray  # ``[K]`` class within the task
    clean: np.ndarray  # ``[K, ...]``
    norms: np.ndarray  # ``[P]`` names
    adversarial: np.ndarray  # ``[P, K, ...]`` points with another label; the image itself where none was found
    distance: np.ndarray  # ``[P, K]`` size of the perturbation; inf where none was found
    own: np.ndarray  # ``[K, ...]`` the nearest training image of the image's class, in l2
    other: np.ndarray  # ``[K, ...]`` that of another class
    own_distance: np.ndarray  # ``[K]`` in l2
    other_distance: np.ndarray  # ``[K]`` in l2


def candidates(chosen: Images) -> np.ndarray:
    """Return the places of the first images of the first two classes, of the test images if there are any."""
    is_last = chosen.split == chosen.split[-1]
    places = [np.flatnonzero(is_last & (chosen.labels == label))[:_CANDIDATES] for label in range(_CLASSES)]
    return np.concatenate(places)


def make(
    chosen: Images,
    examples: np.ndarray,
    is_solved: np.ndarray,
    adversarial: Mapping[str, np.ndarray],
    points: np.ndarray,
    point_labels: np.ndarray,
) -> Pictures:
    """Choose the first example of each class that is solved, and find its nearest training images.

    Args:
      chosen: N images.
      examples: ``[E]`` places of the candidates in them.
      is_solved: ``[N]`` whether an image is classified correctly and its adversarial points are what they should be.
      adversarial: for each norm ``[E, ...]``; the image itself where none was found.
      points: ``[M, ...]`` training images.
      point_labels: ``[M]``.
    """
    solved = np.flatnonzero(is_solved[examples])
    _, first = np.unique(chosen.labels[examples[solved]], return_index=True)
    shown = solved[first]
    places = examples[shown]
    labels, clean = chosen.labels[places], np.asarray(as_float(chosen.images[places]))
    found = np.array([changed[shown] for changed in adversarial.values()])
    sizes = [float64_sizes(norm, changed - clean) for norm, changed in zip(adversarial, found, strict=True)]
    near = [
        _nearest(points[(point_labels == label) == is_own], image)
        for is_own in (True, False)
        for image, label in zip(clean, labels, strict=True)
    ]
    own, other = np.split(np.array([point for point, _ in near]).reshape(-1, *clean.shape[1:]), 2)
    own_distance, other_distance = np.split(np.array([distance for _, distance in near]), 2)
    return Pictures(
        split=chosen.split[places],
        image=chosen.image[places],
        label=labels,
        clean=clean,
        norms=np.array(list(adversarial)),
        adversarial=found,
        distance=np.where(np.array(sizes) > 0, sizes, np.inf),
        own=own,
        other=other,
        own_distance=own_distance,
        other_distance=other_distance,
    )


def _nearest(points: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, float]:
    parts = (points[start : start + _AT_ONCE] for start in range(0, len(points), _AT_ONCE))
    distances = np.concatenate([float64_sizes("l2", np.asarray(as_float(part), np.float64) - image) for part in parts])
    place = int(np.argmin(distances))
    return np.asarray(as_float(points[place])), float(distances[place])


def save(path: Path, pictures: Pictures) -> None:
    """Write pictures to an .npz file, whole or not at all."""
    write_arrays(path, **pictures._asdict())


def read(workdir: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Pictures], list[str]]:
    """Read the pictures that rows name among their files, those that are there.

    Returns:
      (pictures by the unit of the row, a line for each file that cannot be read).
    """
    found, problems = {}, []
    for row in rows:
        for name in row.get("files", ()):
            path = workdir / name
            if name.startswith(f"{FOLDER}/") and path.exists():
                try:
                    found[row["unit"]] = Pictures(**read_arrays(path))
                except (ValueError, TypeError) as error:
                    problems.append(f"{error}: its pictures are left out")
    return found, problems
