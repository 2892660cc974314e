"""Maps of images that enlarge no distance by more than a known factor, for 1NN on features with a certificate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import chex
import numpy as np
import scipy.fft
import scipy.linalg

from nn_adv.border import as_count, as_images
from nn_adv.pixels import as_float

_ROWS_AT_A_TIME = 1024


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
        if not 0 < self.lipschitz < math.inf:
            raise ValueError(f"lipschitz must be positive and finite, got {self.lipschitz}")
        if not 0 <= self.rounding < math.inf:
            raise ValueError(f"rounding must be at least 0 and finite, got {self.rounding}")

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
        for start in range(0, len(images), _ROWS_AT_A_TIME):
            part = np.asarray(as_float(images[start : start + _ROWS_AT_A_TIME]))
            parts.append(np.asarray(self.fn(part), np.float64))
            if parts[-1].ndim != 2 or len(parts[-1]) != len(part) or not np.isfinite(parts[-1]).all():
                raise ValueError(
                    f"fn of {self.name} must give finite [B, e] for images {part.shape}, got {parts[-1].shape}"
                )
        return np.concatenate(parts)[:count]


def pca(points: chex.Array, num_components: int) -> Embedding:
    """Return the projection onto the leading principal components of points ``[n, ...]``: L = 1 up to rounding.

    The constant is the spectral norm of the rows as computed, bounded by the largest row sum of their Gram matrix.
    Takes a d x d matrix and its eigenvectors: about half a minute at d = 3072.

    Raises:
      ValueError: no points, or num_components not in 1..d.
    """
    points = np.asarray(as_images(points, name="points", float_dtype=np.float32))
    if not len(points):
        raise ValueError(f"points must hold at least one point, got shape {points.shape}")
    size = points[0].size
    num_components = as_count(num_components, "num_components", high=size)
    blocks = [points[i : i + _ROWS_AT_A_TIME] for i in range(0, len(points), _ROWS_AT_A_TIME)]
    mean = sum(_flat(as_float(block)).sum(axis=0) for block in blocks) / len(points)
    scatter = np.zeros((size, size))
    for block in blocks:
        centered = _flat(as_float(block)) - mean
        scatter += centered.T @ centered
    rows = scipy.linalg.eigh(scatter, subset_by_index=(size - num_components, size - 1))[1].T[::-1]
    row_sums = np.abs(rows @ rows.T).sum(axis=1) + num_components * (size + 2) * 2.0**-53
    return Embedding(
        lambda images: (_flat(images) - mean) @ rows.T,
        lipschitz=float(np.sqrt(row_sums.max()) * (1 + 2.0**-50)),
        name=f"pca-{num_components}",
        rounding=_linear_rounding(size, num_components),
    )


def average_pool(image_shape: tuple[int, int, int], window: int) -> Embedding:
    """Return means over windows of pixels times their side, an orthogonal projection: L = 1.

    Args:
      image_shape: (H, W, C), both sides multiples of the window.
      window: side of the windows, which do not overlap.

    Raises:
      ValueError: sides that are no multiple of the window.
    """
    height, width, channels = image_shape
    if window < 1 or height % window or width % window:
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
    if not 1 <= cutoff <= min(image_shape[:2]):
        raise ValueError(f"cutoff must be in 1..{min(image_shape[:2])}, got {cutoff}")

    def transform(images):
        pictures = _flat(images).reshape(len(images), *image_shape)
        coefficients = scipy.fft.dctn(pictures, axes=(1, 2), norm="ortho")
        return coefficients[:, :cutoff, :cutoff].reshape(len(images), -1)

    return _orthogonal(transform, image_shape, cutoff**2 * image_shape[2], f"lowpass-{cutoff}")


def _flat(images: chex.Array) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _orthogonal(fn, image_shape, size: int, name: str) -> Embedding:
    """Return an orthogonal projection onto ``size`` coordinates, whose constant is 1 in exact arithmetic."""
    return Embedding(fn, 1.0, name, _linear_rounding(math.prod(image_shape), size))


def _linear_rounding(size: int, num_components: int) -> float:
    """Bound the error of e float64 inner products of d terms with rows of norm 1 and entries up to 2 in size."""
    return 4 * (size + 4) * 2.0**-53 * math.sqrt(size * num_components)
