"""The run loop, in one process and in several: what is stored, skipped, failed, killed and gone on with."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import ml_collections
import pytest

from experiments import configuration, failures, files, report, runner, store, workers
from tests.experiments import counting
from tests.experiments.tiny_runs import ROOT

NAMES = ("a", "b+c", "d", "e")


@pytest.fixture(autouse=True)
def _report(monkeypatch):
    monkeypatch.setattr(report, "of", {"counting": counting.Report}.get)


def _told(found):
    """The lines of a report."""
    return found.page.with_suffix(".md").read_text().strip().split("\n\n")[1:]


def config(*units, note="", skipped=()):
    return ml_collections.ConfigDict({"units": units or NAMES, "note": note, "skipped": skipped})


def _rows(workdir):
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["unit"]: row for row in rows}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_every_unit_is_run_once_however_many_processes_share_them(tmp_path, num_workers):
    found = runner.run(counting, config(), tmp_path, num_workers=num_workers)
    rows, folder = _rows(tmp_path), tmp_path / "report"
    assert set(rows) == set("abcde")
    assert found == report.Report(folder / "report.html", folder / "units.csv", "5 rows")
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


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_unit_that_fails_is_told_and_the_others_go_on(tmp_path, capfd, num_workers):
    with pytest.raises(failures.SomeFailed, match=r"^1 of 4 units failed, .*: fails-b; mend") as caught:
        runner.run(counting, config("a", "fails-b", "c", "d"), tmp_path, num_workers=num_workers)
    assert set(_rows(tmp_path)) == set("acd") and "fails-b failed: fails-b says why" in capfd.readouterr().err
    assert "fails-b: fails-b says why" in _told(caught.value.report)
    runner.run(counting, config("a", "c"), tmp_path, num_workers=num_workers)  # it is not asked for


def test_a_worker_that_is_killed_costs_its_unit_alone(tmp_path):
    units = ("a", "b+dies-c", "d", "e")
    with pytest.raises(failures.SomeFailed, match="1 of 5 units failed.*: dies-c;"):
        runner.run(counting, config(*units), tmp_path, num_workers=2)
    rows = _rows(tmp_path)
    assert set(rows) == set("abde") and all((tmp_path / f"stored-{name}").exists() for name in rows)
    processes = {row["process"] for row in rows.values()}
    assert os.getpid() not in processes and 1 <= len(processes) <= 4 and not multiprocessing.active_children()
    assert {row["cores"] for row in rows.values()} <= {0, 1}
    (failure,) = failures.read(tmp_path).values()
    assert failure["reason"] == "its process was ended by SIGKILL, as for want of memory: --workers may be lower"
    runner.run(counting, config(*units), tmp_path, num_workers=2)
    after = _rows(tmp_path)
    assert rows.items() <= after.items() and set(after) == {*"abde", "dies-c"} and not failures.read(tmp_path)


def test_units_that_are_left_out_are_neither_run_nor_missing(tmp_path):
    found = runner.run(counting, config("a", "b", skipped=("b",)), tmp_path)
    assert set(_rows(tmp_path)) == {"a"} and _told(found) == ["a done"]


def test_a_shard_runs_its_part_and_knows_what_is_missing(tmp_path):
    found = runner.run(counting, config("a", "b", "c"), tmp_path, shard=(1, 2))
    assert set(_rows(tmp_path)) == {"b"} and _told(found) == ["b done", "2 missing"]
    assert runner.run(counting, config("a"), tmp_path / "new", shard=(1, 2)) is None


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_workdir_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, num_workers):
    def full(*_):
        raise files.ResultsError("no space left to write rows: free some")

    monkeypatch.setattr(store.Store, "append", full)
    with pytest.raises(files.ResultsError, match="no space left"):
        runner.run(counting, config(), tmp_path, num_workers=num_workers)
    assert not _rows(tmp_path) and not failures.read(tmp_path) and not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_unit_finds_wrong_with_the_workdir_ends_the_run(tmp_path, num_workers):
    with pytest.raises(files.ResultsError, match="no space left in"):
        runner.run(counting, config("a", "finds-the-workdir-full", "b"), tmp_path, num_workers=num_workers)
    assert not failures.read(tmp_path) and not multiprocessing.active_children()


def test_a_second_run_of_one_workdir_is_refused(tmp_path):
    with (
        store.open_store(tmp_path, {"experiment": "counting", "note": ""}),
        pytest.raises(files.ResultsError, match="is open in another process"),
    ):
        runner.run(counting, config(), tmp_path, num_workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_a_run_is_ended_its_workers_end_too(tmp_path, number):
    script = (
        "import signal, ml_collections; from experiments import report, runner\n"
        "from tests.experiments import counting; report.of = lambda _: counting.Report\n"
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


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_failed_is_recorded_with_its_traceback(tmp_path, num_workers):
    with pytest.raises(failures.SomeFailed):
        runner.run(counting, config("fails-a", "b"), tmp_path, num_workers=num_workers)
    (failure,) = failures.read(tmp_path).values()
    assert failure["reason"] == "fails-a says why" and "raise ValueError(f" in failure["traceback"]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_its_row_is_stored_costs_nothing(tmp_path, monkeypatch):
    append = store.Store.append

    def slowly(store, row):
        time.sleep(1)
        append(store, row)

    monkeypatch.setattr(store.Store, "append", slowly)
    runner.run(counting, config("ends-a+c", "b"), tmp_path, num_workers=2)
    assert set(_rows(tmp_path)) == {"ends-a", "c", "b"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_unit_that_fails_does_not_take_its_group_with_it(tmp_path, num_workers):
    units = ("a+fails-b+c", "shares-badly-d+e", "f", "exits-g+h", "endless-i+j")
    with pytest.raises(failures.SomeFailed, match="^5 of 10 units failed") as caught:
        runner.run(counting, config(*units), tmp_path, num_workers=num_workers)
    assert set(_rows(tmp_path)) == set("acfhj")
    found = failures.read(tmp_path)
    assert set(found) == {"fails-b", "shares-badly-d", "e", "exits-g", "endless-i"}
    assert found["exits-g"]["reason"] == "SystemExit: as a network of the user's may"
    assert sum("nothing to share" in line for line in _told(caught.value.report)) == 2


@pytest.mark.slow
def test_a_worker_that_dies_does_not_take_the_rest_of_its_group_with_it(tmp_path):
    with pytest.raises(failures.SomeFailed, match="1 of 3 units failed.*: dies-a;"):
        runner.run(counting, config("dies-a+b", "c"), tmp_path, num_workers=2)
    assert set(_rows(tmp_path)) == {"b", "c"}


def test_units_that_an_earlier_run_asked_for_are_missing_until_they_are_done(tmp_path):
    with pytest.raises(failures.SomeFailed):
        runner.run(counting, config("a", "fails-b"), tmp_path)
    (tmp_path / "begun-fails-b").unlink()
    failures.forget(tmp_path, "fails-b")
    assert "1 missing" in _told(runner.run(counting, config("a", "c"), tmp_path))
    assert set(configuration.read_asked(tmp_path)["units"]) == {"a", "fails-b", "c"}


@pytest.mark.parametrize("names", ["a+b+c", "a+fails-b", "shares-badly-a+b"])
def test_progress_reaches_the_end_whatever_fails(tmp_path, names):
    plan, events = counting.make_plan(config(names)), []
    workers.run_group(plan, plan.groups[0], set(), tmp_path, events.append)
    advanced = sum(event.advance for event in events if isinstance(event, workers.Told))
    assert advanced == pytest.approx(len(plan.groups[0]))


def test_progress_does_not_tell_what_is_over(tmp_path):
    with workers.Pool(counting.__name__, config("a", "b"), tmp_path, 1) as pool:
        events = list(pool.run({0: ["a"], 1: ["b"]}, set))
    texts = [event.text for event in events if isinstance(event, workers.Told)]
    assert [text for text, _ in itertools.groupby(texts)] == ["", "a", "", "b"]


@pytest.mark.slow
def test_more_workers_than_tasks_is_told_in_one_line(tmp_path, capfd):
    runner.run(counting, config("a", "b+c"), tmp_path, num_workers=5)
    assert "--workers=5 and 2 tasks to be shared: the other processes have none\n" in capfd.readouterr().err


def test_a_report_is_made_from_the_folder_alone(tmp_path):
    found = runner.run(counting, config("a", "b", "c"), tmp_path, shard=(1, 2))
    before = {path: path.read_bytes() for path in (tmp_path / "report").rglob("*.*")}
    (tmp_path / "copy").mkdir()
    for path in tmp_path.glob("*.json*"):
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert report.write(tmp_path / "copy").summary == found.summary
    assert {path: (tmp_path / "copy" / path.relative_to(tmp_path)).read_bytes() for path in before} == before


def test_workers_share_what_they_compile_unless_the_user_keeps_it_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with workers._environment(workers.cores()[0], str(tmp_path)):
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    with workers._environment(workers.cores()[0], str(tmp_path)):
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/mine"


def test_workers_take_large_pages_beside_what_the_user_sets(monkeypatch, tmp_path):
    for given, wanted in (("", "glibc.malloc.hugetlb=1"), ("glibc.a=1", "glibc.malloc.hugetlb=1:glibc.a=1")):
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        with workers._environment(workers.cores()[0], str(tmp_path)):
            assert os.environ["GLIBC_TUNABLES"] == wanted
        assert os.environ["GLIBC_TUNABLES"] == given
