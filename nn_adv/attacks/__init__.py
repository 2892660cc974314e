"""Attacks: search for a perturbation that changes the prediction. What they miss is not proven robust.

All can be jitted but the ensemble and the calls in the manner of other libraries. Outside jit each is one program: one
that is kept where ``logits_fn`` is a `jax.tree_util.Partial`; a plain function is traced at every call, since it may
have changed, and compiled where it has.
"""

from nn_adv.attacks.apgd import apgd
from nn_adv.attacks.common import AttackResult, are_probabilities, example_keys
from nn_adv.attacks.ensemble import (
    CLEAN,
    UNBROKEN,
    Attack,
    EnsembleResult,
    EnsembleState,
    count_unbroken,
    ensemble,
    named_attack,
    standard_attacks,
)
from nn_adv.attacks.fab import fab
from nn_adv.attacks.flags import eot, flags, square_flag
from nn_adv.attacks.fmn import fmn
from nn_adv.attacks.interop import art_classifier, perturb
from nn_adv.attacks.losses import cross_entropy, cross_entropy_plain, dlr, margin, targeted_dlr, targeted_margin
from nn_adv.attacks.pgd import pgd
from nn_adv.attacks.square import square
from nn_adv.attacks.tempered import tempered_apgd

__all__ = [
    "Attack",
    "AttackResult",
    "CLEAN",
    "EnsembleResult",
    "EnsembleState",
    "UNBROKEN",
    "apgd",
    "are_probabilities",
    "art_classifier",
    "count_unbroken",
    "cross_entropy",
    "cross_entropy_plain",
    "dlr",
    "ensemble",
    "eot",
    "example_keys",
    "fab",
    "flags",
    "fmn",
    "margin",
    "named_attack",
    "perturb",
    "pgd",
    "square",
    "square_flag",
    "standard_attacks",
    "targeted_dlr",
    "targeted_margin",
    "tempered_apgd",
]
