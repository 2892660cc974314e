"""The leaderboard end to end on a few digits: rows, clean accuracies, failures, resuming, shards, the command line."""

import csv
import gc
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import leaderboard as config_file
from experiments import (
    attacked,
    configuration,
    failures,
    leaderboard,
    networks,
    preflight,
    radii,
    report,
    runner,
    store,
)
from nn_adv import certify, data, models, neighbors, zoo
from nn_adv.zoo import convert
from tests.experiments.test_binary_tasks import _kill_when

OWN = "tests.experiments.leaderboard_models"
LABELLED = ("images", "labels")
EVALUATION = {
    "attacks": ("apgd-ce",),
    "num_steps": 3,
    "images_per_split": 20,
    "batch_size": 16,
}
ARGUMENTS = {"hidden_sizes": [32]}


def _network(seed):
    """A network of random features with the output layer fitted, and its accuracy on the test images."""
    digits = data.load("digits")
    model = models.create("mlp", 10, **ARGUMENTS)
    variables = model.init(jax.random.key(seed), np.zeros((1, 8, 8, 1), np.float32))
    state = convert.to_state_dict(variables)
    (hidden, out) = sorted(
        {key.rpartition(".")[0] for key in state}, key=lambda name: state[name + ".weight"].shape[0]
    )[::-1]
    features = np.maximum(_flat(digits.train_images) @ state[hidden + ".weight"].T + state[hidden + ".bias"], 0)
    state[out + ".weight"] = np.float32(np.linalg.lstsq(features, np.eye(10)[digits.train_labels], rcond=None)[0].T)
    state[out + ".bias"] = np.zeros(10, np.float32)
    features = np.maximum(_flat(digits.test_images) @ state[hidden + ".weight"].T + state[hidden + ".bias"], 0)
    predicted = np.argmax(features @ state[out + ".weight"].T, axis=1)
    return state, 100 * float(np.mean(predicted == digits.test_labels))


def _flat(images):
    return images.reshape(len(images), -1) / np.float32(255)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Networks One and Two; Off, whose catalogue errs; Torn, a damaged file; Other, of another architecture."""
    folder = tmp_path_factory.mktemp("zoo")
    place = folder / "digits" / "Linf"
    records = []
    for seed, name in enumerate(("One", "Two", "Off", "Torn", "Other")):
        state, accuracy = _network(seed)
        if name == "Other":
            state = {f"another.{key}": value for key, value in state.items()}
        zoo.write_state_dict(place / f"{name}.safetensors", state)
        records.append(
            {
                "name": name,
                "dataset": "digits",
                "threat": "Linf",
                "architecture": "mlp",
                "arguments": ARGUMENTS,
                "image_shape": [8, 8, 1],
                "files": [{"name": f"{name}.safetensors"}],
                "clean_accuracy": round(accuracy - 3 * (name == "Off"), 2),
            }
        )
    torn = place / "Torn.safetensors"
    torn.write_bytes(torn.read_bytes()[:200])
    (folder / "catalogue.json").write_text(json.dumps(records))
    return folder


def tiny_config(weights, **changes):
    config = config_file.get_config(f"digits,{weights / 'catalogue.json'}")
    config.update({"curve": (0.5,), "fine_curve": (), "evaluation": EVALUATION, "models": ("1nn", "One", "Two")})
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(weights, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    runner.run(leaderboard, tiny_config(weights), workdir)
    return workdir


def _rows(workdir):
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["method"]: row for row in rows}


def _counted(workdir):
    return {name: row["evaluations"] for name, row in _rows(workdir).items()}


def test_each_model_has_one_row_on_the_same_images(finished):
    rows = _rows(finished)
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
    rows = _rows(tmp_path)
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
    before = _rows(tmp_path)
    assert runner.run(leaderboard, config, tmp_path).page == caught.value.report.page
    after = _rows(tmp_path)
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
    assert list((tmp_path / "attacks").glob("*.npz")) and set(_rows(tmp_path)) == {"1nn"}
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
        assert 0 < len(_rows(workdir)) < 3
    store.merge(tmp_path / "both", apart, configuration.require_config(apart[0])["config"])
    assert _counted(tmp_path / "both") == _counted(finished)


@pytest.mark.slow
def test_networks_of_one_architecture_compile_once_and_are_freed(weights, tmp_path, monkeypatch, caplog):
    jax.clear_caches()
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    with jax.log_compiles():
        runner.run(leaderboard, tiny_config(weights, models=("One",)), tmp_path)
    assert _compiled(caplog)
    caplog.clear()
    gc.collect()
    alive = sum(array.nbytes for array in jax.live_arrays())
    with jax.log_compiles():
        runner.run(leaderboard, tiny_config(weights, models=("One", "Two")), tmp_path)
    gc.collect()
    assert not _compiled(caplog)
    assert sum(array.nbytes for array in jax.live_arrays()) <= alive


def _compiled(caplog):
    return [text for record in caplog.records if "Compiling" in (text := record.getMessage())]


@pytest.mark.slow
def test_weights_inside_a_plain_function_are_freed_too(weights, tmp_path):
    config = tiny_config(weights, models=(f"{OWN}:constants",))
    runner.run(leaderboard, config, tmp_path)
    gc.collect()
    assert not [array for array in jax.live_arrays() if array.shape == (64, 10)]


@pytest.mark.slow
def test_probabilities_are_refused_where_logits_are_expected(weights, tmp_path):
    with pytest.raises(failures.SomeFailed, match="1 of 2 units failed.*:probabilities"):
        runner.run(leaderboard, tiny_config(weights, models=("One", f"{OWN}:probabilities")), tmp_path)
    (failure,) = failures.read(tmp_path).values()
    assert set(_rows(tmp_path)) == {"One"} and "probabilities returns probabilities (none" in failure["reason"]


def test_published_accuracies_of_other_pixels_are_told_not_compared(weights):
    board = leaderboard.make_plan(tiny_config(weights, models=("Off",)))
    off = board.units[0].subject
    logits_fn = networks.load(off, board.source, board.dataset)
    with pytest.raises(preflight.WrongAccuracy, match=r"published .* %: more than .* points off \(clean.tolerance\)"):
        preflight.clean_accuracy(off, logits_fn, board.clean, board.dataset, batch_size=16)
    assert board.dataset.note  # digits are rescaled
    # as if the accuracies were those of the project's catalogue
    check = leaderboard.make_plan(tiny_config(weights, models=("1nn",), catalogue="")).clean
    clean = preflight.clean_accuracy(off, logits_fn, check, board.dataset, batch_size=16)
    assert clean["verdict"] == "other pixels"


def test_few_clean_images_allow_for_their_sampling(weights):
    config = tiny_config(weights, models=("Off",))
    config.clean.images = 100
    board = leaderboard.make_plan(config)
    network = board.units[0].subject
    logits_fn = networks.load(network, board.source, board.dataset)
    clean = preflight.clean_accuracy(network, logits_fn, board.clean, board.dataset, batch_size=16)
    assert clean["count"] == 100 and clean["verdict"].startswith("agrees within ")
    # All of five are right, as they are more often than not.
    check = board.clean._replace(num_images=5)
    everything = Partial(lambda images: jax.nn.one_hot(board.dataset.test_labels[:16], 10))
    assert preflight.clean_accuracy(network, everything, check, board.dataset, batch_size=16)["correct"] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("integers", "integers must return floating-point logits, which have a gradient, got int32"),
        ("leaves", "leaves ended the program with 3"),
        ("uses_numpy", "it uses NumPy on the images: use jax.numpy, or torch: for a torch module"),
        ("torch:torch_fails", "^RuntimeError: in the middle$"),
        ("some_nan", r"some_nan returns NaN for 16 of 16 images"),
    ],
)
def test_why_a_function_of_the_users_failed_is_one_line(weights, tmp_path, name, message):
    if name.startswith("torch:"):
        pytest.importorskip("torch")
    own = f"torch:{OWN}:{name[6:]}" if name.startswith("torch:") else f"{OWN}:{name}"
    with pytest.raises(failures.SomeFailed):
        runner.run(leaderboard, tiny_config(weights, models=(own,)), tmp_path)
    (failure,) = failures.read(tmp_path).values()
    assert re.search(message, failure["reason"]), failure["reason"]


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
    row = _rows(finished)["One"]
    with np.load(finished / row["files"][0]) as kept:
        assert kept["broken_by"].shape == (4, 40) and kept["attacks"].tolist() == row["attack"]["attacks"]
        for item in row["evaluations"]:
            if item["kind"] == "attacked" and item["norm"] != "worst":
                (place,) = np.flatnonzero((kept["norm"] == item["norm"]) & np.isclose(kept["epsilon"], item["epsilon"]))
                unbroken = kept["broken_by"][place, kept["split"] == item["split"]] == -2
                assert unbroken.sum() == item["robust"]


@pytest.mark.slow
def test_a_network_asked_for_by_its_name_that_lacks_weights_is_told_at_the_start(weights, tmp_path, capfd):
    config = tiny_config(weights, models=("1nn", "One", "Two"), weights_dir=str(tmp_path))
    with pytest.raises(failures.SomeFailed, match="2 of 3 units failed.*: digits/One, digits/Two"):
        runner.run(leaderboard, config, tmp_path / "run")
    assert capfd.readouterr().err.startswith(f"no weights in {tmp_path}, so these will fail: One, Two")


@pytest.mark.slow
def test_a_torch_module_joins(weights, tmp_path):
    pytest.importorskip("torch")
    runner.run(leaderboard, tiny_config(weights, models=(f"torch:{OWN}:torch_module",)), tmp_path)
    (row,) = _rows(tmp_path).values()
    assert row["model"]["architecture"] == "own, in torch"


def test_the_table_has_every_model_and_says_whom_1nn_beats(finished):
    text = (finished / "report" / "report.md").read_text()
    for part in ("| **1NN** |", "| One |", "Whom 1NN beats", "of 2 |", "figures/leaderboard-scatter-test.png"):
        assert part in text, part
    with open(finished / "report" / "leaderboard.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    written = sum(len(row["evaluations"]) for row in _rows(finished).values())
    assert len(lines) == written
    assert {line["clean_verdict"] for line in lines if line["model"] == "One"} == {"agrees within 0.5"}
    for line in lines:
        assert float(line["accuracy"]) == pytest.approx(int(line["robust"]) / int(line["count"]), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("Onne",)}, "'Onne' is not among the 5 networks for digits .*; near it: One"),
        ({"models": ("Z*",)}, r"none of 0 networks that match 'Z\*' has its weights"),
        (
            {"dataset": "npz:own.npz"},
            r"models: 'One' asks for networks of .*catalogue\.json, which are for digits, none for npz:own\.npz: name "
            r"only 1nn and MODULE:FUNCTION, or another catalogue \(none can have any for npz:PATH\)",
        ),
        (
            {"catalogue": "", "models": ("*",)},
            "'\\*' asks for networks of the catalogue, which are for cifar10, none for digits",
        ),
        ({"models": ()}, "models must name one or more"),
        ({"models": ("1nn", 1)}, "models must be texts, got 1"),
        ({"models": ("1nn", "1nn")}, "models must not hold anything twice"),
        ({"models": ("no.such:thing",)}, "cannot import 'no.such:thing'"),
        ({"models": (f"{OWN}:nothing",)}, "cannot import"),
        (
            {"weights_dir": "/nowhere", "models": ("*",)},
            r"none of 5 networks that match '\*' has its weights in /nowhere",
        ),
        ({"catalogue": "/nowhere.json"}, "nowhere.json"),
        ({"clean": {"tolerance": -1.0}}, "clean.tolerance must be at least 0"),
        ({"evaluation": {"attacks": ("magic",)}}, "evaluation.attacks"),
        ({"epsilons": {"linf": 0.0, "l2": 0.0}}, "epsilons must give"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(weights, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        leaderboard.make_plan(tiny_config(weights, **changes))


@pytest.mark.slow
def test_networks_without_weights_are_counted_and_change_no_shard(weights, tmp_path, capfd):
    """Two machines whose folders differ."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, names in zip(folders, (("One",), ("One", "Two")), strict=True):
        place = folder / "digits" / "Linf"
        place.mkdir(parents=True)
        for name in names:
            shutil.copy(weights / "digits" / "Linf" / f"{name}.safetensors", place)
    configs = [tiny_config(weights, models=("*",), weights_dir=str(folder)) for folder in folders]
    boards = [leaderboard.make_plan(config) for config in configs]
    assert [unit.subject.name for unit in boards[0].units] == ["Off", "One", "Other", "Torn", "Two"]
    assert boards[0].units == boards[1].units
    workdir = tmp_path / "run"
    for shard, config in enumerate(configs):
        runner.run(leaderboard, config, workdir, shard=(shard, 2))
    told = capfd.readouterr().err
    assert told.count(f"3 of 3 networks of this shard have no weights in {folders[0]} and are left out: put them") == 1
    assert told.count(f"1 of 2 networks of this shard have no weights in {folders[1]}") == 1
    assert set(_rows(workdir)) == {"One"}  # Two is of the first shard, whose folder lacks it
    page = (workdir / "report" / "report.md").read_text()
    assert "Not complete: 1 of 2 networks of this shard have no weights in" in page
    assert "Not complete: 3 of 4 models are missing." in page
    runner.run(leaderboard, configs[1], workdir, shard=(0, 2))
    assert set(_rows(workdir)) == {"One", "Two"}


@pytest.mark.slow
def test_a_progress_file_that_cannot_be_read_fails_its_model_only(weights, finished, tmp_path):
    damaged = tmp_path / "attacks" / "digits-One.npz"
    damaged.parent.mkdir()
    damaged.write_bytes(b"nothing")
    with pytest.raises(failures.SomeFailed, match=r"1 of 2 units failed.*: digits/One"):
        runner.run(leaderboard, tiny_config(weights, models=("One", "Two")), tmp_path)
    assert re.search(r"digits-One\.npz cannot be read.*remove it", failures.read(tmp_path)["digits/One"]["reason"])
    assert set(_rows(tmp_path)) == {"Two"}
    damaged.unlink()
    runner.run(leaderboard, tiny_config(weights, models=("One", "Two")), tmp_path)
    assert _rows(tmp_path)["One"]["evaluations"] == _counted(finished)["One"]


@pytest.mark.slow
def test_bounds_that_contradict_each_other_do_not_hide_what_failed(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "order_violations", lambda rows: ["One: 3 > 2"])
    with pytest.raises(
        ValueError, match=r"does not hold: One: 3 > 2; .* see .*report\.html; 1 of 2 units failed.*: digits/Torn"
    ):
        runner.run(leaderboard, tiny_config(weights, models=("One", "Torn")), tmp_path)


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
    assert _kill_when(command, lambda: any(path.stat().st_size for path in tmp_path.glob("rows-*.jsonl")))
    assert run_here(command).status == 0
    assert _counted(tmp_path) == _counted(finished)


@pytest.mark.slow
def test_the_home_is_expanded_and_the_place_of_own_arrays_does_not_matter(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(weights))
    config = config_file.get_config("digits,~/catalogue.json")
    assert config.weights_dir == "~"
    config.models = ("1nn", "One")
    assert [unit.subject.name for unit in leaderboard.make_plan(config).units] == ["1nn", "One"]
    digits = data.load("digits")
    arrays = {f"{split}_{what}": getattr(digits, f"{split}_{what}") for split in ("train", "test") for what in LABELLED}
    config = tiny_config(weights, models=("1nn",))
    for name in ("mine", "moved"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        config.dataset = f"npz:{tmp_path}/{name}.npz"
        runner.run(leaderboard, config, tmp_path / "run")
    (row,) = store.read_rows(tmp_path / "run")[0]
    assert row["unit"] == "npz/1nn" and row["dataset"] == "mine"
