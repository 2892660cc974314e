"""Best-first search for the nearest border of 1NN around many images at once; see `radius` for the outline.

Host code that keeps, for every image, the opponents not ruled out yet and what is proven of each; `subproblems` solves
them. Points are known by their positions in the blocks of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nn_adv.certify import screening
from nn_adv.certify.inputs import Points, Question, host_pixels, pixel_scale
from nn_adv.certify.state import Search, power_of_two, sq_lengths
from nn_adv.certify.subproblems import Subproblem, advance
from nn_adv.certify.ties import step_across
from nn_adv.neighbors import Reference, Streamed
from nn_adv.neighbors.sharded import on_host
from nn_adv.threat import float64_sizes

_FIRST_CONSTRAINTS = 6  # of a subproblem
_FIRST_OPPONENTS = 16
_MANY = 1 / 64  # share of all points: so many opponents left of an image gain by a product with all points
_MANY_NUMBERS = 2**22  # in the opponents that are left: from here on it pays to compile what rules out most of them
_MAX_WIDTH = 32  # subproblems an image may open in one round


class Solved(NamedTuple):
    """What proves the bound of one opponent; the image is counted from the first of the batch."""

    image: int
    opponent: int
    constraints: list[int]
    multipliers: np.ndarray


class Found(NamedTuple):
    """What a search found around B images; -1 is no point."""

    adversarial: np.ndarray  # witness [B, d] float32; the image where there is none
    opponent: np.ndarray  # that the witness is nearest to [B]
    anchors: np.ndarray  # own points near each image [B, m]
    near: np.ndarray  # the nearest points, own and others [B, K]
    screened: np.ndarray  # lower bound over the opponents that were not solved [B], unchecked
    scale: np.ndarray  # of the pixels around each image [B], from `pixel_scale`


def find(
    reference: Reference | Streamed, points: Points, asked: Question, cutoff: np.ndarray, *, norm: str, tolerance: float
) -> tuple[Found, list[Solved]]:
    """Search around each image ``[B, d]`` until the best witness and the bounds meet, or both pass ``cutoff``.

    Points are on the host, and those left out are positions. Beyond the cutoff ``[B]`` an image is not of interest, and
    any witness below is enough; inf for none. The tolerance is the relative gap to close.
    """
    images, labels, bounds, left_out = asked
    pixels = host_pixels(images, np.float64)
    queries = np.pad(images, ((0, power_of_two(len(labels)) - len(labels)), (0, 0)))
    own_class, others = _usable(points, labels, left_out)
    scores = screening.score(reference, queries)
    near = screening.lowest(scores, others, _FIRST_OPPONENTS)
    towards = float64_sizes(norm, points.pixels(near[:, 0]) - pixels)
    search = Search(
        reference, points, queries, pixels, labels, left_out, norm, bounds, tolerance,
        stops_at_witness=np.isfinite(cutoff),
        scale=pixel_scale(points, pixels, np.where(near[:, 0] >= 0, towards, np.inf)),
        scores=on_host(scores),
        others=others,
        own=screening.lowest(scores, own_class, _FIRST_OPPONENTS)[:, :_FIRST_CONSTRAINTS],  # one program for both
        distance=np.zeros(len(labels)),
        candidates=[],
        best=cutoff.astype(np.float64),
        adversarial=pixels.astype(np.float32),
        opponent=np.full(len(labels), -1),
    )  # fmt: skip
    _begin(search, near)
    solved, is_complete = _run(search)
    screened = np.array([min(some.values(), default=np.inf) for some in search.candidates], float)
    # Without a witness the distances rule nothing out, so that nothing is known of the opponents never looked at.
    screened = np.where(is_complete | ~others.any(axis=1), np.minimum(screened, search.best), 0)
    near = np.concatenate([search.own, near], axis=1)
    return Found(search.adversarial, _winners(search), search.anchors, near, screened, search.scale), solved


def _begin(search: Search, near: np.ndarray) -> None:
    """Measure the nearest own points and opponents ``near [B, K]``, the first candidates, and settle radius 0."""
    sq_own, sq_near, lower = _measure(search, near)
    unsure = np.flatnonzero(_is_own_unsure(search, sq_own, sq_near))
    if len(unsure):
        search.own[unsure] = _nearest_own(search, unsure)
        sq_own, sq_near, lower = _measure(search, near)
    search.distance = np.sqrt(sq_own[:, 0])
    # Images of another prediction have radius 0: nothing to search. What may be a tie is left to the recheck to judge,
    # and gets a witness in case it is one.
    points = search.points
    in_integers = points.measured.dtype == search.queries.dtype == np.uint8
    error = screening.integer_rounding(search.pixels.shape[1]) if in_integers else points.mapping_error(search.pixels)
    apart = screening.doubt(sq_own, points.measured.shape[1], np.reshape(error, (-1, 1)))
    is_wrong = (sq_near + apart < sq_own).any(axis=1) | (search.own[:, 0] < 0)
    search.best[is_wrong] = 0
    tied = np.flatnonzero((sq_near <= sq_own + apart).any(axis=1) & ~is_wrong)
    step_across(search, tied, near[tied, np.argmin(sq_near[tied], axis=1)], apart[tied, 0])
    search.candidates = [
        {} if wrong else dict(zip(some[some >= 0].tolist(), proved[some >= 0].tolist(), strict=True))
        for wrong, some, proved in zip(is_wrong, near, lower, strict=True)
    ]


def _usable(points: Points, labels: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which points are of the own class and which are opponents of each image, booleans ``[B, P]`` each."""
    usable = np.repeat((points.labels >= 0)[None] & (points.copies == -1)[None], len(labels), axis=0)
    copied = np.flatnonzero(points.copies >= 0)
    for b in np.flatnonzero(left_out >= 0):
        usable[b, copied[points.copies[copied] == left_out[b]]] = True
        usable[b, left_out[b]] = False
    is_own = points.labels[None] == labels[:, None]
    return usable & is_own, usable & ~is_own


def _measure(search: Search, near: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least squared distance to own points ``[B, 1]``, those to ``near``, and lower bounds of these."""
    points, everyone = search.points, np.arange(len(near))
    sq_near, lower = screening.by_one_constraint(search, everyone, near, norm=search.norm, bounds=search.bounds)
    pairs = zip(np.maximum(search.own, 0), points.mapped(search.pixels), strict=True)
    sq_own = np.array([sq_lengths(points.values(own) - start) for own, start in pairs]).reshape(search.own.shape)
    sq_own = np.where(search.own >= 0, sq_own, np.inf).min(axis=1, keepdims=True)
    return sq_own, np.where(near >= 0, sq_near, np.inf), lower


def _is_own_unsure(search: Search, sq_own: np.ndarray, sq_near: np.ndarray) -> np.ndarray:
    """Return for which images ``[B]`` an opponent is nearest unless the scores hide an own point that is nearer."""
    sq_nearest, first = sq_near.min(axis=1), search.own[:, :1]
    ceiling = screening.score_ceiling(search, np.sqrt(sq_nearest))
    lowest = np.take_along_axis(search.scores[: len(first)], first, axis=1)[:, 0]
    return (first[:, 0] >= 0) & (sq_nearest < sq_own[:, 0]) & (lowest <= ceiling)


def _nearest_own(search: Search, images: np.ndarray) -> np.ndarray:
    """Return a few own points nearest to images ``[T, m]``, searched for."""
    queries, own = search.queries[images], np.full((len(images), search.own.shape[1]), -1)
    for label in np.unique(search.labels[images]):
        mine = np.flatnonzero(search.labels[images] == label)
        found = search.nearest_own(queries[mine], int(label))
        own[mine, : found.shape[1]] = found
    return np.where(own == search.left_out[images][:, None], -1, own)


def _run(search: Search) -> tuple[list[Solved], np.ndarray]:
    """Open subproblems best first, a few per image and round, until none can lower the best witness.

    Returns what was solved, and for which images every opponent was bounded ``[B]``.
    """
    candidates = search.candidates
    solved: list[Solved] = []
    started: list[set[int]] = [set() for _ in candidates]
    is_wide = np.zeros(len(candidates), bool)
    active: list[Subproblem] = []
    width = 1
    while True:
        # 1. An image that has its first witness gets all opponents that might beat it, once. Before, its few nearest
        #    opponents are enough to find one, and there is no radius to rule others out by.
        ready = np.isfinite(search.best) & ~is_wide & np.array([bool(some) for some in candidates], bool)
        _widen(search, np.flatnonzero(ready))
        is_wide |= ready
        # 2. An image without open subproblems opens the next ones, those of least lower bound first, twice as many as
        #    in the last round. An opponent whose bound has reached the best witness is never opened.
        busy = {one.image for one in active}
        for b, some in enumerate(candidates):
            if b in busy or search.is_done(b):
                continue
            left = sorted((lower, j) for j, lower in some.items() if j not in started[b] and lower < search.best[b])
            for lower, opponent in left[:width]:
                constraints = [int(i) for i in search.own[b] if i >= 0]
                none, center = np.zeros(len(constraints)), np.zeros(search.pixels.shape[1])
                active.append(Subproblem(b, opponent, constraints, none, lower, center))
                started[b].add(opponent)
        # 3. With nothing to open, every bound has reached the best witness of its image: done.
        if not active:
            return solved, is_wide
        # 4. All open subproblems, of all images, advance by one round, which may bring better witnesses.
        advance(search, active)
        # 5. What they proved is noted; closed ones, and those of images that are done, leave their multipliers.
        for one in active:
            candidates[one.image][one.opponent] = one.lower
            one.is_open &= not search.is_done(one.image)
        solved += [
            Solved(one.image, one.opponent, one.constraints, one.multipliers) for one in active if not one.is_open
        ]
        active = [one for one in active if one.is_open]
        width = min(2 * width, _MAX_WIDTH)


def _widen(search: Search, images: np.ndarray) -> None:
    """Add every opponent that distances and single constraints do not rule out at the best radius known."""
    if not len(images):
        return
    scores, size = search.scores, search.pixels.shape[1]
    limit = np.zeros(len(search.labels), np.float32)
    limit[images] = screening.distance_limit(search, images)
    ceiling = screening.score_ceiling(search, limit)
    left = {b: np.flatnonzero((scores[b] <= ceiling[b]) & search.others[b]) for b in images.tolist()}
    left = {b: some[~np.isin(some, list(search.candidates[b]))] for b, some in left.items()}
    is_large = size * sum(map(len, left.values())) > _MANY_NUMBERS and search.points.linear_map is None
    is_linf = search.norm == "linf"
    if is_large and is_linf:
        many = {b: some for b, some in left.items() if len(some) > _MANY * scores.shape[1]}
        if sum(map(len, many.values())) > scores.shape[1]:  # the product takes all points once, whatever is left
            left |= screening.linf_reach(search, many)
    if is_large and (is_linf or (search.norm == "l1" and search.bounds is not None)):
        # A length in l2 is a matrix product, and without the box nothing is sorted: the rest is left for few.
        norm, scale = ("l2", np.sqrt(size)) if is_linf else ("l1", 1.0)
        weak = screening.in_tiles(search, left, norm=norm, bounds=None)
        left = {b: some[weak[b] / scale < search.best[b]] for b, some in left.items()}
    for b, lower in screening.in_tiles(search, left, norm=search.norm, bounds=search.bounds).items():
        is_near = lower < search.best[b]
        search.candidates[b].update(zip(left[b][is_near].tolist(), lower[is_near].tolist(), strict=True))


def _winners(search: Search) -> np.ndarray:
    """Return the point each witness is nearest to ``[B]``, of several that of lowest index; -1 where there is none.

    A nearer opponent than the one that was solved has the witness in its cell, so no bound above the witness's size.
    """
    winners = search.opponent.copy()
    for b in np.flatnonzero(winners >= 0).tolist():
        near = [j for j, lower in search.candidates[b].items() if lower <= search.best[b] * (1 + 1e-9)]
        some = np.array([*near, winners[b]])
        witness = search.points.mapped(search.adversarial[b].astype(np.float64))
        sq_distances = sq_lengths(search.points.values(some) - witness)
        nearest = some[sq_distances == sq_distances.min()]
        winners[b] = nearest[np.argmin(search.points.indices[nearest])]
    return winners
