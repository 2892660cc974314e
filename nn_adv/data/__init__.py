"""Data sets in, tasks out."""

try:
    from nn_adv.data.dataset import Dataset
    from nn_adv.data.manifolds import manifolds
    from nn_adv.data.npz import load_npz
    from nn_adv.data.preparation import prepare
    from nn_adv.data.sources import DATASETS, load
    from nn_adv.data.tasks import KINDS, Task, tasks
except ModuleNotFoundError as error:
    raise ImportError(f"nn_adv.data needs {error.name}: pip install 'nn_adv[data]'") from error

__all__ = ["DATASETS", "Dataset", "KINDS", "Task", "load", "load_npz", "manifolds", "prepare", "tasks"]
