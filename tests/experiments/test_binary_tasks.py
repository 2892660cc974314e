"""The experiment end to end on a few digits: rows, resuming, shards, refusals, through the command line."""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import experiments
from configs import binary_tasks as config_file
from experiments import binary_tasks, configuration, evaluate, files, parsing, pictures, radii, runner, store
from nn_adv import certify, data, evaluation, neighbors
from tests.certify import truths

ROOT = pathlib.Path(__file__).parents[2]

# Small enough for seconds; every part of the run is there.
TINY = {
    "methods": ("1nn", "trades-both"),
    "curve": (0.5,),
    "fine_curve": (0.25,),
    "tasks": {"holdout": 0.1, "names": ("3v8", "1v7"), "train_per_class": 20},
    "evaluation": {
        "attacks": ("fab-t", "square"),
        "num_steps": 3,
        "num_queries": 3,
        "images_per_split": 20,
        "batch_size": 16,
    },
    "training": {"num_epochs": 2, "group_size": 2, "num_steps": 2, "select_every": 1, "checkpoint_every": 1},
}


def tiny_config(**changes):
    config = config_file.get_config("digits")
    config.model.mlp.hidden_sizes = (8,)
    config.update(TINY)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, runner.run(binary_tasks, tiny_config(), workdir).page


def counted(workdir):
    """What the rows of a workdir say, without times."""
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["unit"]: row["evaluations"] for row in rows}


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


def test_pictures_are_kept_of_the_first_and_the_last_task_and_the_first_seed():
    made = binary_tasks.make_plan(tiny_config(tasks={"names": ("3v8", "1v7", "0v1")}, seeds=(3, 1)))
    pictured = {unit.name for group in made.groups for unit in group if (unit.task.name, unit.seed) in made.pictured}
    assert pictured == {f"digits/{task}/{method}" for task in ("3v8", "0v1") for method in ("1nn/0", "trades-both/3")}


def test_a_variant_of_1nn_is_a_method_like_others(tmp_path):
    config = tiny_config(methods=("1nn", "1nn+mirror"))
    config.tasks.names = ("3v8",)
    report = runner.run(binary_tasks, config, tmp_path)
    known = radii.load(tmp_path / "radii" / "3v8-mirror.npz")
    task, dataset = parsing.with_holdout(binary_tasks.make_plan(config).groups[0][0].task), data.load("digits")
    images = dataset.train_images[task.train_index]
    points = np.concatenate([images, images[:, :, ::-1]])
    reference = neighbors.fit(points, np.tile(task.train_labels, 2), 2)
    is_test = known.split == "test"
    images, labels = (
        dataset.test_images[known.image[is_test]],
        (dataset.test_labels[known.image[is_test]] == 8).astype(int),
    )
    for row, norm in enumerate(known.norms.tolist()):
        exact = certify.radius(reference, images, labels, norm=norm)
        np.testing.assert_array_equal(known.lower[row, is_test], exact.lower)
    text = report.page.read_text()
    assert "1NN+mirror" in text and not re.search("1NN is .{1,10} 1NN", text)  # a variant is no rival


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("1nn+sharpen", "variants must be made of subset:int.* got 'sharpen' in '1nn\\+sharpen'"),
        (
            "1nn+prune:2|3",
            "variants of 1NN without alternatives that measure in l2, got .1nn.prune:2|3",
        ),
        ("1nn+metric:linf", "without alternatives that measure in l2, got '1nn.metric:linf'"),
        ("2nn", "methods must be some of 1nn, ceiling, standard.*got 2nn"),
        (5, "methods must be some of .*got 5"),
    ],
)
def test_methods_that_are_none_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        binary_tasks.check(tiny_config(methods=("1nn", method)))


def test_what_is_only_bounded_is_counted_from_both_sides():
    known = radii.Radii(
        norms=np.array(["linf", "l2"]),
        lower=np.array([[0.1, 0.3, 0.0, 0.1], [1.0, 3.0, 0.0, np.inf]]),
        upper=np.array([[0.1, 0.6, 0.0, 0.1], [1.0, 3.0, 0.0, np.inf]]),
        exact=np.array([[True, False, True, True], [True, True, True, True]]),
        correct=np.array([True, True, False, True]),
        split=np.array(["train", "test", "test", "test"]),
        image=np.arange(4),
    )
    config = tiny_config(curve=(0.5,), fine_curve=())
    config.epsilons.linf, config.epsilons.l2 = 0.4, 1.0
    found = {
        (record.split, record.norm, record.epsilon, record.kind): record.robust
        for record in evaluate.exact_records(parsing.Evaluation.read(config), known)
    }
    assert found["train", "linf", 0.4, "exact"] == 0 and found["test", "linf", 0.2, "exact"] == 1
    assert found["test", "linf", 0.4, "certified"] == 0 and found["test", "linf", 0.4, "attacked"] == 1
    assert found["test", "l2", 1.0, "exact"] == 2 and found["test", None, 0.0, "clean"] == 2
    assert found["test", "worst", None, "certified"] == 0 and found["test", "worst", None, "attacked"] == 1
    assert ("test", "linf", 0.4, "exact") not in found
    assert radii.num_bounded(known) == {"linf": 1, "l2": 0}


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


@pytest.mark.parametrize("content", [b"PK", b"PK\x03\x04" + b"0" * 99])
def test_a_damaged_file_of_radii_says_what_to_do(tmp_path, content):
    (tmp_path / "3v8.npz").write_bytes(content)
    with pytest.raises(ValueError, match="3v8.npz cannot be read .* remove it"):
        radii.load(tmp_path / "3v8.npz")


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


@pytest.mark.slow
def test_bounds_that_contradict_each_other_end_the_run_after_the_report(tmp_path, monkeypatch):
    config = tiny_config(methods=("1nn",))
    exact = evaluate.exact_records

    def wrong(*arguments):
        return [dataclasses.replace(one, robust=0) if one.kind == "clean" else one for one in exact(*arguments)]

    monkeypatch.setattr(evaluate, "exact_records", wrong)
    with pytest.raises(ValueError, match=r"certified <= exact <= attacked does not hold: .* exact .* > clean"):
        runner.run(binary_tasks, config, tmp_path)
    assert counted(tmp_path) and "trust nothing" in (tmp_path / "report" / "report.html").read_text()


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


@pytest.mark.usefixtures("undrawn")
def test_adding_a_pair_continues_and_another_radius_refuses(tmp_path):
    config = tiny_config(methods=("1nn",))
    runner.run(binary_tasks, config, tmp_path)
    config.tasks.names = ("3v8", "1v7", "0v1")
    runner.run(binary_tasks, config, tmp_path)
    assert len(counted(tmp_path)) == 3
    config.epsilons.linf = 0.2
    with pytest.raises(files.ResultsError, match=r"epsilons\.linf: 0\.1 -> 0\.2.*--workdir"):
        runner.run(binary_tasks, config, tmp_path)


def test_more_seeds_train_more_networks_but_no_second_1nn():
    config = tiny_config(seeds=(0, 1))
    groups = binary_tasks.make_plan(config).groups
    names = [unit.name for group in groups for unit in group]
    assert len(names) == len(set(names)) == 6
    assert sum("1nn" in name for name in names) == 2


@pytest.mark.slow
def test_one_split_alone_is_evaluated_and_reported(finished, tmp_path):
    everything = counted(finished[0])["digits/3v8/1nn/0"]
    config = tiny_config(methods=("1nn",))
    config.evaluation.splits = ("test",)
    page = runner.run(binary_tasks, config, tmp_path).page
    assert counted(tmp_path)["digits/3v8/1nn/0"] == [item for item in everything if item["split"] == "test"]
    assert "train images" not in page.with_suffix(".md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_ceiling_needs_the_images_alone(tmp_path):
    config = tiny_config(methods=("ceiling",), seeds=(0, 1))
    config.epsilons.l2 = 1.2
    runner.run(binary_tasks, config, tmp_path)
    found = counted(tmp_path)
    assert set(found) == {"digits/3v8/ceiling/0", "digits/1v7/ceiling/0"}
    made = binary_tasks.make_plan(config)
    chosen = evaluate.choose_images(made.dataset, made.groups[0][0].task, made.evaluation)
    test = chosen.split == "test"
    for norm, epsilons in {"linf": (0.025, 0.05, 0.1), "l2": (0.3, 0.6, 1.2)}.items():
        items = [item for item in found["digits/3v8/ceiling/0"] if (item["split"], item["norm"]) == ("test", norm)]
        shares = evaluation.ceiling(chosen.images[test], chosen.labels[test], epsilons, norm=norm)
        assert [(item["epsilon"], item["kind"], item["robust"]) for item in items] == [
            (epsilon, "ceiling", round(20 * share)) for epsilon, share in zip(epsilons, shares, strict=True)
        ]
    assert items[-1]["robust"] < 20


def test_evaluated_images_are_balanced_over_classes():
    labels = np.array([0] * 50 + [1] * 50)
    rows = evaluate.balanced(labels, 11)
    assert len(rows) == 11 and np.bincount(labels[rows]).tolist() == [6, 5]
    np.testing.assert_array_equal(evaluate.balanced(labels, 0), np.arange(100))


def test_a_network_that_cannot_take_the_images_is_refused_before_anything_starts():
    config = tiny_config()
    config.model.name = "small_cnn"  # its four convolutions need more than 8 x 8 pixels
    with pytest.raises(ValueError, match=r"model.name small_cnn does not take images of shape \(8, 8, 1\)"):
        binary_tasks.make_plan(config)


def _command(workdir, *flags):
    small = [f"--config.tasks.{key}={value!r}" for key, value in TINY["tasks"].items()]
    small += [f"--config.evaluation.{key}={value!r}" for key, value in TINY["evaluation"].items()]
    small += [f"--config.training.{key}={value!r}" for key, value in TINY["training"].items()]
    small += [f"--config.{key}={TINY[key]!r}" for key in ("methods", "curve", "fine_curve")]
    small += ["--config.model.mlp.hidden_sizes=(8,)", f"--workdir={workdir}"]
    return [sys.executable, "-m", "experiments.main", "--config=configs/binary_tasks.py:digits", *small, *flags]


def _run(command, **environment):
    environment = os.environ | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, env=environment, encoding="utf-8")


def _kill_when(command, happened):
    """Start a run and kill it with SIGKILL as soon as ``happened()``; tell whether it was still running."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not happened():
        time.sleep(0.02)
    was_running = process.poll() is None
    if was_running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_running


@pytest.mark.slow
def test_a_killed_run_continues_and_says_the_same(finished, tmp_path, run_here):
    def lines():
        return sum(len(path.read_bytes().splitlines()) for path in tmp_path.glob("rows-*.jsonl"))

    moments = [
        lambda: lines() >= 1,  # between rows
        lambda: list(tmp_path.glob("checkpoints/*/[12]")),  # after an epoch of a training
    ]
    killed = [_kill_when(_command(tmp_path), moment) for moment in moments]
    assert all(killed), killed
    assert 0 < lines() < 4
    for row in store.read_rows(tmp_path)[0]:
        assert all((tmp_path / file).exists() for file in row["files"])
        if row["method"] == "1nn":
            assert len(radii.load(tmp_path / row["files"][0]).correct) == 40
    done = run_here(_command(tmp_path))
    assert done.status == 0, done.stderr
    assert "Report: " in done.stdout
    assert counted(tmp_path) == counted(finished[0])
    started = configuration.read_asked(tmp_path)["settings"]["command"]
    assert shlex.split(started)[1:] == _command(tmp_path)[1:]


def _save_own_arrays(path):
    digits = data.load("digits")
    arrays = {}
    for split, images, labels in (
        ("train", digits.train_images, digits.train_labels),
        ("test", digits.test_images, digits.test_labels),
    ):
        kept = labels < 2
        arrays |= {f"{split}_images": images[kept] / np.float32(255), f"{split}_labels": labels[kept]}
    np.savez(path, **arrays)


@pytest.mark.slow
def test_own_float_arrays_run_end_to_end_wherever_their_file_lies(tmp_path, monkeypatch):
    _save_own_arrays(tmp_path / "mine.npz")
    config = tiny_config(dataset=f"npz:{tmp_path / 'mine.npz'}", methods=("trades-l2",))
    config.epsilons.linf = 0.0
    config.tasks.names = ()
    config.evaluation.attacks = ()  # the standard ensemble
    runner.run(binary_tasks, config, tmp_path / "run")
    (before,) = store.read_rows(tmp_path / "run")[0]
    (tmp_path / "mine.npz").rename(tmp_path / "a, b.npz")
    monkeypatch.chdir(tmp_path)
    config.dataset, config.methods = "npz:a, b.npz", ("1nn", "trades-l2")
    runner.run(binary_tasks, config, tmp_path / "run")
    rows, _ = store.read_rows(tmp_path / "run")
    assert before in rows and len(rows) == 2 and {row["dataset"] for row in rows} == {"mine"}
    found = counted(tmp_path / "run")
    clean = [e["robust"] for e in found["npz/0v1/1nn/0"] if e["norm"] is None]
    assert clean == [20, 20]


@pytest.mark.slow
def test_changed_pixels_refuse_to_mix(tmp_path, monkeypatch):
    config = tiny_config(methods=("1nn",))
    runner.run(binary_tasks, config, tmp_path)
    digits = data.load("digits")
    changed = dataclasses.replace(digits, train_images=digits.train_images // 2)
    monkeypatch.setattr(data, "load", lambda *_, **__: changed)
    with pytest.raises(files.ResultsError, match="data: .* -> "):
        runner.run(binary_tasks, config, tmp_path)


@pytest.mark.slow
def test_another_choice_of_pairs_trains_anew_beside_the_old(tmp_path):
    config = tiny_config(methods=("standard",))
    config.tasks.names = ("0v1", "8v9")
    runner.run(binary_tasks, config, tmp_path)
    config.tasks.names = ("0v1", "3v8", "8v9")
    runner.run(binary_tasks, config, tmp_path)
    assert len(counted(tmp_path)) == 3


def test_a_shard_without_work_makes_no_report(tmp_path):
    config = tiny_config(methods=("1nn",))
    assert runner.run(binary_tasks, config, tmp_path, shard=(5, 6)) is None


_POSIX = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


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
    done = _run(_command(workdir, "--merge=~/one"), HOME=str(tmp_path), **environment)
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
            _command(tmp_path, *cluster, f"--process_id={number}"), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "Report: " in output
    assert counted(tmp_path) == counted(finished[0])
    assert len(list(tmp_path.glob("rows-*-of-00002.jsonl"))) == 2
