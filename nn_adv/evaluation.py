"""Accuracy of a classifier over many images, clean and under attack, batch by batch.

Only batches of the size asked for reach the device (the last is filled up, the filling ignored), so each function
compiles once however many images there are. Host code: arrays in, NumPy arrays out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import numpy as np

from nn_adv.attacks import example_keys
from nn_adv.pixels import as_float
from nn_adv.threat import Threat

AttackFn = Callable[[chex.Array, chex.Array, chex.PRNGKey, Threat], chex.Array]


def map_batches(fn: Callable[..., chex.Array], *arrays: chex.Array, batch_size: int) -> np.ndarray:
    """Apply ``fn`` to rows of ``arrays`` in batches of one size and join its results.

    Args:
      fn: takes as many arrays ``[batch_size, ...]`` as were given, returns ``[batch_size, ...]``.
      *arrays: equally long in their first axis; a NumPy array stays on the host until its batch comes.
      batch_size: rows per call, at least 1.

    Returns:
      Results for all rows, in order.

    Raises:
      ValueError: no rows, or ``batch_size`` below 1.
    """
    num_rows = arrays[0].shape[0]
    if num_rows == 0:
        raise ValueError("there must be at least one image, got none")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    results = []
    for start in range(0, num_rows, batch_size):
        rows = np.arange(start, start + batch_size)
        kept = min(batch_size, num_rows - start)
        batch = fn(*(array[rows % num_rows] for array in arrays))  # past the end, the first rows fill the batch
        results.append(np.asarray(batch)[:kept])
    return np.concatenate(results)


def correct(
    predict_fn: Callable[[chex.Array], chex.Array], images: np.ndarray, labels: np.ndarray, *, batch_size: int = 500
) -> np.ndarray:
    """Tell for each image whether it is classified correctly.

    Args:
      predict_fn: float images ``[B, ...]`` to labels ``[B]``.
      images: ``[N, ...]``, uint8 or floats in [0, 1].
      labels: ``[N]``.
      batch_size: images per call.

    Returns:
      Booleans ``[N]``.
    """
    return map_batches(lambda x, y: predict_fn(as_float(x)) == y, images, labels, batch_size=batch_size)


def unbroken_curve(
    attack_fn: AttackFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    threats: Sequence[Threat],
    key: chex.PRNGKey,
    start_from: np.ndarray,
    batch_size: int = 500,
) -> np.ndarray:
    """Attack at growing radii and tell which images are still unbroken after each.

    An image broken at one radius is broken at every larger one of the same norm, so only survivors are attacked and
    the curve never rises. The share unbroken is an upper bound on robust accuracy, not robust accuracy. Results do
    not depend on ``batch_size`` beyond rounding: random numbers belong to the image's place in ``images``.

    Args:
      attack_fn: float images, labels, one key per image and a threat to success flags ``[B]``; usually jitted.
      images: ``[N, ...]``, uint8 or floats in [0, 1].
      labels: ``[N]``.
      threats: one norm, radii not falling.
      key: typed key; image i uses ``fold_in(key, i)`` at every radius.
      start_from: ``[N]``, True where the clean image is classified correctly; the others are broken from the start.
      batch_size: images per call.

    Returns:
      Booleans ``[len(threats), N]``.

    Raises:
      ValueError: threats of several norms, or radii that fall.
    """
    radii = [float(threat.epsilon) for threat in threats]
    if len({threat.norm for threat in threats}) > 1 or radii != sorted(radii):
        raise ValueError(f"threats must share one norm and have growing radii, got {list(threats)}")
    # As plain numbers on the host: indexing keys on the device would compile for each number of survivors.
    key_data = np.asarray(jax.random.key_data(example_keys(key, np.arange(len(images)))))
    alive = np.array(start_from, bool)
    curve = []
    for threat in threats:
        rows = np.flatnonzero(alive)
        if rows.size:
            broken = map_batches(
                lambda x, y, k, threat=threat: attack_fn(as_float(x), y, jax.random.wrap_key_data(k), threat),
                images[rows],
                labels[rows],
                key_data[rows],
                batch_size=batch_size,
            )
            alive[rows[broken]] = False
        curve.append(alive.copy())
    return np.stack(curve)
