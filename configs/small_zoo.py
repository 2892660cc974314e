"""Small networks on all ten classes, trained in a few ways and exported as published networks are.

    --config=configs/small_zoo.py:mnist      WRN-10-1s on 1,000 images of each class
    --config=configs/small_zoo.py:cifar10    narrow ResNet-18s on 1,500 images of each class

Single values are changed on the command line: --config.training.num_epochs=5.
"""

import ml_collections

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
METHODS = ("standard", "trades-linf", "trades-l2", "trades-both", "pgd-linf", "pgd-l2")


def get_config(arg: str = "mnist") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``, a dataset."""
    if arg not in DATASETS:
        raise ValueError(f"config argument must be one of {', '.join(DATASETS)}, got {arg!r}")
    config = ml_collections.ConfigDict()
    config.experiment = "small_zoo"
    config.dataset = arg
    config.data_dir = ""  # prepared datasets; empty: TFDS_DATA_DIR, else the default of tensorflow-datasets
    config.methods = METHODS
    config.seed = 0  # of weights, order and attacks
    config.epsilons = _epsilons(arg)  # trained for
    config.train_per_class = 1000  # the first so many training images of each class; 0: all of them

    config.model = ml_collections.ConfigDict()
    config.model.name = "wide_resnet"  # only the options of the network named here are read
    config.model.dtype = "float32"  # of the computation
    config.model.resnet18 = ml_collections.ConfigDict({"width": 8})
    config.model.preact_resnet18 = ml_collections.ConfigDict(
        {"width": 8, "stem_features": 8, "full_preactivation": True}
    )
    config.model.wide_resnet = ml_collections.ConfigDict({"depth": 10, "widen_factor": 1})

    config.training = ml_collections.ConfigDict(
        {
            "num_epochs": 1,
            "batch_size": 64,
            "schedule": "cosine",
            "drop_epochs": (),
            "learning_rate": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
            "augment": "none",
            "beta": 6.0,
            "num_steps": 3,  # of the inner maximisation
            "checkpoint_every": 1,  # epochs
        }
    )
    if arg == "cifar10":
        config.model.name = "resnet18"
        config.train_per_class = 1500
        config.training.update(learning_rate=0.1, augment="crop_flip")
    return config


def sweep(add) -> None:
    """Add the zoos of both datasets of the comparison."""
    for dataset in ("mnist", "cifar10"):
        add(dataset)


def _epsilons(dataset: str) -> ml_collections.ConfigDict:
    linf, l2 = {"cifar10": (8 / 255, 0.87), "mnist": (0.1, 2.0), "fashion_mnist": (0.1, 2.0)}.get(dataset, (0.1, 0.8))
    return ml_collections.ConfigDict({"linf": linf, "l2": l2})
