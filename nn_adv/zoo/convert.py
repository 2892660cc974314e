"""State dicts of PyTorch to variables of Flax and back, for networks whose modules bear the published names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

# What Flax calls a leaf of a collection, and PyTorch. All other names are the same.
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Axes of a kernel, by its rank, in PyTorch's order and back: HWIO to OIHW, (in, out) to (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}
# Counters that PyTorch keeps beside running statistics; they change no output.
_NEVER_USED = (r"(.*\.)?num_batches_tracked",)
_SHOWN = 3


def from_state_dict(
    model: nn.Module,
    state: Mapping[str, np.ndarray],
    *,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    unused: Iterable[str] = (),
) -> dict[str, Any]:
    """Turn a state dict into variables for ``model.apply``.

    The names of modules from the outermost to a leaf, joined by dots, are the key; only the leaves of dense,
    convolutional and normalisation layers are called differently. Kernels have their axes exchanged. A dense layer
    behind a flattening ("mlp", "small_cnn") takes its inputs in the order height, width, channels, where PyTorch has
    channels first: exchange the columns of such a kernel yourself.

    Args:
      model: a network of `nn_adv.models` whose modules bear the names of the state dict.
      state: arrays by key, of the host, without the prefixes of wrappers.
      image_shape: ``[H, W, C]`` of the images it takes.
      unused: regular expressions of keys, matched as a whole, that the network knowingly has no use for, such as an
        auxiliary head. ``num_batches_tracked`` always is.

    Returns:
      Collections of arrays in the model's dtypes: "params", "batch_stats" where it has them, and "constants" as far
      as the state dict has them (`nn_adv.models.layers.Normalize`), in the shapes they have there.

    Raises:
      ValueError: keys that are missing, left over, or of another shape, of another number of classes among them; or
        values that are no real numbers, or NaN.
    """
    if isinstance(unused, str):
        raise ValueError(f"unused must be a list of regular expressions, got the text {unused!r}")
    state = {key: np.asarray(value) for key, value in state.items()}
    wanted = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape))))
    by_key = {_key(path): path for path in wanted}
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in (*_NEVER_USED, *unused)))
    missing = [key for key, path in by_key.items() if key not in state and path[0] != "constants"]
    left_over = [key for key in state if key not in by_key and not allowed.fullmatch(key)]
    misshapen = [
        (key, state[key].shape, shape)
        for key, path in by_key.items()
        if key in state and state[key].shape != (shape := _torch_shape(path, wanted[path].shape, state[key]))
    ]
    _check(model, missing, left_over, misshapen)
    _check_values({key: state[key] for key in by_key if key in state})
    variables: dict[tuple[str, ...], jax.Array] = {}
    for key, path in by_key.items():
        if key in state:
            variables[path] = jnp.asarray(_exchange(path, state[key], _FROM_TORCH), wanted[path].dtype)
    return unflatten_dict(variables)


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn variables of one of `nn_adv.models` into a state dict, the inverse of `from_state_dict`.

    A dense layer that reads a flattened map, as in `nn_adv.models.SmallCNN`, keeps our order of its inputs, channels
    last; the residual networks have none.

    Args:
      variables: collections of arrays, as ``model.init`` gives them.

    Returns:
      Arrays by key.

    Raises:
      ValueError: two leaves have one key, which no network of `nn_adv.models` has.
    """
    state: dict[str, np.ndarray] = {}
    for path, leaf in flatten_dict(variables).items():
        key = _key(path)
        if key in state:
            raise ValueError(f"variables have two leaves with the key {key!r}")
        state[key] = np.array(_exchange(path, np.asarray(leaf), _TO_TORCH), order="C")
    return state


def _key(path: tuple[str, ...]) -> str:
    collection, *modules, leaf = path
    # A module named "" stands for the one that holds it.
    return ".".join([name for name in modules if name] + [_LEAVES.get((collection, leaf), leaf)])


def _exchange(path, array, orders):
    is_kernel = path[0] == "params" and path[-1] == "kernel"
    return array.transpose(orders[array.ndim]) if is_kernel else array


def _torch_shape(path, shape, value):
    """Give the shape a leaf of ``shape`` must have in the state dict; constants may have any of their size."""
    if path[0] == "constants" and value.size == np.prod(shape, dtype=int):
        return value.shape
    if path[-1] == "kernel":
        return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
    return tuple(shape)


def _check(model, missing, left_over, misshapen) -> None:
    """Raise ValueError, in one line, for all that does not fit."""
    if not (missing or left_over or misshapen):
        return
    name, classes = type(model).__name__, getattr(model, "num_classes", None)
    given = {got[0] for _, got, shape in misshapen if shape and shape[0] == classes and got[1:] == shape[1:]}
    is_head = len(given) == 1 and all(shape[:1] == (classes,) and got[1:] == shape[1:] for _, got, shape in misshapen)
    if is_head and not missing and not left_over:
        raise ValueError(f"the state dict is of a network for {given.pop()} classes, {name} was made for {classes}")
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if left_over:
        problems.append(f"{len(left_over)} left over ({_some(left_over)})")
    if misshapen:
        shapes = [f"{key}: {list(got)} instead of {list(shape)}" for key, got, shape in misshapen]
        problems.append(f"{len(misshapen)} of another shape ({_some(shapes)})")
    raise ValueError(f"the state dict does not fit {name}; of its keys, {'; '.join(problems)}")


def _check_values(state: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for values that no network can have been trained to."""
    for key, value in state.items():
        if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
            raise ValueError(f"the state dict has no real numbers as {key!r}, but {value.dtype}")
        if np.isnan(value).any():
            raise ValueError(f"the state dict has NaN as {key!r}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
