"""Published networks: what they are, their weights as Flax variables, any PyTorch classifier as a JAX function."""

from nn_adv.zoo.convert import from_state_dict, to_state_dict

try:
    from nn_adv.zoo.entries import Entry, File, catalogue, find
    from nn_adv.zoo.files import read_state_dict, write_state_dict
    from nn_adv.zoo.load import Model, fingerprints, has_weights, load
    from nn_adv.zoo.torch_bridge import from_torch
except ModuleNotFoundError as error:
    raise ImportError(f"nn_adv.zoo needs {error.name}: pip install 'nn_adv[zoo]'") from error

__all__ = [
    "Entry",
    "File",
    "Model",
    "catalogue",
    "find",
    "fingerprints",
    "from_state_dict",
    "from_torch",
    "has_weights",
    "load",
    "read_state_dict",
    "to_state_dict",
    "write_state_dict",
]
