"""Training and exporting a zoo on a few digits: the files load as published ones do, and give the same outputs."""

import re

import jax
import numpy as np
import pytest

from configs import small_zoo as config_file
from experiments import failures, parsing, report, runner, small_zoo
from nn_adv import data, evaluation, models, training, zoo

torch = pytest.importorskip("torch")

METHODS = ("standard", "trades-both")


def tiny_config(**changes):
    config = config_file.get_config("digits")
    config.update(methods=METHODS, train_per_class=12)
    config.training.update(num_epochs=1, batch_size=16, num_steps=1, learning_rate=0.01)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("zoo")
    runner.run(small_zoo, tiny_config(), workdir)
    return workdir, workdir / "catalogue.json"


def test_the_catalogue_has_every_network_in_robustbench_layout(finished):
    workdir, catalogue = finished
    entries = zoo.catalogue(catalogue)
    assert tuple(entries) == METHODS
    for entry in entries.values():
        assert (workdir / "digits" / "Linf" / f"{entry.name}.pt").is_file() and entry.threat == "Linf"
        assert entry.image_shape == (8, 8, 1) and entry.num_classes == 10
    assert entries["standard"].epsilon is None and entries["trades-both"].epsilon == 0.1
    assert "linf 0.1, l2 0.8 on 120 images" in entries["trades-both"].notes[0]


def test_the_files_load_in_pytorch_under_the_published_names(finished):
    state = torch.load(finished[0] / "digits" / "Linf" / "standard.pt", weights_only=True)
    assert {"block1.layer.0.conv1.weight", "bn1.running_var", "fc.bias"} <= set(state)
    assert state["conv1.weight"].shape == (16, 1, 3, 3)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_is_what_was_trained(finished, method):
    workdir, catalogue = finished
    dataset = data.load("digits")
    images = dataset.test_images[:20] / np.float32(255)
    loaded = zoo.load(method, workdir, catalogue=catalogue)
    made = small_zoo.make_plan(tiny_config())
    trained = made.train(made.groups[METHODS.index(method)][0], workdir)  # its checkpoint
    expected = jax.jit(made.model.apply)(trained.variables[0], images)
    np.testing.assert_allclose(loaded.logits_fn(images), expected, rtol=1e-5, atol=1e-5)
    right = evaluation.correct(
        jax.jit(lambda x: loaded.logits_fn(x).argmax(1)), dataset.test_images, dataset.test_labels, batch_size=300
    )
    assert loaded.entry.clean_accuracy == pytest.approx(100 * np.mean(right), abs=1e-3)


@pytest.mark.slow
def test_another_network_is_added_and_those_that_are_there_are_not_trained_again(finished, monkeypatch):
    workdir, catalogue = finished
    before = (workdir / "digits" / "Linf" / "standard.pt").stat().st_mtime_ns
    runner.run(small_zoo, tiny_config(methods=(*METHODS, "pgd-l2")), workdir)
    assert (workdir / "digits" / "L2" / "pgd-l2.pt").is_file()
    assert (workdir / "digits" / "Linf" / "standard.pt").stat().st_mtime_ns == before
    assert list(zoo.catalogue(catalogue)) == [*METHODS, "pgd-l2"]
    monkeypatch.setattr(small_zoo.Plan, "row", lambda *_: pytest.fail("a network was trained twice"))
    runner.run(small_zoo, tiny_config(), workdir)
    moved = (workdir / "digits" / "L2" / "pgd-l2.pt").rename(workdir / "elsewhere.pt")
    with pytest.raises(ValueError, match="has no digits/L2/pgd-l2.pt any more: put it back"):
        runner.run(small_zoo, tiny_config(), workdir)
    moved.rename(workdir / "digits" / "L2" / "pgd-l2.pt")
    assert "trades-both" in report.write(workdir).summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("1nn",)}, "methods must be some of standard, .* got 1nn"),
        ({"methods": ()}, "methods must be some of .* got none"),
        ({"methods": ("standard", "standard")}, "methods must not hold anything twice"),
        ({"epsilons": {"l2": 0.0}}, "method trades-both needs epsilons.l2"),
        ({"model": {"name": "small_cnn"}}, "model.name must be one of preact_resnet18, resnet18, wide_resnet"),
    ],
)
def test_wrong_values_are_refused_before_anything_starts(changes, message):
    with pytest.raises(ValueError, match=message):
        small_zoo.make_plan(tiny_config(**changes))


def test_without_pytorch_nothing_is_trained(monkeypatch):
    monkeypatch.setattr(small_zoo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'nn_adv"):
        small_zoo.make_plan(tiny_config())


def test_a_diverged_training_is_not_exported(tmp_path, monkeypatch):
    config = tiny_config(methods=("standard",))
    history = training.History(*(np.full((1, 1), np.nan) for _ in training.History._fields))
    monkeypatch.setattr(small_zoo.Plan, "train", lambda *_: training.Trained([{}], history, np.zeros(1)))
    with pytest.raises(failures.SomeFailed):
        runner.run(small_zoo, config, tmp_path)
    (failure,) = failures.read(tmp_path).values()
    assert re.match("training standard diverged .* lower training.learning_rate", failure["reason"])
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("dataset", config_file.DATASETS)
def test_every_configuration_passes_the_checks(dataset):
    config = config_file.get_config(dataset)
    parsing.read_recipes(config, config.methods)
    settings = parsing.model_settings(config)
    models.create(settings.pop("name"), 10, **settings)


def test_an_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="config argument must be one of digits"):
        config_file.get_config("imagenet")
