"""Published networks: what they are, their weights as Flax variables, any PyTorch classifier as a JAX function."""

from nn_adv.zoo.files import read_state_dict, write_state_dict
from nn_adv.zoo.torch_bridge import from_torch

__all__ = ["from_torch", "read_state_dict", "write_state_dict"]
