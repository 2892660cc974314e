"""What rows may not say."""

from __future__ import annotations

import pytest

from experiments.checks import order_violations
from tests.experiments.report_rows import evaluation, row


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"certified": 40, "exact": 50, "attacked": 60, "clean": 70}, []),
        ({"certified": 50, "exact": 50, "attacked": 50, "clean": 50}, []),
        ({"certified": 51, "exact": 50}, ["certified 51 > exact 50"]),
        ({"exact": 61, "attacked": 60}, ["exact 61 > attacked 60"]),
        ({"certified": 61, "attacked": 60}, ["certified 61 > attacked 60"]),
        ({"attacked": 71, "clean": 70}, ["attacked 71 > clean 70"]),
        ({"certified": 3, "exact": 2, "attacked": 1}, ["certified 3 > exact 2", "exact 2 > attacked 1"]),
    ],
)
def test_a_violated_order_of_bounds_is_found(kinds, expected):
    evaluations = [
        evaluation("test", None if kind == "clean" else "linf", 0.0 if kind == "clean" else 0.1, kind, 100, robust)
        for kind, robust in kinds.items()
    ]
    found = order_violations([row("0v1", "1nn", evaluations)])
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text and "digits/0v1/1nn/0" in text


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([(0.2, "exact", 51), (0.1, "exact", 50)], ["linf 0.2: exact 51 > exact 50 at 0.1 of 100"]),
        ([(0.1, "attacked", 50), (0.2, "certified", 51)], ["linf 0.2: certified 51 > attacked 50 at 0.1 of 100"]),
        ([(0.1, "exact", 50), (0.15, "attacked", 60), (0.2, "exact", 51)], ["exact 51 > exact 50 at 0.1"]),
        ([(0.1, "attacked", 50), (0.2, "attacked", 51)], []),  # a better attack at the smaller radius
        ([(0.1, "certified", 50), (0.2, "exact", 51)], []),
        ([(0.1, "exact", 50), (0.2, "exact", 50), (0.3, "certified", 40), (0.3, "attacked", 45)], []),
    ],
)
def test_what_is_proven_may_not_exceed_what_broke_at_a_smaller_radius(measured, expected):
    evaluations = [evaluation("test", "linf", epsilon, kind, 100, robust) for epsilon, kind, robust in measured]
    found = order_violations([row("0v1", "1nn", evaluations)])
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text


def test_bounds_over_different_images_are_not_compared():
    evaluations = [
        evaluation("test", "linf", 0.1, kind, count, robust)
        for kind, count, robust in (("exact", 100, 50), ("attacked", 10, 6))
    ]
    assert order_violations([row("0v1", "1nn", evaluations)]) == []
