"""Train a network to be robust: TRADES, adversarial training and plain training."""

from nn_adv.training.inner_maximization import InnerMaximum, Noise, draw_noise, inner_maximization
from nn_adv.training.loop import History, Member, Trained, train
from nn_adv.training.objectives import Aux, Batch, adversarial, standard, trades, trades_loss
from nn_adv.training.prototypes import cluster_prototypes, learn_prototypes
from nn_adv.training.recipe import Recipe

__all__ = [
    "Aux",
    "Batch",
    "History",
    "InnerMaximum",
    "Member",
    "Noise",
    "Recipe",
    "Trained",
    "adversarial",
    "cluster_prototypes",
    "draw_noise",
    "inner_maximization",
    "learn_prototypes",
    "standard",
    "trades",
    "trades_loss",
    "train",
]
