"""Witnesses beside images that lie on a border of 1NN, or as near to one as rounding can tell.

Their radius is 0, or next to it, and one pixel moved by one step of float32 may be all that a witness takes. The
programs of `subproblems` do not find that: to them any direction across the border is as good as another.
"""

from __future__ import annotations

import numpy as np

from nn_adv.certify.screening import doubt
from nn_adv.certify.state import Search

_STEPS = tuple(4**power for power in range(12))  # in spacings of float32
_TOGETHER = 128  # images judged together


def step_across(search: Search, images: np.ndarray, opponents: np.ndarray, apart: np.ndarray) -> None:
    """Look for witnesses a few steps of float32 away, in one pixel or straight towards an opponent.

    The opponents ``[T]`` are as near to the images ``[T]`` as their own class, up to ``apart [T]``, from `doubt`.
    """
    for label in np.unique(search.labels[images]):
        chosen = np.flatnonzero(search.labels[images] == label)
        for start in range(0, len(chosen), _TOGETHER):
            part = chosen[start : start + _TOGETHER]
            directions = np.stack([_directions(search, images[t], opponents[t], apart[t]) for t in part])
            _step(search, images[part], opponents[part], directions, int(label))


def _directions(search: Search, image: int, opponent: int, apart: float) -> np.ndarray:
    """Return two moves ``[2, d]`` of one spacing at most: of the best single pixel, and straight to the opponent."""
    points, own = search.points, search.own[image]
    x, z = search.pixels[image], points.pixels(opponent)
    own = points.values(own[search.is_rival(own, image, opponent)])
    mapped, other = points.mapped(x), points.values(opponent)
    towards = z - x
    spacing = np.spacing(np.maximum(np.abs(x), np.abs(z)).astype(np.float32)).astype(np.float64)
    spacing = np.minimum(spacing, 2.0**-24 * search.scale[image])  # that of pixels just below the largest
    is_tied = np.sum((own - mapped) ** 2, axis=1) <= np.sum((other - mapped) ** 2) + apart
    # By how much a pixel moved towards the opponent favours it over every own point that is as near.
    gain = np.min(points.in_pixels(other - own[is_tied]) * np.sign(towards), axis=0, initial=np.inf)
    best, farthest = np.argmax(gain), np.argmax(np.abs(towards))
    single = np.zeros_like(x)
    single[best] = np.sign(towards[best]) * spacing[best] * (gain[best] > 0)
    return np.stack([single, towards / max(np.abs(towards[farthest]), 1e-300) * spacing[farthest]])


def _step(search: Search, images: np.ndarray, opponents: np.ndarray, directions: np.ndarray, label: int) -> None:
    """Make longer and longer steps ``[T, 2, d]`` until each image has a witness."""
    x, z = search.pixels[images][:, None], search.points.pixels(opponents)[:, None]
    left = np.arange(len(images))
    for count in _STEPS:
        moved = x[left] + count * directions[left]
        moved = np.clip(moved, np.minimum(x, z)[left], np.maximum(x, z)[left]).astype(np.float32)
        flat = moved.reshape(-1, moved.shape[-1])
        is_across = _is_across(search, flat, np.repeat(images[left], 2), np.repeat(opponents[left], 2), label)
        is_found = np.zeros(len(left), bool)
        for k in np.flatnonzero(is_across).tolist():
            image, opponent = int(images[left[k // 2]]), int(opponents[left[k // 2]])
            size = search.size_of(flat[k], image)
            if size > 0:
                search.offer(image, size, flat[k], opponent)
                is_found[k // 2] = True
        left = left[~is_found]
        if not len(left):
            return


def _is_across(search: Search, moved: np.ndarray, images: np.ndarray, opponents: np.ndarray, label: int) -> np.ndarray:
    """Return which moved images ``[S, d]`` are nearer to the opponent than to their own class, beyond all rounding."""
    own = search.nearest_own(moved, label)
    is_rival = np.stack([search.is_rival(*entry) for entry in zip(own, images, opponents, strict=True)])
    moved = moved.astype(np.float64)
    mapped, error = search.points.mapped(moved), search.points.mapping_error(moved)
    sq_own = np.sum((search.points.values(np.maximum(own, 0)) - mapped[:, None]) ** 2, axis=2)
    sq_own = np.min(sq_own, axis=1, initial=np.inf, where=is_rival)
    sq_other = np.sum((search.points.values(opponents) - mapped) ** 2, axis=1)
    return sq_other + doubt(sq_other, mapped.shape[1], error) < sq_own
