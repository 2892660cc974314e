"""A data set whose most robust classifier is known in closed form: pairs of flat manifolds a gap apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nn_adv.border import as_count, as_integers, as_number
from nn_adv.data.dataset import Dataset

_LENGTH = 0.25  # of each side of a manifold


def manifolds(
    *,
    dimensions: Sequence[int] = (1, 2, 4, 8),
    num_pixels: int = 16,
    gap: float = 0.2,
    num_train: int = 4096,
    num_test: int = 1000,
    seed: int = 0,
) -> Dataset:
    """Draw points of cubes of several dimensions, two classes of each, in the middle of the pixels' range.

    For the k-th of ``dimensions`` the classes 2k and 2k + 1 are cubes of that dimension in ``num_pixels`` pixels, which
    face each other across a gap in the first pixel; the other pixels are 0.5. Points are uniform, as many of each
    class. With ever more of them the radius of 1NN goes to half the gap or more at every point, in every norm: where a
    point is ``a`` behind the side that faces the other class, to ``gap / 2 + a``.

    Args:
      dimensions: of the cubes, each at least 1 and at most ``num_pixels``, none twice.
      num_pixels: of an image ``[1, num_pixels, 1]``, float32.
      gap: between the classes, above 0 and at most 0.4.
      num_train: training images of each class.
      num_test: test images of each class.
      seed: of all points.

    Raises:
      ValueError: a value that is not allowed.
    """
    num_pixels, num_train, num_test = (
        as_count(value, name)
        for value, name in ((num_pixels, "num_pixels"), (num_train, "num_train"), (num_test, "num_test"))
    )
    dimensions = np.asarray(as_integers(dimensions, "dimensions", low=1, high=num_pixels)).tolist()
    if not len(dimensions) or len(set(dimensions)) < len(dimensions):
        raise ValueError(f"dimensions must hold one or more numbers, none twice, got {tuple(dimensions)}")
    if not 0 < as_number(gap, "gap") <= 0.4:
        raise ValueError(f"gap must be above 0 and at most 0.4, got {gap}")
    rng = np.random.default_rng(as_count(seed, "seed", low=0))
    arrays: dict[str, Any] = {}
    for split, count in (("train", num_train), ("test", num_test)):
        images = [_points(rng, count, k, num_pixels, side * gap / 2) for k in dimensions for side in (-1, 1)]
        arrays[f"{split}_images"] = np.concatenate(images)
        arrays[f"{split}_labels"] = np.repeat(np.arange(2 * len(dimensions), dtype=np.int32), count)
    return Dataset(
        "manifolds",
        **arrays,
        class_names=tuple(f"{k}-dimensional, {side} the gap" for k in dimensions for side in ("below", "above")),
        note=f"uniform points of cubes of side {_LENGTH:g}, a gap of {gap:g} apart, in {num_pixels} pixels",
        title="separated manifolds",
    )


def _points(rng: np.random.Generator, count: int, dimension: int, num_pixels: int, side: float) -> np.ndarray:
    """Draw from a cube that begins ``side`` from the middle, on the side of its sign."""
    points = np.full((count, 1, num_pixels, 1), 0.5)
    points[:, 0, :dimension, 0] += _LENGTH * (rng.random((count, dimension)) - 0.5)
    points[:, 0, 0, 0] = 0.5 + side + np.sign(side) * _LENGTH * rng.random(count)
    return points.astype(np.float32)
