"""The experiment end to end on a few digits: rows, resuming, shards, refusals, through the command line."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import binary_tasks as config_file
from experiments import binary_tasks, plan, results

ROOT = pathlib.Path(__file__).parents[2]

# Small enough for seconds; every part of the run is there.
TINY = {
    "methods": ("1nn", "trades-both"),
    "curve": (0.5,),
    "tasks": {"names": ("3v8", "1v7"), "train_per_class": 20},
    "evaluation": {"num_steps": 3, "images_per_split": 20, "batch_size": 16},
    "training": {"num_epochs": 2, "group_size": 2, "num_steps": 2, "select_every": 1},
}


def tiny_config(**changes):
    config = config_file.get_config("digits")
    config.model.options.hidden_sizes = (8,)
    config.update(TINY)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    page = binary_tasks.run(tiny_config(), workdir)
    return workdir, page


def counted(workdir):
    """What the rows of a workdir say, without times."""
    rows, problems = results.read_rows(workdir)
    assert not problems
    return {row["unit"]: row["evaluations"] for row in rows}


def test_each_unit_has_one_row_with_what_is_needed_to_trust_it(finished):
    workdir, _ = finished
    rows, problems = results.read_rows(workdir)
    assert not problems
    assert {row["unit"] for row in rows} == {
        f"digits/{task}/{method}/0" for task in ("3v8", "1v7") for method in ("1nn", "trades-both")
    }
    for row in rows:
        for key in ("seed", "config_hash", "versions", "seconds", "num_train", "attack", "device", "finished"):
            assert key in row
        asked = {(found["split"], found["norm"], found["epsilon"]) for found in row["evaluations"]}
        radii = {None: (0.0,), "linf": (0.05, 0.1), "l2": (0.4, 0.8), "worst": (None,)}
        assert asked == {(s, norm, e) for s in ("train", "test") for norm, es in radii.items() for e in es}
        assert all(found["count"] == 20 for found in row["evaluations"])
        assert (row["training"] is None) == (row["method"] == "1nn")


def test_curves_fall_and_worst_is_below_each_norm(finished):
    for found in counted(finished[0]).values():
        for split in ("train", "test"):
            robust = {(e["norm"], e["epsilon"]): e["robust"] for e in found if e["split"] == split}
            for norm, radius in (("linf", 0.1), ("l2", 0.8)):
                assert robust[None, 0.0] >= robust[norm, radius / 2] >= robust[norm, radius] >= robust["worst", None]


def test_1nn_is_perfect_on_its_own_training_images(finished):
    found = counted(finished[0])["digits/3v8/1nn/0"]
    assert [e["robust"] for e in found if e["split"] == "train" and e["norm"] is None] == [20]


def test_the_report_is_there(finished):
    workdir, page = finished
    assert page.exists() and page.is_relative_to(workdir)
    assert "digits" in page.read_text()


def test_finished_run_runs_nothing_again(finished, monkeypatch):
    workdir, _ = finished
    before = counted(workdir)
    monkeypatch.setattr(binary_tasks, "_row", lambda *_: pytest.fail("a unit was run twice"))
    binary_tasks.run(tiny_config(), workdir)
    assert counted(workdir) == before


def test_shards_together_do_what_one_run_does(finished, tmp_path):
    apart = [tmp_path / "a", tmp_path / "b"]
    for index, workdir in enumerate(apart):
        binary_tasks.run(tiny_config(), workdir, shard=(index, 2))
    both = tmp_path / "both"
    results.merge(both, apart)
    assert counted(both) == counted(finished[0])
    assert all(counted(workdir) for workdir in apart)


def test_adding_a_pair_continues_and_another_radius_refuses(tmp_path):
    config = tiny_config(methods=("1nn",))
    binary_tasks.run(config, tmp_path)
    config.tasks.names = ("3v8", "1v7", "0v1")
    binary_tasks.run(config, tmp_path)
    assert len(counted(tmp_path)) == 3
    config.radii.linf = 0.2
    with pytest.raises(results.ResultsError, match=r"radii\.linf: 0\.1 -> 0\.2.*--workdir"):
        binary_tasks.run(config, tmp_path)


def test_more_seeds_train_more_networks_but_no_second_1nn():
    config = tiny_config(seeds=(0, 1))
    groups = plan.make_groups(config, plan.make_experiment(config).tasks)
    names = [unit.name for group in groups for unit in group]
    assert len(names) == len(set(names)) == 6
    assert sum("1nn" in name for name in names) == 2


def test_evaluated_images_are_balanced_over_classes():
    labels = np.array([0] * 50 + [1] * 50)
    rows = binary_tasks._balanced(labels, 11)
    assert len(rows) == 11 and np.bincount(labels[rows]).tolist() == [6, 5]
    np.testing.assert_array_equal(binary_tasks._balanced(labels, 0), np.arange(100))


def test_a_network_that_cannot_take_the_images_is_refused_before_anything_starts():
    config = tiny_config()
    config.model = {"name": "small_cnn", "options": {}}  # its four convolutions need more than 8 x 8 pixels
    with pytest.raises(ValueError, match=r"model.name small_cnn does not take images of shape \(8, 8, 1\)"):
        plan.make_experiment(config)


def _command(workdir, *flags):
    small = [f"--config.tasks.{key}={value!r}" for key, value in TINY["tasks"].items()]
    small += [f"--config.evaluation.{key}={value!r}" for key, value in TINY["evaluation"].items()]
    small += [f"--config.training.{key}={value!r}" for key, value in TINY["training"].items()]
    small += [f"--config.methods={TINY['methods']!r}", f"--config.curve={TINY['curve']!r}"]
    small += ["--config.model.options.hidden_sizes=(8,)", f"--workdir={workdir}"]
    return [sys.executable, "-m", "experiments.main", "--config=configs/binary_tasks.py:digits", *small, *flags]


def _run(command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_killed_run_continues_and_says_the_same(finished, tmp_path):
    for seconds in (4, 8, 12, 16):  # somewhere in start-up, training, attacking; or after the end
        process = subprocess.Popen(
            _command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = _run(_command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Report: " in done.stdout
    assert counted(tmp_path) == counted(finished[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/binary_tasks.py:imagenet"], "config argument must start with"),
        (["--config.nonsense=1"], "nonsense"),
        (["--config.methods=('magic',)"], "methods must be some of"),
        (["--config.tasks.names=('3v3',)"], "tasks.names must be some of"),
        (["--shard=2/2"], "--shard must be i/n"),
    ],
)
def test_mistakes_end_in_one_line(flags, message, tmp_path):
    done = _run(_command(tmp_path / "new", *flags))
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "new").exists()


def test_processes_of_a_cluster_share_the_work(finished, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = ["--distributed", f"--coordinator_address={address}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            _command(tmp_path, *cluster, f"--process_id={number}"), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "Report: " in output
    assert counted(tmp_path) == counted(finished[0])
    assert len(list(tmp_path.glob("rows-*-of-00002.jsonl"))) == 2
