"""The points that classify: sorted by class, cut into blocks that hold one class each.

One class per block means that class minima and class log-sum-exps need no scatter by label, and that the shapes
of a task depend only on its number of blocks, so most pairs of classes share one compilation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv import precision
from nn_adv.border import as_count, as_images, as_labels
from nn_adv.neighbors.linear import as_linear_map, map_points

# Points of a block are screened in groups of this many; blocks are padded to a multiple of it.
GROUP_SIZE = 8
# The original index of a padding row: above every real one, so it loses every tie.
NO_POINT = np.iinfo(np.int32).max
# Padding rows get this squared norm: above any squared distance between uint8 images that int32 may hold.
PADDING_SQ_NORM = 2**30
_BLOCK_SIZES = (1024, 512, 256, 128, 64, 32, 16, 8)
# Points whose largest pixel exceeds the median one by more than this factor do not move the center.
_FAR = 2**10
# What a block costs besides its rows, in rows; it keeps small classes from being cut into tiny blocks.
_BLOCK_OVERHEAD = 32
_FEWEST_MEASURED = 2**22  # pixels of all points: from here on the fastest products are measured


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reference:
    """Labelled points, ready for search; a pytree, made by `fit`.

    With ``N`` blocks of ``b`` rows, ``d`` pixels and ``C`` classes:

    Attributes:
      blocks: points ``[N, b, d]``, uint8 (pixels of 1/255) or float32.
      index: original index of every row ``[N, b]``; `NO_POINT` in the padding. Ascending within a class.
      labels: class of every point by its original index ``[N * b]``; the tail is unused.
      class_start: class c owns the blocks ``class_start[c]`` to ``class_start[c + 1]``, ``[C + 1]``.
      sq_norms: ``[N, b]``; uint8: squared norms of ``point - 128``, int32 where `sums_fit_int32`, else float32;
        float32: of ``point - center``.
      center: mean of the points, those far out left aside ``[d]``, in [0, 1] units; expanded distances around it lose
        fewer digits.
      centered_sq_norms: float32 squared norms of ``point - center`` ``[N, b]`` in [0, 1] units; inf in the padding.
      pixel_range: lowest and highest pixel ``[2]`` of the points, in [0, 1] units.
      num_classes: C.
      image_shape: shape of one point as it was given.
      linear_map: M ``[k, d]`` float32, if distances are those of ``M x`` to ``M z``; None: of x to z.
      mapped: the points ``M z`` in the same places; None without a map.
      products: what the products of a screen against uint8 points are formed in; a choice of speed, not of answers.
      mesh: the devices that the blocks are split over, from `shard`; None for one device.
    """

    blocks: chex.Array
    index: chex.Array
    labels: chex.Array
    class_start: chex.Array
    sq_norms: chex.Array
    center: chex.Array
    centered_sq_norms: chex.Array
    pixel_range: chex.Array
    num_classes: int = dataclasses.field(metadata={"static": True})
    image_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    products: precision.Products = dataclasses.field(metadata={"static": True})
    mesh: jax.sharding.Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def size(self) -> int:
        """Number of pixels of a point."""
        return self.blocks.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """Of the points: uint8 or float32."""
        return self.blocks.dtype

    linear_map: chex.Array | None = None
    mapped: Reference | None = None

    @property
    def searched(self) -> Reference:
        """The points that distances are measured to."""
        return self if self.mapped is None else self.mapped

    @property
    def num_points(self) -> int | None:
        """Number of points, or None inside a transformation, where it is not known."""
        if isinstance(self.index, jax.core.Tracer):
            return None
        with jax.ensure_compile_time_eval():  # a reference that a transformation closes over is known inside it
            return int(jnp.sum(self.index != NO_POINT))


def sums_fit_int32(norm: str, size: int) -> bool:
    """Return whether distances between uint8 images of ``size`` pixels, squared in l2, stay below the padding's."""
    return size * (255**2 if norm == "l2" else 255) < PADDING_SQ_NORM


def fit(
    points: chex.Array,
    labels: chex.Array,
    num_classes: int,
    *,
    block_size: int | None = None,
    products: precision.Products | None = None,
    linear_map: chex.Array | None = None,
) -> Reference:
    """Prepare labelled points for search; runs on the host and copies the points once.

    uint8 points mean pixels ``v / 255`` rounded to float32 (as NumPy's ``points.astype(float32) / 255``), so every
    distance is in [0, 1] units. Other dtypes are taken as they are and stored as float32. Pass the result to jitted
    functions as an argument: one that closes over it compiles the points in as a constant.

    Args:
      points: ``[N, ...]``, uint8 or float, of any trailing shape.
      labels: ``[N]`` integers in ``0 .. num_classes - 1``. A class may have no point: it is infinitely far.
      num_classes: number of classes C.
      block_size: points per block, rounded up to a multiple of 8; memory of a search grows with it.
        Chosen from the class sizes when None, at most 1024.
      products: what screens against uint8 points multiply in; None for what is fastest here, measured once per process
        where there are many points. The answers are the same.
      linear_map: M ``[k, d]``, any matrix with a column for each pixel: the classifier then measures
        ``||M x - M z||_2`` (principal components, a low-pass filter, a learned Mahalanobis distance). M and the points
        ``M z`` are rounded to float32, and so meant; ``M x`` is not rounded, but for its computation in float64.

    Raises:
      ValueError: no points, labels of another length or outside the classes, NaN or infinite points, a dtype that
        is neither uint8 nor float, num_classes or block_size below 1, products of other names, or a linear_map of
        another shape, not of floats, not finite, or that maps a point beyond float32.
    """
    points = np.asarray(as_images(points, name="points", float_dtype=np.float32, may_be_none=False))
    num_classes = as_count(num_classes, "num_classes")
    labels = as_labels(labels, num_classes, count=len(points))
    image_shape = points.shape[1:]
    points = points.reshape(len(points), -1)
    if linear_map is not None:
        linear_map = as_linear_map(linear_map, points.shape[1])
    counts = np.bincount(labels, minlength=num_classes)
    if block_size is None:
        size = _choose_block_size(counts)
    else:
        size = -(-as_count(block_size, "block_size") // GROUP_SIZE) * GROUP_SIZE
    blocks_per_class = -(-counts // size)
    class_start = np.concatenate([[0], np.cumsum(blocks_per_class)])
    place = np.argsort(np.argsort(labels, kind="stable"))  # of each point, class after class
    row_of_point = place + (class_start[:-1] * size - (np.cumsum(counts) - counts))[labels]

    def in_blocks(name: str, values: np.ndarray) -> jax.Array:
        rows = np.full((class_start[-1] * size, *values.shape[1:]), padding_of(name, values.dtype), values.dtype)
        rows[row_of_point] = values
        return jnp.asarray(rows.reshape(-1, size, *values.shape[1:]))

    center = mean_pixels(points)
    centered, sq_norms = squared_norms(points, center)
    index = np.arange(len(points), dtype=np.int32)
    values = {"blocks": points, "index": index, "sq_norms": sq_norms, "centered_sq_norms": centered}
    by_block: dict[str, Any] = {name: in_blocks(name, some) for name, some in values.items()}
    return Reference(
        **by_block,
        labels=jnp.asarray(np.pad(labels, (0, class_start[-1] * size - len(labels)))),
        class_start=jnp.asarray(class_start, jnp.int32),
        center=jnp.asarray(center),
        pixel_range=jnp.asarray(np.array([points.min(), points.max()]) / _unit(points)),
        num_classes=num_classes,
        image_shape=image_shape,
        products=fastest_products(points) if products is None else precision.check_products(products),
        linear_map=None if linear_map is None else jnp.asarray(linear_map),
        mapped=None if linear_map is None else _fit_mapped(points, labels, num_classes, size, linear_map),
    )


def _fit_mapped(points, labels, num_classes: int, block_size: int, linear_map: np.ndarray) -> Reference:
    mapped = map_points(linear_map, points)
    too_large = mapped[~np.isfinite(mapped)]
    if too_large.size:
        raise ValueError(f"linear_map must map points to numbers that float32 holds, got {too_large[0]}")
    return fit(mapped, labels, num_classes, block_size=block_size)


def fastest_products(points: np.ndarray) -> precision.Products:
    """Return what screens against all of these points multiply in."""
    # Float points are multiplied as they are, and a search of few takes less time than to measure.
    is_measured = points.dtype == np.uint8 and points.size >= _FEWEST_MEASURED
    return precision.fastest() if is_measured else precision.Products("float32", "float32")


def mean_pixels(points: np.ndarray) -> np.ndarray:
    """Return the mean ``[d]`` of points ``[N, d]``, those far out left aside, in [0, 1] units."""
    return (_without_far(points).mean(axis=0, dtype=np.float64) / _unit(points)).astype(np.float32)


def squared_norms(points: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `Reference.centered_sq_norms` and `Reference.sq_norms` of points ``[N, d]``."""
    with np.errstate(over="ignore"):  # squares of huge points overflow; search decides those in float64
        centered = _sums_of_squares(points, lambda some: some / _unit(points) - center.astype(np.float64))
        centered = centered.astype(np.float32)
    if points.dtype != np.uint8:
        return centered, centered
    dtype = np.int32 if sums_fit_int32("l2", points.shape[-1]) else np.float32
    return centered, _sums_of_squares(points, lambda some: some.astype(np.int32) - 128).astype(dtype)


def padding_of(name: str, dtype: np.dtype) -> float:
    """Return what padding rows hold in an array of `Reference` of some dtype."""
    if name == "index":
        return NO_POINT
    if name == "blocks":  # 128 is the centre of the integer screen: products with padding vanish
        return 128 if dtype == np.uint8 else 0
    return PADDING_SQ_NORM if dtype == np.int32 else np.inf


def _unit(points: np.ndarray) -> np.float32:
    return np.float32(255 if points.dtype == np.uint8 else 1)


def _choose_block_size(counts: np.ndarray) -> int:
    """Return the block size that wastes the fewest rows; the larger one where two are equal."""

    def cost(size: int) -> int:
        return int(np.sum(-(-counts // size))) * (size + _BLOCK_OVERHEAD)

    return min(_BLOCK_SIZES, key=cost)


def _without_far(points: np.ndarray) -> np.ndarray:
    """Return the points that are not far larger than most: one alone would take the center away from all others."""
    if points.dtype == np.uint8:
        return points
    largest = np.maximum(points.max(axis=1), -points.min(axis=1))
    is_far = largest > _FAR * np.median(largest)
    return points[~is_far] if is_far.any() else points


def _sums_of_squares(rows: np.ndarray, values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the sum of the squares of ``values`` of each row, a slice at a time to bound memory."""
    slices = np.array_split(rows, max(1, rows.size // 2**22))
    return np.concatenate([np.square(values(some)).sum(axis=1) for some in slices])
