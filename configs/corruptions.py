"""1NN and the networks of a study of pairs on shifted, rotated, brighter, noisy and compressed images.

    --config=configs/corruptions.py:digits          the networks of binary_tasks.py:digits
    --config=configs/corruptions.py:cifar10,cpu     those of binary_tasks.py:cifar10,cpu

Copy the folder checkpoints/ of that study into the workdir: networks that are there are not trained again.
"""

import ml_collections

from configs import binary_tasks


def get_config(arg: str = "digits") -> ml_collections.ConfigDict:
    """Build the configuration for ``arg``, which is one of binary_tasks.py."""
    config = binary_tasks.get_config(arg)
    config.experiment = "corruptions"
    config.methods = tuple(method for method in config.methods if method != "ceiling")  # which is of threats
    small = config.dataset == "digits"  # images of 8 x 8
    config.corruptions = ml_collections.ConfigDict(
        {
            "shift": (0.25, 0.5, 1.0, 2.0) if small else (1.0, 2.0, 3.0, 4.0),  # pixels
            "rotation": (5.0, 10.0, 20.0, 30.0),  # degrees
            "brightness": (0.05, 0.1, 0.2, 0.3),
            "noise": (0.05, 0.1, 0.2, 0.3),  # standard deviation
            "jpeg": (20.0, 50.0, 80.0, 90.0),  # 100 less the quality
        }
    )
    return config
