"""Every configuration and every sweep item builds, and the unknown is refused."""

import numpy as np
import pytest

from configs import binary_tasks as config_file
from experiments import binary_tasks, main, parsing
from experiments.methods import METHODS
from nn_adv import data, models

ARGUMENTS = [*config_file.DATASETS, "mnist,cpu", "fashion_mnist,cpu", "cifar10,cpu"]
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def _dataset(shape):
    images, labels = np.zeros((2, *shape), np.uint8), np.arange(2)
    return data.Dataset("tiny", images, labels, images, labels, ("a", "b"))


@pytest.mark.parametrize("argument", [*ARGUMENTS, "npz:/some/where.npz"])
def test_every_configuration_passes_the_checks(argument):
    config = config_file.get_config(argument)
    binary_tasks.check(config)
    shape = SHAPES.get(config.dataset, (32, 32, 3))
    assert (
        parsing.make_identity(config, _dataset(shape), binary_tasks.NOT_IN_A_ROW)["model"]["name"] == config.model.name
    )
    parsing.make_model(parsing.model_settings(config), _dataset(shape), 2)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("name", [name for name in models.NAMES if name in config_file.get_config("cifar10").model])
def test_every_network_can_be_chosen_by_its_name_alone(name):
    config = config_file.get_config("cifar10")
    config.model.name = name
    parsing.make_model(parsing.model_settings(config), _dataset((32, 32, 3)), 2)


def test_datasets_and_methods_are_those_of_the_library():
    assert set(config_file.DATASETS) == set(data.DATASETS)
    assert set(config_file.METHODS) <= set(METHODS)


def test_every_sweep_item_passes_the_checks():
    items = main.sweep_items("configs/binary_tasks.py", {"training.num_epochs": 3})
    assert len({name for name, _ in items}) == len(items) == 3
    for _, config in items:
        binary_tasks.check(config)
        assert config.training.num_epochs == 3 and config.seeds == (0, 1, 2)


def test_epsilons_under_their_former_name_are_told():
    config = config_file.get_config("digits")
    config.radii = {"linf": 0.1}
    with pytest.raises(ValueError, match="configuration's radii is named epsilons: rename it"):
        main._experiment(config)


@pytest.mark.parametrize("path", ["/my/da,ta.npz", "a,b,cpu,c.npz", "no suffix, but a comma"])
def test_paths_may_hold_commas(path):
    plain, small = (config_file.get_config(f"npz:{path}{options}") for options in ("", ",cpu"))
    assert plain.dataset == small.dataset == f"npz:{path}"
    assert (plain.model.name, small.model.name) == ("mlp", "strided_cnn")


@pytest.mark.parametrize("argument", ["imagenet", "", "mnist,gpu", "digits,cpu"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(ValueError, match="config argument"):
        config_file.get_config(argument)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("1nn", "magic")}, "methods must be some of .* got magic"),
        ({"methods": ()}, "methods"),
        ({"seeds": ()}, "seeds"),
        ({"epsilons": {"l3": 1.0}}, "norm must be one of"),
        ({"epsilons": {"linf": -0.1}}, "epsilons.linf must be a finite number >= 0, got -0.1"),
        ({"epsilons": {"linf": 0.1}}, "method trades-both needs epsilons.l2"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (0, 0)}, "seeds must not hold anything twice"),
        ({"tasks": {"names": ("0v1", "0v1")}}, "tasks.names must not hold anything twice"),
        ({"training": {"select_every": 5}}, "tasks.holdout"),
        ({"model": {"name": "vit"}}, "model.name must be one of"),
        ({"curve": (-1.0,)}, "curve"),
        ({"epsilons": {"linf": float("inf")}}, "epsilons.linf must be a finite number >= 0, got inf"),
        ({"curve": (float("nan"),)}, "curve"),
        ({"curve": ("a",)}, "curve must hold finite multiples >= 0 of the main epsilon"),
        ({"evaluation": {"num_queries": 0}}, "evaluation.num_queries"),
        ({"evaluation": {"attacks": ("square", "square")}}, "evaluation.attacks must not hold anything twice"),
        ({"evaluation": {"num_restarts": 0}}, "evaluation.num_restarts"),
        ({"evaluation": {"batch_size": 0}}, "evaluation.batch_size"),
        ({"fine_curve": (-1.0,)}, "fine_curve"),
        ({"training": {"group_size": 0}}, "training.group_size"),
        ({"training": {"num_epochs": -1}}, "num_epochs"),
        ({"training": {"schedule": "sometimes"}}, "schedule"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    config = config_file.get_config("digits")
    if "epsilons" in changes:
        del config.epsilons
        config.epsilons = {}
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        binary_tasks.check(config)
        parsing.model_settings(config)


def test_only_what_a_row_says_belongs_to_its_identity():
    config, other = config_file.get_config("digits"), config_file.get_config("digits")
    other.update({"methods": ("1nn",), "seeds": (3,), "data_dir": "/x", "tasks": {"names": ("0v1",)}})
    dataset = _dataset((8, 8, 1))
    identity = parsing.make_identity(config, dataset, binary_tasks.NOT_IN_A_ROW)
    assert identity == parsing.make_identity(other, dataset, binary_tasks.NOT_IN_A_ROW)
    other.model.wide_resnet.depth = 10  # not the network that is used
    assert identity == parsing.make_identity(other, dataset, binary_tasks.NOT_IN_A_ROW)
    other.epsilons.linf = 0.2
    assert identity != parsing.make_identity(other, dataset, binary_tasks.NOT_IN_A_ROW)
    dataset.train_images[0] = 1
    assert identity != parsing.make_identity(config, dataset, binary_tasks.NOT_IN_A_ROW)
