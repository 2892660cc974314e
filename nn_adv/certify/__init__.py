"""Prove that there is no perturbation: exact radii of 1NN with certificates and witnesses, and bounds beside them."""

from nn_adv.certify.bounds.eight_bit import EightBitRadius, eight_bit_radius
from nn_adv.certify.bounds.embeddings import Embedding, average_pool, embedded_radius, low_pass, pca
from nn_adv.certify.bounds.knn import VoteBounds, vote, vote_bounds
from nn_adv.certify.bounds.margins import Separation, margin_bound, norm_ratio, separation
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
