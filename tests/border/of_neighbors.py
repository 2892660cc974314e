"""Entries of nn_adv.neighbors."""

from __future__ import annotations

import functools

from nn_adv import neighbors
from tests.border.inputs import KINDS, NUM_CLASSES
from tests.border.table import Entry

_POINTS, _LABELS = KINDS["points"].standard, KINDS["labels"].standard


@functools.cache
def reference() -> neighbors.Reference:
    """The points that other entries search, of the kinds "points" and "labels"."""
    return neighbors.fit(_POINTS, _LABELS, NUM_CLASSES)


def _search(fn, *arguments):
    return lambda queries, **options: fn(reference(), queries, *arguments, **options)


_OTHER_FLOATS = ("float16", "bfloat16", "<f8", ">f8", "<f16", "lists", "JAX array of bfloat16", "NaN", "infinity",
                 "NaN, in half precision", "too large for a float32")  # fmt: skip

ENTRIES = (
    Entry("neighbors.fit", lambda points, labels: neighbors.fit(points, labels, NUM_CLASSES),
          {"points": "points", "labels": "labels"}, needs_some="nothing is nearest"),
    Entry("neighbors.fit.mapped", functools.partial(neighbors.fit, _POINTS, _LABELS, NUM_CLASSES),
          {"linear_map": "linear map"}),
    Entry("neighbors.stream", lambda points, labels: neighbors.stream(points, labels, NUM_CLASSES).head.center,
          {"points": "points", "labels": "labels"}, needs_some="nothing is nearest",
          narrows={"points": dict.fromkeys([*_OTHER_FLOATS, ">f4"], "they would have to be converted")}),
    Entry("neighbors.nearest", _search(neighbors.nearest),
          {"queries": "queries", "k": "k", "norm": "norm", "leave_out": "leave_out"},
          narrows={"leave_out": {"none of them": "then no point is left out"}}),
    Entry("neighbors.class_distances", _search(neighbors.class_distances), {"queries": "queries", "norm": "norm"}),
    Entry("neighbors.predict", _search(neighbors.predict),
          {"queries": "queries", "norm": "norm", "leave_out": "leave_out"},
          narrows={"leave_out": {"none of them": "then no point is left out"}}),
    Entry("neighbors.nearest_in_class", _search(neighbors.nearest_in_class, 1), {"queries": "queries", "k": "k"}),
    Entry("neighbors.prune", lambda points, labels, norm: neighbors.prune(points, labels, radius=0.1, norm=norm),
          {"points": "points", "labels": "labels of two classes", "norm": "norm"}),
    Entry("neighbors.soft_logits", _search(neighbors.soft_logits, 0.1), {"queries": "queries"}),
)  # fmt: skip

EXEMPT = {
    "neighbors.Neighbors": "a result",
    "neighbors.Products": "checked by fit",
    "neighbors.Reference": "made by fit",
    "neighbors.Streamed": "made by stream",
    "neighbors.shard": "takes what fit made, and a mesh",
    "conflicts.conflicts": "takes what neighbors.prune and evaluation.ceiling have checked",
    "precision.Products": "checked by neighbors.fit",
    "precision.fastest": "takes nothing",
}
