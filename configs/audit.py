"""How far attacks overstate the robust accuracy and the radii of 1NN, whose exact values are known.

    --config=configs/audit.py:digits          PGD through the soft 1NN, with one setting changed at a time
    --config=configs/audit.py:digits,named    attacks of ours, of Foolbox and of ART, as far as these are installed
    --config=configs/audit.py:cifar10 --config.num_images=100
    --config=configs/audit.py:npz:/my/data.npz

Single values are changed on the command line: --config.tasks.names="('3v5',)".
"""

import ml_collections

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
NAMED = (
    *("pgd", "apgd", "tempered-apgd", "square", "fab", "fmn"),
    *("foolbox-pgd", "foolbox-deepfool", "foolbox-carlini-wagner", "foolbox-ddn", "foolbox-fmn", "foolbox-boundary"),
    *("art-hopskipjump", "art-square", "art-zoo"),
)


def get_config(arg: str = "digits") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``: a dataset, then optionally ",named"."""
    is_named = arg.endswith(",named")
    arg = arg.removesuffix(",named")
    if arg not in DATASETS and not arg.startswith("npz:"):
        allowed = f"one of {', '.join(DATASETS)} or npz:PATH, and may end with ',named'"
        raise ValueError(f"config argument must be {allowed}, got {arg!r}")
    config = ml_collections.ConfigDict()
    config.experiment = "audit"
    config.dataset = arg
    config.data_dir = ""  # prepared datasets; empty: TFDS_DATA_DIR, else the default of tensorflow-datasets
    config.seed = 0  # of the attacks' random starts
    config.num_images = 200  # the first so many test images, classes balanced; 0: all
    config.epsilons = _epsilons(arg)  # those to attack at, per norm; an empty tuple: not this norm

    config.tasks = ml_collections.ConfigDict()
    config.tasks.kind = "all"  # or pairs, one_vs_rest
    config.tasks.names = ()  # such as ("3v8",); empty: all of them
    config.tasks.train_per_class = 0  # the first so many training images of each class; 0: all of them

    config.temperatures = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the soft 1NN
    config.temperature = 0.1  # where the variants below are tried, unless at every temperature
    # Of PGD: steps, restarts and loss; the first at every temperature.
    config.variants = (
        (40, 1, "margin"),
        (10, 1, "margin"),
        (100, 1, "margin"),
        (40, 5, "margin"),
        (40, 1, "cross-entropy"),
    )
    config.every_variant_at_every_temperature = arg == "digits"  # elsewhere one thing is changed at a time
    config.attacks = ()  # attacks by their names, see experiments/named_attacks.py; each at the temperature that is
    config.best_of_temperatures = _temperatures(arg)  # best for each image
    config.step_share = 2.5  # step size x steps / radius
    config.num_inside = 20  # also attack so many images at radii that are just inside their own: none may break
    config.batch_size = 50
    if arg == "cifar10":
        config.tasks.update(kind="pairs", names=("3v5",))
    if is_named:
        config.variants = ()
        config.attacks = NAMED
        config.epsilons.l1 = ()  # which few of them have
        config.num_images = 50
        if arg != "digits":  # which ART queries point by point
            config.attacks = tuple(name for name in NAMED if name != "art-zoo")
            config.tasks.train_per_class = 500
    return config


def sweep(add) -> None:
    """Add the audit of each dataset."""
    for dataset in ("digits", "mnist", "cifar10"):
        add(dataset)


def _temperatures(dataset: str) -> tuple[float, ...]:
    return (0.03, 0.3) if dataset == "digits" else (0.3, 3.0)


def _epsilons(dataset: str) -> ml_collections.ConfigDict:
    # Where 1NN keeps between a tenth and nine tenths of what it gets right: elsewhere an attack can hardly be off.
    linf, l2, l1 = {
        "digits": ((0.1, 0.15, 0.2), (0.4, 0.6, 0.8), (1.0, 1.5, 2.0)),
        "mnist": ((0.1, 0.15, 0.2), (0.75, 1.5, 2.0), (4.0, 8.0, 12.0)),
        "fashion_mnist": ((0.05, 0.1, 0.15), (0.7, 1.4, 2.8), (3.0, 6.0, 12.0)),
        "cifar10": ((1 / 255, 2 / 255, 4 / 255), (0.25, 0.5, 1.0), (4.0, 8.0, 16.0)),
    }.get(dataset, ((0.05, 0.1), (0.4, 0.8), (2.5,)))
    return ml_collections.ConfigDict({"linf": linf, "l2": l2, "l1": l1})
