"""Best-first search for the nearest border of 1NN around many images at once; see `radius` for the outline.

A `_Task` is one (image, opponent) pair with the own-class points that constrain it so far. Each round solves all open
tasks in padded batches, asks a nearest-neighbour search which own points were missed, and keeps the best witness.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.certify import bounds as cheap
from nn_adv.certify import dual
from nn_adv.certify.linear import solve_linear
from nn_adv.neighbors import Reference
from nn_adv.neighbors.reference import NO_POINT
from nn_adv.neighbors.search import nearest_in_class

_NUM_ANCHORS = 4  # own points of the screen, kept in the certificate
_FIRST_ROWS = 6  # constraints a task starts with
_NEW_ROWS = 4  # own points asked for around a candidate witness
_FIRST_OPPONENTS = 16
_TILE = 16  # opponents bounded together
_WIDTHS = (8, 16, 32, 64, 128)  # padded numbers of constraints
_BATCHES = (8, 32, 128, 256)  # padded numbers of tasks
_MAX_ROUNDS = 40
_ENOUGH_ROUNDS = 6  # after which a witness off a solved border is not improved any more
_ROUNDING = 7e-8  # by which a float32 witness may lie beyond the border: the spacing of pixels below 1
_LINEAR_AFTER = 12  # rounds after which a linear program is left to a library
_FIRST_SHIFT = 2e-9  # share of the way to the opponent by which a witness is moved off the border


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
    """

    certificate: RowCertificate
    adversarial: np.ndarray
    opponent: np.ndarray
    screened: np.ndarray


@dataclasses.dataclass
class _Task:
    image: int
    opponent: int
    rows: list[int]
    multipliers: np.ndarray
    bound: float
    center: np.ndarray | None = None
    shift: float = _FIRST_SHIFT
    rounds: int = 0
    is_open: bool = True


@dataclasses.dataclass
class _Batch:
    """Everything about one batch of images; rows are positions in the blocks, flattened."""

    reference: Reference
    queries: jax.Array
    pixels: np.ndarray  # [B, d] float64
    labels: np.ndarray
    left_out: np.ndarray
    index: np.ndarray
    row_of: np.ndarray
    norm: str
    limits: tuple[float, float] | None
    tolerance: float
    best: np.ndarray  # [B] size of the best witness, or the cutoff
    has_cutoff: np.ndarray
    spread: float  # largest difference of two pixels
    has_witness: np.ndarray
    adversarial: np.ndarray
    opponent: np.ndarray

    def values(self, rows) -> np.ndarray:
        """Return the pixel values of rows ``[...]`` as float64 ``[..., d]``."""
        points = np.asarray(self.reference.blocks).reshape(-1, self.pixels.shape[1])[np.asarray(rows)]
        return (points.astype(np.float32) / np.float32(255) if points.dtype == np.uint8 else points).astype(np.float64)


def search(
    reference: Reference,
    queries: jax.Array,
    labels: np.ndarray,
    left_out: np.ndarray,
    row_labels: np.ndarray,
    cutoff: np.ndarray,
    *,
    norm: str,
    bounds: tuple[float, float] | None,
    tolerance: float,
) -> Found:
    """Search around each query until the best witness and the bounds meet, or both pass ``cutoff``.

    Args:
      reference: points from `fit`.
      queries: ``[B, d]`` from `flatten_queries`.
      labels: ``[B]``.
      left_out: row left out for each image ``[B]``, -1 for none.
      row_labels: class of each row, -1 in the padding.
      cutoff: radius beyond which an image is not of interest ``[B]``; inf for none.
      norm: of the perturbation.
      bounds: of pixels, or None.
      tolerance: relative gap to close.
    """
    count = len(labels)
    with jax.enable_x64(True):
        pixels = np.asarray(cheap.values64(queries))
    # Filled up, so that batches of about the same size share their compilations.
    queries = jnp.pad(queries, ((0, _power_of_two(count) - count), (0, 0)))
    index = np.asarray(reference.index).reshape(-1)
    row_of = np.full(int(index[index != NO_POINT].max()) + 1, -1, np.int64)
    row_of[index[index != NO_POINT]] = np.flatnonzero(index != NO_POINT)
    batch = _Batch(
        reference, queries, pixels, labels, left_out, index, row_of, norm, bounds, tolerance,
        best=cutoff.astype(np.float64),
        has_cutoff=np.isfinite(cutoff),
        spread=_spread(reference),
        has_witness=np.zeros(len(labels), bool),
        adversarial=pixels.astype(np.float32),
        opponent=np.full(len(labels), -1),
    )  # fmt: skip
    is_own = row_labels[None] == labels[:, None]
    usable = row_labels[None] >= 0
    present = np.flatnonzero(left_out >= 0)
    usable = np.broadcast_to(usable, is_own.shape).copy()
    usable[present, left_out[present]] = False
    for copy, original, label in _copies(reference, row_labels, index):
        usable[(labels == label) & (left_out != original), copy] = False

    scores = cheap.screen(reference, queries)
    others = usable & ~is_own
    own = _lowest(scores, is_own & usable, _FIRST_ROWS)
    near = _lowest(scores, others, _FIRST_OPPONENTS)
    anchors = own[:, :_NUM_ANCHORS]
    sq_own, _ = _single(batch, np.arange(len(labels)), own[:, :1], anchors, norm)
    sq_near, singles = _single(batch, np.arange(len(labels)), near, anchors, norm)
    distance = np.sqrt(np.maximum(sq_own[:, 0], 0))
    # Images of another prediction have radius 0: nothing to search. Ties go to the search, which ends at once.
    is_searched = (own[:, 0] >= 0) & ~((near >= 0) & (sq_near < sq_own[:, :1])).any(axis=1)
    candidates = [
        dict(zip(near[b][near[b] >= 0].tolist(), singles[b][near[b] >= 0].tolist(), strict=True))
        if is_searched[b]
        else {}
        for b in range(len(labels))
    ]
    wrong = np.flatnonzero((own[:, 0] >= 0) & ~is_searched)
    batch.best[wrong] = 0
    tasks = _run(batch, scores, others, own, anchors, distance, candidates)
    screened = np.array([min((bound for row, bound in found.items()), default=np.inf) for found in candidates])
    return Found(_certificate(anchors, tasks), batch.adversarial, batch.opponent, np.minimum(screened, batch.best))


def _power_of_two(count: int) -> int:
    return 1 << max(3, int(count - 1).bit_length())


def _lowest(scores: jax.Array, usable: np.ndarray, count: int) -> np.ndarray:
    """Return the rows of the lowest usable scores for each of the images, without the filling."""
    padded = np.pad(usable, ((0, len(scores) - len(usable)), (0, 0)))
    return np.asarray(cheap.lowest(scores, padded, count=min(count, usable.shape[1])))[: len(usable)]


def _spread(reference: Reference) -> float:
    if reference.blocks.dtype == jnp.uint8:
        return 1.0
    return float(jnp.max(reference.blocks) - jnp.min(reference.blocks))


def _copies(reference: Reference, row_labels, index) -> list[tuple[int, int, int]]:
    """List (row, row of its copy, class of the copy) for points with an exact copy of lower index in another class."""
    points = np.asarray(reference.blocks).reshape(len(index), -1)
    first: dict[bytes, list[int]] = {}
    found = []
    order = np.argsort(index, kind="stable")
    sums = points.sum(axis=1, dtype=np.float64)  # equal rows have equal sums: only those are compared
    _, group, count = np.unique(sums, return_inverse=True, return_counts=True)
    for row in order[(count[group] > 1)[order] & (row_labels[order] >= 0)]:
        earlier = first.setdefault(points[row].tobytes(), [])
        found += [
            (int(row), other, int(row_labels[other])) for other in earlier if row_labels[other] != row_labels[row]
        ]
        earlier.append(int(row))
    return found


def _single(batch: _Batch, image, opponents, anchors, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Bound lists of opponents ``[T, K]``; padded so that few shapes are compiled."""
    count = len(image)
    size = _power_of_two(count)
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


def _run(batch: _Batch, scores, others, own, anchors, distance, candidates) -> list[_Task]:
    """Open tasks best first, a few per image and round, until none can lower the best witness."""
    tasks: list[_Task] = []
    started: list[set[int]] = [set() for _ in candidates]
    is_wide = np.zeros(len(candidates), bool)
    active: list[_Task] = []
    width = 1
    while True:
        ready = np.isfinite(batch.best) & ~is_wide & np.array([bool(found) for found in candidates])
        _widen(batch, scores, others, anchors, distance, candidates, np.flatnonzero(ready))
        is_wide |= ready
        busy = {task.image for task in active}
        for b, found in enumerate(candidates):
            if b in busy or _is_done(batch, b):
                continue
            left = sorted(
                (bound, row) for row, bound in found.items() if row not in started[b] and bound < batch.best[b]
            )
            for bound, row in left[:width]:
                rows = [int(r) for r in own[b] if r >= 0]
                task = _Task(b, row, rows, np.zeros(len(rows)), bound)
                started[b].add(row)
                active.append(task)
        if not active:
            return tasks
        _advance(batch, active)
        for task in active:
            candidates[task.image][task.opponent] = max(task.bound, candidates[task.image][task.opponent])
        for task in active:
            task.is_open &= not _is_done(batch, task.image)
        tasks += [task for task in active if not task.is_open]
        active = [task for task in active if task.is_open]
        width = min(2 * width, 32)


def _is_done(batch: _Batch, image: int) -> bool:
    """Whether nothing is left to find: radius 0, or any witness inside a cutoff."""
    return bool(batch.best[image] <= 0 or (batch.has_witness[image] and batch.has_cutoff[image]))


def _widen(batch: _Batch, scores, others, anchors, distance, candidates, images) -> None:
    """Add every opponent that distances and single constraints do not rule out at the best radius known."""
    if not len(images):
        return
    size = batch.pixels.shape[1]
    limit = np.zeros(len(batch.queries), np.float32)
    limit[images] = cheap.distance_limit(batch.norm, batch.best[images], distance[images], size, batch.spread)
    ceiling = np.asarray(cheap.score_ceiling(batch.reference, batch.queries, jnp.asarray(limit * np.float32(1 + 1e-6))))
    host = np.asarray(scores)
    left = {b: np.flatnonzero((host[b] <= ceiling[b]) & others[b]) for b in images.tolist()}
    left = {b: rows[~np.isin(rows, list(candidates[b]))] for b, rows in left.items()}
    if batch.norm == "linf":  # the l2 length is a matrix product, the l1 length is not: it is left for few
        weak = _tiled(batch, left, anchors, "l2")
        left = {b: rows[weak[b] / np.sqrt(size) < batch.best[b]] for b, rows in left.items()}
    for b, bounds in _tiled(batch, left, anchors, batch.norm).items():
        is_near = bounds < batch.best[b]
        candidates[b].update(zip(left[b][is_near].tolist(), bounds[is_near].tolist(), strict=True))


def _tiled(batch: _Batch, opponents: dict[int, np.ndarray], anchors, norm: str) -> dict[int, np.ndarray]:
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


def _advance(batch: _Batch, tasks: list[_Task]) -> None:
    """Solve each task for its constraints, judge the solution, and close it or add what it missed."""
    order = sorted(tasks, key=lambda task: (_padded(len(task.rows), _WIDTHS), int(batch.labels[task.image])))
    start = 0
    while start < len(order):
        width = _padded(len(order[start].rows), _WIDTHS)
        group = [task for task in order[start : start + _BATCHES[-1]] if _padded(len(task.rows), _WIDTHS) == width]
        start += len(group)
        _solve(batch, group, width)


def _padded(count: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if size >= count), sizes[-1])


def _solve(batch: _Batch, tasks: list[_Task], width: int) -> None:
    size = _padded(len(tasks), _BATCHES)
    fill = [tasks[min(i, len(tasks) - 1)] for i in range(size)]
    rows = np.full((size, width), -1, np.int32)
    multipliers = np.zeros((size, width))
    for i, task in enumerate(fill):
        rows[i, : len(task.rows)] = task.rows
        multipliers[i, : len(task.rows)] = task.multipliers
    center = None
    if batch.norm != "l2":
        center = np.stack([np.zeros(batch.pixels.shape[1]) if task.center is None else task.center for task in fill])
    with jax.enable_x64(True):
        solved = _solve_rows(
            batch.reference,
            batch.queries,
            np.array([task.image for task in fill], np.int32),
            np.array([task.opponent for task in fill], np.int32),
            rows,
            multipliers,
            np.array([max(task.bound, 1e-9) for task in fill]),
            center,
            np.array([task.rounds for task in fill], np.int32),
            np.array([task.shift for task in fill]),
            norm=batch.norm,
            limits=batch.limits,
        )
        solved = [None if part is None else np.asarray(part) for part in solved]
    multipliers, perturbation, bound, candidate, is_converged = solved
    for i, task in enumerate(tasks):
        task.rounds += 1
        task.multipliers = multipliers[i, : len(task.rows)].copy()
        task.bound = max(task.bound, float(bound[i]))
        task.center = perturbation[i] if batch.norm != "l2" else None
        if task.rounds > _LINEAR_AFTER and batch.norm != "l2" and not is_converged[i]:
            candidate = candidate.copy()
            candidate[i] = _solve_linear(batch, task)
    _judge(batch, tasks, candidate, is_converged)


@functools.partial(jax.jit, static_argnames=("norm", "limits"))
def _solve_rows(reference, queries, image, opponent, rows, multipliers, size, center, rounds, shift, *, norm, limits):
    """Build the problems of S tasks, solve them, and return also the candidate witnesses, moved off the border."""
    points = reference.blocks.reshape(-1, reference.blocks.shape[-1])
    x = cheap.values64(queries[image])
    z = cheap.values64(points[opponent])
    own = cheap.values64(points[rows])
    is_row = rows >= 0
    gaps = jnp.where(is_row[:, :, None], z[:, None] - own, 0)
    # h = (D_j - D_i) / 2 = g . (middle of z_j and z_i - x), which loses no digits where the two are close.
    heights = jnp.sum(gaps * ((z[:, None] + own) / 2 - x[:, None]), axis=2)
    low, high = (-jnp.inf, jnp.inf) if limits is None else (limits[0] - x, limits[1] - x)
    problems = dual.Problems(gaps, heights, is_row, jnp.broadcast_to(low, x.shape), jnp.broadcast_to(high, x.shape))
    if norm != "l2":
        multipliers = jnp.where(
            jnp.any(multipliers > 0, axis=1, keepdims=True), multipliers, dual.start(norm, problems)
        )
    solution = dual.solve(norm, problems, multipliers, size, center=center, rounds=rounds)
    v = solution.perturbation
    candidate = x + v + shift[:, None] * (z - x - v)
    if limits is not None:
        candidate = jnp.clip(candidate, *limits)
    return solution.multipliers, v, solution.bound, candidate.astype(jnp.float32), solution.is_converged


def _solve_linear(batch: _Batch, task: _Task) -> np.ndarray:
    """Leave the task's linear program to HiGHS; returns the candidate witness."""
    z, own = batch.values(task.opponent), batch.values(task.rows)
    x = batch.pixels[task.image]
    gaps = z - own
    heights = np.sum(gaps * ((z + own) / 2 - x), axis=1)
    solved = solve_linear(batch.norm, gaps, heights, *_room(batch, x))
    if solved is None:
        return x.astype(np.float32)
    task.multipliers, v = solved
    with jax.enable_x64(True):
        low, high = _room(batch, x)
        problems = dual.Problems(gaps[None], heights[None], np.ones((1, len(heights)), bool), low[None], high[None])
        task.bound = max(task.bound, float(dual.bound(batch.norm, problems, task.multipliers[None])[0]))
    candidate = x + v + task.shift * (z - x - v)
    return (candidate if batch.limits is None else np.clip(candidate, *batch.limits)).astype(np.float32)


def _room(batch: _Batch, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if batch.limits is None:
        return np.full_like(x, -np.inf), np.full_like(x, np.inf)
    return batch.limits[0] - x, batch.limits[1] - x


def _judge(batch: _Batch, tasks: list[_Task], candidate: np.ndarray, is_converged: np.ndarray) -> None:
    """Classify the candidates: a witness, or own points that were missed, or a border not yet crossed."""
    alive = []
    for i, task in enumerate(tasks):
        if task.bound >= batch.best[task.image] * (1 - batch.tolerance / 2):
            task.is_open = False  # the best witness cannot be beaten here
        else:
            alive.append(i)
    for label in np.unique([batch.labels[tasks[i].image] for i in alive]):
        chosen = [i for i in alive if batch.labels[tasks[i].image] == label]
        nearest = _nearest_own(batch, candidate[chosen], int(label))
        rows = np.concatenate([nearest, np.array([[tasks[i].opponent] for i in chosen])], axis=1)
        difference = batch.values(np.maximum(rows, 0)) - candidate[chosen].astype(np.float64)[:, None]
        sq = np.einsum("tkd,tkd->tk", difference, difference)
        for i, own, sq_own, sq_other in zip(chosen, nearest, sq[:, :-1], sq[:, -1], strict=True):
            task = tasks[i]
            is_near = (own >= 0) & (own != batch.left_out[task.image])
            _update(batch, task, candidate[i], own[is_near], sq_own[is_near], sq_other, bool(is_converged[i]))


def _nearest_own(batch: _Batch, candidates: np.ndarray, label: int) -> np.ndarray:
    """Return rows ``[T, k]`` of the own points nearest to each candidate, -1 for none."""
    count = len(candidates)
    size = _power_of_two(count)
    padded = np.pad(candidates, ((0, size - count), (0, 0)), mode="edge")
    indices = np.asarray(nearest_in_class(batch.reference, padded, label, k=_NEW_ROWS).indices)[:count]
    return np.where(indices == NO_POINT, -1, batch.row_of[np.where(indices == NO_POINT, 0, indices)])


def _update(batch: _Batch, task: _Task, candidate, own, sq_own, sq_other, is_converged) -> None:
    index = batch.index
    task.is_open = task.rounds < _MAX_ROUNDS
    is_missed = (sq_own < sq_other) | ((sq_own == sq_other) & (index[own] < index[task.opponent]))
    if not is_missed.any():
        size = _size(batch.norm, candidate.astype(np.float64) - batch.pixels[task.image])
        if size < batch.best[task.image]:
            batch.has_witness[task.image] = True
            batch.best[task.image] = size
            batch.adversarial[task.image] = candidate
            batch.opponent[task.image] = task.opponent
        gap = size - task.bound
        if gap <= batch.tolerance * size / 2 + _ROUNDING or (is_converged and task.rounds >= _ENOUGH_ROUNDS):
            task.is_open = False
        elif is_converged:  # the way off the border was too long
            task.shift /= 4
        return
    new = [int(row) for row in own[is_missed] if int(row) not in task.rows]
    if new:
        keep = [i for i, value in enumerate(task.multipliers) if value > 0 or len(task.rows) + len(new) <= _WIDTHS[0]]
        if task.rounds < _LINEAR_AFTER:
            task.rows = [task.rows[i] for i in keep]
            task.multipliers = task.multipliers[keep]
        task.rows = (task.rows + new)[: _WIDTHS[-1]]
        task.multipliers = np.append(task.multipliers, np.zeros(len(new)))[: _WIDTHS[-1]]
    elif is_converged:
        task.shift *= 6


def _size(norm: str, perturbation: np.ndarray) -> float:
    order = {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    return float(np.linalg.norm(perturbation, order))


def _certificate(anchors: np.ndarray, tasks: list[_Task]) -> RowCertificate:
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
