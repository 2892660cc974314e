"""Best-first search for the nearest border of 1NN around many images at once; see `radius` for the outline.

Host code that keeps, for every image, the opponents not ruled out yet and what is proven of each; `tasks` solves them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.certify import bounds as cheap
from nn_adv.certify.rows import Rows, pixel_scale, pixel_values
from nn_adv.certify.tasks import Batch, Task, advance, nearest_own, power_of_two
from nn_adv.certify.ties import step_across
from nn_adv.neighbors import Reference
from nn_adv.pixels import float64_pixels
from nn_adv.threat import float64_sizes

_NUM_ANCHORS = 4  # own points of the screen, kept in the certificate
_FIRST_ROWS = 6  # constraints a task starts with
_FIRST_OPPONENTS = 16
_TILE = 16  # opponents bounded together
_MANY = 1 / 64  # share of all points from which on one product with all of them is cheaper than one by one
_REACH_BATCH = 64  # images in that product
_MAX_WIDTH = 32  # tasks an image may open in one round


class RowCertificate(NamedTuple):
    """`Certificate` with rows of the reference in place of indices."""

    anchors: np.ndarray
    image: np.ndarray
    opponent: np.ndarray
    rows: np.ndarray
    multipliers: np.ndarray


class Found(NamedTuple):
    """What a search found for B images.

    Attributes:
      certificate: see `RowCertificate`.
      adversarial: witness ``[B, d]`` float32; the image where there is none.
      opponent: row of the opponent the witness is nearest to ``[B]``, -1 for none.
      screened: lower bound over the opponents that were not solved ``[B]``, unchecked.
      near: rows of the nearest points, own and others ``[B, K]``, -1 for none.
      scale: of the pixels around each image ``[B]``, from `pixel_scale`.
    """

    certificate: RowCertificate
    adversarial: np.ndarray
    opponent: np.ndarray
    screened: np.ndarray
    near: np.ndarray
    scale: np.ndarray


def search(
    reference: Reference,
    rows: Rows,
    copies: np.ndarray,
    queries: jax.Array,
    labels: np.ndarray,
    left_out: np.ndarray,
    cutoff: np.ndarray,
    *,
    norm: str,
    bounds: tuple[float, float] | None,
    tolerance: float,
) -> Found:
    """Search around each query until the best witness and the bounds meet, or both pass ``cutoff``.

    Args:
      reference: points from `fit`.
      rows: the same on the host.
      copies: from `earlier_copies`.
      queries: ``[B, d]`` from `flatten_queries`.
      labels: ``[B]``.
      left_out: row left out for each image ``[B]``, -1 for none.
      cutoff: radius beyond which an image is not of interest ``[B]``, where any witness below is enough; inf for none.
      norm: of the perturbation.
      bounds: of pixels, or None.
      tolerance: relative gap to close.
    """
    with jax.enable_x64(True):
        pixels = np.asarray(float64_pixels(queries))
    # Filled up, so that batches of about the same size share their compilations.
    queries = jnp.pad(queries, ((0, power_of_two(len(labels)) - len(labels)), (0, 0)))
    own_class, others = _usable(rows, copies, labels, left_out)
    scores = cheap.screen(reference, queries)
    own, near = _lowest(scores, own_class, _FIRST_ROWS), _lowest(scores, others, _FIRST_OPPONENTS)
    towards = pixel_values(rows.points[near[:, 0]], np.float64) - pixels
    scale = pixel_scale(rows, pixels, np.where(near[:, 0] >= 0, float64_sizes(norm, towards), np.inf))
    batch = Batch(
        reference, rows, queries, pixels, labels, left_out, scale, norm, bounds, tolerance,
        stops_at_witness=np.isfinite(cutoff),
        best=cutoff.astype(np.float64),
        adversarial=pixels.astype(np.float32),
        opponent=np.full(len(labels), -1),
    )  # fmt: skip
    sq_own, sq_near, singles = _measure(batch, own, near)
    unsure = _is_own_unsure(batch, scores, own, sq_own, sq_near)
    if unsure.any():
        own[unsure] = _nearest_own(batch, np.flatnonzero(unsure), own.shape[1])
        sq_own, sq_near, singles = _measure(batch, own, near)
    anchors = own[:, :_NUM_ANCHORS]
    # Images of another prediction have radius 0: nothing to search. What may be a tie is left to the recheck to judge,
    # and gets a witness in case it is one.
    in_integers = rows.points.dtype == np.uint8 and queries.dtype == np.uint8
    apart = cheap.doubt(sq_own, pixels.shape[1], in_integers=in_integers)
    is_wrong = (sq_near < sq_own - apart).any(axis=1) | (own[:, 0] < 0)
    batch.best[is_wrong] = 0
    tied = np.flatnonzero((sq_near <= sq_own + apart).any(axis=1) & ~is_wrong)
    step_across(batch, tied, near[tied, np.argmin(sq_near[tied], axis=1)], own[tied], apart[tied, 0])
    candidates = [
        {} if wrong else dict(zip(found[found >= 0].tolist(), bound[found >= 0].tolist(), strict=True))
        for wrong, found, bound in zip(is_wrong, near, singles, strict=True)
    ]
    tasks, is_complete = _run(batch, scores, others, own, np.sqrt(sq_own[:, 0]), candidates)
    screened = np.array([min(found.values(), default=np.inf) for found in candidates], float)
    # Without a witness the distances rule nothing out, so that nothing is known of the opponents never looked at.
    screened = np.where(is_complete | ~others.any(axis=1), np.minimum(screened, batch.best), 0)
    nearest = np.concatenate([own, near], axis=1)
    winners = _winners(batch, candidates)
    return Found(_certificate(anchors, tasks), batch.adversarial, winners, screened, nearest, scale)


def _usable(rows: Rows, copies, labels, left_out) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are own-class points and which opponents of each image, booleans ``[B, R]`` each."""
    usable = np.repeat((rows.labels >= 0)[None] & (copies == -1)[None], len(labels), axis=0)
    copied = np.flatnonzero(copies >= 0)
    for b in np.flatnonzero(left_out >= 0):
        usable[b, copied[copies[copied] == left_out[b]]] = True
        usable[b, left_out[b]] = False
    is_own = rows.labels[None] == labels[:, None]
    return usable & is_own, usable & ~is_own


def _measure(batch: Batch, own: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least squared distance to the rows ``own [B, 1]``, those to ``near``, and bounds of the latter."""
    everyone, anchors = np.arange(len(own)), own[:, :_NUM_ANCHORS]
    sq_own = np.where(own >= 0, _single(batch, everyone, own, anchors, batch.norm)[0], np.inf)
    sq_near, singles = _single(batch, everyone, near, anchors, batch.norm)
    return sq_own.min(axis=1, keepdims=True), np.where(near >= 0, sq_near, np.inf), singles


def _is_own_unsure(batch: Batch, scores: jax.Array, own: np.ndarray, sq_own: np.ndarray, sq_near: np.ndarray):
    """Return for which images ``[B]`` an opponent is nearest unless the scores hide an own point that is nearer."""
    sq_nearest = sq_near.min(axis=1)
    limit = np.sqrt(np.pad(sq_nearest, (0, len(scores) - len(own)))).astype(np.float32)
    ceiling = np.asarray(cheap.score_ceiling(batch.reference, batch.queries, jnp.asarray(limit * np.float32(1 + 1e-6))))
    lowest = np.asarray(jnp.take_along_axis(scores[: len(own)], own[:, :1], axis=1))[:, 0]
    return (own[:, 0] >= 0) & (sq_nearest < sq_own[:, 0]) & (lowest <= ceiling[: len(own)])


def _nearest_own(batch: Batch, images: np.ndarray, width: int) -> np.ndarray:
    """Return the rows of a few own points nearest to images ``[T, width]``, searched for, -1 for none."""
    queries, rows = np.asarray(batch.queries)[images], np.full((len(images), width), -1)
    for label in np.unique(batch.labels[images]):
        mine = np.flatnonzero(batch.labels[images] == label)
        found = nearest_own(batch, queries[mine], int(label))
        rows[mine, : found.shape[1]] = found
    return np.where(rows == batch.left_out[images][:, None], -1, rows)


def _lowest(scores: jax.Array, usable: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the lowest usable scores for each of the images, without the filling."""
    padded = np.pad(usable, ((0, len(scores) - len(usable)), (0, 0)))
    return np.array(cheap.lowest(scores, padded, count=min(count, usable.shape[1])))[: len(usable)]


def _single(batch: Batch, image, opponents, anchors, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Bound lists of opponents ``[T, K]``; padded so that few shapes are compiled."""
    count = len(image)
    size = power_of_two(count)
    pad = ((0, size - count), (0, 0))
    with jax.enable_x64(True):
        values = cheap.single(
            batch.reference,
            batch.queries,
            np.pad(image, (0, size - count)).astype(np.int32),
            np.pad(opponents, pad, constant_values=-1).astype(np.int32),
            np.pad(anchors, pad, constant_values=-1).astype(np.int32),
            norm=norm,
            limits=batch.limits,
        )
    sq_distances, found = (np.array(value)[:count] for value in values)
    return sq_distances, found


def _run(batch: Batch, scores, others, own, distance, candidates) -> tuple[list[Task], np.ndarray]:
    """Open tasks best first, a few per image and round, until none can lower the best witness.

    Returns:
      All tasks, and for which images every opponent was bounded ``[B]``.
    """
    tasks: list[Task] = []
    started: list[set[int]] = [set() for _ in candidates]
    is_wide = np.zeros(len(candidates), bool)
    active: list[Task] = []
    width = 1
    while True:
        ready = np.isfinite(batch.best) & ~is_wide & np.array([bool(found) for found in candidates], bool)
        _widen(batch, scores, others, own[:, :_NUM_ANCHORS], distance, candidates, np.flatnonzero(ready))
        is_wide |= ready
        busy = {task.image for task in active}
        for b, found in enumerate(candidates):
            if b in busy or batch.is_done(b):
                continue
            left = sorted(
                (bound, row) for row, bound in found.items() if row not in started[b] and bound < batch.best[b]
            )
            for bound, row in left[:width]:
                rows = [int(r) for r in own[b] if r >= 0]
                task = Task(b, row, rows, np.zeros(len(rows)), bound)
                started[b].add(row)
                active.append(task)
        if not active:
            return tasks, is_wide
        advance(batch, active)
        for task in active:
            candidates[task.image][task.opponent] = task.bound
            task.is_open &= not batch.is_done(task.image)
        tasks += [task for task in active if not task.is_open]
        active = [task for task in active if task.is_open]
        width = min(2 * width, _MAX_WIDTH)


def _widen(batch: Batch, scores, others, anchors, distance, candidates, images) -> None:
    """Add every opponent that distances and single constraints do not rule out at the best radius known."""
    if not len(images):
        return
    size = batch.pixels.shape[1]
    limit = np.zeros(len(batch.queries), np.float32)
    limit[images] = cheap.distance_limit(batch.norm, batch.best[images], distance[images], size, batch.rows.spread)
    ceiling = np.asarray(cheap.score_ceiling(batch.reference, batch.queries, jnp.asarray(limit * np.float32(1 + 1e-6))))
    host = np.asarray(scores)
    left = {b: np.flatnonzero((host[b] <= ceiling[b]) & others[b]) for b in images.tolist()}
    left = {b: rows[~np.isin(rows, list(candidates[b]))] for b, rows in left.items()}
    if batch.norm == "linf":
        left |= _reached(batch, {b: rows for b, rows in left.items() if len(rows) > _MANY * host.shape[1]}, anchors)
        # The l2 length is a matrix product, the l1 length is not: it is left for few.
        weak = _tiled(batch, left, anchors, "l2")
        left = {b: rows[weak[b] / np.sqrt(size) < batch.best[b]] for b, rows in left.items()}
    for b, bounds in _tiled(batch, left, anchors, batch.norm).items():
        is_near = bounds < batch.best[b]
        candidates[b].update(zip(left[b][is_near].tolist(), bounds[is_near].tolist(), strict=True))


def _reached(batch: Batch, opponents: dict[int, np.ndarray], anchors) -> dict[int, np.ndarray]:
    """Return the opponents that `bounds.linf_reach` does not rule out at the best radius known."""
    found: dict[int, np.ndarray] = {}
    images, rows = np.array(list(opponents), np.int32), batch.rows
    for start in range(0, len(images), _REACH_BATCH):
        part = images[start : start + _REACH_BATCH]
        padded = np.pad(part, (0, _REACH_BATCH - len(part)), mode="edge")
        reached = np.asarray(
            cheap.linf_reach(
                batch.reference,
                batch.queries[padded],
                anchors[padded].astype(np.int32),
                batch.best[padded].astype(np.float32),
                rows.lowest_pixel,
                rows.spread or 1.0,
                limits=batch.limits,
            )
        )
        found |= {b: opponents[b][reached[i, opponents[b]]] for i, b in enumerate(part.tolist())}
    return found


def _tiled(batch: Batch, opponents: dict[int, np.ndarray], anchors, norm: str) -> dict[int, np.ndarray]:
    """Bound lists of opponents of any length: cut into tiles, joined again."""
    image, tiles = [], []
    for b, rows in opponents.items():
        padded = np.pad(rows, (0, -len(rows) % _TILE), constant_values=-1).reshape(-1, _TILE)
        image += [b] * len(padded)
        tiles.append(padded)
    if not image:
        return {b: np.zeros(0) for b in opponents}
    found = _single(batch, np.array(image), np.concatenate(tiles), anchors[np.array(image)], norm)[1]
    owner = np.array(image)
    return {b: found[owner == b].reshape(-1)[: len(rows)] for b, rows in opponents.items()}


def _winners(batch: Batch, candidates) -> np.ndarray:
    """Return the row each witness is nearest to ``[B]``, of several that of lowest index; -1 where there is none.

    A nearer opponent than the one that was solved has the witness in its cell, so no bound above the witness's size.
    """
    winners = batch.opponent.copy()
    for b in np.flatnonzero(winners >= 0).tolist():
        near = [row for row, bound in candidates[b].items() if bound <= batch.best[b] * (1 + 1e-9)]
        rows = np.array([*near, winners[b]])
        sq_distances = np.sum((batch.values(rows) - batch.adversarial[b].astype(np.float64)) ** 2, axis=1)
        nearest = rows[sq_distances == sq_distances.min()]
        winners[b] = nearest[np.argmin(batch.rows.origins[nearest])]
    return winners


def _certificate(anchors: np.ndarray, tasks: list[Task]) -> RowCertificate:
    width = max((len(task.rows) for task in tasks), default=1)
    rows = np.full((len(tasks), width), -1, np.int64)
    multipliers = np.zeros((len(tasks), width))
    for i, task in enumerate(tasks):
        rows[i, : len(task.rows)] = task.rows
        multipliers[i, : len(task.rows)] = task.multipliers
    return RowCertificate(
        anchors,
        np.array([task.image for task in tasks], np.int32),
        np.array([task.opponent for task in tasks], np.int64),
        rows,
        multipliers,
    )
