"""The 1-nearest-neighbour classifier: exact search in l1, l2 and linf, and a soft version to attack it with."""

from nn_adv.neighbors.pruning import prune
from nn_adv.neighbors.reference import Reference, fit
from nn_adv.neighbors.search import Neighbors, class_distances, nearest, nearest_in_class, predict
from nn_adv.neighbors.sharded import shard
from nn_adv.neighbors.soft import soft_logits
from nn_adv.neighbors.streamed import Streamed, stream
from nn_adv.precision import Products

__all__ = [
    "Neighbors",
    "Products",
    "Reference",
    "Streamed",
    "class_distances",
    "fit",
    "nearest",
    "nearest_in_class",
    "predict",
    "prune",
    "shard",
    "soft_logits",
    "stream",
]
