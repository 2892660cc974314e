"""The experiment end to end on a few digits: rows, report, resuming, shards, through the command line."""

import os
import shlex
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import experiments
from experiments import binary_tasks, configuration, pictures, radii, runner, store
from tests.certify import truths
from tests.experiments.tiny_runs import ROOT, command, counted, kill_when, tiny_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, runner.run(binary_tasks, tiny_config(), workdir).page


def test_each_unit_has_one_row_with_what_is_needed_to_trust_it(finished):
    workdir, _ = finished
    rows, problems = store.read_rows(workdir)
    assert not problems
    assert {row["unit"] for row in rows} == {
        f"digits/{task}/{method}/0" for task in ("3v8", "1v7") for method in ("1nn", "trades-both")
    }
    for row in rows:
        for key in ("seed", "config_hash", "versions", "seconds", "num_train", "attack", "device", "finished"):
            assert key in row
        asked = {(found["split"], found["norm"], found["epsilon"]) for found in row["evaluations"]}
        radii = {None: (0.0,), "linf": (0.05, 0.1), "l2": (0.4, 0.8), "worst": (None,)}
        if row["method"] == "1nn":
            radii |= {"linf": (0.025, 0.05, 0.1), "l2": (0.2, 0.4, 0.8)}
        assert asked == {(s, norm, e) for s in ("train", "test") for norm, es in radii.items() for e in es}
        assert all(found["count"] == 20 for found in row["evaluations"])
        kinds = {found["kind"] for found in row["evaluations"]}
        if row["method"] == "1nn":
            assert row["training"] is None and row["attack"] is None and kinds == {"clean", "exact"}
            assert row["radii"]["images_only_bounded"] == {"linf": 0, "l2": 0}
        else:
            assert row["training"] and row["attack"] and row["radii"] is None and kinds == {"clean", "attacked"}
        assert row["dataset"] == "digits (scikit-learn 8x8)"
        assert row["seconds"]["evaluate"] > 0


def test_curves_fall_and_worst_is_below_each_norm(finished):
    for found in counted(finished[0]).values():
        for split in ("train", "test"):
            robust = {(e["norm"], e["epsilon"]): e["robust"] for e in found if e["split"] == split}
            for norm, radius in (("linf", 0.1), ("l2", 0.8)):
                assert robust[None, 0.0] >= robust[norm, radius / 2] >= robust[norm, radius] >= robust["worst", None]


def test_1nn_is_perfect_on_its_own_training_images(finished):
    found = counted(finished[0])["digits/3v8/1nn/0"]
    assert [e["robust"] for e in found if e["split"] == "train" and e["norm"] is None] == [20]


def test_1nn_has_the_radii_of_brute_force(finished):
    workdir, _ = finished
    (row,) = [row for row in store.read_rows(workdir)[0] if row["unit"] == "digits/3v8/1nn/0"]
    file = row["files"][0]
    known = radii.load(workdir / file)
    made = binary_tasks.make_plan(tiny_config())
    task, dataset = made.groups[0][0].task, made.dataset
    kept = np.sort(np.concatenate([task.train_index, task.holdout_index]))  # 1NN may use what networks hold out
    labels = (dataset.train_labels[kept] == 8).astype(np.int32)
    assert len(kept) == 40 and known.correct.shape == (40,)
    for number in (0, 7, 19, 20, 33, 39):
        images, truth = (
            getattr(dataset, f"{known.split[number]}_images"),
            getattr(dataset, f"{known.split[number]}_labels"),
        )
        image, label = images[known.image[number]], int(truth[known.image[number]] == 8)
        for norm, lower, upper in zip(known.norms, known.lower, known.upper, strict=True):
            expected = truths.true_radius(
                dataset.train_images[kept], labels, image, label, norm=str(norm), bounds=(0.0, 1.0)
            )
            np.testing.assert_allclose([lower[number], upper[number]], expected, rtol=2e-6, atol=2e-7)
    found = {(item["split"], item["norm"], item["epsilon"]): item["robust"] for item in row["evaluations"]}
    test = known.split == "test"
    lower = known.lower[known.norms.tolist().index("l2")]
    assert found["test", "l2", 0.4] == np.sum(known.correct[test] & (lower[test] >= 0.4))


def test_units_keep_pictures_of_two_test_images_and_the_report_shows_them(finished):
    workdir, page = finished
    rows = store.read_rows(workdir)[0]
    found, problems = pictures.read(workdir, rows)
    assert not problems and set(found) == {row["unit"] for row in rows}
    for row in rows:
        assert row["files"][-1] == f"pictures/{row['task']}-{row['method']}-seed0.npz"
    one = found["digits/3v8/1nn/0"]
    known = radii.load(workdir / "radii" / "3v8.npz")
    assert one.label.tolist() == [0, 1] and set(one.split) == {"test"}
    for place, image in enumerate(one.image):
        (number,) = np.flatnonzero((known.split == "test") & (known.image == image))
        np.testing.assert_allclose(one.distance[:, place], known.upper[:, number], rtol=1e-6)
    for unit in ("digits/3v8/trades-both/0", "digits/1v7/trades-both/0"):
        assert np.all((found[unit].distance > 0) & np.isfinite(found[unit].distance))
    text = page.read_text()
    assert "Images and what changes their label" in text and "3v8, test image" in text


def test_merged_rows_bring_their_radii_and_a_lost_file_is_told(finished, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "some")
    (tmp_path / "some" / "radii" / "1v7.npz").unlink()
    added, problems = store.merge(
        tmp_path / "all", [tmp_path / "some"], configuration.require_config(workdir)["config"]
    )
    assert added == 4 and len(problems) == 1 and "1v7.npz: not copied" in problems[0]
    np.testing.assert_array_equal(
        radii.load(tmp_path / "all" / "radii" / "3v8.npz").lower, radii.load(workdir / "radii" / "3v8.npz").lower
    )
    shown, _ = pictures.read(tmp_path / "all", store.read_rows(tmp_path / "all")[0])
    assert len(shown) == 4


def test_the_report_is_there(finished):
    workdir, page = finished
    assert page.exists() and page.is_relative_to(workdir)
    assert "digits" in page.read_text()


@pytest.mark.slow
def test_the_report_is_made_again_from_the_rows_alone(finished, tmp_path):
    workdir, page = finished
    for path in workdir.glob("*.json*"):
        shutil.copy(path, tmp_path)
    shutil.copytree(workdir / "pictures", tmp_path / "pictures")
    done = _run([sys.executable, "-m", "experiments.report", str(tmp_path)])
    assert done.returncode == 0 and done.stdout == f"Report: {tmp_path}/report/report.html\n", done.stderr
    for name in ("report.html", "report.md", "pairs.csv"):
        assert (tmp_path / "report" / name).read_bytes() == (page.parent / name).read_bytes()
    nothing = _run([sys.executable, "-m", "experiments.report", str(tmp_path / "report")])
    assert nothing.returncode == 2 and nothing.stderr.startswith(f"error: {tmp_path}/report holds no results")


def test_the_numbers_are_there_as_a_table(finished):
    workdir, _ = finished
    table = experiments.records(workdir)
    assert not table.reset_index().duplicated(["unit", "split", "norm", "epsilon", "kind"]).any()
    assert len(table) == sum(map(len, counted(workdir).values()))
    chosen = table[(table.split == "test") & (table.norm == "l2") & (table.epsilon == 0.4)]
    (expected,) = [
        item["robust"]
        for item in counted(workdir)["digits/3v8/1nn/0"]
        if (item["split"], item["norm"], item["epsilon"]) == ("test", "l2", 0.4)
    ]
    assert chosen.loc["digits/3v8/1nn/0", "robust"] == expected
    assert chosen.loc["digits/3v8/1nn/0", "accuracy"] == expected / 20


@pytest.mark.usefixtures("undrawn")
def test_finished_run_runs_nothing_again(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "again"
    shutil.copytree(finished[0], workdir)
    before = counted(workdir)
    monkeypatch.setattr(binary_tasks.Plan, "row", lambda *_, **__: pytest.fail("a unit was run twice"))
    runner.run(binary_tasks, tiny_config(), workdir)
    assert counted(workdir) == before


@pytest.mark.slow
def test_shards_together_do_what_one_run_does(finished, tmp_path):
    apart = [tmp_path / "a", tmp_path / "b"]
    for index, workdir in enumerate(apart):
        runner.run(binary_tasks, tiny_config(), workdir, shard=(index, 2))
    both = tmp_path / "both"
    store.merge(both, apart, configuration.require_config(apart[0])["config"])
    assert counted(both) == counted(finished[0])
    assert all(counted(workdir) for workdir in apart)


@pytest.mark.slow
def test_one_split_alone_is_evaluated_and_reported(finished, tmp_path):
    everything = counted(finished[0])["digits/3v8/1nn/0"]
    config = tiny_config(methods=("1nn",))
    config.evaluation.splits = ("test",)
    page = runner.run(binary_tasks, config, tmp_path).page
    assert counted(tmp_path)["digits/3v8/1nn/0"] == [item for item in everything if item["split"] == "test"]
    assert "train images" not in page.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_killed_run_continues_and_says_the_same(finished, tmp_path, run_here):
    def lines():
        return sum(len(path.read_bytes().splitlines()) for path in tmp_path.glob("rows-*.jsonl"))

    moments = [
        lambda: lines() >= 1,  # between rows
        lambda: list(tmp_path.glob("checkpoints/*/[12]")),  # after an epoch of a training
    ]
    killed = [kill_when(command(tmp_path), moment) for moment in moments]
    assert all(killed), killed
    assert 0 < lines() < 4
    for row in store.read_rows(tmp_path)[0]:
        assert all((tmp_path / file).exists() for file in row["files"])
        if row["method"] == "1nn":
            assert len(radii.load(tmp_path / row["files"][0]).correct) == 40
    done = run_here(command(tmp_path))
    assert done.status == 0, done.stderr
    assert "Report: " in done.stdout
    assert counted(tmp_path) == counted(finished[0])
    started = configuration.read_asked(tmp_path)["settings"]["command"]
    assert shlex.split(started)[1:] == command(tmp_path)[1:]


_POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def _run(arguments, **environment):
    environment = os.environ | environment
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=300, env=environment, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "signs"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ("<", "+-")),
        pytest.param(_POSIX, ("<", "+-"), marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C"}, ("≤", "±"), marks=pytest.mark.slow),  # Python takes UTF-8 for it
    ],
)
def test_no_terminal_and_no_name_of_a_folder_ends_a_run(finished, tmp_path, environment, signs):
    """A folder in the home, whose name is no text: file systems know bytes, here a letter in Latin 1."""
    shutil.copytree(finished[0], tmp_path / "one")
    workdir = os.fsdecode(b"~/caf\xe9")
    done = _run(command(workdir, "--merge=~/one"), HOME=str(tmp_path), **environment)
    assert done.returncode == 0, done.stderr
    assert f"4 rows added to {tmp_path}/caf\\udce9" in done.stdout
    assert f"Report: {tmp_path}/caf\\udce9/report/report.html" in done.stdout
    assert all(sign in done.stdout for sign in signs)
    assert counted(tmp_path / "caf\udce9") == counted(finished[0])
    assert "≤" in (tmp_path / "caf\udce9/report/report.md").read_text("utf-8")
    assert not (ROOT / "~").exists()


@pytest.mark.slow
def test_processes_of_a_cluster_share_the_work(finished, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = ["--distributed", f"--coordinator_address={address}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            command(tmp_path, *cluster, f"--process_id={number}"), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "Report: " in output
    assert counted(tmp_path) == counted(finished[0])
    assert len(list(tmp_path.glob("rows-*-of-00002.jsonl"))) == 2
