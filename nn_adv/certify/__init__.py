"""Prove that there is no perturbation: exact radii of 1NN, with certificates and witnesses; other bounds beside them."""

from nn_adv.certify.radius import Certificate, Decision, Radius, decide, radius

__all__ = ["Certificate", "Decision", "Radius", "decide", "radius"]
