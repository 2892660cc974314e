"""Published networks beside 1NN: linf and l2, train and test images.

    --config=configs/leaderboard.py:cifar10                   the paper's 69, as far as their weights lie in weights_dir
    --config=configs/leaderboard.py:cifar10,paper             with the paper's attack on the paper's number of images
    --config=configs/leaderboard.py:cifar10,grid              at sixteen epsilons of each norm
    --config=configs/leaderboard.py:cifar10,cpu               few images, short attacks
    --config=configs/leaderboard.py:mnist,zoo/catalogue.json  networks of one's own, weights beside the catalogue

Options may be joined: "cifar10,paper,grid". Single values are changed on the command line: --config.clean.tolerance=1.
"""

import os

import ml_collections

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
OPTIONS = ("paper", "grid", "cpu")
_GRID = tuple(step / 16 for step in range(1, 17))


def get_config(arg: str = "cifar10") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``: a dataset, then optionally options and the path of a catalogue."""
    dataset, *options = arg.split(",")
    while dataset.startswith("npz:") and not set(options) <= set(OPTIONS):  # commas of its path
        dataset += f",{options.pop(0)}"
    catalogues = [option for option in options if option.endswith(".json")]
    if dataset not in DATASETS and not dataset.startswith("npz:"):
        raise ValueError(f"config argument must start with {', '.join(DATASETS)} or npz:PATH, got {arg!r}")
    unknown = [option for option in options if option not in (*OPTIONS, *catalogues)]
    if unknown or len(catalogues) > 1:
        allowed = f"{', '.join(OPTIONS)} and at most one catalogue, NAME.json"
        raise ValueError(f"config argument may go on with {allowed}, got {arg!r}")

    config = ml_collections.ConfigDict()
    config.experiment = "leaderboard"
    config.dataset = dataset
    config.data_dir = ""  # prepared datasets; empty: TFDS_DATA_DIR, else the default of tensorflow-datasets
    config.catalogue = catalogues[0] if catalogues else ""  # of one's own networks; empty: that of the published ones
    # RobustBench's layout: weights_dir/cifar10/Linf/NAME.pt
    config.weights_dir = (os.path.dirname(catalogues[0]) or ".") if catalogues else "models"
    config.download = False  # weights that are not there
    # "1nn", names of the catalogue or patterns of them, and one's own as "module:function" or "torch:module:function".
    config.models = ("1nn", "*")
    config.only_in_paper = not catalogues  # patterns match the paper's 69 only
    config.seed = 0  # of the attacks

    linf, l2 = {"cifar10": (8 / 255, 1.74), "mnist": (0.1, 2.8), "fashion_mnist": (0.1, 2.8)}.get(dataset, (0.1, 0.8))
    # The main one of each norm; 0: not this norm.
    config.epsilons = ml_collections.ConfigDict({"linf": linf, "l2": l2, "l1": 0.0})
    config.curve = _GRID if "grid" in options else ()  # further epsilons, in multiples of the main one
    config.fine_curve = _GRID  # and more of 1NN, where the exact answer is a look-up

    config.clean = ml_collections.ConfigDict()
    config.clean.images = 0  # the first so many test images, before any attack; 0: all
    config.clean.tolerance = 0.5  # points off the published clean accuracy beyond which a model is stopped

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.splits = ("train", "test")
    config.evaluation.images_per_split = 1000  # the first so many of each split; 0: all
    config.evaluation.attacks = ()  # on networks; empty: the standard ensemble
    config.evaluation.num_steps = 100  # of each but square
    config.evaluation.num_restarts = 1
    config.evaluation.num_queries = 5000  # of square
    config.evaluation.batch_size = 200
    if "paper" in options:
        config.evaluation.update(attacks=("apgd-ce", "apgd-dlr"), images_per_split=200)
    if "cpu" in options:
        config.evaluation.update(images_per_split=100, num_steps=20, num_queries=200, batch_size=50)
        config.clean.images = 1000
    return config


def sweep(add) -> None:
    """Add the paper's attack at its grid of epsilons, and the ensemble on more images."""
    add("cifar10,paper,grid")
    add("cifar10")
