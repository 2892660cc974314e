"""TRADES on all pairs of digits, one setting changed at a time.

    python -m experiments.main --config=configs/ablations.py:base --sweep --workdir=results/ablations

runs all of them, each in a folder of its own; --config=configs/ablations.py:beta=3 runs one.
"""

import ml_collections

from configs import binary_tasks

# What is changed, to which values; "base" has the ones of binary_tasks.py:digits, which stand among these.
VALUES = {
    "beta": (1.0, 3.0, 6.0, 12.0),
    "steps": (1, 7, 20),
    "epochs": (10, 30, 100),
    "width": (16, 64, 256),
    "seed": (0, 1, 2),
    "epsilon": (0.5, 1.0, 2.0),  # trained for, in multiples of the main one
}


def get_config(arg: str = "base") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``: "base", or a setting and its value, such as "beta=3"."""
    config = binary_tasks.get_config("digits")
    config.methods = ("trades-linf", "trades-l2")
    if arg == "base":
        return config
    name, _, text = arg.partition("=")
    value = next((value for value in VALUES.get(name, ()) if f"{value:g}" == text), None)
    if value is None:
        known = ", ".join(f"{name}={value:g}" for name, values in VALUES.items() for value in values)
        raise ValueError(f"config argument must be base or one of {known}, got {arg!r}")
    if name == "width":
        config.model.mlp.hidden_sizes = (value, value)
    elif name == "seed":
        config.seeds = (value,)
    elif name == "epsilon":  # 1 / value is in the curve, so that all are judged at the main one of the base too
        config.epsilons.update({norm: value * epsilon for norm, epsilon in config.epsilons.items()})
    else:
        setting = {"beta": "beta", "steps": "num_steps", "epochs": "num_epochs"}[name]
        config.training[setting] = value
    return config


def sweep(add) -> None:
    """Add the base, and every value that differs from it."""
    base = get_config().to_dict()
    add("base")
    for name, values in VALUES.items():
        for value in values:
            if get_config(f"{name}={value:g}").to_dict() != base:
                add(f"{name}={value:g}")
