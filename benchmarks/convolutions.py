"""How fast are convolutions and their two gradients one by one, here, as JAX makes them, and in PyTorch?

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python -m benchmarks.convolutions
  taskset -c 0 python -m benchmarks.convolutions --layers wrn_28_10

"small" are the layers of the strided network that a CPU trains, and others of its sizes, in batches of 128;
"wrn_28_10" are those of WRN-28-10, in batches of 16. All are 3x3 in float32, and PyTorch has the faster of its two
layouts. What each computes is compared first; then all take turns, and medians of processor time are reported, which
other programs on the machine disturb less than wall time.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks.timing import command, environment, keep, take_turns
from nn_adv.models.convolution import conv_general_dilated

# Batch, then pixels a side, channels in and out, stride.
_LAYERS = {
    "small": (
        128,
        (
            (32, 3, 16, 1),
            (32, 16, 16, 2),
            (16, 16, 32, 1),
            (16, 32, 32, 2),
            (8, 32, 64, 2),
            (32, 16, 16, 1),
            (8, 64, 64, 1),
            (28, 1, 16, 1),
        ),
    ),
    "wrn_28_10": (
        16,
        (
            (32, 3, 16, 1),
            (32, 16, 160, 1),
            (32, 160, 160, 1),
            (32, 160, 320, 2),
            (16, 320, 320, 1),
            (16, 320, 640, 2),
            (8, 640, 640, 1),
        ),
    ),
}
_OPERATIONS = ("forward", "images", "kernel")
_LAYOUTS = ("channels_last", "contiguous_format")
# Of the largest number: sums of 131072 products in single precision, in different orders.
_TOLERANCE = 1e-4


def main() -> None:
    """Print a line for each layer and operation, and with ``--output`` write them."""
    parser = command(__doc__, repeats=15)
    parser.add_argument("--layers", default="small", choices=list(_LAYERS))
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batch, layers = _LAYERS[arguments.layers]
    report: dict = {"environment": environment("torch"), "batch": batch, "dtype": "float32", "rows": []}
    for layer in layers:
        for operation in _OPERATIONS:
            row = _measure(batch, layer, operation, arguments.repeats)
            report["rows"].append(row)
            times = ", ".join(f"{name} {time:.2f}" for name, time in row["milliseconds"].items())
            print(f"{row['layer']}, {operation}: {times} ms, x{row['ratio']} of PyTorch's", flush=True)
            keep(arguments.output, report)


def _measure(batch: int, layer: tuple[int, int, int, int], operation: str, repeats: int) -> dict:
    side, num_in, num_out, stride = layer
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, side, side, num_in), np.float32)
    kernel = rng.standard_normal((3, 3, num_in, num_out), np.float32)
    small = -(-side // stride)
    cotangent = rng.standard_normal((batch, small, small, num_out), np.float32)
    arrays = images, kernel, cotangent
    calls = {
        "nn_adv": _in_jax(conv_general_dilated, operation, arrays, stride),
        "JAX": _in_jax(lax.conv_general_dilated, operation, arrays, stride),
        **{layout: _in_torch(layout, operation, arrays, stride) for layout in _LAYOUTS},
    }
    want = calls["JAX"]()
    for name, call in calls.items():
        error = np.abs(np.asarray(call()) - want).max() / np.abs(want).max()
        if error > _TOLERANCE:
            raise RuntimeError(f"{name} differs by {error:.1e} of the largest number at {layer}, {operation}")
    medians = {name: 1e3 * np.median(turns[:, 1]) for name, turns in take_turns(calls, repeats).items()}
    times = {name: medians[name] for name in ("nn_adv", "JAX")}
    times["PyTorch"] = min(medians[layout] for layout in _LAYOUTS)
    return {
        "layer": f"{side}x{side}x{num_in} to {num_out}, stride {stride}",
        "operation": operation,
        "milliseconds": {name: round(time, 2) for name, time in times.items()},
        "ratio": round(times["nn_adv"] / times["PyTorch"], 2),
    }


def _in_jax(convolve, operation: str, arrays: tuple, stride: int):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def value(images, kernel):
        return convolve(images, kernel, (stride, stride), ((1, 1), (1, 1)), **options)

    def run(images, kernel, cotangent):
        if operation == "forward":
            return value(images, kernel)
        if operation == "images":
            return jax.vjp(lambda images: value(images, kernel), images)[1](cotangent)[0]
        return jax.vjp(lambda kernel: value(images, kernel), kernel)[1](cotangent)[0]

    return functools.partial(jax.jit(run), *map(jnp.asarray, arrays))


def _in_torch(layout: str, operation: str, arrays: tuple, stride: int):
    images, kernel, cotangent = map(torch.tensor, arrays)
    layout = getattr(torch, layout)
    points, outputs = (array.permute(0, 3, 1, 2).contiguous(memory_format=layout) for array in (images, cotangent))
    weights = kernel.permute(3, 2, 0, 1).contiguous(memory_format=layout)
    mask = [operation == "images", operation == "kernel", False]

    @torch.no_grad()
    def convolve():
        if operation == "forward":
            return torch.nn.functional.conv2d(points, weights, stride=stride, padding=1).permute(0, 2, 3, 1)
        gradients = torch.ops.aten.convolution_backward(
            outputs, points, weights, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
        )
        return gradients[0].permute(0, 2, 3, 1) if operation == "images" else gradients[1].permute(2, 3, 1, 0)

    return convolve


if __name__ == "__main__":
    main()
