"""Means, errors and differences of the report against figures worked out by hand."""

from __future__ import annotations

import pytest

from experiments.report import means, records
from experiments.report.records import CLEAN, Condition
from tests.experiments.report_rows import evaluation, row

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
    return records.index(rows)


def test_each_task_weighs_the_same_whatever_its_image_count():
    rows = [
        row("0v1", "1nn", [evaluation("test", "linf", 0.1, "attacked", 1000, 900)], radii=RADII),
        row("0v2", "1nn", [evaluation("test", "linf", 0.1, "attacked", 10, 1)], radii=RADII),
    ]
    results = _results(rows)
    mean = means.mean_of(results, "1nn", "test", LINF, results.tasks)
    assert mean.value == pytest.approx(0.5)
    assert mean.error == pytest.approx(0.4)  # sd of (.9, .1) is .8/sqrt(2); over sqrt(2).
    assert (mean.num_tasks, mean.kind) == (2, "attacked")


def test_seeds_are_averaged_within_their_task():
    rows = [_row("0v1", "1nn", 0, 100, seed=0), _row("0v1", "1nn", 0, 50, seed=1), _row("0v2", "1nn", 0, 25)]
    results = _results(rows)
    mean = means.mean_of(results, "1nn", "test", LINF, results.tasks)
    assert mean.value == pytest.approx(0.5) and mean.num_tasks == 2


def test_mean_over_both_splits_is_taken_per_task():
    results = _results([_row("0v1", "1nn", 100, 20), _row("0v2", "1nn", 60, 40)])
    assert results.splits == ("train", "test", "both")
    line = means.main_table(results, results.tasks)[0]
    assert line.cells["train"][LINF].value == pytest.approx(0.8)
    assert line.cells["test"][LINF].value == pytest.approx(0.3)
    assert line.cells["both"][LINF].value == pytest.approx(0.55)
    assert line.cells["train"][LINF].error == pytest.approx(0.2)
    assert line.cells["test"][LINF].error == pytest.approx(0.1)
    assert line.cells["both"][LINF].error == pytest.approx(0.05)  # (.6, .5): the splits vary against each other.


def test_one_task_has_no_standard_error():
    results = _results([_row("0v1", "1nn", 100, 20)])
    assert means.main_table(results, results.tasks)[0].cells["test"][LINF].error is None


def test_exact_is_shown_instead_of_attacked_and_a_mixed_mean_stays_an_upper_bound():
    both = [evaluation("test", "linf", 0.1, "attacked", 100, 60), evaluation("test", "linf", 0.1, "exact", 100, 50)]
    results = _results([row("0v1", "1nn", both, radii=RADII)])
    assert means.task_accuracies(results, "1nn", "test", LINF) == {"0v1": (0.5, "exact")}
    attacked = row("0v2", "1nn", [evaluation("test", "linf", 0.1, "attacked", 100, 70)], radii=RADII)
    results = _results([row("0v1", "1nn", both, radii=RADII), attacked])
    mean = means.mean_of(results, "1nn", "test", LINF, results.tasks)
    assert mean.kind == "attacked" and mean.value == pytest.approx(0.6)


def test_a_method_with_bounds_of_one_seed_has_bounds_only():
    """The exact accuracy of the other seed is a lower and an upper bound as well."""
    bounds = [
        evaluation("test", "linf", 0.1, kind, 100, count) for kind, count in (("certified", 20), ("attacked", 80))
    ]
    exact = [evaluation("test", "linf", 0.1, "exact", 100, 60)]
    results = _results([row("0v1", "1nn", exact, radii=RADII), row("0v1", "1nn", bounds, radii=RADII, seed=1)])
    assert means.mean_of(results, "1nn", "test", LINF, results.tasks)[::3] == (pytest.approx(0.7), "attacked")
    proven = means.mean_of(results, "1nn", "test", LINF, results.tasks, means.PROVEN)
    assert proven[::3] == (pytest.approx(0.4), "certified")


def test_certified_has_a_line_of_its_own_and_never_passes_for_attacked():
    evaluations = [
        evaluation("test", "linf", 0.1, kind, 100, robust) for kind, robust in (("attacked", 60), ("certified", 40))
    ]
    results = _results([row("0v1", "1nn", evaluations, radii=RADII)])
    above, below = means.main_table(results, results.tasks)
    assert (above.certified, above.cells["test"][LINF]) == (False, (0.6, None, 1, "attacked"))
    assert (below.certified, below.cells["test"][LINF]) == (True, (0.4, None, 1, "certified"))


def test_a_certificate_beside_an_exact_answer_is_not_repeated():
    evaluations = [evaluation("test", "linf", 0.1, kind, 100, 50) for kind in ("exact", "certified")]
    results = _results([row("0v1", "1nn", evaluations, radii=RADII)])
    assert [line.certified for line in means.main_table(results, results.tasks)] == [False]


def test_exact_tasks_count_among_the_lower_bounds_of_the_others():
    rows = [_row("0v1", "1nn", 100, 80, kind="exact"), _row("0v2", "1nn", 100, 40, kind="certified")]
    rows.append(_row("0v2", "1nn", 100, 44, seed=0) | {"unit": "more"})  # attacked
    results = _results(rows)
    above, below = means.main_table(results, results.tasks)
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
    difference = means.paired_difference(results, "1nn", "trades-linf", "test", LINF, results.tasks)
    assert difference.value == pytest.approx(0.15) and difference.error == pytest.approx(0.05)
    assert difference.first.value == pytest.approx(0.65) and difference.first.num_tasks == 2
    assert means.paired_difference(results, "1nn", "trades-linf", "test", CLEAN, results.tasks) is None
