"""1NN on features with a certificate in pixels: maps that enlarge no distance by more than a known factor.

If ``||E(a) - E(b)||_2 <= L ||a - b||_2`` for all images, a perturbation v moves the embedded image by at most
``L ||v||_2``. So 1NN on embedded points keeps its prediction for every ``||v||_2`` below the radius in the embedded
space over L: a sound lower bound, hardly ever the radius itself, since not every move there comes from an image.
The classifier meant is E in exact arithmetic followed by 1NN among the stored points; what rounding may add to a
computed embedding is subtracted. For maps that are linear there is more: the radius itself, of
``neighbors.fit(..., linear_map=embed.linear_map(image_shape))``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import numpy as np
import scipy

from nn_adv import neighbors
from nn_adv.border import as_count, as_images, as_labels, as_number
from nn_adv.certify.bounds.margins import norm_ratio
from nn_adv.certify.inputs import host_pixels
from nn_adv.certify.radius import Radius, radius
from nn_adv.neighbors.inputs import check_leave_out, check_reference
from nn_adv.threat import check_norm, float64_sizes

_IMAGES_AT_A_TIME = 1024
_CHECKED_IMAGES = 256
_HALVINGS = 24


@dataclasses.dataclass(frozen=True)
class Embedding:
    """A map from images to vectors that enlarges no Euclidean distance by more than a factor.

    Call it to embed images, also those for `neighbors.fit`: ``[B, ...]`` uint8 or float to ``[B, e]`` float64.

    Attributes:
      fn: float32 images ``[B, ...]`` in [0, 1] to vectors ``[B, e]``.
      lipschitz: L, in l2. It is taken as stated: every certificate rests on it.
      name: for reports.
      rounding: largest error in l2 of what fn computes for an image with pixels in [-1, 1], also taken as stated (and
        in proportion for larger pixels). The default suits float32 and vectors of norm up to about 100.

    Raises:
      ValueError: a constant that is not positive or not finite, or a negative rounding.
    """

    fn: Callable[[np.ndarray], chex.Array]
    lipschitz: float
    name: str
    rounding: float = 1e-4

    def __post_init__(self) -> None:
        if not as_number(self.lipschitz, "lipschitz"):
            raise ValueError("lipschitz must be above 0, got 0")
        as_number(self.rounding, "rounding")

    def __call__(self, images: chex.Array) -> np.ndarray:
        """Embed images ``[B, ...]``, some at a time; ``[B, e]`` float64, which `neighbors.fit` takes as points.

        Raises:
          ValueError: no images ``[B, ...]`` of finite pixels, or ``fn`` gives something else than finite ``[B, e]``.
        """
        images = np.asarray(as_images(images, float_dtype=np.float32))
        count = len(images)
        if not count:  # what it gives for one tells the shape
            images = np.zeros((1, *images.shape[1:]), images.dtype)
        parts = []
        for start in range(0, len(images), _IMAGES_AT_A_TIME):
            part = host_pixels(images[start : start + _IMAGES_AT_A_TIME], np.float32)
            parts.append(np.asarray(self.fn(part), np.float64))
            if parts[-1].ndim != 2 or len(parts[-1]) != len(part) or not np.isfinite(parts[-1]).all():
                raise ValueError(
                    f"fn of {self.name} must give finite [B, e] for images {part.shape}, got {parts[-1].shape}"
                )
        return np.concatenate(parts)[:count]

    def linear_map(self, image_shape: tuple[int, ...]) -> np.ndarray:
        """Return M ``[e, d]`` of a map ``M x + b`` of d pixels, for `neighbors.fit` and exact radii in its metric.

        Raises:
          ValueError: noise that is not mapped so.
        """
        size = math.prod(image_shape)
        noise = np.random.default_rng(0).uniform(size=(8, size))
        probes = np.concatenate([np.zeros((1, size)), noise, np.eye(size)]).astype(np.float32)
        vectors = self(probes.reshape(-1, *image_shape))
        moved, columns = vectors[1:9] - vectors[0], vectors[9:] - vectors[0]
        off = np.abs(probes[1:9] @ columns - moved).max()
        if off > 1e-4 * (1 + np.abs(moved).max()):
            raise ValueError(f"fn of {self.name} must be linear up to a constant, got {off:.3g} beside the linear map")
        return columns.T


def pca(points: chex.Array, num_components: int) -> Embedding:
    """Return the projection onto the leading principal components of points ``[n, ...]``: L = 1 up to rounding.

    The constant is the spectral norm of the rows as computed, bounded by the largest row sum of their Gram matrix.
    Takes a d x d matrix and its eigenvectors: about half a minute at d = 3072.

    Raises:
      ValueError: no points, or num_components not in 1..d.
    """
    points = np.asarray(as_images(points, name="points", float_dtype=np.float32, may_be_none=False))
    size = points[0].size
    num_components = as_count(num_components, "num_components", high=size)
    blocks = [points[i : i + _IMAGES_AT_A_TIME] for i in range(0, len(points), _IMAGES_AT_A_TIME)]
    mean = sum(_flat(host_pixels(block, np.float64)).sum(axis=0) for block in blocks) / len(points)
    scatter = np.zeros((size, size))
    for block in blocks:
        centered = _flat(host_pixels(block, np.float64)) - mean
        scatter += centered.T @ centered
    rows = scipy.linalg.eigh(scatter, subset_by_index=(size - num_components, size - 1))[1].T[::-1]
    row_sums = np.abs(rows @ rows.T).sum(axis=1) + num_components * (size + 2) * 2.0**-53
    return Embedding(
        lambda images: (_flat(images) - mean) @ rows.T,
        lipschitz=float(np.sqrt(row_sums.max()) * (1 + 2.0**-50)),
        name=f"pca-{num_components}",
        rounding=_linear_rounding(size, num_components) * max(1.0, float(np.abs(mean).max())),
    )


def average_pool(image_shape: tuple[int, int, int], window: int) -> Embedding:
    """Return means over windows of pixels times their side, an orthogonal projection: L = 1.

    Args:
      image_shape: (H, W, C), both sides multiples of the window.
      window: side of the windows, which do not overlap.

    Raises:
      ValueError: sides that are no multiple of the window.
    """
    height, width, channels = _check_shape(image_shape)
    if height % as_count(window, "window") or width % window:
        raise ValueError(f"window must divide the sides of {image_shape}, got {window}")
    shape = (height // window, window, width // window, window, channels)

    def pool(images):
        means = _flat(images).reshape(len(images), *shape).mean(axis=(2, 4))
        return means.reshape(len(images), -1) * window

    return _orthogonal(pool, image_shape, height * width * channels // window**2, f"pool-{window}")


def low_pass(image_shape: tuple[int, int, int], cutoff: int) -> Embedding:
    """Return the lowest coefficients of the orthonormal 2-D cosine transform of each channel: L = 1.

    Args:
      image_shape: (H, W, C).
      cutoff: frequencies kept in each direction.

    Raises:
      ValueError: cutoff not in 1..min(H, W).
    """
    cutoff = as_count(cutoff, "cutoff", high=min(_check_shape(image_shape)[:2]))

    def transform(images):
        pictures = _flat(images).reshape(len(images), *image_shape)
        coefficients = scipy.fft.dctn(pictures, axes=(1, 2), norm="ortho")
        return coefficients[:, :cutoff, :cutoff].reshape(len(images), -1)

    return _orthogonal(transform, image_shape, cutoff**2 * image_shape[2], f"lowpass-{cutoff}")


def _check_shape(image_shape: tuple[int, ...]) -> tuple[int, ...]:
    if np.shape(image_shape) != (3,):
        raise ValueError(f"image_shape must be (H, W, C), got {image_shape}")
    return image_shape


def embedded_radius(
    reference: neighbors.Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    embed: Embedding,
    norm: str,
    leave_out: chex.Array | None = None,
    points: chex.Array | None = None,
    **options: Any,
) -> Radius:
    """Bound the radius in pixels of 1NN on embedded points.

    With r the l2 radius of the embedded image and c from `norm_ratio`, ``lower = (r - rounding) / (L c)``. Pixel
    bounds are not used for it. ``upper`` needs the images of the points: the first wrong image on the way to the
    opponent in whose cell the embedded witness lies, by the map as it is computed.

    Args:
      reference: ``neighbors.fit(embed(points), ...)``.
      images: ``[B, ...]`` uint8 or float, as ``embed`` takes them.
      labels: ``[B]``.
      embed: the embedding.
      norm: "l1", "l2" or "linf", of the perturbation in pixels.
      leave_out: ``[B]`` indices of points each image may not use, or None.
      points: the images ``[n, ...]`` behind the reference, in the order of `fit`; without them ``upper`` is inf.
      **options: of `radius`, which finds r, but for its bounds.

    Returns:
      As `radius`, with ``lower``, ``upper`` and ``adversarial`` in pixels and status "bounded"; the certificate is of
      r, in the embedded space.

    Raises:
      ValueError: unknown norm, no embedding, images that show that L is larger than stated, or as `radius`.
    """
    check_norm(norm)
    check_reference(reference)
    if not isinstance(embed, Embedding):
        raise ValueError(f"embed must be an Embedding, got {type(embed).__name__}")
    if "bounds" in options:
        raise ValueError("bounds must be left out: those of pixels say nothing of embedded images")
    images = np.asarray(as_images(images, float_dtype=np.float32))
    size = math.prod(images.shape[1:])
    labels = as_labels(labels, reference.num_classes, count=len(images))
    if leave_out is not None:
        leave_out = check_leave_out(reference, leave_out, len(images))
    if points is not None:
        points = np.asarray(as_images(points, name="points", num_pixels=size, float_dtype=np.float32))
        if len(points) != reference.num_points:
            raise ValueError(
                f"points must be the {reference.num_points} images behind the reference, got {len(points)}"
            )
    pixels = host_pixels(images, np.float32)
    check_lipschitz(embed, pixels)
    exact = embed(pixels)
    queries = exact.astype(np.float32)
    inner = radius(reference, queries, labels, norm="l2", bounds=None, leave_out=leave_out, **options)
    largest = np.abs(pixels).max(axis=tuple(range(1, pixels.ndim)))
    rounding = np.linalg.norm(exact - queries, axis=1) + embed.rounding * np.maximum(1, largest)
    lower = np.maximum(inner.lower - rounding, 0) / (embed.lipschitz * norm_ratio("l2", norm, size)) * (1 - 1e-12)
    upper, adversarial = np.full(len(pixels), np.inf), pixels
    if points is not None:
        opponent = np.where(inner.correct, inner.opponent, -1)
        upper, adversarial = _segment(reference, embed, pixels, labels, opponent, points, norm, leave_out)
    return inner._replace(
        lower=np.where(inner.correct, lower, 0.0),
        upper=np.where(inner.correct, upper, 0.0),
        adversarial=adversarial,
        status=np.full(len(pixels), "bounded"),
        opponent=np.where(np.isfinite(upper), inner.opponent, -1).astype(np.int32),
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
    apart = scipy.spatial.distance.cdist(flat, flat)
    ratio = np.maximum(scipy.spatial.distance.cdist(vectors, vectors) - slack, 0) / np.where(apart > 0, apart, np.inf)
    if ratio.max() > embed.lipschitz * (1 + 1e-9):
        raise ValueError(
            f"embed must enlarge distances by at most its lipschitz, {embed.lipschitz}; "
            f"{embed.name} enlarges that between two images {ratio.max():.6g} times"
        )


def _segment(reference, embed, images, labels, opponent, points, norm: str, leave_out):
    """Bisect the way from each image to the point ``opponent [B]`` (-1: none) for the first wrong one."""
    targets = host_pixels(points[np.maximum(opponent, 0)], np.float32).reshape(images.shape)
    shape = (-1,) + (1,) * (images.ndim - 1)

    def at(share):
        moved = images + share.reshape(shape).astype(np.float32) * (targets - images)
        return np.clip(moved, np.minimum(images, targets), np.maximum(images, targets))

    def is_wrong(moved):
        return np.asarray(neighbors.predict(reference, embed(moved).astype(np.float32), leave_out=leave_out)) != labels

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


def _orthogonal(fn, image_shape, size: int, name: str) -> Embedding:
    """Return an orthogonal projection onto ``size`` coordinates, whose constant is 1 in exact arithmetic."""
    return Embedding(fn, 1.0, name, _linear_rounding(math.prod(image_shape), size))


def _linear_rounding(size: int, num_components: int) -> float:
    """Bound the error of e float64 inner products of d terms with rows of norm 1 and entries up to 2 in size."""
    return 4 * (size + 4) * 2.0**-53 * math.sqrt(size * num_components)
