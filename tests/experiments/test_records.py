"""What is indexed from rows, and in which order."""

from __future__ import annotations

from experiments.report import means, records
from experiments.report.records import WORST
from tests.experiments.report_rows import evaluation, realistic_rows, row


def _row(task, method):
    return row(task, method, [evaluation("test", "linf", 0.1, "attacked", 100, 0)], radii={"linf": 0.1})


def _only(rows):
    return records.index(rows)


def test_columns_and_lines_come_in_a_fixed_order():
    results = _only(realistic_rows()[::-1])
    assert results.methods == ("1nn", "trades-linf", "trades-l2", "trades-both", "standard")
    assert [condition.norm for condition in results.main_conditions] == [None, "linf", "l2", "worst"]
    assert len(results.tasks) == 45 and results.common_tasks == results.tasks
    assert [line.method for line in means.main_table(results, results.tasks)] == list(results.methods)


def test_tasks_are_ordered_by_their_numbers():
    results = _only([_row(task, "1nn") for task in ("2v10", "10v11", "2v9", "all", "3vrest")])
    assert results.tasks == ("all", "2v9", "2v10", "3vrest", "10v11")


def test_common_tasks_are_those_of_every_method():
    rows = [
        _row("0v1", "1nn"),
        _row("0v2", "1nn"),
        _row("0v2", "standard"),
        _row("0v3", "standard"),
    ]
    assert _only(rows).common_tasks == ("0v2",)
    assert _only(rows).tasks == ("0v1", "0v2", "0v3")


def test_worst_is_a_column_of_its_own():
    results = records.index([row("0v1", "1nn", [evaluation("test", "worst", None, "attacked", 100, 10)])])
    assert results.main_conditions == (WORST,)
    assert results.splits == ("test",)


def test_pairs_are_parsed_and_other_tasks_are_not():
    assert records.parse_pair("3v8") == (3, 8) and records.parse_pair("10v11") == (10, 11)
    assert records.parse_pair("3vrest") is None and records.parse_pair("all") is None
