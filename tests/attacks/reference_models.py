"""The networks of the reference runs of APGD, rebuilt from their weights, with their images and starting points."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.models.convolution import conv_general_dilated

KEYS = {"l2": "L2", "linf": "Linf"}  # what the files call the norms


class ReferenceModel(NamedTuple):
    """A network ``[B, 16, 16, 3]`` to logits; the images it gets right, ``labels`` and ``starts`` by norm."""

    logits_fn: Callable[[jax.Array], jax.Array]
    images: np.ndarray
    labels: np.ndarray
    starts: dict[str, np.ndarray]
    epsilon: dict[str, float]


def load(folder: pathlib.Path, name: str, dtype: type = np.float32, every: int = 1) -> ReferenceModel:
    """Builds c10 or c2 with every so-manieth of the 196 images that the reference runs attack."""
    with np.load(folder / f"model_{name}.npz") as stored:
        file = dict(stored)
    rows = file["attacked_idx"][::every]
    return ReferenceModel(
        _network(file),
        channels_last(file["x"][rows]).astype(dtype),
        file["y"][rows].astype(np.int32),
        {norm: channels_last(file[f"x_init_{key}"][rows]).astype(dtype) for norm, key in KEYS.items()},
        {norm: float(file[f"eps_{key}"]) for norm, key in KEYS.items()},
    )


def channels_last(images):
    """Moves the channels of stored images ``[B, 3, H, W]`` to the end."""
    return np.moveaxis(images, 1, -1)


def _network(file):
    layers = json.loads(str(file["architecture"]))

    def logits_fn(x):
        for kind, *rest in layers:
            if kind == "affine":
                x = (x - jnp.asarray(rest[0]["mean"], x.dtype)) / jnp.asarray(rest[0]["std"], x.dtype)
            elif kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "flatten":  # the weights of the next layer go through the channels first
                x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)
            else:
                weight, bias = (jnp.asarray(file[f"param/{rest[0]}.{part}"], x.dtype) for part in ("weight", "bias"))
                x = (_convolve(x, weight, **rest[1]) if kind == "conv" else _multiply(x, weight)) + bias
        return x

    return logits_fn


def _convolve(x, weight, stride, pad):
    kernel = weight.transpose(2, 3, 1, 0)
    return conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, precision="highest")


def _multiply(x, weight):
    return jnp.matmul(x, weight.T, precision="highest")
