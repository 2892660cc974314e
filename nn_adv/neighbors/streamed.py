"""Points that stay on disk: searched slab by slab, the next one read while the device works on this one."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nn_adv.border import as_array, as_count, as_images, as_labels
from nn_adv.neighbors.reference import (
    Reference,
    fastest_products,
    fit,
    mean_pixels,
    padding_of,
    squared_norms,
)
from nn_adv.neighbors.sharded import agreed, check_mesh, place
from nn_adv.paths import as_path

_BLOCK = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """Labelled points on disk, made by `stream`; what `Reference` is for points in memory.

    Attributes:
      points: ``[N, d]`` uint8 or float32, mapped from a file.
      labels: ``[N]`` classes.
      centered_sq_norms: of the points ``[N]``, as in `Reference`; all that memory holds of them.
      sq_norms: likewise.
      head: a reference to one point, for what does not depend on the points.
      rows: points of a slab.
      mesh: the devices that a slab is split over; None for one.
    """

    points: np.ndarray
    labels: np.ndarray
    centered_sq_norms: np.ndarray
    sq_norms: np.ndarray
    head: Reference
    rows: int
    mesh: Mesh | None

    linear_map = None
    mapped = None
    num_classes = property(lambda self: self.head.num_classes)
    image_shape = property(lambda self: self.head.image_shape)
    size = property(lambda self: self.points.shape[1])
    dtype = property(lambda self: self.points.dtype)
    num_points = property(lambda self: len(self.points))
    pixel_range = property(lambda self: self.head.pixel_range)

    def slabs(self, some: np.ndarray | None = None) -> Iterator[tuple[Reference, np.ndarray]]:
        """Yield the points, or some of them ``[n]``, as references of one shape, and the index of each ``[rows]``.

        The next slab is read while the caller works on this one. Blocks are filled in the order of the index, whatever
        the classes.
        """
        count = self.num_points if some is None else len(some)
        rows = min(self.rows, max(1, -(-count // _BLOCK)) * _BLOCK)

        def read(start: int) -> tuple[Reference, np.ndarray]:
            stop = min(start + rows, count)
            index = np.arange(start, stop) if some is None else some[start:stop]
            return self._slab(slice(start, stop) if some is None else index, index, rows), index

        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            following = reader.submit(read, 0)
            for start in range(0, count, rows):
                slab = following.result()
                if start + rows < count:
                    following = reader.submit(read, start + rows)
                yield slab

    def _slab(self, part: slice | np.ndarray, index: np.ndarray, rows: int) -> Reference:
        def blocks(name: str, values: np.ndarray) -> np.ndarray:
            missing = (0, rows - len(values)), *((0, 0),) * (values.ndim - 1)
            padded = np.pad(values, missing, constant_values=padding_of(name, values.dtype))
            return padded.reshape(-1, _BLOCK, *values.shape[1:])

        values = {"blocks": self.points[part], "index": index.astype(np.int32)}
        values |= {"sq_norms": self.sq_norms[part], "centered_sq_norms": self.centered_sq_norms[part]}
        by_block: dict[str, Any] = {name: blocks(name, some) for name, some in values.items()}
        slab = dataclasses.replace(self.head, **by_block)
        return jax.tree.map(jnp.asarray, slab) if self.mesh is None else place(slab, self.mesh)


def _open(path: pathlib.Path) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        mapped = None
    if not isinstance(mapped, np.ndarray):
        raise ValueError(f"points must be a .npy file of one array, {path} is none")
    return mapped


def stream(
    points: str | os.PathLike | np.ndarray,
    labels: chex.Array,
    num_classes: int,
    *,
    rows: int = 2**16,
    mesh: Mesh | None = None,
) -> Streamed:
    """Open labelled points that stay on disk; searches and radii take the result where they take that of `fit`.

    The answers are those of `fit`. A search reads the file once, `nearest_in_class` only the points of the class, and
    memory holds three slabs. Opening reads the file twice: to check the pixels, and for the norms of the points.

    Args:
      points: the name of a .npy file of ``[N, ...]`` images, uint8 or float32, or such an array.
      labels: ``[N]`` integers in ``0 .. num_classes - 1``.
      num_classes: number of classes C.
      rows: points of a slab, rounded up to a multiple of 1024.
      mesh: devices to split a slab over, as for `shard`.

    Raises:
      ValueError: as `fit`; or points of another dtype, which would have to be converted.
      OSError: a file that cannot be read.
    """
    mapped = _open(as_path(points, "points")) if isinstance(points, (str, os.PathLike)) else points
    array = as_array(mapped, "points")
    dtype = getattr(mapped, "dtype", array.dtype)  # of another byte order than the array's, perhaps
    if dtype != array.dtype or (jnp.issubdtype(dtype, jnp.floating) and dtype != np.float32):
        raise ValueError(f"points must be uint8 or float32, as they are on disk, got dtype {dtype}")
    array = np.asarray(as_images(array, name="points", may_be_none=False))
    labels = as_labels(labels, as_count(num_classes, "num_classes"), count=len(array))
    rows = -(-as_count(rows, "rows") // _BLOCK) * _BLOCK
    head = fit(array[:1], labels[:1], num_classes, products=fastest_products(array))
    if mesh is not None:
        mesh, head = check_mesh(mesh), agreed(head)
    flat = array.reshape(len(array), -1)
    center = mean_pixels(flat[:rows])
    parts = [flat[start : start + rows] for start in range(0, len(flat), rows)]
    found = [(*squared_norms(part, center), part.min(), part.max()) for part in parts]
    centered, sq_norms, least, most = zip(*found, strict=True)
    ends = np.array([min(least), max(most)]) / (np.float32(255) if flat.dtype == np.uint8 else np.float32(1))
    head = dataclasses.replace(head, center=jnp.asarray(center), pixel_range=jnp.asarray(ends))
    return Streamed(flat, labels, np.concatenate(centered), np.concatenate(sq_norms), head, rows, mesh)
