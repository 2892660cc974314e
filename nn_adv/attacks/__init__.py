"""Attacks: search for a perturbation that changes the prediction. What they miss is not proven robust."""

from nn_adv.attacks.common import AttackResult, example_keys
from nn_adv.attacks.losses import cross_entropy, margin
from nn_adv.attacks.pgd import pgd

__all__ = ["AttackResult", "cross_entropy", "example_keys", "margin", "pgd"]
