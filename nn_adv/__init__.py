"""Exact robustness of the 1-nearest-neighbour classifier to small perturbations, beside adversarially trained networks.

``nn_adv.Threat``, ``nn_adv.as_float`` and the submodules are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn_adv import attacks, certify, data, estimator, evaluation, models, neighbors, training, zoo
    from nn_adv.pixels import as_float
    from nn_adv.threat import Threat

__version__ = "0.1.0"
__all__ = [
    "Threat",
    "as_float",
    "attacks",
    "certify",
    "data",
    "estimator",
    "evaluation",
    "models",
    "neighbors",
    "training",
    "zoo",
]
_MODULES = {"Threat": "nn_adv.threat", "as_float": "nn_adv.pixels"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in __all__:
        return importlib.import_module(f"nn_adv.{name}")
    raise AttributeError(f"module 'nn_adv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
