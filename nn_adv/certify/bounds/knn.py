"""The majority vote of the k nearest points, with bounds on its radius from both sides: not exact.

The lower bound is proved by counting (`knn_counting`), the upper one found by an attack (`knn_attack`) and judged by
the vote itself.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv import neighbors
from nn_adv.border import as_count
from nn_adv.certify.bounds import knn_attack
from nn_adv.certify.bounds.knn_counting import lower_bound, near_points
from nn_adv.certify.inputs import Points, check_question, check_scale, host_pixels, host_points
from nn_adv.neighbors.inputs import check_reference, check_unmapped
from nn_adv.threat import check_norm, float64_sizes

# Points of the own class and of the others that the attack looks at: further ones hardly ever come to vote.
_ATTACKED_POINTS = 96
# An attack ends on a boundary: shares by which it is pushed further until the vote agrees.
_PUSHES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.05, 0.2)


class VoteBounds(NamedTuple):
    """What is known about the radius of every image under the vote.

    Attributes:
      lower: ``[B]`` float64, proved: no smaller perturbation changes the vote; inf where no other class has points.
      upper: ``[B]`` float64, size of ``adversarial``; inf where the attack found none, which proves nothing.
      adversarial: ``[B, ...]`` float32 images that the vote gets wrong; the image itself where ``upper`` is 0 or inf.
      correct: ``[B]`` whether the vote on the clean image is its label; lower = upper = 0 where it is not.
    """

    lower: np.ndarray
    upper: np.ndarray
    adversarial: np.ndarray
    correct: np.ndarray


def vote(
    reference: neighbors.Reference | neighbors.Streamed,
    queries: chex.Array,
    k: int,
    *,
    leave_out: chex.Array | None = None,
) -> jax.Array:
    """Return the class with most votes among the k nearest points (Euclidean) of every query, ``[Q]`` int32.

    Equally far points vote in the order of their index; of classes with equally many votes the one whose nearest
    point comes first wins. So k = 1 is `neighbors.predict`, and so is k = 2. Usable under jit.

    Args:
      reference: points from `neighbors.fit`, `neighbors.shard` or `neighbors.stream`.
      queries: ``[Q, ...]`` as in `neighbors.nearest`; inside jit one that is not finite gets class -1.
      k: number of votes; above the number of points that may vote, all of them do. Where there are none the class is
        -1.
      leave_out: ``[Q]`` index of a point that each query may not use, -1 for none; or None.

    Raises:
      ValueError: as in `neighbors.nearest`.
    """
    check_reference(reference)
    k = min(as_count(k, "k"), len(reference.labels))
    indices = neighbors.nearest(reference, queries, k, leave_out=leave_out).indices
    is_point = indices >= 0
    winners = knn_attack.winner(jnp.where(is_point, jnp.asarray(reference.labels)[indices], -1), reference.num_classes)
    return jnp.where(is_point[:, 0], winners, -1)


def vote_bounds(
    reference: neighbors.Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    k: int,
    norm: str,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    leave_out: chex.Array | None = None,
    num_near: int = 256,
    num_steps: int = 100,
    batch_size: int = 64,
) -> VoteBounds:
    """Bound the smallest perturbation that changes the vote of the k nearest points, from below and from above.

    As with `radius`, ties between uint8 images and points are those of the integers, and a changed image is of floats.
    The lower bound does not use the pixel bounds; the upper one comes from an attack inside them.

    Args:
      reference: points from `neighbors.fit`.
      images: ``[B, ...]``, uint8, or floats inside the bounds.
      labels: ``[B]`` the classes that the images should get.
      k: number of votes, as in `vote`.
      norm: "l1", "l2" or "linf", of the perturbation.
      bounds: lowest and highest pixel value, or None.
      leave_out: ``[B]`` index of a point that each image may not use, -1 for none; or None.
      num_near: opponents compared point by point; all others are bounded together. More are tighter and slower.
      num_steps: steps of the attack.
      batch_size: images at a time; memory grows with it times the number of points.

    Raises:
      ValueError: unknown norm, a number below 1, points on disk or with a linear map, or what `check_question` refuses.
    """
    check_norm(norm)
    check_reference(reference, on_disk=False)
    check_unmapped(reference)
    k, num_near, num_steps, batch_size = (
        as_count(value, name)
        for name, value in (("k", k), ("num_near", num_near), ("num_steps", num_steps), ("batch_size", batch_size))
    )
    clean, labels, bounds, left_out = check_question(reference, images, labels, bounds=bounds, leave_out=leave_out)
    check_scale(reference, clean)
    points = host_points(reference)
    pixels = host_pixels(clean, np.float32).reshape(len(clean), points.stored.shape[1])
    found = VoteBounds(np.zeros(len(clean)), np.zeros(len(clean)), pixels.copy(), np.zeros(len(clean), bool))
    num_votes = np.minimum(k, len(points.positions) - (left_out >= 0))
    for votes in np.unique(num_votes[num_votes > 0]).tolist():
        chosen = np.flatnonzero(num_votes == votes)
        for start in range(0, len(chosen), batch_size):
            # The first images fill the last batch: one shape, one compilation.
            part = np.resize(np.roll(chosen, -start), min(batch_size, len(chosen)))
            judge = functools.partial(vote, reference, k=votes, leave_out=None if leave_out is None else left_out[part])
            near = near_points(reference, points, pixels[part], labels[part], left_out[part], k=votes, count=num_near)
            lower = [
                lower_bound(points, *one, k=votes, norm=norm, num_classes=reference.num_classes)
                for one in zip(pixels[part], labels[part], near, strict=True)
            ]
            attacked = knn_attack.attack(
                pixels[part], labels[part], *_attacked_points(points, near, votes), k=votes, norm=norm, bounds=bounds,
                num_classes=reference.num_classes, num_steps=num_steps,
            )  # fmt: skip
            correct = np.asarray(judge(clean[part])) == labels[part]
            upper, adversarial = _judge(judge, pixels[part], labels[part], np.asarray(attacked), norm, bounds)
            is_moved = (correct & np.isfinite(upper))[:, None]
            batch = VoteBounds(
                np.where(correct, lower, 0),
                np.where(correct, upper, 0),
                np.where(is_moved, adversarial, pixels[part]),
                correct,
            )
            for field, values in zip(found, batch, strict=True):
                field[chosen[start : start + batch_size]] = values[: len(chosen) - start]
    return found._replace(adversarial=found.adversarial.reshape(clean.shape))


def _attacked_points(points: Points, near, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels ``[B, m, d]`` and labels ``[B, m]`` of k points or more near each image; label -1 is filling."""
    chosen = [np.concatenate([some.own[:_ATTACKED_POINTS], some.opponents[:_ATTACKED_POINTS]]) for some in near]
    size = max([k] + [len(some) for some in chosen])
    padded = np.stack([np.pad(some, (0, size - len(some)), constant_values=-1) for some in chosen])
    return host_pixels(points.stored[padded], np.float32), np.where(padded < 0, -1, points.labels[padded])


def _judge(vote_fn, images, labels, attacked, norm: str, bounds) -> tuple[np.ndarray, np.ndarray]:
    """Return size ``[B]`` and place of the smallest of a few pushes that the vote gets wrong; inf where none does."""
    size, adversarial = np.full(len(images), np.inf), np.array(images)
    is_found = np.isfinite(attacked).all(axis=1)  # NaN where the attack found nothing
    for push in _PUSHES:
        open_ = is_found & np.isinf(size)
        if not open_.any():
            break
        moved = np.where(open_[:, None], images + np.float32(1 + push) * (attacked - images), images)
        moved = moved if bounds is None else np.clip(moved, np.float32(bounds[0]), np.float32(bounds[1]))
        open_ &= np.asarray(vote_fn(moved)) != labels
        sizes = float64_sizes(norm, moved.astype(np.float64) - images)
        size, adversarial = np.where(open_, sizes, size), np.where(open_[:, None], moved, adversarial)
    return size, adversarial
