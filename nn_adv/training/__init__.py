"""Train a network to be robust: TRADES, adversarial training and plain training."""

from nn_adv.training.crafting import Crafted, Noise, craft, draw_noise
from nn_adv.training.loop import History, Member, Trained, train
from nn_adv.training.objectives import Aux, Batch, adversarial, standard, trades, trades_loss
from nn_adv.training.recipe import Recipe

__all__ = [
    "Aux",
    "Batch",
    "Crafted",
    "History",
    "Member",
    "Noise",
    "Recipe",
    "Trained",
    "adversarial",
    "craft",
    "draw_noise",
    "standard",
    "trades",
    "trades_loss",
    "train",
]
