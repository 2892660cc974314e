"""Every configuration and every sweep item builds, and the unknown is refused."""

import pytest

from configs import binary_tasks as config_file
from experiments import main, plan
from nn_adv import data

ARGUMENTS = [f"{dataset}{scale}" for dataset in config_file.DATASETS for scale in ("", ",cpu")]


@pytest.mark.parametrize("argument", [*ARGUMENTS, "npz:/some/where.npz"])
def test_every_configuration_passes_the_checks(argument):
    config = config_file.get_config(argument)
    plan.check(config)
    assert plan.row_identity(config)["dataset"] == config.dataset


def test_datasets_and_methods_are_those_of_the_library():
    assert set(config_file.DATASETS) == set(data.DATASETS)
    assert set(config_file.METHODS) <= set(plan.METHODS)


def test_every_sweep_item_passes_the_checks():
    items = main.sweep_items("configs/binary_tasks.py", {"training.num_epochs": 3})
    assert len({name for name, _ in items}) == len(items) == 3
    for _, config in items:
        plan.check(config)
        assert config.training.num_epochs == 3 and config.seeds == (0, 1, 2)


@pytest.mark.parametrize("argument", ["imagenet", "", "mnist,gpu"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(ValueError, match="config argument"):
        config_file.get_config(argument)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("1nn", "magic")}, "methods must be some of .* got magic"),
        ({"methods": ()}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"radii": {"l3": 1.0}}, "norm must be one of"),
        ({"radii": {"linf": -0.1}}, "epsilon must be a radius"),
        ({"radii": {"linf": 0.1}}, "method trades-l2 needs radii.l2"),
        ({"curve": (-1.0,)}, "curve"),
        ({"evaluation": {"num_restarts": 0}}, "evaluation.num_restarts"),
        ({"evaluation": {"batch_size": 0}}, "evaluation.batch_size"),
        ({"evaluation": {"temperature": 0.0}}, "evaluation.temperature"),
        ({"training": {"group_size": 0}}, "training.group_size"),
        ({"training": {"num_epochs": -1}}, "num_epochs"),
        ({"training": {"schedule": "sometimes"}}, "schedule"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    config = config_file.get_config("digits")
    if "radii" in changes:
        del config.radii
        config.radii = {}
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        plan.check(config)


def test_only_what_a_row_says_belongs_to_its_identity():
    config, other = config_file.get_config("digits"), config_file.get_config("digits")
    other.update({"methods": ("1nn",), "seeds": (3,), "data_dir": "/x", "tasks": {"names": ("0v1",)}})
    assert plan.row_identity(config) == plan.row_identity(other)
    other.radii.linf = 0.2
    assert plan.row_identity(config) != plan.row_identity(other)
