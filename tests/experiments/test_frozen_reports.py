"""Reports of frozen rows, to the byte: of every experiment, complete, partial, with failures and contradictions.

Each case is a JSON file of rows and of what the report is told besides; beside it lie the report as Markdown and CSV
and what the terminal shows. Where a difference is meant, python -m tests.experiments.test_frozen_reports writes them
anew.
"""

import json
import pathlib
import tempfile

import matplotlib.figure
import pytest

from experiments import report
from experiments.checks import order_violations
from experiments.report.records import Run

FOLDER = pathlib.Path(__file__).parent / "frozen"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def _write(case, workdir):
    """Write a case's report; return its texts by the ending of the file they are frozen in."""
    case = dict(case)
    experiment, rows = case.pop("experiment"), case.pop("rows")
    told = {name: case.pop(name) for name in ("problems", "failed", "num_missing") if name in case}
    found = report.write_run(
        experiment, workdir, Run(rows, **told, contradictions=order_violations(rows), settings=case)
    )
    folder = workdir / "report"
    (table,) = folder.glob("*.csv")
    return {"md": (folder / "report.md").read_text(), "csv": table.read_text(), "txt": found.summary + "\n"}


@pytest.mark.parametrize("name", CASES)
def test_reports_of_frozen_rows_are_the_same_to_the_byte(name, tmp_path, monkeypatch):
    # Drawing takes nearly all the time.
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda _, file, **options: file.write(b"drawn"))
    found = _write(json.loads((FOLDER / f"{name}.json").read_text()), tmp_path)
    for ending, text in found.items():
        assert text == (FOLDER / f"{name}.{ending}").read_text(), ending


def test_warnings_of_a_network_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda _, file, **options: file.write(b"drawn"))
    case = json.loads((FOLDER / "pairs-run.json").read_text())
    row = next(row for row in case["rows"] if row["method"] != "1nn")
    row["warnings"] = ["zero gradient: that of the margin"]
    text = _write(case, tmp_path)["md"]
    assert f"- {row['unit']}: zero gradient: that of the margin" in text.partition("## ")[0]


def test_every_experiment_that_reports_has_a_case():
    kinds = {json.loads((FOLDER / f"{name}.json").read_text())["experiment"] for name in CASES}
    assert kinds == {"binary_tasks", "audit", "leaderboard"}


if __name__ == "__main__":
    for stem in CASES:
        with tempfile.TemporaryDirectory() as folder:
            texts = _write(json.loads((FOLDER / f"{stem}.json").read_text()), pathlib.Path(folder))
        for suffix, content in texts.items():
            (FOLDER / f"{stem}.{suffix}").write_text(content)
