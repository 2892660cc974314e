"""1NN beside adversarially trained networks, on every pair of classes of a dataset.

    --config=configs/binary_tasks.py:digits          everything at its published size (the default dataset)
    --config=configs/binary_tasks.py:cifar10,cpu     a network and a number of images that a CPU can train
    --config=configs/binary_tasks.py:npz:/my/data.npz

Single values are changed on the command line: --config.training.num_epochs=5.
"""

import ml_collections

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
METHODS = ("1nn", "ceiling", "standard", "trades-linf", "trades-l2", "trades-both")


def get_config(arg: str = "digits") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``: a dataset, then optionally ",cpu"."""
    dataset, _, scale = arg.partition(",")
    if arg.startswith("npz:"):  # whose path may hold commas
        dataset, scale = arg.removesuffix(",cpu"), "cpu" if arg.endswith(",cpu") else ""
    if dataset not in DATASETS and not dataset.startswith("npz:"):
        raise ValueError(f"config argument must start with {', '.join(DATASETS)} or npz:PATH, got {arg!r}")
    if scale not in ("", "cpu"):
        raise ValueError(f"config argument may end with ',cpu' or with nothing, got {arg!r}")
    if arg == "digits,cpu":
        raise ValueError("config argument 'digits' is the CPU's scale already: leave ',cpu' out")

    config = ml_collections.ConfigDict()
    config.experiment = "binary_tasks"
    config.dataset = dataset
    config.data_dir = ""  # prepared datasets; empty: TFDS_DATA_DIR, else the default of tensorflow-datasets
    config.methods = METHODS  # and variants of 1NN, such as "1nn+learned:16" (experiments/variants.py)
    config.seeds = (0,)
    config.epsilons = _epsilons(dataset)  # the main one of each norm, trained for and asked for; 0: not this norm
    config.curve = (0.25, 0.5, 0.75, 1.5, 2.0)  # further epsilons, in multiples of the main one
    config.fine_curve = tuple(step / 10 for step in range(1, 21))  # and more, where the exact answer is a look-up

    config.tasks = ml_collections.ConfigDict()
    config.tasks.kind = "pairs"  # or one_vs_rest, all
    config.tasks.names = ()  # such as ("3v8", "1v7"); empty: all of them
    config.tasks.train_per_class = 0  # the first so many training images of each class; 0: all of them
    config.tasks.holdout = 0.1  # share of the training images that only choose the epoch to keep

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.splits = ("train", "test")
    config.evaluation.images_per_split = 0  # the first so many of each split, classes balanced; 0: all
    config.evaluation.attacks = ()  # on networks, such as ("apgd-ce", "pgd"); empty: the standard ensemble
    config.evaluation.num_steps = 100  # of each but square
    config.evaluation.num_restarts = 1
    config.evaluation.num_queries = 5000  # of square
    config.evaluation.batch_size = 128

    config.model = ml_collections.ConfigDict()
    config.model.name = "mlp"  # only the options of the network named here are read
    config.model.dtype = "float32"  # of the computation; accelerators are faster in bfloat16
    config.model.mlp = ml_collections.ConfigDict({"hidden_sizes": (128, 128)})
    config.model.small_cnn = ml_collections.ConfigDict(
        {"conv_features": (32, 32, 64, 64), "dense_features": 200, "dropout": 0.5}
    )
    config.model.dm_preact_resnet18 = ml_collections.ConfigDict({"width": 64})
    config.model.dm_wide_resnet = ml_collections.ConfigDict({"depth": 28, "widen_factor": 10})
    config.model.resnet18 = ml_collections.ConfigDict({"width": 64})
    config.model.resnet50 = ml_collections.ConfigDict({"width": 64})
    config.model.preact_resnet18 = ml_collections.ConfigDict({"width": 64, "full_preactivation": True})
    config.model.strided_cnn = ml_collections.ConfigDict({"widths": (16, 16, 32, 32, 64), "strides": (2, 1, 2, 1, 2)})
    config.model.wide_resnet = ml_collections.ConfigDict({"depth": 28, "widen_factor": 10})

    config.training = _training()
    {"digits": _digits, "mnist": _mnist, "fashion_mnist": _mnist, "cifar10": _cifar10}.get(dataset, _own_data)(config)
    if scale == "cpu":
        _shrink_for_cpu(config)
    return config


def sweep(add) -> None:
    """Add the comparison on each dataset of the paper, three seeds each."""
    for dataset in ("mnist", "fashion_mnist", "cifar10"):
        add(dataset, seeds=(0, 1, 2))


def _epsilons(dataset: str) -> ml_collections.ConfigDict:
    linf, l2 = {
        "digits": (0.1, 0.8),
        "mnist": (0.1, 2.8),
        "fashion_mnist": (0.1, 2.8),
        "cifar10": (8 / 255, 1.74),
    }.get(dataset, (0.1, 0.8))
    return ml_collections.ConfigDict({"linf": linf, "l2": l2, "l1": 0.0})


def _training() -> ml_collections.ConfigDict:
    """The official TRADES settings for CIFAR-10, as far as they do not depend on the dataset."""
    return ml_collections.ConfigDict(
        {
            "num_epochs": 76,
            "batch_size": 128,
            "schedule": "step",
            "drop_epochs": (75,),
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 2e-4,
            "ema_decay": 0.0,
            "augment": "none",
            "beta": 6.0,
            "num_steps": 10,  # of the inner maximisation
            "select_every": 1,  # epochs between evaluations on the held-out training images; 0: keep the last epoch
            "select_steps": 10,
            "group_size": 1,  # tasks trained side by side in one program
            "checkpoint_every": 1,  # epochs
        }
    )


def _digits(config) -> None:
    """Small enough for a demo: minutes on two cores."""
    config.methods = (
        "trades-both",
        "1nn",
        "ceiling",
        "trades-linf",
        "trades-l2",
        "standard",
    )  # so that two workers end together
    config.model.mlp.hidden_sizes = (64, 64)
    config.tasks.holdout = 0.0
    config.curve = (0.25, 0.5, 1.5, 2.0)
    config.training.update(
        num_epochs=30, batch_size=64, schedule="cosine", drop_epochs=(), learning_rate=0.1, weight_decay=5e-4
    )
    config.training.update(num_steps=7, select_every=0, group_size=45, checkpoint_every=30)
    config.evaluation.update(images_per_split=60, batch_size=40, attacks=("apgd-ce", "fab-t"), num_steps=20)


def _own_data(config) -> None:
    config.training.update(num_epochs=60, schedule="cosine", drop_epochs=(), learning_rate=0.05)


def _mnist(config) -> None:
    config.model.name = "small_cnn"
    config.training.update(num_epochs=100, schedule="step", drop_epochs=(55, 75, 90), learning_rate=0.01)
    config.training.update(weight_decay=0.0, beta=1.0, num_steps=40)


def _cifar10(config) -> None:
    config.model.name = "preact_resnet18"
    config.training.update(augment="crop_flip", weight_decay=5e-4)


def _shrink_for_cpu(config) -> None:
    """A network that a CPU core trains in minutes, on all training images; the last epoch is kept, as officially."""
    config.model.name = "strided_cnn"
    config.tasks.holdout = 0.0
    config.evaluation.update(images_per_split=500, num_queries=200, batch_size=64)
    config.curve = (0.25, 0.5, 1.5, 2.0)
    config.training.update(num_epochs=10, schedule="cosine", drop_epochs=(), learning_rate=0.1, weight_decay=5e-4)
    config.training.update(beta=6.0, num_steps=7, select_every=0, checkpoint_every=10)
    if config.dataset == "mnist":
        config.training.num_epochs = 5  # five more gain nothing in linf; in l2 they do on some pairs (docs/results.md)
    if config.dataset == "cifar10":
        config.training.augment = "crop_flip"
