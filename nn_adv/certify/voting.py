"""The majority vote of the k nearest points, with bounds on its radius from both sides: not exact.

The lower bound is proved by counting (`nn_adv.certify.vote_counting`), the upper one found by an attack
(`nn_adv.certify.vote_attack`) and judged by the vote itself.
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
from nn_adv.certify import vote_attack, vote_counting
from nn_adv.certify.queries import check_leave_out, check_queries, check_scale
from nn_adv.certify.rows import host_rows, pixel_values
from nn_adv.neighbors.search import flatten_queries
from nn_adv.pixels import as_float
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
    reference: neighbors.Reference, queries: chex.Array, k: int, *, leave_out: chex.Array | None = None
) -> jax.Array:
    """Return the class with most votes among the k nearest points (Euclidean) of every query, ``[Q]`` int32.

    Equally far points vote in the order of their index; of classes with equally many votes the one whose nearest
    point comes first wins. So k = 1 is `neighbors.predict`, and so is k = 2.

    Args:
      reference: points from `neighbors.fit`.
      queries: ``[Q, ...]`` as in `neighbors.nearest`; inside jit one that is not finite gets class -1.
      k: number of votes, at most the number of points that may vote (inside a transformation that is not checked:
        points that are missing do not vote).
      leave_out: ``[Q]`` index of a point that each query may not use, -1 for none; or None.

    Raises:
      ValueError: as in `neighbors.nearest`, or leave_out of another shape, kind or range.
    """
    queries = flatten_queries(reference, queries)
    if leave_out is None:
        k = _check_k(reference, k, leaves_out=False)
        found = neighbors.nearest(reference, queries, k).indices
    else:
        left_out = check_leave_out(reference, leave_out, len(queries))
        is_known = not isinstance(left_out, jax.core.Tracer)
        k = _check_k(reference, k, leaves_out=is_known and bool((left_out >= 0).any()))
        most = reference.num_points
        found = neighbors.nearest(reference, queries, k + 1 if most is None else min(k + 1, most)).indices
        is_left_out = found == jnp.asarray(left_out)[:, None]
        found = jnp.take_along_axis(found, jnp.argsort(is_left_out, axis=1, stable=True)[:, :k], axis=1)
    is_point = (found >= 0) & (found < len(reference.labels))
    winners = vote_attack.winner(jnp.where(is_point, reference.labels[found], -1), reference.num_classes)
    return jnp.where(is_point[:, 0], winners, -1)


def _check_k(reference: neighbors.Reference, k: int, *, leaves_out: bool) -> int:
    """Return the number of votes, refused where fewer points may vote."""
    most = reference.num_points
    return as_count(k, "k", high=most and most - leaves_out, what="the points that may vote")


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
      k: number of votes, at most the number of points that may vote.
      norm: "l1", "l2" or "linf", of the perturbation.
      bounds: lowest and highest pixel value, or None.
      leave_out: ``[B]`` index of a point that each image may not use, -1 for none; or None.
      num_near: opponents compared point by point; all others are bounded together. More are tighter and slower.
      num_steps: steps of the attack.
      batch_size: images at a time; memory grows with it times the number of points.

    Raises:
      ValueError: unknown norm, a number out of range, or what `check_queries` refuses.
    """
    check_norm(norm)
    clean, labels, bounds, left_out = check_queries(reference, images, labels, bounds=bounds, leave_out=leave_out)
    check_scale(reference, clean)
    leaves_out = bool((left_out >= 0).any())
    k = _check_k(reference, k, leaves_out=leaves_out)
    num_near, num_steps = as_count(num_near, "num_near"), as_count(num_steps, "num_steps")
    batch_size = as_count(batch_size, "batch_size")
    shape = clean.shape
    if not len(clean):
        return VoteBounds(np.zeros(0), np.zeros(0), np.asarray(as_float(clean)), np.zeros(0, bool))
    images = np.asarray(as_float(flatten_queries(reference, clean)))
    rows = host_rows(reference)
    results = []
    for start in range(0, len(images), batch_size):
        # The first images fill the last batch: one shape, one compilation.
        part = np.arange(start, start + min(batch_size, len(images))) % len(images)
        batch = images[part], labels[part]
        out = left_out[part] if leaves_out else None
        correct = np.asarray(vote(reference, clean[part], k, leave_out=out)) == batch[1]
        near = vote_counting.near_rows(reference, rows, *batch, left_out[part], k=k, num_near=num_near)
        lower = vote_counting.lower_bounds(rows, *batch, near, k=k, norm=norm, num_classes=reference.num_classes)
        attacked = _attack(rows, *batch, near, k, norm, bounds, reference.num_classes, num_steps)
        judge = functools.partial(vote, reference, k=k, leave_out=out)
        upper, adversarial = _judge(judge, *batch, attacked, norm, bounds)
        upper = np.where(correct, upper, 0)
        adversarial = np.where((correct & np.isfinite(upper))[:, None], adversarial, batch[0])
        results.append(VoteBounds(np.where(correct, lower, 0), upper, adversarial, correct))
    lower, upper, adversarial, correct = (np.concatenate(x)[: len(images)] for x in zip(*results, strict=True))
    return VoteBounds(lower, upper, adversarial.reshape(shape), correct)


def _attack(rows, images, labels, near, k: int, norm: str, bounds, num_classes: int, num_steps: int) -> np.ndarray:
    """Attack the vote among the points near each image; ``[B, d]``, NaN where that found nothing."""
    chosen = [np.concatenate([rows[:_ATTACKED_POINTS] for rows in (some.own, some.opponents)]) for some in near]
    size = max([k] + [len(some) for some in chosen])
    padded = np.stack([np.pad(some, (0, size - len(some)), constant_values=-1) for some in chosen])
    points = pixel_values(rows.points[padded], np.float32)
    point_labels = np.where(padded < 0, -1, rows.labels[padded])
    return np.asarray(
        vote_attack.attack(
            images, labels, points, point_labels, k=k, norm=norm, bounds=bounds, num_classes=num_classes,
            num_steps=num_steps,
        ),
        images.dtype,
    )  # fmt: skip


def _judge(vote_fn, images, labels, attacked, norm: str, bounds) -> tuple[np.ndarray, np.ndarray]:
    """Return size ``[B]`` and place of the smallest of a few pushes that the vote gets wrong; inf where none does."""
    size, adversarial = np.full(len(images), np.inf), np.array(images)
    is_found = np.isfinite(attacked).all(axis=1)
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
