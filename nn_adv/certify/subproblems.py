"""One (image, opponent) pair at a time: the smallest perturbation that brings the image into the opponent's cell.

A `Subproblem` holds the own-class points that constrain it so far. `advance` solves all open ones in padded batches,
asks a nearest-neighbour search which own points were missed, and keeps the best witness of every image.
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

from nn_adv.certify import dual
from nn_adv.certify.problems import Problems, lower_bound, solve_linear
from nn_adv.certify.screening import doubt, score_ceiling
from nn_adv.certify.state import Search, sq_lengths
from nn_adv.pixels import float64_pixels

_WIDTHS = (8, 16, 32, 64, 128)  # padded numbers of constraints, a program each
_FEW_PIXELS = 256  # up to which the smallest is left out: it would save less than its program takes to compile
_BATCHES = (8, 32, 128, 256)  # padded numbers of subproblems that an accelerator solves together
_PIECE = 16  # subproblems per call on a CPU
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
class Subproblem:
    """The state of one (image, opponent) pair; points are known by their positions."""

    image: int
    opponent: int
    constraints: list[int]  # own points
    multipliers: np.ndarray  # one for each
    lower: float  # proven so far
    center: np.ndarray  # v of the last round
    shift: float = _FIRST_SHIFT
    too_short: float = 0.0  # largest shift that did not bring a witness
    far_enough: float = np.inf  # least shift that did
    rounds: int = 0
    num_stuck: int = 0  # rounds since the last new constraint
    is_lifted: bool = False  # whether the shift stands for overfulfilled constraints
    is_open: bool = True

    def start_lifting(self) -> None:
        """Overfulfil the constraints from now on, where moving towards the opponent did not help."""
        if not self.is_lifted:
            self.is_lifted, self.shift, self.too_short, self.far_enough = True, _FIRST_SHIFT, 0.0, np.inf

    @property
    def lift(self) -> float:
        """By how much constraints of length 1 are overfulfilled, for pixels up to 1."""
        return _LIFT * self.shift / _FIRST_SHIFT if self.is_lifted else 0.0


def advance(search: Search, subproblems: list[Subproblem]) -> None:
    """Solve each subproblem for its constraints, judge the solution, and close it or add what it missed."""

    width = functools.partial(_width, search)
    on_cpu = _is_on_cpu()
    most = _PIECE if on_cpu else _BATCHES[-1]
    order = sorted(subproblems, key=lambda subproblem: (width(subproblem), int(search.labels[subproblem.image])))
    pieces: list[list[Subproblem]] = []
    for _, group in itertools.groupby(order, key=width):
        equally_wide = list(group)
        pieces += [equally_wide[start : start + most] for start in range(0, len(equally_wide), most)]
    if on_cpu:
        _solve_one_by_one()  # made here: each thread would make, and compile, one of its own
    # Threads, because a subproblem at a time keeps but one core busy.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(cores if on_cpu else 1) as pool:
        solved = list(pool.map(lambda piece: _solve(search, piece, one_by_one=on_cpu), pieces))
    _judge(search, list(itertools.chain(*pieces)), *map(np.concatenate, zip(*solved, strict=True)))


def _may_win(search: Search, subproblem: Subproblem) -> bool:
    """Whether what is proven of the opponent leaves room below the best witness of its image."""
    return bool(subproblem.lower < search.best[subproblem.image] * (1 - search.tolerance / 2))


def _is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _width(search: Search, subproblem: Subproblem) -> int:
    """Return the padded number of constraints of a subproblem."""
    few = search.pixels.shape[1] <= _FEW_PIXELS
    return _padded(len(subproblem.constraints), _WIDTHS[1:] if few else _WIDTHS)


def _padded(count: int, sizes: tuple[int, ...]) -> int:
    return next((size for size in sizes if size >= count), sizes[-1])


def _solve(search: Search, subproblems: list[Subproblem], *, one_by_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """Solve each for its constraints; returns the candidate witnesses and which of them solve their problem."""
    count, width = len(subproblems), max(_width(search, one) for one in subproblems)
    size = _PIECE if one_by_one else _padded(count, _BATCHES)
    constraints = np.full((size, width), -1, np.int32)  # the filling has none: it is solved at once
    multipliers, center = np.zeros((size, width)), np.zeros((size, search.pixels.shape[1]))
    for i, one in enumerate(subproblems):
        constraints[i, : len(one.constraints)] = one.constraints
        multipliers[i, : len(one.constraints)] = one.multipliers
        center[i] = one.center
    scale = [search.scale[one.image] for one in subproblems]
    points = search.points

    def filled(values, dtype=np.float64):
        return np.pad(np.array(values, dtype), (0, size - count), mode="edge")

    opponents = filled([one.opponent for one in subproblems], np.int32)
    with jax.enable_x64(True):
        solved = (_solve_one_by_one() if one_by_one else _solve_together)(
            points.linear_map,
            # The points themselves: what is compiled depends on neither the number of images nor that of points.
            search.pixels[filled([one.image for one in subproblems], np.int32)],
            points.stored[opponents],
            points.measured[opponents] if points.linear_map is not None else None,
            points.measured[constraints],
            constraints >= 0,
            multipliers,
            filled([max(one.lower, _LEAST_SIZE * unit) for one, unit in zip(subproblems, scale, strict=True)]),
            center,
            filled([one.rounds for one in subproblems], np.int32),
            # A bound that has reached the best witness rules its opponent out; what lifted constraints prove is none.
            filled([np.inf if one.is_lifted else search.best[one.image] for one in subproblems]),
            filled([0.0 if one.is_lifted else one.shift for one in subproblems]),
            filled([one.lift * unit for one, unit in zip(subproblems, scale, strict=True)]),
            filled(scale),
            norm=search.norm,
            bounds=search.bounds,
        )
    multipliers, perturbation, lower, candidate, is_converged = (np.array(part)[:count] for part in solved)
    for i, one in enumerate(subproblems):
        one.rounds += 1
        one.multipliers = multipliers[i, : len(one.constraints)].copy()
        one.lower = max(one.lower, float(lower[i]))
        one.center = perturbation[i]
        if not _may_win(search, one):
            continue
        is_unsolved = one.rounds > _LINEAR_AFTER and not is_converged[i] and search.norm != "l2"
        if is_unsolved or (search.norm == "l1" and one.num_stuck > _STUCK_AFTER):
            candidate[i], is_converged[i] = _solve_linear(search, one)
    return candidate, is_converged


@functools.cache
def _solve_one_by_one():
    """Return what solves S subproblems one after the other: a CPU's cache prefers that, and none waits for the slowest.

    XLA's fusion emitters take more than half of the time in which the program is compiled, and make it no faster, so
    they are turned off where XLA knows how. Arguments are those of `_solve_together`.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0)
    except jax.errors.JaxRuntimeError:  # no such option
        options = {}

    def solve(linear_map, *subproblems, norm, bounds):
        one = functools.partial(_solve_together, linear_map, norm=norm, bounds=bounds)
        alone = jax.tree.map(lambda field: field[:, None], subproblems)
        return jax.tree.map(lambda field: field[:, 0], jax.lax.map(lambda subproblem: one(*subproblem), alone))

    return jax.jit(solve, static_argnames=("norm", "bounds"), compiler_options=options)


@functools.partial(jax.jit, static_argnames=("norm", "bounds"))
def _solve_together(
    linear_map, image, opponent, mapped, own, is_constraint, multipliers, size, center, rounds, enough, shift, lift,
    scale, *, norm, bounds
):  # fmt: skip
    """Build the problems of S subproblems, solve them, and return also candidate witnesses, moved off the border.

    The image is ``[S, d]`` in float64; opponent ``[S, d]`` and own points ``[S, M, d]`` are as stored. With a linear
    map ``[k, d]`` own points are the mapped ones ``[S, M, k]``, and so is ``mapped [S, k]``, the opponent. The rest is
    one number for each, but ``is_constraint [S, M]`` (False for filling), ``multipliers [S, M]`` and ``center [S, d]``;
    see `dual.solve`, `Subproblem` and `Search.scale`.
    """
    x, z, own = image, float64_pixels(opponent), float64_pixels(own)
    start, end = (x, z) if linear_map is None else (x @ linear_map.T, float64_pixels(mapped))
    gaps = jnp.where(is_constraint[:, :, None], end[:, None] - own, 0)
    # h = (D_j - D_i) / 2 = g . (middle of z_j and z_i - x), which loses no digits where the two are close.
    heights = jnp.sum(gaps * ((end[:, None] + own) / 2 - start[:, None]), axis=2)
    gaps = gaps if linear_map is None else gaps @ linear_map
    room = (-jnp.inf, jnp.inf) if bounds is None else (bounds[0] - x, bounds[1] - x)
    problems = Problems(gaps, heights, is_constraint, *(jnp.broadcast_to(end, x.shape) for end in room))
    if norm != "l2":
        is_new = ~jnp.any(multipliers > 0, axis=1, keepdims=True)
        multipliers = jnp.where(is_new, dual.start(norm, problems), multipliers)
    # The rounding of a witness counts by the length of a constraint; of those longer than the pixels, as if by that.
    lift *= jnp.minimum(scale, jnp.sqrt(jnp.max(jnp.sum(gaps**2, axis=2), axis=1)))
    lifted = problems._replace(heights=jnp.where(is_constraint, heights + lift[:, None], 0))
    solution = dual.solve(norm, lifted, multipliers, size, center=center, rounds=rounds, enough=enough)
    # What multipliers of lifted constraints prove of the true ones.
    lower = jnp.where(lift > 0, lower_bound(norm, problems, solution.multipliers), solution.lower)
    v = solution.perturbation
    candidate = x + v + shift[:, None] * (z - x - v)
    if norm == "l1":  # that way most pixels would move by less than float32 can tell, and all would count
        margin = shift * jnp.max(jnp.sum(gaps**2, axis=2), axis=1)
        candidate += dual.off_border(problems, solution.multipliers, v, margin)
    if bounds is not None:
        candidate = jnp.clip(candidate, *bounds)
    return solution.multipliers, v, lower, candidate.astype(jnp.float32), solution.is_converged


def _solve_linear(search: Search, subproblem: Subproblem) -> tuple[np.ndarray, bool]:
    """Leave a linear program to HiGHS; returns the candidate witness and whether one was found.

    To bring the witness off the border the constraints are overfulfilled, by a multiple of `_LIFT` that the shift says.
    """
    subproblem.start_lifting()
    points, x = search.points, search.pixels[subproblem.image]
    z, own = points.values(subproblem.opponent), points.values(subproblem.constraints)
    heights = np.sum((z - own) * ((z + own) / 2 - points.mapped(x)), axis=1)
    gaps = points.in_pixels(z - own)
    low, high = (np.full_like(x, end) - x for end in search.bounds or (-np.inf, np.inf))
    scale, length = search.scale[subproblem.image], np.sqrt(np.max(np.sum(gaps**2, axis=1)))
    lift = subproblem.lift * scale * min(scale, length)
    unit = min(scale, 2.0 ** np.ceil(np.log2(max(length, 1e-300))))  # HiGHS has tolerances of its own
    solved = solve_linear(search.norm, gaps / unit, (heights + lift) / unit**2, low / unit, high / unit)
    if solved is None:
        return x.astype(np.float32), False
    subproblem.multipliers, v = solved[0], solved[1] * unit
    with jax.enable_x64(True):
        problems = Problems(gaps[None], heights[None], np.ones((1, len(heights)), bool), low[None], high[None])
        proved = float(lower_bound(search.norm, problems, subproblem.multipliers[None])[0])
    subproblem.lower = max(subproblem.lower, proved)
    return (x + v if search.bounds is None else np.clip(x + v, *search.bounds)).astype(np.float32), True


def _judge(search: Search, subproblems: list[Subproblem], candidate: np.ndarray, is_converged: np.ndarray) -> None:
    """Close what cannot beat the best witness; look for own points near the other candidates and go on from there."""
    for one in subproblems:
        one.is_open = _may_win(search, one)
    images = np.array([one.image for one in subproblems])
    labels, is_open = search.labels[images], np.array([one.is_open for one in subproblems])
    points = search.points
    for label in np.unique(labels[is_open]):
        chosen = np.flatnonzero(is_open & (labels == label))
        witnesses = candidate[chosen].astype(np.float64)
        mapped = points.mapped(witnesses)
        sq_other = sq_lengths(points.values([subproblems[i].opponent for i in chosen]) - mapped)
        # Ties count too: the index may decide them.
        ceilings = sq_other + doubt(sq_other, mapped.shape[1], points.mapping_error(witnesses))
        among = _own_within(search, images[chosen], mapped, ceilings) if _is_on_cpu() else None
        nearest = search.nearest_own(candidate[chosen], int(label), among)
        sq_own = sq_lengths(points.values(np.maximum(nearest, 0)) - mapped[:, None])
        for i, own, is_near in zip(chosen, nearest, sq_own < ceilings[:, None], strict=True):
            one = subproblems[i]
            is_missed = is_near & search.is_rival(own, one.image, one.opponent)
            _update(search, one, candidate[i], own[is_missed], bool(is_converged[i]))


def _own_within(search: Search, images: np.ndarray, mapped: np.ndarray, sq_distances: np.ndarray) -> list[np.ndarray]:
    """Return own points of images ``[T]``, among them all within distances of their candidates ``[T, k]``.

    Candidates are mapped pixels and distances ``[T]`` squared.
    """
    points, starts = search.points, search.points.mapped(search.pixels[images])
    change = mapped - starts
    squares = sq_lengths(change)
    reach = (np.sqrt(sq_distances) + np.sqrt(squares)) ** 2  # triangle inequality
    if points.linear_map is None:
        # ||y - z||^2 = ||x - z||^2 + ||y - x||^2 - 2 (y - x).(z - x), and no z_k lies beyond the ends of the pixels:
        # that says more where few pixels move, and far.
        ends = np.where(change > 0, points.lowest_pixel + points.spread, points.lowest_pixel)
        reach = np.minimum(reach, sq_distances - squares + 2 * np.sum(change * (ends - starts), axis=1))
    farthest = np.zeros(len(search.labels))
    np.maximum.at(farthest, images, np.sqrt(np.maximum(reach, 0)))
    ceilings = score_ceiling(search, farthest)
    found = {
        b: np.flatnonzero((search.scores[b] <= ceilings[b]) & (search.points.labels == search.labels[b]))
        for b in set(images.tolist())
    }
    return [found[b] for b in images.tolist()]


def _update(search: Search, one: Subproblem, candidate: np.ndarray, missed: np.ndarray, is_converged: bool) -> None:
    """Go on from a candidate, given the own points that are as near to it as the opponent.

    Without such points it is a witness, and the next one is looked for nearer to the border; with them the relaxation
    was too weak, or rounding kept the candidate on the border.
    """
    one.is_open = one.rounds < _MAX_ROUNDS
    one.num_stuck += 1
    size = search.size_of(candidate, one.image)
    new = [int(point) for point in missed if int(point) not in one.constraints]
    if not len(missed) and size > 0:  # the image itself is no witness: whether it is wrong, the recheck decides
        # A witness: kept if it is the best. The pair is done once no better one is left, up to rounding ...
        search.offer(one.image, size, candidate, one.opponent)
        is_near = size - one.lower <= search.tolerance * size / 2 + _ROUNDING * search.scale[one.image]
        if is_near or (is_converged and one.num_stuck >= _ENOUGH_ROUNDS):
            one.is_open = False
        elif is_converged:  # ... and otherwise the way off the border was too long: bisect, or shorten it.
            one.far_enough = one.shift
            one.shift = np.sqrt(one.too_short * one.shift) if one.too_short else one.shift / 4
    elif new:
        # Own points that the relaxation lacks become constraints; idle ones make room while it is young.
        one.num_stuck = 0
        is_small = len(one.constraints) + len(new) <= _WIDTHS[0]
        keep = [i for i, value in enumerate(one.multipliers) if value > 0 or is_small or one.rounds >= _LINEAR_AFTER]
        one.constraints = ([one.constraints[i] for i in keep] + new)[: _WIDTHS[-1]]
        one.multipliers = np.append(one.multipliers[keep], np.zeros(len(new)))[: _WIDTHS[-1]]
    elif is_converged:
        # Nothing is missing, but rounding kept the candidate on the border: go farther off it.
        one.too_short = one.shift
        one.shift = np.sqrt(one.shift * one.far_enough) if one.far_enough < np.inf else 6 * one.shift
    if search.norm == "linf" and one.num_stuck > _STUCK_AFTER:
        # Moving towards the opponent does not help: overfulfil the constraints (in l1, `_solve_linear` does).
        one.start_lifting()
