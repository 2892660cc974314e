"""The run loop, in one process and in several: what is stored, skipped, failed, killed and gone on with."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import ml_collections
import pytest

from experiments import failures, results, runner, workers
from tests.experiments import counting
from tests.experiments.test_binary_tasks import ROOT

NAMES = ("a", "b+c", "d", "e")


def config(*units, note="", skipped=()):
    return ml_collections.ConfigDict({"units": units or NAMES, "note": note, "skipped": skipped})


def _rows(workdir):
    rows, problems = results.read_rows(workdir)
    assert not problems
    return {row["unit"]: row for row in rows}


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_every_unit_is_run_once_however_many_processes_share_them(tmp_path, num_workers):
    report = runner.run(counting, config(), tmp_path, num_workers=num_workers)
    rows = _rows(tmp_path)
    assert set(rows) == set("abcde") and report == runner.Report(tmp_path / "report.txt", "5 rows")
    assert all((tmp_path / f"stored-{name}").exists() for name in rows)
    processes = {row["process"] for row in rows.values()}
    if num_workers == 1:
        assert processes == {os.getpid()}
    else:
        assert os.getpid() not in processes and 1 <= len(processes) <= 4
        assert {row["cores"] for row in rows.values()} <= {0, 1}
        assert rows["b"]["process"] == rows["c"]["process"]
    before = dict(rows)
    runner.run(counting, config(*NAMES, "f"), tmp_path, num_workers=num_workers)
    after = _rows(tmp_path)
    assert before.items() <= after.items() and set(after) - set(before) == {"f"}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_unit_that_fails_is_told_and_the_others_go_on(tmp_path, capfd, num_workers):
    with pytest.raises(failures.SomeFailed, match=r"^1 of 4 units failed, .*: fails-b; mend") as caught:
        runner.run(counting, config("a", "fails-b", "c", "d"), tmp_path, num_workers=num_workers)
    assert set(_rows(tmp_path)) == set("acd") and "fails-b failed: fails-b says why" in capfd.readouterr().err
    assert "fails-b: fails-b says why" in caught.value.report.page.read_text()
    runner.run(counting, config("a", "c"), tmp_path, num_workers=num_workers)  # it is not asked for


def test_a_worker_that_is_killed_costs_its_unit_alone(tmp_path):
    units = ("a", "b+dies-c", "d", "e")
    with pytest.raises(failures.SomeFailed, match="1 of 5 units failed.*: dies-c;"):
        runner.run(counting, config(*units), tmp_path, num_workers=2)
    assert set(_rows(tmp_path)) == set("abde")
    (failure,) = failures.read(tmp_path).values()
    assert failure["reason"] == "its process was ended by SIGKILL, as for want of memory: --workers may be lower"
    runner.run(counting, config(*units), tmp_path, num_workers=2)
    assert set(_rows(tmp_path)) == {*"abde", "dies-c"} and not failures.read(tmp_path)


def test_units_that_are_left_out_are_neither_run_nor_missing(tmp_path):
    report = runner.run(counting, config("a", "b", skipped=("b",)), tmp_path)
    assert set(_rows(tmp_path)) == {"a"} and report.page.read_text() == "a done"


def test_a_shard_runs_its_part_and_knows_what_is_missing(tmp_path):
    report = runner.run(counting, config("a", "b", "c"), tmp_path, shard=(1, 2))
    assert set(_rows(tmp_path)) == {"b"} and report.page.read_text() == "b done\na\nc"
    assert runner.run(counting, config("a"), tmp_path / "new", shard=(1, 2)) is None


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_workdir_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, num_workers):
    def full(*_):
        raise results.ResultsError("no space left to write rows: free some")

    monkeypatch.setattr(results.Store, "append", full)
    with pytest.raises(results.ResultsError, match="no space left"):
        runner.run(counting, config(), tmp_path, num_workers=num_workers)
    assert not _rows(tmp_path) and not failures.read(tmp_path) and not multiprocessing.active_children()


def test_a_second_run_of_one_workdir_is_refused(tmp_path):
    with results.open_store(tmp_path, {"note": ""}):
        with pytest.raises(results.ResultsError, match="is open in another process"):
            runner.run(counting, config(), tmp_path, num_workers=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_run_is_ended_its_workers_end_too(tmp_path, number):
    script = (
        "import signal, ml_collections; from experiments import runner; from tests.experiments import counting\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore\n"
        f"    settings = ml_collections.ConfigDict({dict(units=('a', 'waits-b', 'waits-c'), note='', skipped=())!r})\n"
        f"    runner.run(counting, settings, {str(tmp_path)!r}, num_workers=2)\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    while not ((tmp_path / "begun-waits-b").exists() and (tmp_path / "begun-waits-c").exists()):
        assert process.poll() is None
        time.sleep(0.05)
    children = _children(process.pid)
    assert len(children) >= 2
    process.send_signal(number)
    assert process.wait(timeout=60)
    end = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]
    assert set(_rows(tmp_path)) == {"a"}


def _children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


def test_an_error_that_cannot_travel_says_the_same():
    class Local(Exception):
        pass

    assert str(workers._portable(Local("why"))) == "Local: why"
    assert workers.cores()
