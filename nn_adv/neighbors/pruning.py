"""Adversarial pruning: the fewest points to leave out so that the two classes are as far apart as is asked for.

Two points of different classes that are closer than twice a radius cannot both keep that radius. They are the edges
of a bipartite graph, and the points to leave out are a minimum vertex cover of it, which a maximum matching gives
(Koenig 1931).
"""

from __future__ import annotations

import math

import chex
import numpy as np
import scipy

from nn_adv.border import as_images, as_labels, as_number
from nn_adv.conflicts import conflicts
from nn_adv.pixels import as_float
from nn_adv.threat import check_norm


def prune(points: chex.Array, labels: chex.Array, *, radius: float, norm: str = "l2") -> np.ndarray:
    """Choose as many points as can be kept so that every two of different classes are at least 2 radius apart.

    1NN of what is kept is adversarial pruning (Yang et al. 2020, arXiv 1906.03310): each kept point has a radius of at
    least ``radius`` where distance and threat share the norm. Distances are those of float64, to its rounding. Of
    several smallest sets to leave out it is always the same one. Host code.

    Args:
      points: ``[n, ...]``, uint8 or float.
      labels: ``[n]``, 0 or 1: for more classes the smallest set is not known to be found in reasonable time.
      radius: in pixel units, at least 0; at 0 all points are kept.
      norm: "l1", "l2" or "linf", of the distance.

    Returns:
      Positions of the kept points, ascending.

    Raises:
      ValueError: unknown norm, a radius that is none, points or labels that are unfit.
    """
    check_norm(norm)
    radius = as_number(radius, "radius")
    points = as_images(points, name="points")
    labels = as_labels(labels, 2, count=len(points))
    flat = np.asarray(as_float(points), np.float64).reshape(len(points), math.prod(points.shape[1:]))
    first, second, apart = conflicts(flat, labels, 2 * radius, norm=norm)
    cut = apart < 2 * radius  # equal points conflict even at radius 0, where all are kept
    shape = (len(points), len(points))  # a row for each point of the first class, a column for each of the second
    edges = scipy.sparse.csr_matrix((np.ones(int(np.sum(cut))), (first[cut], second[cut])), shape=shape)
    rows, columns = _minimum_vertex_cover(edges)
    return np.setdiff1d(np.arange(len(points)), np.concatenate([rows, columns]))


def _minimum_vertex_cover(edges: scipy.sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of a smallest set that touches every edge of a bipartite graph.

    With a maximum matching, let Z be what alternating paths reach from the unmatched rows, along any edge to a column
    and along a matched one back: the cover is the rows outside Z and the columns inside it.
    """
    num_rows, num_columns = edges.shape
    matched = scipy.sparse.csgraph.maximum_bipartite_matching(edges, perm_type="column")  # of each row, -1: none
    has_match = matched >= 0
    start = num_rows + num_columns  # one more node, before all unmatched rows
    ways = scipy.sparse.coo_matrix(edges)
    unmatched = np.flatnonzero(~has_match)
    sources = np.concatenate([ways.row, num_rows + matched[has_match], np.full(len(unmatched), start)])
    targets = np.concatenate([num_rows + ways.col, np.flatnonzero(has_match), unmatched])
    graph = scipy.sparse.csr_matrix((np.ones(len(sources)), (sources, targets)), shape=(start + 1, start + 1))
    reached = np.zeros(start + 1, bool)
    reached[scipy.sparse.csgraph.breadth_first_order(graph, start, return_predecessors=False)] = True
    return np.flatnonzero(~reached[:num_rows]), np.flatnonzero(reached[num_rows:start])
