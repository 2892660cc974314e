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
from experiments.report import audit, leaderboard

FOLDER = pathlib.Path(__file__).parent / "frozen"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def _write(case, workdir):
    """Write a case's report; return its texts by the ending of the file they are frozen in."""
    case = dict(case)
    experiment, rows, problems = (case.pop(name) for name in ("experiment", "rows", "problems"))
    if experiment == "binary_tasks":
        report.write_report(workdir, rows, problems, **case)
        text, table = report.terminal_table(rows), "pairs.csv"
    elif experiment == "audit":
        audit.write(workdir, rows, problems, **case)
        text, table = audit.terminal_text(rows), "audit.csv"
    else:
        leaderboard.write(workdir, rows, problems, **case)
        text, table = leaderboard.terminal_text(rows, case["sort_by"]), "leaderboard.csv"
    folder = workdir / "report"
    return {"md": (folder / "report.md").read_text(), "csv": (folder / table).read_text(), "txt": text + "\n"}


@pytest.mark.parametrize("name", CASES)
def test_reports_of_frozen_rows_are_the_same_to_the_byte(name, tmp_path, monkeypatch):
    # Drawing takes nearly all the time.
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda _, file, **options: file.write(b"drawn"))
    found = _write(json.loads((FOLDER / f"{name}.json").read_text()), tmp_path)
    for ending, text in found.items():
        assert text == (FOLDER / f"{name}.{ending}").read_text(), ending


def test_every_experiment_that_reports_has_a_case():
    kinds = {json.loads((FOLDER / f"{name}.json").read_text())["experiment"] for name in CASES}
    assert kinds == {"binary_tasks", "audit", "leaderboard"}


if __name__ == "__main__":
    for stem in CASES:
        with tempfile.TemporaryDirectory() as folder:
            texts = _write(json.loads((FOLDER / f"{stem}.json").read_text()), pathlib.Path(folder))
        for suffix, content in texts.items():
            (FOLDER / f"{stem}.{suffix}").write_text(content)
