"""Exact robust accuracy of variants of 1NN: three questions, each with a configuration for a dataset.

    --config=configs/neighbor_variants.py:separated,digits     training images against d0 / 2 (d0: the classes apart)
    --config=configs/neighbor_variants.py:growing,cifar10      test images against the number of training images
    --config=configs/neighbor_variants.py:growing,manifolds    the same where the limit is known in closed form
    --config=configs/neighbor_variants.py:robust,cifar10       pruned sets, added copies, prototypes beside plain 1NN

experiments/variants.py lists what variants are made of. Single values are changed on the command line:
--config.variants="('1nn', '1nn+mirror')".
"""

import ml_collections

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "manifolds")


def get_config(arg: str = "separated,digits") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``: a question, then a dataset."""
    question, _, dataset = arg.partition(",")
    if question not in _QUESTIONS:
        raise ValueError(f"config argument must start with {', '.join(_QUESTIONS)}, got {arg!r}")
    if dataset not in DATASETS and not dataset.startswith("npz:"):
        raise ValueError(f"config argument must end with {', '.join(DATASETS)} or npz:PATH, got {arg!r}")

    config = ml_collections.ConfigDict()
    config.experiment = "neighbor_variants"
    config.question = question
    config.dataset = dataset
    config.data_dir = ""  # prepared datasets; empty: TFDS_DATA_DIR, else the default of tensorflow-datasets
    if dataset == "manifolds":
        config.manifolds = ml_collections.ConfigDict(
            {"dimensions": (1, 2, 4, 8), "num_pixels": 16, "gap": 0.2, "num_train": 4096, "num_test": 1000, "seed": 0}
        )
    config.variants = ("1nn",)
    config.seeds = (0,)  # of what is drawn at random; other variants are run once
    config.epsilons = _epsilons(dataset)  # the main one of each norm; 0: not this norm
    config.fine_curve = tuple(step / 10 for step in range(1, 21))  # further ones, in multiples of the main one
    config.separation = ()  # norms in which the smallest distance between points of two classes is measured
    config.num_choosing = 200  # held-out training images that choose among alternatives

    config.tasks = ml_collections.ConfigDict()
    config.tasks.kind = "all"  # or pairs, one_vs_rest
    config.tasks.names = ()  # such as ("3v8", "1v7"); empty: all of them
    config.tasks.holdout = 0.0  # share of the training images that only choose among alternatives, before they join in

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.splits = ("test",)
    config.evaluation.images_per_split = 500  # the first so many of each split, classes balanced; 0: all
    _QUESTIONS[question](config)
    return config


def _epsilons(dataset: str) -> ml_collections.ConfigDict:
    linf, l2, l1 = {
        "digits": (0.1, 0.8, 2.0),
        "mnist": (0.1, 2.8, 8.0),
        "fashion_mnist": (0.1, 2.8, 8.0),
        "cifar10": (8 / 255, 1.74, 16.0),
        "manifolds": (0.1, 0.1, 0.0),  # half the gap
    }.get(dataset, (0.1, 0.8, 2.0))
    return ml_collections.ConfigDict({"linf": linf, "l2": l2, "l1": l1})


def _separated(config) -> None:
    """Training images, their radii beyond the main ones too, with labels as they are and some of them swapped."""
    config.variants = ("1nn", "1nn+swap:0.01", "1nn+swap:0.05", "1nn+swap:0.1", "1nn+metric:linf")
    config.separation = tuple(norm for norm, epsilon in config.epsilons.items() if epsilon)
    config.evaluation.splits = ("train", "test")
    config.fine_curve = tuple(step / 5 for step in range(1, 21))


def _growing(config) -> None:
    """Test images, for training sets that double; five draws of each."""
    largest = {"digits": 1024, "manifolds": 4096, "mnist": 16384, "fashion_mnist": 16384}.get(config.dataset, 8192)
    sizes = [2**power for power in range(4, 15) if 2**power <= largest]
    config.variants = tuple(f"1nn+subset:{size}" for size in sizes)
    config.seeds = (0, 1, 2, 3, 4)
    config.epsilons.l1 = 0.0
    if config.dataset == "manifolds":
        config.tasks.update(kind="pairs", names=("0v1", "2v3", "4v5", "6v7"))  # two classes of one dimension


def _robust(config) -> None:
    """What could make 1NN more robust, on pairs of classes; held-out images choose among the alternatives."""
    config.variants = (
        *("1nn", "1nn+mirror", "1nn+prune:2|3|4", "1nn+centres:16|64|256", "1nn+learned:16|64"),
        *("1nn+mirror+learned:16|64", "1nn+pca:16|32|64", "1nn+low-pass:4|8"),
    )
    config.epsilons.l1 = 0.0
    config.tasks.update(kind="pairs", holdout=0.1)
    config.fine_curve = tuple(sorted({0.25, 0.5, 1.5, 2.0, *((0.5 / 1.74,) if config.dataset == "cifar10" else ())}))


_QUESTIONS = {"separated": _separated, "growing": _growing, "robust": _robust}
