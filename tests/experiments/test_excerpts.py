"""What is quoted beside whole sections: sweeps of one setting, and cost."""

import pathlib
import shutil

import pytest

from experiments import excerpts, report
from experiments.report import cost, page, sweeps

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "results"
MEASURED = {"flop": {"1nn": 2e6, "network": 1e4}, "milliseconds": {"1nn": 0.5, "network": 0.01}}


@pytest.fixture(scope="module")
def run():
    return report.read(RESULTS / "digits")[1]


def test_a_sweep_has_a_column_for_each_value_in_order_and_a_panel_for_each_condition(run):
    blocks = sweeps.blocks({10.0: run, 2.0: run}, "beta", 2.0)
    finding, panels, table = blocks[:3]
    assert "TRADES-l2, lowest ≤ 78.9 ± 2.5 % (beta 2), highest ≤ 78.9 ± 2.5 % (beta 2)" in finding.text
    assert [image.name for image in panels.images] == ["beta-clean.png", "beta-linf.png", "beta-l2.png"]
    assert table.header == ["beta", "2", "10"]
    assert all(line[1] == line[2] for line in table.rows)
    assert any(line[0] == "TRADES-l2, test images, l2 0.8" for line in table.rows)


def test_all_runs_of_a_sweep_are_judged_at_the_epsilons_of_the_base(run):
    doubled = [
        row | {"main_radii": {norm: 2 * radius for norm, radius in row["main_radii"].items()}} for row in run.rows
    ]
    blocks = sweeps.blocks({1.0: run, 2.0: run._replace(rows=doubled), 0.5: run}, "epsilon", 1.0)
    judged = [line for line in blocks[2].rows if "l2 0.8" in line[0]]
    assert judged and all(line[1] == line[2] == line[3] for line in judged)
    assert not any("l2 1.6" in line[0] for line in blocks[2].rows)
    assert "l2 1.6" in str(sweeps.blocks({1.0: run, 2.0: run._replace(rows=doubled)}, "epsilon", 2.0)[2].rows)


def test_studies_stand_side_by_side_on_their_common_pairs(tmp_path):
    rows = (RESULTS / "digits" / "rows-00000-of-00001.jsonl").read_text().splitlines(keepends=True)
    for name, methods, tasks in (
        ("one", ("1nn", "trades-l2"), ("0v1", "0v2")),
        ("two", ("trades-l2",), ("0v2", "0v3")),
    ):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        kept = [row for row in rows for method in methods for task in tasks if f"/{task}/{method}/" in row]
        (folder / "rows-00000-of-00001.jsonl").write_text("".join(kept))
        shutil.copy(RESULTS / "digits" / "config.json", folder)
    quoted = excerpts.Excerpts(tmp_path, "")
    studies = {"first": quoted.study("one"), "second": quoted.study("two")}
    head, _, *lines = quoted.side_by_side(studies, "test").splitlines()
    assert head == "| test images, mean over 0v2 |  | clean | linf 0.1 | l2 0.8 |"
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| 1NN", "first"], ["| TRADES-l2", "first"], ["| TRADES-l2", "second"]
    ]  # fmt: skip
    assert lines[1].split(" | ")[2:] == lines[2].split(" | ")[2:]


def test_runs_without_a_common_task_are_no_sweep(run):
    halves = [[row for row in run.rows if (row["task"] == "0v1") == is_first] for is_first in (True, False)]
    parts = {float(number): run._replace(rows=half) for number, half in enumerate(halves)}
    with pytest.raises(ValueError, match="the runs of beta have no task that all methods of all of them were run on"):
        sweeps.blocks(parts, "beta", 0.0)


@pytest.mark.parametrize(
    ("method", "passes"), [("1nn", 0), ("standard", 3), ("trades-linf", 2 * 7 + 7), ("trades-both", 4 * 7 + 10)]
)
def test_training_costs_its_passes(run, method, passes):
    row = next(row for row in run.rows if row["method"] == method)
    epochs = (row["training"] or {"num_epochs": 0})["num_epochs"]
    assert cost.training_flop(row, 1e4) == passes * 1e4 * epochs * row["num_train"]


def test_adversarial_training_costs_its_steps():
    row = {"method": "pgd-l2", "training": {"num_steps": 10, "num_epochs": 2}, "num_train": 100}
    assert cost.training_flop(row, 1.0) == (2 * 10 + 3) * 2 * 100


def test_cost_has_a_line_for_each_method_beside_its_robust_accuracy():
    study = excerpts.Study(RESULTS / "digits", ("1nn", "standard", "trades-l2", "ceiling"))
    table, panels = cost.blocks(study.results, study.rows, MEASURED)
    assert [line[0] for line in table.rows] == ["1NN", "TRADES-l2", "standard"]
    assert table.rows[0][1] == "0.00" and table.rows[0][3:5] == ["2.0", "0.500"]
    assert len(panels.images) == 2 and all(isinstance(image, page.Image) for image in panels.images)
