"""The leaderboard end to end on a few digits: rows, failures, resuming, shards, the table, the command line."""

import csv
import json
import re
import shutil
import sys

import numpy as np
import pytest

from experiments import (
    attacked,
    configuration,
    failures,
    leaderboard,
    radii,
    runner,
    store,
)
from nn_adv import certify, data, neighbors
from tests.experiments.tiny_leaderboard import EVALUATION, rows_of, tiny_config
from tests.experiments.tiny_runs import kill_when

OWN = "tests.experiments.leaderboard_models"


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    runner.run(leaderboard, tiny_config(weights), workdir)
    return workdir


def _counted(workdir):
    return {name: row["evaluations"] for name, row in rows_of(workdir).items()}


def test_each_model_has_one_row_on_the_same_images(finished):
    rows = rows_of(finished)
    assert set(rows) == {"1nn", "One", "Two"}
    asked = {(split, None, 0.0) for split in ("train", "test")} | {
        (split, norm, multiple * main)
        for split in ("train", "test")
        for norm, main in (("linf", 0.1), ("l2", 0.8))
        for multiple in (0.5, 1.0)
    }
    for name, row in rows.items():
        found = {
            (item["split"], item["norm"], item["epsilon"]) for item in row["evaluations"] if item["epsilon"] is not None
        }
        assert found == asked and all(item["count"] == 20 for item in row["evaluations"])
        kinds = {item["kind"] for item in row["evaluations"]}
        assert kinds == ({"clean", "exact"} if name == "1nn" else {"clean", "attacked"})
        if name != "1nn":
            assert row["clean"]["verdict"] == "agrees within 0.5" and row["clean"]["count"] == 599
            assert row["model"]["num_values"] == 64 * 32 + 32 + 32 * 10 + 10 and row["attack"]["num_steps"] == 3
            robust = [item["robust"] for item in row["evaluations"] if item["kind"] == "attacked"]
            clean = [item["robust"] for item in row["evaluations"] if item["kind"] == "clean"]
            assert sum(robust) > 0 and max(robust) < max(clean)


@pytest.mark.slow
def test_1nn_has_its_exact_radii_with_all_training_images_as_points(finished):
    digits = data.load("digits")
    reference = neighbors.fit(digits.train_images, digits.train_labels, 10)
    known = radii.load(finished / "radii" / "all.npz")
    for split in ("train", "test"):
        images, labels = getattr(digits, f"{split}_images")[:20], getattr(digits, f"{split}_labels")[:20]
        found = certify.radius(reference, images, labels, norm="l2")
        np.testing.assert_allclose(known.lower[known.norms.tolist().index("l2"), known.split == split], found.lower)
        robust = int(np.sum(found.correct & (found.lower >= 0.8)))
        (item,) = [
            item
            for item in _counted(finished)["1nn"]
            if (item["split"], item["norm"], item["epsilon"]) == (split, "l2", 0.8)
        ]
        assert item["robust"] == robust


@pytest.mark.slow
def test_what_fails_is_told_and_the_others_go_on(weights, finished, tmp_path):
    config = tiny_config(
        weights, models=("*", f"{OWN}:flax_model", f"{OWN}:function", f"{OWN}:too_few_classes", f"{OWN}:broken")
    )
    with pytest.raises(failures.SomeFailed) as caught:
        runner.run(leaderboard, config, tmp_path)
    assert str(caught.value).startswith(
        "5 of 9 units failed, for the reasons given above: digits/Off, digits/Other, digits/Torn, "
    )
    stored = failures.read(tmp_path)
    for name, reason in (
        ("Off", "it classifies .* published"),
        ("Torn", "Torn.safetensors is damaged"),
        ("Other", "does not fit MLP"),
        (f"{OWN}:too_few_classes", r"too_few_classes must return \[B, 10\]"),
        (f"{OWN}:broken", "^RuntimeError: no such luck$"),
    ):
        assert re.search(reason, stored[f"digits/{name}"]["reason"]), name
    rows = rows_of(tmp_path)
    assert set(rows) == {"One", "Two", f"{OWN}:flax_model", f"{OWN}:function"}
    assert rows["One"]["evaluations"] == _counted(finished)["One"]
    assert rows[f"{OWN}:function"]["clean"]["verdict"] == "nothing published"
    assert stored["digits/Off"]["clean"]["verdict"] == "off"
    assert "RuntimeError" in stored[f"digits/{OWN}:broken"]["traceback"]
    page = caught.value.report.page.read_text()
    assert "5 models failed" in page and "no such luck" in page
    with open(caught.value.report.page.parent / "leaderboard.csv", newline="") as file:
        told = {line["model"]: line for line in csv.DictReader(file) if line["failed"]}
    assert set(told) == {"Off", "Torn", "Other", f"{OWN}:too_few_classes", f"{OWN}:broken"}
    assert told["Off"]["clean_verdict"] == "off" and float(told["Off"]["clean_difference"]) == pytest.approx(
        3, abs=0.01
    )

    # Mended, or allowed for, they are tried again; nothing else is.
    config.clean.tolerance = 4.0
    config.models = ("One", "Off")
    before = rows_of(tmp_path)
    assert runner.run(leaderboard, config, tmp_path).page == caught.value.report.page
    after = rows_of(tmp_path)
    assert set(after) - set(before) == {"Off"} and after["One"] == before["One"]
    assert "digits/Off" not in failures.read(tmp_path) and "models failed" not in caught.value.report.page.read_text()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_within_a_model(weights, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(attacked, "_SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(leaderboard, "_RADII_AT_ONCE", 15)
    ensemble, measure, calls = attacked.attacks.ensemble, radii.measure, []

    def stop_at(fn, number):
        def call(*arguments, **options):
            calls.append(fn)
            if calls.count(fn) == number:
                raise KeyboardInterrupt
            return fn(*arguments, **options)

        return call

    monkeypatch.setattr(radii, "measure", stop_at(measure, 3))
    monkeypatch.setattr(attacked.attacks, "ensemble", stop_at(ensemble, 3))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            runner.run(leaderboard, tiny_config(weights), tmp_path)
    assert list((tmp_path / "attacks").glob("*.npz")) and set(rows_of(tmp_path)) == {"1nn"}
    config = tiny_config(weights)
    config.evaluation.batch_size = 10  # which changes no result
    runner.run(leaderboard, config, tmp_path)
    assert _counted(tmp_path) == _counted(finished)
    assert calls.count(measure) == 4  # two were kept, the third was stopped
    # The third was stopped before it was kept that the second had ended: the second is entered once more, at its end.
    assert calls.count(ensemble) == 3 + 3 + 4
    assert not list((tmp_path / "attacks").glob("*.npz"))


@pytest.mark.slow
def test_shards_together_do_what_one_run_does(weights, finished, tmp_path):
    apart = [tmp_path / "a", tmp_path / "b"]
    for index, workdir in enumerate(apart):
        runner.run(leaderboard, tiny_config(weights), workdir, shard=(index, 2))
        assert 0 < len(rows_of(workdir)) < 3
    store.merge(tmp_path / "both", apart, configuration.require_config(apart[0])["config"])
    assert _counted(tmp_path / "both") == _counted(finished)


@pytest.mark.slow
def test_another_network_under_the_name_of_a_row_is_refused(weights, finished):
    other = finished.parent / "other_weights"
    shutil.copytree(weights, other)
    runner.run(leaderboard, tiny_config(other), finished)  # a copy is the same
    place = other / "digits" / "Linf"
    shutil.copy(place / "Two.safetensors", place / "One.safetensors")
    with pytest.raises(
        ValueError, match=r"rows of other networks of these names, changed since: One \(One.safetensors\)"
    ):
        runner.run(leaderboard, tiny_config(other), finished)
    with pytest.raises(ValueError, match=r"rows of other networks of these names, changed since: One"):
        runner.run(leaderboard, tiny_config(other), finished.parent / "merged", merge=[finished])
    assert not (finished.parent / "merged").exists()
    records = json.loads((other / "catalogue.json").read_text())
    (other / "catalogue.json").write_text(json.dumps([record | {"output": "probabilities"} for record in records]))
    with pytest.raises(ValueError, match=r"One \(catalogue, One.safetensors\), Two \(catalogue\)"):
        runner.run(leaderboard, tiny_config(other), finished)


def test_what_broke_each_image_is_kept(finished):
    row = rows_of(finished)["One"]
    with np.load(finished / row["files"][0]) as kept:
        assert kept["broken_by"].shape == (4, 40) and kept["attacks"].tolist() == row["attack"]["attacks"]
        for item in row["evaluations"]:
            if item["kind"] == "attacked" and item["norm"] != "worst":
                (place,) = np.flatnonzero((kept["norm"] == item["norm"]) & np.isclose(kept["epsilon"], item["epsilon"]))
                unbroken = kept["broken_by"][place, kept["split"] == item["split"]] == -2
                assert unbroken.sum() == item["robust"]


def test_the_table_has_every_model_and_says_whom_1nn_beats(finished):
    text = (finished / "report" / "report.md").read_text()
    for part in ("| **1NN** |", "| One |", "Whom 1NN beats", "of 2 |", "figures/leaderboard-scatter-test.png"):
        assert part in text, part
    with open(finished / "report" / "leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    written = sum(len(row["evaluations"]) for row in rows_of(finished).values())
    assert len(lines) == written
    assert {line["clean_verdict"] for line in lines if line["model"] == "One"} == {"agrees within 0.5"}
    for line in lines:
        assert float(line["accuracy"]) == pytest.approx(int(line["robust"]) / int(line["count"]), abs=1e-6)


@pytest.mark.slow
def test_a_progress_file_that_cannot_be_read_fails_its_model_only(weights, finished, tmp_path):
    damaged = tmp_path / "attacks" / "digits-One.npz"
    damaged.parent.mkdir()
    damaged.write_bytes(b"nothing")
    with pytest.raises(failures.SomeFailed, match=r"1 of 2 units failed.*: digits/One"):
        runner.run(leaderboard, tiny_config(weights, models=("One", "Two")), tmp_path)
    assert re.search(r"digits-One\.npz cannot be read.*remove it", failures.read(tmp_path)["digits/One"]["reason"])
    assert set(rows_of(tmp_path)) == {"Two"}
    damaged.unlink()
    runner.run(leaderboard, tiny_config(weights, models=("One", "Two")), tmp_path)
    assert rows_of(tmp_path)["One"]["evaluations"] == _counted(finished)["One"]


def _command(weights, workdir, models):
    small = [f"--config.evaluation.{key}={value!r}" for key, value in EVALUATION.items()]
    return [
        *(
            sys.executable,
            "-m",
            "experiments.main",
            f"--config=configs/leaderboard.py:digits,{weights / 'catalogue.json'}",
        ),
        *small,
        *("--config.curve=(0.5,)", "--config.fine_curve=()", f"--config.models={models!r}", f"--workdir={workdir}"),
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_command_tells_failures_by_its_exit_status(weights, finished, tmp_path, run_here):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    done = run_here(_command(weights, workdir, ("1nn", "One", "Two", "Torn")))
    assert done.status == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: 1 of 4 units failed, for the reasons given above: digits/Torn;"
    )
    assert "Torn failed: " in done.stderr and "Torn.safetensors is damaged" in done.stderr
    assert "Report: " in done.stdout and "1NN keeps exactly" in done.stdout
    assert _counted(workdir) == _counted(finished)
    done = run_here(_command(weights, workdir, ("1nn", "One")))
    assert done.status == 0, done.stderr


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(weights, finished, tmp_path, run_here):
    command = _command(weights, tmp_path, ("1nn", "One", "Two"))
    assert kill_when(command, lambda: any(path.stat().st_size for path in tmp_path.glob("rows-*.jsonl")))
    assert run_here(command).status == 0
    assert _counted(tmp_path) == _counted(finished)
