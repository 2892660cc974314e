"""The networks of the reference runs of APGD, rebuilt from their weights, with their images and starting points."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ReferenceModel(NamedTuple):
    """``logits_fn`` maps images ``[B, 3, 16, 16]`` to logits; ``file`` holds the stored arrays."""

    logits_fn: Callable[[jax.Array], jax.Array]
    file: dict[str, np.ndarray]

    def attacked(self, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """Returns the correctly classified images and their labels, those the runs are about."""
        rows = self.file["attacked_idx"]
        return self.file["x"][rows].astype(dtype), self.file["y"][rows].astype(np.int32)


def load(folder: pathlib.Path, name: str) -> ReferenceModel:
    """Builds c10 or c2; channels come first, as stored, and each convolution pads one pixel on every side."""
    with np.load(folder / f"model_{name}.npz") as stored:
        file = dict(stored)
    layers = json.loads(str(file["architecture"]))

    def logits_fn(images):
        x = images
        for kind, *rest in layers:
            if kind == "affine":
                x = (x - _per_channel(rest[0]["mean"], x)) / _per_channel(rest[0]["std"], x)
            elif kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "flatten":
                x = x.reshape(x.shape[0], -1)
            elif kind == "conv":
                stride, pad = rest[1]["stride"], rest[1]["pad"]
                x = _convolve(x, file[f"param/{rest[0]}.weight"], stride, pad)
                x = x + _per_channel(file[f"param/{rest[0]}.bias"], x)
            else:
                weight, bias = (file[f"param/{rest[0]}.{part}"].astype(x.dtype) for part in ("weight", "bias"))
                x = jnp.matmul(x, weight.T, precision="highest") + bias
        return x

    return ReferenceModel(logits_fn, file)


def _convolve(x, weight, stride, pad):
    return jax.lax.conv_general_dilated(
        x, weight.astype(x.dtype), (stride, stride), [(pad, pad)] * 2, precision="highest"
    )


def _per_channel(values, x):
    return jnp.asarray(values, x.dtype)[:, None, None]
