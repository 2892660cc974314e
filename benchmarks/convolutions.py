"""How fast are the convolutions of WRN-28-10 one by one, in XLA, in PyTorch, and as a matrix product of the same size?

  taskset -c 0 python benchmarks/convolutions.py

GFLOP/s of a batch of 16 in float32, medians of calls that take turns: what is left to gain for a network whose time is
in them.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import take_turns
from torch.nn import functional

from nn_adv.models.convolution import conv_general_dilated

_BATCH = 16
# Pixels a side, channels in and out, stride; how often WRN-28-10 has it. All are 3x3.
_LAYERS = {
    (32, 3, 16, 1): 1,
    (32, 16, 160, 1): 1,
    (32, 160, 160, 1): 7,
    (32, 160, 320, 2): 1,
    (16, 320, 320, 1): 7,
    (16, 320, 640, 2): 1,
    (8, 640, 640, 1): 7,
}


def main() -> None:
    """Print a line for each layer."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    for (side, num_in, num_out, stride), count in _LAYERS.items():
        images = rng.standard_normal((_BATCH, side, side, num_in), np.float32)
        kernel = rng.standard_normal((3, 3, num_in, num_out), np.float32)
        rows = _BATCH * (side // stride) ** 2
        patches = rng.standard_normal((rows, 9 * num_in), np.float32)
        calls = {
            "XLA": _in_xla(images, kernel, stride),
            "PyTorch": _in_torch(images, kernel, stride),
            "matrix product": _as_product(patches, kernel.reshape(-1, num_out)),
        }
        take_turns(calls, 1)  # compiles
        flops = 2 * rows * kernel.size
        speeds = {name: flops / np.median(turns[:, 0]) / 1e9 for name, turns in take_turns(calls, 7).items()}
        line = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
        print(f"{side}x{side}, {num_in} to {num_out}, stride {stride}, {count} of them: {line} GFLOP/s", flush=True)


def _in_xla(images: np.ndarray, kernel: np.ndarray, stride: int):
    convolve = functools.partial(conv_general_dilated, strides=(stride, stride), padding=((1, 1), (1, 1)))
    return functools.partial(_wait, jax.jit(convolve), jnp.asarray(images), jnp.asarray(kernel))


def _as_product(patches: np.ndarray, weights: np.ndarray):
    return functools.partial(_wait, jax.jit(jnp.matmul), jnp.asarray(patches), jnp.asarray(weights))


def _wait(fn, *arguments):
    return jax.block_until_ready(fn(*arguments))


def _in_torch(images: np.ndarray, kernel: np.ndarray, stride: int):
    layout = torch.channels_last
    points = torch.tensor(images).permute(0, 3, 1, 2).to(memory_format=layout)
    weights = torch.tensor(kernel).permute(3, 2, 0, 1).to(memory_format=layout)

    @torch.no_grad()
    def convolve():
        return functional.conv2d(points, weights, stride=stride, padding=1)

    return convolve


if __name__ == "__main__":
    main()
