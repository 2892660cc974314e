"""Prove that there is no perturbation: exact radii of 1NN with certificates and witnesses, and bounds beside them."""

from nn_adv.certify.embedded import embedded_radius
from nn_adv.certify.embeddings import Embedding, average_pool, low_pass, pca
from nn_adv.certify.margins import Separation, margin_bound, norm_ratio, separation
from nn_adv.certify.radius import Certificate, Decision, Radius, decide, radius
from nn_adv.certify.recheck import Recheck, recheck
from nn_adv.certify.voting import VoteBounds, vote, vote_bounds

__all__ = [
    "Certificate",
    "Decision",
    "Embedding",
    "Radius",
    "Recheck",
    "Separation",
    "VoteBounds",
    "average_pool",
    "decide",
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
