"""Entries of nn_adv.certify."""

from __future__ import annotations

import functools

from nn_adv import certify, neighbors
from tests.border.inputs import KINDS, SHAPE
from tests.border.of_neighbors import reference
from tests.border.table import Entry

_QUESTION = {"images": "pixels", "labels": "labels"}


def _radius(images, labels, leave_out):
    return certify.radius(reference(), images, labels, norm="l2", leave_out=leave_out)._asdict() | {"status": ()}


def _decide(images, labels, threat, leave_out):
    found = certify.decide(reference(), images, labels, threat=threat, leave_out=leave_out)
    return found._replace(status=())


def _vote_bounds(images, labels, leave_out):
    return certify.vote_bounds(
        reference(), images, labels, k=3, norm="l2", leave_out=leave_out, num_near=4, num_steps=2
    )


def _margin_bound(images, labels):
    return certify.margin_bound(reference(), images, labels, distance_norm="l2", threat_norm="linf")


@functools.cache
def _pool() -> certify.Embedding:
    return certify.average_pool(SHAPE, 2)


@functools.cache
def _embedded_reference():
    return neighbors.fit(_pool()(KINDS["points"].standard), KINDS["labels"].standard, 3)


def _embedded_radius(images, labels, leave_out, points):
    found = certify.embedded_radius(
        certify.radius, _embedded_reference(), images, labels, embed=_pool(), norm="l2", points=points,
        leave_out=leave_out,
    )  # fmt: skip
    return found._replace(status=())


_NONE = {"leave_out": {"none of them": "then no point is left out"}}
ENTRIES = (
    Entry("certify.radius", _radius, _QUESTION | {"leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.decide", _decide, _QUESTION | {"threat": "threat", "leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.vote", lambda queries, leave_out: certify.vote(reference(), queries, 3, leave_out=leave_out),
          {"queries": "queries", "leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.vote_bounds", _vote_bounds, _QUESTION | {"leave_out": "leave_out"}, narrows=_NONE),
    Entry("certify.margin_bound", _margin_bound, {"images": "queries", "labels": "labels"}),
    Entry("certify.separation", lambda points, labels: certify.separation(points, labels),
          {"points": "points", "labels": "labels"}, needs_some="no two points"),
    Entry("certify.embedded_radius", _embedded_radius,
          {"images": "queries", "labels": "labels", "leave_out": "leave_out", "points": "points"}, shared=("points",),
          narrows=_NONE | {"points": {"none of them": "then there is no upper bound"}}),
    Entry("certify.average_pool", lambda images: _pool()(images), {"images": "queries"}),
    Entry("certify.low_pass", lambda images: certify.low_pass(SHAPE, 2)(images), {"images": "queries"}),
    Entry("certify.pca", lambda points: certify.pca(points, 2)(KINDS["points"].standard), {"points": "points"},
          needs_some="no components"),
)  # fmt: skip

_RESULT = "a result, or a part of one"
EXEMPT = {
    "certify.Certificate": _RESULT,
    "certify.Decision": _RESULT,
    "certify.Embedding": "tried as what average_pool and low_pass return",
    "certify.Radius": _RESULT,
    "certify.Recheck": _RESULT,
    "certify.Separation": _RESULT,
    "certify.VoteBounds": _RESULT,
    "certify.norm_ratio": "takes names and a whole number: tests/certify/test_margins.py",
    "certify.recheck": "takes what the solver hands it: tests/certify/test_recheck.py",
}
