"""What a certificate is asked about: the checked question, and the points of the reference as host code sees them."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import chex
import numpy as np
import scipy

from nn_adv.border import as_bounds, as_images, as_labels
from nn_adv.neighbors import Reference, Streamed
from nn_adv.neighbors.inputs import check_leave_out, check_reference, check_squares, other_units, within_unit_range
from nn_adv.neighbors.reference import NO_POINT
from nn_adv.neighbors.sharded import on_host

SEVERAL = -2  # more than one


class Question(NamedTuple):
    """Checked arguments: NumPy arrays, bounds as the float32 numbers they stand for, -1 where no point is left out."""

    images: np.ndarray
    labels: np.ndarray
    bounds: tuple[float, float] | None
    leave_out: np.ndarray

    def part(self, some: slice) -> Question:
        """Ask about some of the images."""
        return Question(self.images[some], self.labels[some], self.bounds, self.leave_out[some])


def check_question(
    reference: Reference | Streamed,
    images: chex.Array,
    labels: chex.Array,
    *,
    bounds: tuple[float, float] | None = None,
    leave_out: chex.Array | None = None,
) -> Question:
    """Refuse questions that make no sense, before any long work.

    Arguments are those of `radius`; images and points keep to the bounds. Bounds are pixel values, so they are rounded
    to float32 as pixels are: 0.2 is the float32 nearest to it, which a uint8 pixel of 51 is as well.

    Raises:
      ValueError: no reference, images, labels, bounds or left-out points of a wrong shape, type or range, or images in
        other units than the points or bounds.
    """
    check_reference(reference)
    bounds = check_bounds(bounds)
    images = np.asarray(as_images(images, num_pixels=reference.size, float_dtype=np.float32))
    _check_units(reference, images, bounds)  # wrong units explain pixels outside the bounds: they are told first
    as_images(images, bounds=bounds)
    labels = as_labels(labels, reference.num_classes, count=len(images))
    return Question(images, labels, bounds, check_leave_out(reference, leave_out, len(images)))


def check_bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return `as_bounds` rounded to float32, as pixels are."""
    ends = as_bounds(bounds)
    return None if ends is None else as_bounds(tuple(float(np.float32(end)) for end in ends))


def check_scale(reference: Reference | Streamed, images: np.ndarray) -> None:
    """Raise ValueError for points or checked images ``[B, ...]`` of which float32 cannot hold squared distances."""
    size, largest = reference.size, float(np.max(np.abs(reference.pixel_range)))
    check_squares("points of the reference", largest, size)
    if reference.mapped is not None:
        largest_mapped = float(np.max(np.abs(reference.mapped.pixel_range)))
        name, size_mapped = "points of the reference, mapped by linear_map,", reference.mapped.blocks.shape[-1]
        check_squares(name, largest_mapped, size_mapped, factor_of="linear_map")
    if images.dtype != np.uint8 and len(images):
        check_squares("images", max(float(images.max()), -float(images.min()), largest), size)


def _check_units(reference: Reference | Streamed, images: np.ndarray, bounds: tuple[float, float] | None) -> None:
    """Refuse images, points and bounds that cannot belong together."""
    problem = other_units(reference, images, "images")
    if problem:
        raise ValueError(problem)
    if bounds is None:
        return
    if np.uint8 in (images.dtype, reference.dtype) and not within_unit_range(*bounds):
        raise ValueError(f"bounds must be in the units of the pixels, where uint8 v stands for v / 255, got {bounds}")
    low, high = np.asarray(reference.pixel_range)
    if low < bounds[0] or high > bounds[1]:
        # As float32: the fewest digits that tell the numbers apart.
        ends = ", ".join(str(np.float32(end)) for end in bounds)
        raise ValueError(
            f"points of the reference must be inside the bounds ({ends}), got pixels from {low!s} to {high!s}"
        )


class Points(NamedTuple):
    """The points of a reference on the host, block after block; P with the padding, known by their positions."""

    stored: np.ndarray  # [P, d], uint8 or float32
    indices: np.ndarray  # original index [P], `NO_POINT` in the padding
    labels: np.ndarray  # class [P], -1 in the padding
    positions: np.ndarray  # of each point by its original index [n]
    # Position of the equal point of lower index [P]: -1 for none, `SEVERAL` for more. Equal if distances to them are.
    copies: np.ndarray
    lowest_pixel: float  # no pixel of the points is below
    spread: float  # largest difference between two pixels of the points
    measured: np.ndarray  # what distances are measured to [P, k]: `stored`, or the mapped points, float32
    linear_map: np.ndarray | None  # M [k, d] float64

    def pixels(self, positions) -> np.ndarray:
        """Return the pixels of points at positions ``[...]`` as float64 ``[..., d]``."""
        return host_pixels(self.stored[positions], np.float64)

    def values(self, positions) -> np.ndarray:
        """Return what distances to points at positions ``[...]`` are measured to, as float64 ``[..., k]``."""
        return host_pixels(self.measured[positions], np.float64)

    def mapped(self, pixels: np.ndarray) -> np.ndarray:
        """Return what distances are measured from, ``[..., k]``, for pixels ``[..., d]`` float64."""
        return pixels if self.linear_map is None else pixels @ self.linear_map.T

    def mapping_error(self, pixels: np.ndarray) -> np.ndarray | float:
        """Return how far `mapped` pixels ``[..., d]`` may be off in l2, ``[...]``."""
        if self.linear_map is None:
            return 0.0
        sizes = np.linalg.norm(np.abs(pixels) @ np.abs(self.linear_map).T, axis=-1)
        return (pixels.shape[-1] + 16) * 2.0**-53 * sizes

    def in_pixels(self, gaps: np.ndarray) -> np.ndarray:
        """Return ``M' g`` of ``g [..., k]``, by which a move of pixels changes distances, ``[..., d]``."""
        return gaps if self.linear_map is None else gaps @ self.linear_map

    def stretch(self, norm: str) -> float:
        """Return by how much a change of size 1 in ``norm`` can move a mapped image in l2, or a little more."""
        size = self.stored.shape[1]
        if self.linear_map is None:
            return math.sqrt(size) if norm == "linf" else 1.0
        if norm == "l1":
            return float(np.sqrt(np.sum(self.linear_map**2, axis=0).max()))
        longest = _spectral_norm(self.linear_map) * (1 + 1e-6)
        if norm == "l2":
            return longest
        return min(longest * math.sqrt(size), float(np.linalg.norm(np.abs(self.linear_map).sum(axis=1))))

    def original(self, positions: np.ndarray) -> np.ndarray:
        """Return the original index of points at positions ``[...]``, -1 for those below 0."""
        return np.where(positions >= 0, self.indices[np.maximum(positions, 0)], -1).astype(np.int32)


def of_unit_length(reference: Reference | Streamed) -> tuple[Reference | Streamed, float]:
    """Return the same classifier with a linear map of spectral norm 1 to 2, where there is one, and the factor.

    The map and its points are multiplied by a power of two, so that tolerances are those of pixels.
    """
    mapped = reference.mapped
    if isinstance(reference, Streamed) or mapped is None or reference.linear_map is None:
        return reference, 1.0
    norm = _spectral_norm(np.asarray(reference.linear_map, np.float64))
    if norm == 0:
        return reference, 1.0
    unit = np.float32(2.0 ** -math.floor(math.log2(norm)))
    scaled = dataclasses.replace(
        mapped,
        blocks=mapped.blocks * unit,
        sq_norms=mapped.sq_norms * unit * unit,
        center=mapped.center * unit,
        centered_sq_norms=mapped.centered_sq_norms * unit * unit,
        pixel_range=mapped.pixel_range * unit,
    )
    return dataclasses.replace(reference, linear_map=reference.linear_map * unit, mapped=scaled), float(unit)


def _spectral_norm(matrix: np.ndarray) -> float:
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    last = len(gram) - 1
    return math.sqrt(max(0.0, scipy.linalg.eigvalsh(gram, subset_by_index=(last, last))[0]))


def host_points(reference: Reference | Streamed) -> Points:
    """Return the points of a reference as NumPy arrays; those on disk stay there, and their index is their position."""
    if isinstance(reference, Streamed):
        stored, index = reference.points, np.arange(reference.num_points, dtype=np.int32)
    else:
        stored = on_host(reference.blocks).reshape(-1, reference.size)
        index = on_host(reference.index).reshape(-1)
    is_point = index != NO_POINT
    labels = np.where(is_point, np.asarray(reference.labels)[np.where(is_point, index, 0)], -1)
    positions = np.empty(is_point.sum(), np.int64)
    positions[index[is_point]] = np.flatnonzero(is_point)
    ends = np.array([stored.min(axis=1)[is_point].min(), stored.max(axis=1)[is_point].max()])
    low, high = host_pixels(ends, np.float64).tolist()
    measured, linear_map = stored, None
    if reference.mapped is not None:
        measured = on_host(reference.mapped.blocks).reshape(len(stored), -1)
        linear_map = np.asarray(reference.linear_map, np.float64)
    copies = _earlier_copies(measured, positions)
    return Points(stored, index, labels, positions, copies, low, high - low, measured, linear_map)


def host_pixels(images: np.ndarray, dtype) -> np.ndarray:
    """Return the numbers that images stand for, in NumPy: uint8 pixels are ``v / 255`` rounded to float32."""
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    return images.astype(dtype)


def _earlier_copies(stored: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return `Points.copies`.

    Equal points are equally far from any image, so of those present 1NN only ever predicts the one of lowest index,
    whatever their classes. At most one point is left out: a point with one copy before it counts where that is left
    out, one with several never.
    """
    copies = np.full(len(stored), -1, np.int64)
    # Equal points have equal sums, and few others have: only those are compared. Eight pixels at a time are quickest.
    if stored.dtype == np.uint8 and stored.shape[1] % 8 == 0 and stored.flags.c_contiguous:
        sums = stored.view(np.uint64).sum(axis=1)
    else:
        sums = stored.sum(axis=1, dtype=np.float64) + np.sqrt(2) * stored[:, ::2].sum(axis=1, dtype=np.float64)
    _, group, count = np.unique(sums[positions], return_inverse=True, return_counts=True)
    seen: dict[bytes, list[int]] = {}
    for position in positions[count[group] > 1].tolist():
        equal = seen.setdefault((stored[position] + 0).tobytes(), [])  # -0 is 0
        if equal:
            copies[position] = equal[0] if len(equal) == 1 else SEVERAL
        equal.append(position)
    return copies


def pixel_scale(points: Points, pixels: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return a power of two that no pixel of the image or its nearest witness exceeds, for images ``[B, d]``.

    The least that no pixel of image and points exceeds, or less where points farther than ``reach [B]``, the distance
    of an opponent, are larger. What depends on the spacing of float32 pixels is stated for 1 and scaled by it.
    """
    largest = np.abs(pixels).max(axis=1)
    largest_point = max(abs(points.lowest_pixel), abs(points.lowest_pixel + points.spread))
    largest = np.minimum(np.maximum(largest, largest_point), largest + reach)
    return np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1))))
