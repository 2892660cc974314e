"""Train a network to be robust: TRADES, adversarial training and plain training."""

from nn_adv.training.crafting import Crafted, Noise, craft, draw_noise
from nn_adv.training.objectives import Aux, Batch, adversarial, standard, trades, trades_loss

__all__ = [
    "Aux",
    "Batch",
    "Crafted",
    "Noise",
    "adversarial",
    "craft",
    "draw_noise",
    "standard",
    "trades",
    "trades_loss",
]
