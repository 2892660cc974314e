"""Data sets in, tasks out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nn_adv.data import sources
from nn_adv.data.dataset import Dataset
from nn_adv.data.manifolds import manifolds
from nn_adv.data.npz import load_npz
from nn_adv.data.sources import DATASETS, load
from nn_adv.data.tasks import KINDS, Task, tasks

if TYPE_CHECKING:
    from nn_adv.data.preparation import prepare

__all__ = ["DATASETS", "Dataset", "KINDS", "Task", "load", "load_npz", "manifolds", "prepare", "tasks"]


def __getattr__(name: str) -> Any:
    if name == "prepare":
        return sources.of_tfds("preparation").prepare
    raise AttributeError(f"module 'nn_adv.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
