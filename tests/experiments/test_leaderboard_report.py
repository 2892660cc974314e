"""The leaderboard's terminal table and CSV, from made-up rows."""

import csv

from experiments import report
from experiments.report import comparisons, leaderboard, records
from experiments.report.records import Run
from tests.experiments.report_rows import evaluation, row

RADII = {"linf": 0.1, "l2": 0.8}


def _network(name, *, linf, l2, published=90.0, correct=905):
    evaluations = [
        evaluation("test", None, 0.0, "clean", 100, 90),
        evaluation("test", "linf", 0.1, "attacked", 100, linf),
        evaluation("test", "l2", 0.8, "attacked", 100, l2),
    ]
    clean = {"count": 1000, "correct": correct, "published": published, "verdict": "agrees within 0.5"}
    model = {"architecture": "mlp", "clean_accuracy": published, "autoattack_accuracy": None}
    model |= {"threat": "Linf", "epsilon": 8 / 255, "extra_data": name == "A", "notes": [f"a note on {name}"]}
    return row("all", name, evaluations, radii=RADII, clean=clean, model=model, warnings=[])


def _write(workdir, rows, **told):
    return report.write_run("leaderboard", workdir, Run(rows, **told)).page


ROWS = [_network("A", linf=40, l2=20), _network("B", linf=30, l2=50), _network("C", linf=10, l2=30, published=None)]


def test_the_terminals_table_has_the_order_of_the_first_norm():
    lines = leaderboard.summary(Run(ROWS[::-1])).splitlines()
    assert "".join(line[0] for line in lines if line[:2] in ("A ", "B ", "C ")) == "ABC"


def test_the_csv_has_the_clean_check_and_what_failed(tmp_path):
    off = {"count": 1000, "correct": 700, "published": 90.0, "verdict": "off"}
    failed = [
        {"unit": "digits/Off", "reason": "it is another", "clean": off},
        {"unit": "digits/Torn", "reason": "it is damaged", "clean": None},
    ]
    _write(tmp_path, ROWS, failed=failed)
    with open(tmp_path / "report" / "leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    checks = {line["model"]: [line[f"clean_{name}"] for name in ("count", "measured", "difference")] for line in lines}
    assert checks == {
        "A": ["1000", "90.5", "0.5"],
        "B": ["1000", "90.5", "0.5"],
        "C": ["1000", "90.5", ""],
        "Off": ["1000", "70.0", "-20.0"],
        "Torn": ["", "", ""],
    }
    assert [line["clean_verdict"] for line in lines[-2:]] == ["off", ""] and lines[-2]["published_clean"] == "90.0"
    assert {line["model"]: line["failed"] for line in lines if line["failed"]} == {
        "Off": "it is another",
        "Torn": "it is damaged",
    }
    assert len(lines) == 9 + 2


def test_the_report_says_what_was_left_out(tmp_path):
    page = _write(tmp_path, ROWS, settings={"absence": "2 of 5 networks have no weights in models"})
    assert "Not complete: 2 of 5 networks have no weights in models." in page.read_text()


def test_the_report_says_what_networks_are_listed_for_and_what_to_know(tmp_path):
    page = _write(tmp_path, ROWS).with_suffix(".md").read_text()
    assert "| A | mlp | linf 8/255, extra data | 90.50 of 1000 | 90.00 | agrees within 0.5 |" in page
    assert "| B | mlp | linf 8/255 |" in page and "| a note on B |" in page


def test_training_images_are_those_of_1nn_where_no_others_are_known(tmp_path):
    page = _write(tmp_path, [ROWS[0] | {"num_train": None}, ROWS[1] | {"method": "1nn", "num_train": 77}])
    assert "| training images of 1NN | 77 |" in page.with_suffix(".md").read_text()


def test_clearly_means_that_intervals_do_not_overlap():
    """20 of 200 beside 8, 9, 4 and none: `wilson_interval` parts the first from the last two."""

    def made(name, robust, kind):
        evaluations = [
            evaluation("test", None, 0.0, "clean", 200, 150),
            evaluation("test", "linf", 0.1, kind, 200, robust),
        ]
        return row("all", name, evaluations, radii={"linf": 0.1}, warnings=[])

    rows = [made("1nn", 20, "exact"), *(made(str(robust), robust, "attacked") for robust in (0, 4, 8, 9, 30))]
    (found,) = comparisons.comparisons(records.index(rows))
    assert (found.num_networks, found.num_below, found.num_clearly_below) == (5, 4, 2)
    assert found.best[0] == "30"
