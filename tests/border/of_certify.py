"""Entries of nn_adv.certify."""

from __future__ import annotations

import functools

from nn_adv import certify, neighbors
from tests.border.inputs import KINDS, SHAPE
from tests.border.of_neighbors import reference
from tests.border.table import Entry

_QUESTION = {"images": "pixels", "labels": "labels"}


def _numbers(found):
    """Leave out what is told by words."""
    return found._replace(status=())


def _radius(images, labels, leave_out, norm, bounds):
    return _numbers(certify.radius(reference(), images, labels, norm=norm, bounds=bounds, leave_out=leave_out))


def _decide(images, labels, threat, leave_out):
    return _numbers(certify.decide(reference(), images, labels, threat=threat, leave_out=leave_out))


def _vote(queries, k, leave_out):
    return certify.vote(reference(), queries, k, leave_out=leave_out)


def _vote_bounds(images, labels, leave_out, k, norm, bounds):
    options = {"k": k, "norm": norm, "bounds": bounds, "num_near": 4, "num_steps": 2}
    return certify.vote_bounds(reference(), images, labels, leave_out=leave_out, **options)


def _margin_bound(images, labels, distance_norm, threat_norm):
    norms = {"distance_norm": distance_norm, "threat_norm": threat_norm}
    return certify.margin_bound(reference(), images, labels, **norms)


@functools.cache
def _pool() -> certify.Embedding:
    return certify.average_pool(SHAPE, 2)


@functools.cache
def _embedded_reference():
    return neighbors.fit(_pool()(KINDS["points"].standard), KINDS["labels"].standard, 3)


def _embedded_radius(images, labels, leave_out, points, norm):
    options = {"embed": _pool(), "norm": norm, "points": points, "leave_out": leave_out}
    return _numbers(certify.embedded_radius(_embedded_reference(), images, labels, **options))


_NONE = {"leave_out": {"none of them": "then no point is left out"}}
_NO_POINTS = {"points": {"none of them": "then there is no upper bound"}}
_EMBEDDED = {"images": "queries", "labels": "labels", "leave_out": "leave_out", "points": "points", "norm": "norm"}
_ANY_CLASS = "there may be any number of classes"
ENTRIES = (
    Entry("certify.radius", _radius, _QUESTION | {"leave_out": "leave_out", "norm": "norm", "bounds": "bounds"},
          narrows=_NONE),
    Entry("certify.decide", _decide, _QUESTION | {"threat": "threat", "leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.vote", _vote, {"queries": "queries", "k": "k", "leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.vote_bounds", _vote_bounds,
          _QUESTION | {"leave_out": "leave_out", "k": "k", "norm": "norm", "bounds": "bounds"}, narrows=_NONE),
    Entry("certify.margin_bound", _margin_bound,
          {"images": "queries", "labels": "labels", "distance_norm": "norm", "threat_norm": "norm"}),
    Entry("certify.separation", lambda points, labels, norm: certify.separation(points, labels, norm=norm),
          {"points": "points", "labels": "labels", "norm": "norm"},
          narrows={"labels": {"1..C": _ANY_CLASS, "one beyond": _ANY_CLASS}}, needs_some="no two points"),
    Entry("certify.embedded_radius", _embedded_radius, _EMBEDDED, shared=("points",), narrows=_NONE | _NO_POINTS),
    Entry("certify.average_pool", lambda images: _pool()(images), {"images": "queries"}),
    Entry("certify.low_pass", lambda images: certify.low_pass(SHAPE, 2)(images), {"images": "queries"}),
    Entry("certify.pca", lambda points: certify.pca(points, 2)(KINDS["points"].standard), {"points": "points"},
          needs_some="no components"),
)  # fmt: skip

_RESULT = "a result, or a part of one"
EXEMPT = {
    "certify.Certificate": _RESULT,
    "certify.Decision": _RESULT,
    "certify.EightBitRadius": _RESULT,
    "certify.Embedding": "tried as what average_pool and low_pass return",
    "certify.Radius": _RESULT,
    "certify.Recheck": _RESULT,
    "certify.Separation": _RESULT,
    "certify.VoteBounds": _RESULT,
    "certify.eight_bit_radius": "takes what radius returned: tests/certify/bounds/test_eight_bit.py",
    "certify.norm_ratio": "takes names and a whole number: tests/certify/test_margins.py",
    "certify.recheck": "takes what the solver hands it: tests/certify/test_recheck.py",
}
