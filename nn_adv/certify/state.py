"""The state of a search around a batch of images: what is asked, what is proven, and the best witnesses so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from nn_adv.certify.inputs import Points, host_pixels
from nn_adv.neighbors import Reference, Streamed, nearest_in_class
from nn_adv.threat import float64_sizes

_OWN_POINTS = 4  # asked for around a candidate witness
_NUM_ANCHORS = 4
_FEW_EACH = 32  # points near each candidate, on average, that are measured sooner than those of a class
_FEW = 2**22  # differences of pixels that NumPy forms sooner than a search is compiled


@dataclasses.dataclass
class Search:
    """A search around B images. Points are known by their positions in the blocks, P of them, and -1 is none."""

    reference: Reference | Streamed
    points: Points
    queries: np.ndarray  # the images [Q, d], filled up: batches of about the same size share their compilations
    pixels: np.ndarray  # their values [B, d] float64
    labels: np.ndarray  # [B]
    left_out: np.ndarray  # a point [B]
    norm: str
    bounds: tuple[float, float] | None
    tolerance: float
    stops_at_witness: np.ndarray  # whether any witness below the first `best` is enough [B]
    scale: np.ndarray  # of the pixels around each image [B], from `pixel_scale`
    scores: np.ndarray  # of all points, from `screening.score` [Q, P]
    others: np.ndarray  # which points are opponents [B, P]
    own: np.ndarray  # own points, nearest first [B, m]
    distance: np.ndarray  # of the nearest own point [B]
    candidates: list[dict[int, float]]  # for each image the opponents not ruled out, and what is proven of them
    best: np.ndarray  # size of the best witness, or the cutoff [B]
    adversarial: np.ndarray  # the best witness [B, d] float32; the image where there is none
    opponent: np.ndarray  # the point that the best witness is nearest to [B]

    @property
    def anchors(self) -> np.ndarray:
        """Own points of the screen, kept in the certificate ``[B, m]``."""
        return self.own[:, :_NUM_ANCHORS]

    def is_done(self, image: int) -> bool:
        """Whether nothing is left to find: radius 0, or any witness where one is enough."""
        return bool(self.best[image] <= 0 or (self.stops_at_witness[image] and self.opponent[image] >= 0))

    def is_rival(self, own: np.ndarray, image: int, opponent: int) -> np.ndarray:
        """Return which own-class points the opponent must be nearer than.

        Not equal ones: theirs is a higher index, or else the opponent could not win and would be none.
        """
        is_copy = (self.points.measured[own] == self.points.measured[opponent]).all(axis=1)
        return (own >= 0) & (own != self.left_out[image]) & ~is_copy

    def nearest_own(self, candidates: np.ndarray, label: int, among: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """Return the points ``[T, k]`` of a class nearest to each candidate ``[T, d]``, nearest first.

        With ``among``, points of the class for each candidate, others need not be found.
        """
        count, mine = len(candidates), np.flatnonzero(self.points.labels == label)
        if candidates.size * len(mine) <= _FEW:
            return _nearest_of_few(candidates, self.points, mine)
        if among is not None and sum(map(len, among)) <= _FEW_EACH * count:
            found = [_nearest_of_few(c[None], self.points, some) for c, some in zip(candidates, among, strict=True)]
            return np.concatenate(found)
        padded = np.pad(candidates, ((0, power_of_two(count) - count), (0, 0)), mode="edge")
        indices = np.asarray(nearest_in_class(self.reference, padded, label, k=_OWN_POINTS).indices)[:count]
        return np.where(indices < 0, -1, self.points.positions[np.maximum(indices, 0)])

    def size_of(self, candidate: np.ndarray, image: int) -> float:
        """Return how far a float32 candidate ``[d]`` is from its image."""
        return float(float64_sizes(self.norm, candidate[None].astype(np.float64) - self.pixels[image])[0])

    def offer(self, image: int, size: float, candidate: np.ndarray, opponent: int) -> None:
        """Keep a witness that is better than the best so far."""
        if size < self.best[image]:
            self.best[image], self.adversarial[image], self.opponent[image] = size, candidate, opponent


def _nearest_of_few(candidates: np.ndarray, points: Points, some: np.ndarray) -> np.ndarray:
    """Return those of ``some`` points nearest to each candidate, as `Search.nearest_own`."""
    values = points.measured[some]
    if not values.dtype == candidates.dtype == np.uint8:  # between uint8 images ties are those of the integers
        values, candidates = host_pixels(values, np.float64), points.mapped(host_pixels(candidates, np.float64))
    sq_distances = sq_lengths(candidates[:, None].astype(np.float64) - values)
    order = np.lexsort((np.broadcast_to(points.indices[some], sq_distances.shape), sq_distances))[:, :_OWN_POINTS]
    return np.pad(some[order], ((0, 0), (0, _OWN_POINTS - order.shape[1])), constant_values=-1)


def sq_lengths(vectors: np.ndarray) -> np.ndarray:
    """Return squared l2 norms over the last axis."""
    return np.einsum("...d,...d->...", vectors, vectors)


def power_of_two(count: int) -> int:
    """Return the size, 8 or more, to which ``count`` things are filled up: few sizes are compiled."""
    return 1 << max(3, int(count - 1).bit_length())
