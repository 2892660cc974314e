"""Bounds beside the exact radius: by margins, on features, for the vote of k neighbours, and among 8-bit images."""

from nn_adv.certify.bounds.eight_bit import EightBitRadius, eight_bit_radius
from nn_adv.certify.bounds.embeddings import Embedding, average_pool, embedded_radius, low_pass, pca
from nn_adv.certify.bounds.knn import VoteBounds, vote, vote_bounds
from nn_adv.certify.bounds.margins import Separation, margin_bound, norm_ratio, separation

__all__ = [
    "EightBitRadius",
    "Embedding",
    "Separation",
    "VoteBounds",
    "average_pool",
    "eight_bit_radius",
    "embedded_radius",
    "low_pass",
    "margin_bound",
    "norm_ratio",
    "pca",
    "separation",
    "vote",
    "vote_bounds",
]
