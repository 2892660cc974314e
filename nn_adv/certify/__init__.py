"""Prove that there is no perturbation: exact radii of 1NN with certificates and witnesses, and bounds beside them."""

from nn_adv.certify.bounds import (
    EightBitRadius,
    Embedding,
    Separation,
    VoteBounds,
    average_pool,
    eight_bit_radius,
    embedded_radius,
    low_pass,
    margin_bound,
    norm_ratio,
    pca,
    separation,
    vote,
    vote_bounds,
)
from nn_adv.certify.radius import Decision, Radius, decide, radius
from nn_adv.certify.verify import Certificate, Recheck, recheck

__all__ = [
    "Certificate",
    "Decision",
    "EightBitRadius",
    "Embedding",
    "Radius",
    "Recheck",
    "Separation",
    "VoteBounds",
    "average_pool",
    "decide",
    "eight_bit_radius",
    "embedded_radius",
    "low_pass",
    "margin_bound",
    "norm_ratio",
    "pca",
    "radius",
    "recheck",
    "separation",
    "vote",
    "vote_bounds",
]
