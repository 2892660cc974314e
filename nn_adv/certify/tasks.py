"""One (image, opponent) pair at a time: the smallest perturbation that brings the image into the opponent's cell.

A `Task` holds the own-class points that constrain it so far. `advance` solves all open tasks in padded batches, asks a
nearest-neighbour search which own points were missed, and keeps the best witness of every image.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.certify import bounds as cheap
from nn_adv.certify import dual
from nn_adv.certify.linear import solve_linear
from nn_adv.certify.problems import Problems, lower_bound
from nn_adv.certify.rows import Rows, pixel_values
from nn_adv.neighbors import Reference, nearest_in_class
from nn_adv.neighbors.reference import NO_POINT
from nn_adv.pixels import float64_pixels
from nn_adv.threat import float64_sizes

_NEW_ROWS = 4  # own points asked for around a candidate witness
_WIDTHS = (8, 16, 32, 64, 128)  # padded numbers of constraints
_BATCHES = (8, 32, 128, 256)  # padded numbers of tasks that an accelerator solves together
_PIECE = 16  # tasks per call on a CPU
_MAX_ROUNDS = 40
_ENOUGH_ROUNDS = 10  # without a new constraint: a witness off a solved border is not improved any more
_LINEAR_AFTER = 12  # rounds after which an unsolved linear program is left to a library
_STUCK_AFTER = 5  # rounds without a new constraint after which the constraints are overfulfilled
# For pixels up to 1, otherwise times their scale:
_LIFT = 4e-7  # by which constraints of length 1 are overfulfilled: several times the rounding of a float32 witness
_ROUNDING = 7e-8  # by which a float32 witness may lie beyond the border: the spacing of pixels below 1
_LEAST_SIZE = 1e-9  # where nothing is proven yet
_FIRST_SHIFT = 2e-9  # share of the way to the opponent by which a witness is moved off the border


@dataclasses.dataclass
class Task:
    """The state of one (image, opponent) pair; rows are own-class constraints, with one multiplier each."""

    image: int
    opponent: int
    rows: list[int]
    multipliers: np.ndarray
    bound: float  # proven so far
    center: np.ndarray | None = None  # v of the last round, where the norm needs it
    shift: float = _FIRST_SHIFT
    too_short: float = 0.0  # largest shift that did not bring a witness
    far_enough: float = np.inf  # least shift that did
    rounds: int = 0
    num_stuck: int = 0  # rounds since the last new constraint
    is_lifted: bool = False  # whether the shift stands for overfulfilled constraints
    is_open: bool = True

    def start_lifting(self) -> None:
        """Overfulfil the constraints from now on, where moving towards the opponent did not help."""
        self.is_lifted, self.shift, self.too_short, self.far_enough = True, _FIRST_SHIFT, 0.0, np.inf

    @property
    def lift(self) -> float:
        """By how much constraints of length 1 are overfulfilled, for pixels up to 1."""
        return _LIFT * self.shift / _FIRST_SHIFT if self.is_lifted else 0.0


@dataclasses.dataclass
class Batch:
    """What the tasks of one batch of images share; rows are positions in the blocks, flattened."""

    reference: Reference
    rows: Rows
    queries: jax.Array  # filled up
    pixels: np.ndarray  # [B, d] float64
    labels: np.ndarray
    left_out: np.ndarray  # [B] row, -1 for none
    scale: np.ndarray  # [B] from `pixel_scale`
    norm: str
    limits: tuple[float, float] | None
    tolerance: float
    stops_at_witness: np.ndarray  # [B] whether any witness below the first `best` is enough
    best: np.ndarray  # [B] size of the best witness, or the cutoff
    adversarial: np.ndarray  # [B, d] the best witness
    opponent: np.ndarray  # [B] row the best witness is nearest to, -1 where there is none

    def is_done(self, image: int) -> bool:
        """Whether nothing is left to find: radius 0, or any witness where one is enough."""
        return bool(self.best[image] <= 0 or (self.stops_at_witness[image] and self.opponent[image] >= 0))

    def is_rival(self, own: np.ndarray, image: int, opponent: int) -> np.ndarray:
        """Return which own-class rows, -1 for none, the opponent must be nearer than.

        Not equal ones: theirs is a higher index, or else the opponent could not win and would be none.
        """
        is_copy = (self.rows.points[own] == self.rows.points[opponent]).all(axis=1)
        return (own >= 0) & (own != self.left_out[image]) & ~is_copy

    def keep(self, image: int, size: float, witness: np.ndarray, opponent: int) -> None:
        """Take down a witness that is better than the best so far."""
        self.best[image], self.adversarial[image], self.opponent[image] = size, witness, opponent

    def values(self, rows) -> np.ndarray:
        """Return the pixel values of rows ``[...]`` as float64 ``[..., d]``."""
        return pixel_values(self.rows.points[np.asarray(rows)], np.float64)


def power_of_two(count: int) -> int:
    """Return the size, 8 or more, to which ``count`` things are filled up: few sizes are compiled."""
    return 1 << max(3, int(count - 1).bit_length())


def advance(batch: Batch, tasks: list[Task]) -> None:
    """Solve each task for its constraints, judge the solution, and close it or add what it missed."""
    order = sorted(tasks, key=lambda task: (_padded(len(task.rows), _WIDTHS), int(batch.labels[task.image])))
    on_cpu = _is_on_cpu()
    most = _PIECE if on_cpu else _BATCHES[-1]
    pieces: list[list[Task]] = []
    for _, same_width in itertools.groupby(order, key=lambda task: _padded(len(task.rows), _WIDTHS)):
        group = list(same_width)
        pieces += [group[start : start + most] for start in range(0, len(group), most)]
    # Threads, because a task at a time keeps but one core busy.
    with concurrent.futures.ThreadPoolExecutor(_num_cores() if on_cpu else 1) as pool:
        solved = list(pool.map(lambda piece: _solve(batch, piece, one_by_one=on_cpu), pieces))
    tasks = [task for piece in pieces for task in piece]
    candidates, is_converged = map(np.concatenate, zip(*solved, strict=True))
    _judge(batch, tasks, candidates, is_converged)


def _is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _num_cores() -> int:
    """Return the number of cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _padded(count: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if size >= count), sizes[-1])


def _solve(batch: Batch, tasks: list[Task], *, one_by_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """Solve each task for its constraints; returns the candidate witnesses and which of them solve their problem."""
    count, width = len(tasks), _padded(max(len(task.rows) for task in tasks), _WIDTHS)
    size = _PIECE if one_by_one else _padded(count, _BATCHES)
    rows = np.full((size, width), -1, np.int32)  # those of the filling are unused: it is solved at once
    multipliers = np.zeros((size, width))
    center = None if batch.norm == "l2" else np.zeros((size, batch.pixels.shape[1]))
    for i, task in enumerate(tasks):
        rows[i, : len(task.rows)] = task.rows
        multipliers[i, : len(task.rows)] = task.multipliers
        if batch.norm == "linf" and task.num_stuck > _STUCK_AFTER and not task.is_lifted:
            task.start_lifting()
        if center is not None and task.center is not None:
            center[i] = task.center

    def filled(values, dtype):
        return np.pad(np.array(values, dtype), (0, size - count), mode="edge")

    with jax.enable_x64(True):
        solved = _solve_rows(
            batch.reference,
            batch.queries,
            filled([task.image for task in tasks], np.int32),
            filled([task.opponent for task in tasks], np.int32),
            rows,
            multipliers,
            filled([max(task.bound, _LEAST_SIZE * batch.scale[task.image]) for task in tasks], np.float64),
            center,
            filled([task.rounds for task in tasks], np.int32),
            filled([0.0 if task.is_lifted else task.shift for task in tasks], np.float64),
            filled([task.lift * batch.scale[task.image] for task in tasks], np.float64),
            filled([batch.scale[task.image] for task in tasks], np.float64),
            norm=batch.norm,
            limits=batch.limits,
            one_by_one=one_by_one,
        )
    multipliers, perturbation, bound, candidate, is_converged = (np.array(part)[:count] for part in solved)
    for i, task in enumerate(tasks):
        task.rounds += 1
        task.multipliers = multipliers[i, : len(task.rows)].copy()
        task.bound = max(task.bound, float(bound[i]))
        task.center = perturbation[i] if batch.norm != "l2" else None
        is_unsolved = task.rounds > _LINEAR_AFTER and not is_converged[i]
        is_stuck = task.num_stuck > _STUCK_AFTER and batch.norm == "l1"
        if (is_unsolved or is_stuck) and batch.norm != "l2":
            candidate[i], is_converged[i] = _solve_linear(batch, task)
    return candidate, is_converged


@functools.partial(jax.jit, static_argnames=("norm", "limits", "one_by_one"))
def _solve_rows(reference, queries, *tasks, norm, limits, one_by_one):
    """Solve S tasks, together or one by one, which a CPU's cache prefers and where none waits for the slowest."""
    solve = functools.partial(_solve_together, reference, queries, norm=norm, limits=limits)
    if not one_by_one:
        return solve(*tasks)
    solved = jax.lax.map(lambda task: solve(*task), jax.tree.map(lambda field: field[:, None], tasks))
    return jax.tree.map(lambda field: field[:, 0], solved)


def _solve_together(
    reference, queries, image, opponent, rows, multipliers, size, center, rounds, shift, lift, scale, *, norm, limits
):
    """Build the problems of S tasks, solve them, and return also the candidate witnesses, moved off the border."""
    points = reference.blocks.reshape(-1, reference.blocks.shape[-1])
    x = float64_pixels(queries[image])
    z = float64_pixels(points[opponent])
    own = float64_pixels(points[rows])
    is_row = rows >= 0
    gaps = jnp.where(is_row[:, :, None], z[:, None] - own, 0)
    # h = (D_j - D_i) / 2 = g . (middle of z_j and z_i - x), which loses no digits where the two are close.
    heights = jnp.sum(gaps * ((z[:, None] + own) / 2 - x[:, None]), axis=2)
    low, high = (-jnp.inf, jnp.inf) if limits is None else (limits[0] - x, limits[1] - x)
    problems = Problems(gaps, heights, is_row, jnp.broadcast_to(low, x.shape), jnp.broadcast_to(high, x.shape))
    if norm != "l2":
        multipliers = jnp.where(
            jnp.any(multipliers > 0, axis=1, keepdims=True), multipliers, dual.start(norm, problems)
        )
    # The rounding of a witness counts by the length of a constraint; of those longer than the pixels, as if by that.
    lift *= jnp.minimum(scale, jnp.sqrt(jnp.max(jnp.sum(gaps**2, axis=2), axis=1)))
    lifted = problems._replace(heights=jnp.where(is_row, heights + lift[:, None], 0))
    solution = dual.solve(norm, lifted, multipliers, size, center=center, rounds=rounds)
    # What multipliers of lifted constraints prove of the true ones.
    proved = jnp.where(lift > 0, lower_bound(norm, problems, solution.multipliers), solution.bound)
    v = solution.perturbation
    candidate = x + v + shift[:, None] * (z - x - v)
    if norm == "l1":  # that way most pixels would move by less than float32 can tell, and all would count
        margin = shift * jnp.max(jnp.sum(gaps**2, axis=2), axis=1)
        candidate += dual.off_border(problems, solution.multipliers, v, margin)
    if limits is not None:
        candidate = jnp.clip(candidate, *limits)
    return solution.multipliers, v, proved, candidate.astype(jnp.float32), solution.is_converged


def _solve_linear(batch: Batch, task: Task) -> tuple[np.ndarray, bool]:
    """Leave the task's linear program to HiGHS; returns the candidate witness and whether one was found.

    To bring the witness off the border the constraints are overfulfilled, by a multiple of `_LIFT` that the shift says.
    """
    if not task.is_lifted:
        task.start_lifting()
    z, own = batch.values(task.opponent), batch.values(task.rows)
    x = batch.pixels[task.image]
    gaps = z - own
    heights = np.sum(gaps * ((z + own) / 2 - x), axis=1)
    low, high = _room(batch, x)
    scale, length = batch.scale[task.image], np.sqrt(np.max(np.sum(gaps**2, axis=1)))
    lift = task.lift * scale * min(scale, length)
    unit = min(scale, 2.0 ** np.ceil(np.log2(max(length, 1e-300))))  # HiGHS has tolerances of its own
    solved = solve_linear(batch.norm, gaps / unit, (heights + lift) / unit**2, low / unit, high / unit)
    if solved is None:
        return x.astype(np.float32), False
    task.multipliers, v = solved[0], solved[1] * unit
    with jax.enable_x64(True):
        problems = Problems(gaps[None], heights[None], np.ones((1, len(heights)), bool), low[None], high[None])
        task.bound = max(task.bound, float(lower_bound(batch.norm, problems, task.multipliers[None])[0]))
    return (x + v if batch.limits is None else np.clip(x + v, *batch.limits)).astype(np.float32), True


def _room(batch: Batch, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if batch.limits is None:
        return np.full_like(x, -np.inf), np.full_like(x, np.inf)
    return batch.limits[0] - x, batch.limits[1] - x


def _judge(batch: Batch, tasks: list[Task], candidate: np.ndarray, is_converged: np.ndarray) -> None:
    """Classify the candidates: a witness, or own points that were missed, or a border not yet crossed."""
    alive = []
    for i, task in enumerate(tasks):
        if task.bound >= batch.best[task.image] * (1 - batch.tolerance / 2):
            task.is_open = False  # the best witness cannot be beaten here
        else:
            alive.append(i)
    for label in np.unique([batch.labels[tasks[i].image] for i in alive]):
        chosen = [i for i in alive if batch.labels[tasks[i].image] == label]
        nearest = nearest_own(batch, candidate[chosen], int(label))
        rows = np.concatenate([nearest, np.array([[tasks[i].opponent] for i in chosen])], axis=1)
        difference = batch.values(np.maximum(rows, 0)) - candidate[chosen].astype(np.float64)[:, None]
        sq = np.einsum("tkd,tkd->tk", difference, difference)
        for i, own, sq_own, sq_other in zip(chosen, nearest, sq[:, :-1], sq[:, -1], strict=True):
            task = tasks[i]
            is_rival = batch.is_rival(own, task.image, task.opponent)
            _update(batch, task, candidate[i], own[is_rival], sq_own[is_rival], sq_other, bool(is_converged[i]))


def nearest_own(batch: Batch, candidates: np.ndarray, label: int) -> np.ndarray:
    """Return rows ``[T, k]`` of the own points nearest to each candidate, -1 for none."""
    count = len(candidates)
    size = power_of_two(count)
    padded = np.pad(candidates, ((0, size - count), (0, 0)), mode="edge")
    indices = np.asarray(nearest_in_class(batch.reference, padded, label, k=_NEW_ROWS).indices)[:count]
    return np.where(indices == NO_POINT, -1, batch.rows.row_of[np.where(indices == NO_POINT, 0, indices)])


def _update(batch: Batch, task: Task, candidate, own, sq_own, sq_other, is_converged) -> None:
    task.is_open = task.rounds < _MAX_ROUNDS
    task.num_stuck += 1
    is_missed = sq_own < sq_other + cheap.doubt(sq_other, len(candidate))  # ties too: the index may decide them
    size = float(float64_sizes(batch.norm, candidate[None].astype(np.float64) - batch.pixels[task.image])[0])
    if not is_missed.any() and size > 0:  # the image itself is no witness: whether it is wrong, the recheck decides
        if size < batch.best[task.image]:
            batch.keep(task.image, size, candidate, task.opponent)
        rounding = _ROUNDING * batch.scale[task.image]
        is_near = size - task.bound <= batch.tolerance * size / 2 + rounding
        if is_near or (is_converged and task.num_stuck >= _ENOUGH_ROUNDS):
            task.is_open = False
        elif is_converged:  # the way off the border was too long
            task.far_enough = task.shift
            task.shift = np.sqrt(task.too_short * task.shift) if task.too_short else task.shift / 4
        return
    new = [int(row) for row in own[is_missed] if int(row) not in task.rows]
    if new:
        task.num_stuck = 0
        keep = [i for i, value in enumerate(task.multipliers) if value > 0 or len(task.rows) + len(new) <= _WIDTHS[0]]
        if task.rounds < _LINEAR_AFTER:
            task.rows = [task.rows[i] for i in keep]
            task.multipliers = task.multipliers[keep]
        task.rows = (task.rows + new)[: _WIDTHS[-1]]
        task.multipliers = np.append(task.multipliers, np.zeros(len(new)))[: _WIDTHS[-1]]
    elif is_converged:
        task.too_short = task.shift
        task.shift = np.sqrt(task.shift * task.far_enough) if task.far_enough < np.inf else 6 * task.shift
