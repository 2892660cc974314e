"""Means, errors, differences and checks of the report against figures worked out by hand."""

from __future__ import annotations

import pytest

from experiments.checks import order_violations
from experiments.report import records
from experiments.report.records import CLEAN, WORST, Condition
from tests.experiments.report_rows import evaluation, realistic_rows, row

LINF = Condition("linf", 0.1)
RADII = {"l2": 0.8, "linf": 0.1}


def _row(task, method, train, test, *, kind="attacked", **fields):
    """A row with `train` and `test` of 100 images holding in linf."""
    return row(
        task,
        method,
        [evaluation("train", "linf", 0.1, kind, 100, train), evaluation("test", "linf", 0.1, kind, 100, test)],
        radii=RADII,
        **fields,
    )


def _results(rows):
    (results,) = records.index(rows)
    return results


def test_each_task_weighs_the_same_whatever_its_image_count():
    rows = [
        row("0v1", "1nn", [evaluation("test", "linf", 0.1, "attacked", 1000, 900)], radii=RADII),
        row("0v2", "1nn", [evaluation("test", "linf", 0.1, "attacked", 10, 1)], radii=RADII),
    ]
    results = _results(rows)
    mean = records.mean_over_tasks(records.task_accuracies(results, "1nn", "test", LINF), results.tasks)
    assert mean.value == pytest.approx(0.5)
    assert mean.error == pytest.approx(0.4)  # sd of (.9, .1) is .8/sqrt(2); over sqrt(2).
    assert (mean.num_tasks, mean.kind) == (2, "attacked")


def test_seeds_are_averaged_within_their_task():
    rows = [_row("0v1", "1nn", 0, 100, seed=0), _row("0v1", "1nn", 0, 50, seed=1), _row("0v2", "1nn", 0, 25)]
    results = _results(rows)
    mean = records.mean_over_tasks(records.task_accuracies(results, "1nn", "test", LINF), results.tasks)
    assert mean.value == pytest.approx(0.5) and mean.num_tasks == 2


def test_mean_over_both_splits_is_taken_per_task():
    results = _results([_row("0v1", "1nn", 100, 20), _row("0v2", "1nn", 60, 40)])
    assert results.splits == ("train", "test", "both")
    line = records.main_table(results, results.tasks)[0]
    assert line.cells["train"][LINF].value == pytest.approx(0.8)
    assert line.cells["test"][LINF].value == pytest.approx(0.3)
    assert line.cells["both"][LINF].value == pytest.approx(0.55)
    assert line.cells["train"][LINF].error == pytest.approx(0.2)
    assert line.cells["test"][LINF].error == pytest.approx(0.1)
    assert line.cells["both"][LINF].error == pytest.approx(0.05)  # (.6, .5): the splits vary against each other.


def test_one_task_has_no_standard_error():
    results = _results([_row("0v1", "1nn", 100, 20)])
    assert records.main_table(results, results.tasks)[0].cells["test"][LINF].error is None


def test_exact_is_shown_instead_of_attacked_and_a_mixed_mean_stays_an_upper_bound():
    both = [evaluation("test", "linf", 0.1, "attacked", 100, 60), evaluation("test", "linf", 0.1, "exact", 100, 50)]
    results = _results([row("0v1", "1nn", both, radii=RADII)])
    assert records.task_accuracies(results, "1nn", "test", LINF) == {"0v1": (0.5, "exact")}
    attacked = row("0v2", "1nn", [evaluation("test", "linf", 0.1, "attacked", 100, 70)], radii=RADII)
    results = _results([row("0v1", "1nn", both, radii=RADII), attacked])
    mean = records.mean_over_tasks(records.task_accuracies(results, "1nn", "test", LINF), results.tasks)
    assert mean.kind == "attacked" and mean.value == pytest.approx(0.6)


def test_certified_has_a_line_of_its_own_and_never_passes_for_attacked():
    evaluations = [
        evaluation("test", "linf", 0.1, kind, 100, robust) for kind, robust in (("attacked", 60), ("certified", 40))
    ]
    results = _results([row("0v1", "1nn", evaluations, radii=RADII)])
    above, below = records.main_table(results, results.tasks)
    assert (above.certified, above.cells["test"][LINF]) == (False, (0.6, None, 1, "attacked"))
    assert (below.certified, below.cells["test"][LINF]) == (True, (0.4, None, 1, "certified"))


def test_a_certificate_beside_an_exact_answer_is_not_repeated():
    evaluations = [evaluation("test", "linf", 0.1, kind, 100, 50) for kind in ("exact", "certified")]
    results = _results([row("0v1", "1nn", evaluations, radii=RADII)])
    assert [line.certified for line in records.main_table(results, results.tasks)] == [False]


def test_exact_tasks_count_among_the_lower_bounds_of_the_others():
    rows = [_row("0v1", "1nn", 100, 80, kind="exact"), _row("0v2", "1nn", 100, 40, kind="certified")]
    rows.append(_row("0v2", "1nn", 100, 44, seed=0) | {"unit": "more"})  # attacked
    results = _results(rows)
    above, below = records.main_table(results, results.tasks)
    assert (above.cells["test"][LINF].kind, below.cells["test"][LINF].kind) == ("attacked", "certified")
    assert above.cells["test"][LINF].value == pytest.approx(0.62)
    assert below.cells["test"][LINF].value == pytest.approx(0.6)
    assert below.cells["both"][LINF].value == pytest.approx(0.8)
    assert below.cells["test"][LINF].num_tasks == 2


def test_paired_difference_uses_only_shared_tasks_and_pairs_them():
    rows = [
        _row("0v1", "1nn", 0, 90),
        _row("0v2", "1nn", 0, 40),
        _row("0v3", "1nn", 0, 0),
        _row("0v1", "trades-linf", 0, 80),
        _row("0v2", "trades-linf", 0, 20),
    ]
    results = _results(rows)
    difference = records.paired_difference(results, "1nn", "trades-linf", "test", LINF, results.tasks)
    assert difference.value == pytest.approx(0.15) and difference.error == pytest.approx(0.05)
    assert difference.first.value == pytest.approx(0.65) and difference.first.num_tasks == 2
    assert records.paired_difference(results, "1nn", "trades-linf", "test", CLEAN, results.tasks) is None


def test_columns_and_lines_come_in_a_fixed_order():
    results = _results(realistic_rows()[::-1])
    assert results.methods == ("1nn", "trades-linf", "trades-l2", "trades-both", "standard")
    assert [condition.norm for condition in results.main_conditions] == [None, "linf", "l2", "worst"]
    assert len(results.tasks) == 45 and results.common_tasks == results.tasks
    assert [line.method for line in records.main_table(results, results.tasks)] == list(results.methods)


def test_tasks_are_ordered_by_their_numbers():
    results = _results([_row(task, "1nn", 0, 0) for task in ("2v10", "10v11", "2v9", "all", "3vrest")])
    assert results.tasks == ("all", "2v9", "2v10", "3vrest", "10v11")


def test_common_tasks_are_those_of_every_method():
    rows = [
        _row("0v1", "1nn", 0, 0),
        _row("0v2", "1nn", 0, 0),
        _row("0v2", "standard", 0, 0),
        _row("0v3", "standard", 0, 0),
    ]
    assert _results(rows).common_tasks == ("0v2",)
    assert _results(rows).tasks == ("0v1", "0v2", "0v3")


def test_worst_is_a_column_of_its_own_and_datasets_are_kept_apart():
    rows = [
        row("0v1", "1nn", [evaluation("test", "worst", None, "attacked", 100, 10)], dataset=name)
        for name in ("mnist", "digits")
    ]
    indexed = records.index(rows)
    assert [results.dataset for results in indexed] == ["digits", "mnist"]
    assert indexed[0].main_conditions == (WORST,)
    assert indexed[0].splits == ("test",)


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


def test_pairs_are_parsed_and_other_tasks_are_not():
    assert records.parse_pair("3v8") == (3, 8) and records.parse_pair("10v11") == (10, 11)
    assert records.parse_pair("3vrest") is None and records.parse_pair("all") is None
