"""The command: what it lists, and what it says of mistakes."""

import importlib.util
import pathlib
import runpy
import sys

import pytest

from experiments import documents, runner

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/binary_tasks.py:imagenet"], "config argument must start with"),
        (["--config.nonsense=1"], "nonsense"),
        (["--config.methods=('magic',)"], "methods must be some of"),
        (["--config.tasks.names=('3v3',)"], "tasks.names must be some of"),
        (["--config.evaluation.attacks=('apgd-dlr',)"], "evaluation.attacks: apgd-dlr needs at least 3 classes, got 2"),
        (["--config.evaluation.splits=('dev',)"], "evaluation.splits must be one or both of train, test"),
        (["--shard=2/2"], "--shard must be i/n"),
        (["--shard=0/2", "--distributed"], "--distributed and --shard do not go together"),
        (["--workers=2", "--distributed"], "--distributed and --workers do not go together"),
        (["--workers=0"], "--workers must be at least 1, got 0"),
        (["--process_id=1"], "--process_id belongs to --distributed"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tmp_path, run_here):
    asked = ["--config=configs/binary_tasks.py:digits", f"--workdir={tmp_path / 'new'}"]
    done = run_here(["experiments.main", *asked, *flags])
    assert done.status == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last, done.stderr
    assert not (tmp_path / "new").exists()


def test_what_is_not_installed_is_named_with_the_way_to_install_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else find(name))
    with pytest.raises(ImportError, match=r"experiments need pandas: pip install '.\[experiments\]'"):
        runpy.run_path(str(ROOT / "experiments" / "__init__.py"))


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("results", 2)])
def test_no_document_is_written_where_more_than_that_is_asked_for(argument, status, monkeypatch, capsys):
    monkeypatch.setattr(documents, "write_whole", None)
    monkeypatch.setattr(sys, "argv", ["documents", argument])
    with pytest.raises(SystemExit) as ended:
        documents.main()
    assert ended.value.code == status and "usage: python -m experiments.documents" in "".join(capsys.readouterr())


def test_an_interrupted_run_ends_in_one_line(tmp_path, run_here, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    done = run_here(["experiments.main", "--config=configs/binary_tasks.py:digits", f"--workdir={tmp_path}"])
    assert done.status == 130
    assert done.stderr == "error: interrupted; all rows are kept, and the same command goes on from them\n"


@pytest.mark.parametrize(
    ("flags", "message", "lists"),
    [
        ([], "--config is missing", True),
        (["--config=configs/binary_tasks.py:digits"], "--workdir is missing", False),
    ],
)
def test_what_can_be_run_is_listed_where_nothing_is_named(flags, message, lists, run_here):
    done = run_here(["experiments.main", *flags])
    assert done.status == 2 and done.stderr.splitlines()[-1].startswith(f"error: {message}")
    named = [f"configs/{path.name}:" in done.stderr for path in (ROOT / "configs").glob("[a-z]*.py")]
    assert named == [lists] * 7
