"""nn_adv: exact robustness of the 1-nearest-neighbour classifier, beside adversarially trained networks."""

__version__ = "0.1.0"
