"""The radius of 1NN on features: found in the space of a Lipschitz embedding, carried to pixels.

If ``||E(a) - E(b)||_2 <= L ||a - b||_2`` for all images, a perturbation v moves the embedded image by at most
``L ||v||_2``. So 1NN on embedded points keeps its prediction for every ``||v||_2`` below the radius in the embedded
space over L: a sound lower bound, hardly ever the radius itself, since not every move there comes from an image.
The classifier meant is E in exact arithmetic followed by 1NN among the stored points; what rounding may add to a
computed embedding is subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import numpy as np
from scipy.spatial import distance as scipy_distance

from nn_adv import neighbors
from nn_adv.border import as_images
from nn_adv.certify.embeddings import Embedding
from nn_adv.certify.margins import norm_ratio
from nn_adv.certify.queries import check_queries
from nn_adv.certify.voting import vote
from nn_adv.pixels import as_float
from nn_adv.threat import check_norm, float64_sizes

_CHECKED_IMAGES = 256
_HALVINGS = 24


def embedded_radius(
    radius_fn: Callable[..., Any],
    reference: neighbors.Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    embed: Embedding,
    norm: str,
    leave_out: chex.Array | None = None,
    points: chex.Array | None = None,
    **options,
):
    """Bound the radius in pixels of 1NN on embedded points.

    With r the l2 radius of the embedded image and c from `norm_ratio`, ``lower = (r - rounding) / (L c)``. Pixel
    bounds are not used for it. ``upper`` needs the images of the points: the first wrong image on the way to the
    opponent in whose cell the embedded witness lies.

    Args:
      radius_fn: `nn_adv.certify.radius`, to find r.
      reference: ``neighbors.fit(embed(points), ...)``.
      images: ``[B, ...]`` uint8 or float, as ``embed`` takes them.
      labels: ``[B]``.
      embed: the embedding.
      norm: "l1", "l2" or "linf", of the perturbation in pixels.
      leave_out: ``[B]`` indices of points each image may not use, or None.
      points: the images ``[n, ...]`` behind the reference, in the order of `fit`; without them ``upper`` is inf.
      **options: passed on to ``radius_fn``.

    Returns:
      What ``radius_fn`` gives, with ``lower``, ``upper`` and ``adversarial`` in pixels and status "bounded"; the
      certificate is of r, in the embedded space.

    Raises:
      ValueError: unknown norm, images that show that L is larger than stated, or as ``radius_fn`` does.
    """
    check_norm(norm)
    images, labels, *_ = check_queries(reference, images, labels, leave_out=leave_out, are_embedded_later=True)
    if points is not None:
        points = np.asarray(
            as_images(points, name="points", num_pixels=math.prod(images.shape[1:]), float_dtype=np.float32)
        )
        if len(points) != reference.num_points:
            raise ValueError(
                f"points must be the {reference.num_points} images behind the reference, got {len(points)}"
            )
    pixels = np.asarray(as_float(images), np.float32)
    check_lipschitz(embed, pixels)
    exact = embed(pixels)
    queries = exact.astype(np.float32)
    inner = radius_fn(reference, queries, labels, norm="l2", bounds=None, leave_out=leave_out, **options)
    largest = np.abs(pixels).max(axis=tuple(range(1, pixels.ndim)))
    rounding = np.linalg.norm(exact - queries, axis=1) + embed.rounding * np.maximum(1, largest)
    ratio = embed.lipschitz * norm_ratio("l2", norm, math.prod(pixels.shape[1:]))
    lower = np.maximum(inner.lower - rounding, 0) / ratio * (1 - 1e-12)
    upper, adversarial = np.full(len(pixels), np.inf), pixels
    opponent = np.full(len(pixels), -1, np.int32)
    if points is not None:
        opponent = np.where(inner.correct, inner.opponent, -1)
        upper, adversarial = _segment(reference, embed, pixels, labels, opponent, points, norm, leave_out)
    return inner._replace(
        lower=np.where(inner.correct, lower, 0.0),
        upper=np.where(inner.correct, upper, 0.0),
        adversarial=adversarial,
        status=np.full(len(pixels), "bounded"),
        opponent=np.where(np.isfinite(upper), opponent, -1).astype(np.int32),
    )


def check_lipschitz(embed: Embedding, images: np.ndarray) -> None:
    """Refuse a constant that images ``[B, ...]`` show to be too small: a cheap test, which cannot prove it right.

    Compares the first images with each other, and each with one a little on the way to the next and one with a little
    noise.

    Raises:
      ValueError: two images are further apart in the embedding than stated.
    """
    if not len(images):
        return
    images = images[:_CHECKED_IMAGES]
    noise = np.random.default_rng(0).standard_normal(images.shape)
    moved = [images + 0.02 * move for move in (np.roll(images, 1, axis=0) - images, noise)]
    # Not beyond the pixels that fn is made for.
    compared = np.clip(np.concatenate([images, *moved]), min(0, images.min()), max(1, images.max())).astype(np.float32)
    flat, vectors = _flat(compared), embed(compared)
    slack = 2 * embed.rounding * max(1.0, float(np.abs(flat).max()))
    apart = scipy_distance.cdist(flat, flat)
    ratio = np.maximum(scipy_distance.cdist(vectors, vectors) - slack, 0) / np.where(apart > 0, apart, np.inf)
    if ratio.max() > embed.lipschitz * (1 + 1e-9):
        raise ValueError(
            f"embed must enlarge distances by at most its lipschitz, {embed.lipschitz}; "
            f"{embed.name} enlarges that between two images {ratio.max():.6g} times"
        )


def _segment(reference, embed, images, labels, opponent, points, norm: str, leave_out):
    """Bisect the way from each image to the point ``opponent [B]`` (-1: none) for the first wrong one."""
    targets = np.asarray(as_float(np.asarray(points)[np.maximum(opponent, 0)]), np.float32).reshape(images.shape)
    shape = (-1,) + (1,) * (images.ndim - 1)

    def at(share):
        moved = images + share.reshape(shape).astype(np.float32) * (targets - images)
        return np.clip(moved, np.minimum(images, targets), np.maximum(images, targets))

    def is_wrong(moved):
        return np.asarray(vote(reference, embed(moved).astype(np.float32), 1, leave_out=leave_out)) != labels

    low, high = np.zeros(len(images)), np.ones(len(images))
    exists = (opponent >= 0) & is_wrong(targets)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wrong = is_wrong(at(middle))
        low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
    adversarial = np.where(exists.reshape(shape), at(high), images)
    size = float64_sizes(norm, _flat(adversarial) - _flat(images))
    return np.where(exists, size, np.inf), adversarial


def _flat(images: chex.Array) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), math.prod(images.shape[1:]))
