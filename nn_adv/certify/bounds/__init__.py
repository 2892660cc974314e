"""Lower bounds beside the exact radius: by margins, on features, and for the vote of k neighbours."""

from nn_adv.certify.bounds.embeddings import Embedding, average_pool, embedded_radius, low_pass, pca
from nn_adv.certify.bounds.knn import VoteBounds, vote, vote_bounds
from nn_adv.certify.bounds.margins import Separation, margin_bound, norm_ratio, separation

__all__ = [
    "Embedding",
    "Separation",
    "VoteBounds",
    "average_pool",
    "embedded_radius",
    "low_pass",
    "margin_bound",
    "norm_ratio",
    "pca",
    "separation",
    "vote",
    "vote_bounds",
]
