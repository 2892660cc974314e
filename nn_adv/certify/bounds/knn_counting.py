"""A lower bound on the radius of a k-nearest-neighbour vote, by counting which points can come to vote.

Let r_ij be the radius up to which point i is sure to stay nearer than point j: ``r_ij = h_ij / ||g_ij||_q`` with
g_ij = z_j - z_i, h_ij = (D_j - D_i) / 2 and q the dual norm. Say that i holds j below e if r_ij >= e. Then below e

  * the own class has at least s votes if all but k - s opponents are held by s own points each. For with fewer,
    k - s + 1 opponents vote, one of them is held by s own points, and those are nearer, so they vote too;
  * class c has at most t votes if all but t of its points are held by k - t points outside c each. For with more,
    t + 1 of them vote, one of them is held by k - t others, and with those more than k points vote.

The own class y wins if for every other class c there is an s with y >= s > c, or with y >= s >= c and every point of
c held by an own point, which wins the tie. For k = 1 this is the bound of 1NN by single constraints.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from nn_adv import neighbors
from nn_adv.certify.bounds.margins import norm_ratio
from nn_adv.certify.inputs import Points
from nn_adv.neighbors.distances import expanded_sq_l2
from nn_adv.pixels import as_float
from nn_adv.precision import matmul_t
from nn_adv.threat import dual_norm

_METRIC = {"l1": "cityblock", "l2": "euclidean", "linf": "chebyshev"}
# Points beyond the k that vote which may hold others back: own ones, and as many opponents.
_SPARE_POINTS = 8
# Covers the rounding of float64 sums of up to a million terms, relative to their size.
_SLACK = 1e-9


class Near(NamedTuple):
    """Positions of points near one image, nearest first up to rounding; all opponents not listed are ``beyond``."""

    own: np.ndarray
    opponents: np.ndarray
    beyond: float


def near_points(
    reference: neighbors.Reference, points: Points, images, labels, left_out, *, k: int, count: int
) -> list[Near]:
    """Choose for images ``[B, d]`` the points to compare one by one, ``count`` opponents; ``left_out [B]`` as asked."""
    scores, center_distances = map(np.asarray, _scores(reference, images))
    # Float32 scores are expanded around the center: what d rounded products may add (Higham 2002, 3.1), and a little.
    gamma = (images.shape[1] + 32) * 2.0**-24 * 1.01
    lost = (4 * images.shape[1] + 64) * 2.0**-126  # by underflow
    chosen = []
    for score, label, out, reach in zip(scores, labels, left_out, center_distances, strict=True):
        score = np.where(np.isfinite(score), score, 0).astype(np.float64)  # overflown: listed, and measured in float64
        usable = (points.labels >= 0) & (points.indices != out)
        own, _ = _smallest(score, usable & (points.labels == label), max(count, k + _SPARE_POINTS))
        opponents, next_score = _smallest(score, usable & (points.labels != label), count)
        slack = gamma * (2.001 * reach + np.sqrt(max(next_score, 0))) ** 2 + lost if np.isfinite(next_score) else 0
        chosen.append(Near(own, opponents, np.sqrt(max(next_score - slack, 0)) * (1 - 1e-5)))
    return chosen


@jax.jit
def _scores(reference: neighbors.Reference, images: chex.Array) -> tuple[jax.Array, jax.Array]:
    """Return rounded squared distances to all points ``[B, P]``, and distances to the center ``[B]``."""
    centered = images - reference.center
    sq_norms = jnp.sum(jnp.square(centered), axis=-1)

    def block_scores(inputs):
        block, block_sq_norms = inputs
        products = matmul_t(centered, as_float(block) - reference.center)
        return expanded_sq_l2(sq_norms, block_sq_norms, products)

    scores = lax.map(block_scores, (reference.blocks, reference.centered_sq_norms))
    return jnp.moveaxis(scores, 1, 0).reshape(len(images), -1), jnp.sqrt(sq_norms)


def _smallest(scores: np.ndarray, usable: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the usable positions with the ``count`` smallest scores, in order, and the smallest score left out."""
    positions = np.flatnonzero(usable)
    left_out = np.inf
    if len(positions) > count:
        order = np.argpartition(scores[positions], count)
        left_out = float(scores[positions[order[count]]])
        positions = positions[order[:count]]
    return positions[np.argsort(scores[positions], kind="stable")], left_out


def lower_bound(
    points: Points, image: np.ndarray, label: int, near: Near, *, k: int, norm: str, num_classes: int
) -> float:
    """Bound the radius of one image ``[d]`` under the vote from below; 0 where counting cannot prove the vote."""
    pool = np.concatenate([some[: k + _SPARE_POINTS] for some in (near.own, near.opponents)])
    holding, held_back = points.pixels(pool), points.pixels(near.opponents)
    sq_pool, sq_opponents = (np.square(some - image.astype(np.float64)).sum(axis=1) for some in (holding, held_back))
    margins = (sq_opponents - sq_pool[:, None]) / 2 - _SLACK * (sq_opponents + sq_pool[:, None])
    lengths = scipy.spatial.distance.cdist(holding, held_back, _METRIC[dual_norm(norm)]) * (1 + _SLACK)
    pairwise = np.where(margins > 0, margins / np.where(lengths > 0, lengths, 1), 0)
    # The last column stands for all opponents beyond the listed ones, however many.
    table = np.concatenate([pairwise, _beyond(points, sq_pool, near.beyond, norm)[:, None]], axis=1)
    return _count(table, points.labels[pool], points.labels[near.opponents], label, k, num_classes)


def _beyond(points: Points, sq_pool: np.ndarray, beyond: float, norm: str) -> np.ndarray:
    """Bound r_ij from below for any j at least ``beyond`` away, since ``||g||_2 <= sqrt(D_i) + sqrt(D_j)``."""
    apart = beyond - np.sqrt(sq_pool) * (1 + _SLACK)
    bound = apart / (2 * norm_ratio("l2", norm, points.stored.shape[1]))
    if norm == "l1" and points.spread > 0:  # ||g||_inf is also at most the extent of the points
        bound = np.maximum(bound, apart * (beyond + np.sqrt(sq_pool)) / (2 * points.spread))
    return np.maximum(bound, 0) * (1 - _SLACK)


def _count(table, pool_labels, near_labels, label: int, k: int, num_classes: int) -> float:
    """Return the radius below which the own class wins; ``table [m, K + 1]`` holds r_ij, see the module docstring."""

    def ordered(members):
        return -np.sort(-table[members], axis=0)

    def held(by, number):
        return by[number - 1] if number <= len(by) else np.zeros(table.shape[1])

    def all_but(allowed, held_by, columns):
        """Return the radius below which all but some columns are held, given by how far each is."""
        listed = np.sort(held_by[:-1][columns])
        return min(held_by[-1], listed[allowed] if allowed < len(listed) else np.inf)

    own = ordered(pool_labels == label)
    anyone = np.ones(len(near_labels), bool)
    at_least = {s: all_but(k - s, held(own, s), anyone) for s in range(1, k // 2 + 2)}
    radius = np.inf
    for c in set(range(num_classes)) - {label}:
        members, others = near_labels == c, ordered(pool_labels != c)
        nearer = all_but(0, held(own, 1), members)
        at_most = [all_but(votes, held(others, k - votes), members) for votes in range(k)]
        wins = []
        for s, enough in at_least.items():
            # Where the own class has s votes, k - s are left for the others.
            wins.append(min(enough, at_most[s - 1] if s <= k - s else np.inf))
            wins.append(min(enough, nearer, at_most[s] if s < k - s else np.inf))
        radius = min(radius, max(wins))
    return float(radius)
