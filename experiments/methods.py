"""The methods of the experiments by name: 1NN and its variants, networks, and what no classifier exceeds."""

NEIGHBOR = "1nn"  # of all training images; "1nn+...": a variant, see `variants`
CEILING = "ceiling"  # what no classifier exceeds, see `nn_adv.evaluation.ceiling`; it stands among the methods
# Each network method: its training objective and the norms it is trained for.
NETWORKS = {
    "standard": ("standard", ()),
    "pgd-linf": ("adversarial", ("linf",)),
    "pgd-l2": ("adversarial", ("l2",)),
    "trades-linf": ("trades", ("linf",)),
    "trades-l2": ("trades", ("l2",)),
    "trades-both": ("trades", ("linf", "l2")),
}
METHODS = (NEIGHBOR, CEILING, *NETWORKS)


def is_neighbor(method: str) -> bool:
    """Tell whether a method is 1NN or a variant of it."""
    return str(method).partition("+")[0] == NEIGHBOR
