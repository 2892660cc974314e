"""Which networks the leaderboard takes, what it checks of them before they run, and what it refuses."""

import gc
import re
import shutil

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import leaderboard as config_file
from experiments import (
    failures,
    leaderboard,
    networks,
    preflight,
    report,
    runner,
    store,
)
from nn_adv import data
from tests.experiments.tiny_leaderboard import rows_of, tiny_config

OWN = "tests.experiments.leaderboard_models"
LABELLED = ("images", "labels")


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
    assert set(rows_of(tmp_path)) == {"One"} and "probabilities returns probabilities (none" in failure["reason"]


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
def test_a_network_asked_for_by_its_name_that_lacks_weights_is_told_at_the_start(weights, tmp_path, capfd):
    config = tiny_config(weights, models=("1nn", "One", "Two"), weights_dir=str(tmp_path))
    with pytest.raises(failures.SomeFailed, match="2 of 3 units failed.*: digits/One, digits/Two"):
        runner.run(leaderboard, config, tmp_path / "run")
    assert capfd.readouterr().err.startswith(f"no weights in {tmp_path}, so these will fail: One, Two")


@pytest.mark.slow
def test_a_torch_module_joins(weights, tmp_path):
    pytest.importorskip("torch")
    runner.run(leaderboard, tiny_config(weights, models=(f"torch:{OWN}:torch_module",)), tmp_path)
    (row,) = rows_of(tmp_path).values()
    assert row["model"]["architecture"] == "own, in torch"


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
    assert set(rows_of(workdir)) == {"One"}  # Two is of the first shard, whose folder lacks it
    page = (workdir / "report" / "report.md").read_text()
    assert "Not complete: 1 of 2 networks of this shard have no weights in" in page
    assert "Not complete: 3 of 4 models are missing." in page
    runner.run(leaderboard, configs[1], workdir, shard=(0, 2))
    assert set(rows_of(workdir)) == {"One", "Two"}


@pytest.mark.slow
def test_bounds_that_contradict_each_other_do_not_hide_what_failed(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "order_violations", lambda rows: ["One: 3 > 2"])
    with pytest.raises(
        ValueError, match=r"does not hold: One: 3 > 2; .* see .*report\.html; 1 of 2 units failed.*: digits/Torn"
    ):
        runner.run(leaderboard, tiny_config(weights, models=("One", "Torn")), tmp_path)


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
