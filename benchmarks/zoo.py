"""How fast are converted networks in Flax, beside the same modules in PyTorch in the same run?

Timed are the logits, and the gradient of the cross-entropy at the images, forward and backward, which is what a step of
an attack costs. The weights are drawn, taken from PyTorch and converted. Logits and gradients are compared first. Then
all take turns, and medians of wall and of processor time are reported (other programs on the machine disturb the latter
less), with the speed relative to PyTorch in float32 in the faster of its layouts: above 1 is faster. "bridge" is the
PyTorch module called from a compiled JAX program (`nn_adv.zoo.from_torch`); it uses PyTorch's channels first. For
bfloat16 the change of the logits is stated, relative to the largest of the batch, and the share of images whose
prediction stays; networks of random weights decide less clearly than trained ones.

On a GPU both frameworks use TF32 in float32. JAX's preallocation would leave PyTorch no memory there: switch it off.

  taskset -c 0 python -m benchmarks.zoo --output=docs/benchmarks/zoo.json
  XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.zoo --batch_size=256 --repeats=20 --output=zoo-gpu.json

The file keeps the networks of earlier runs.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.timing import command, environment, keep, kept, take_turns
from benchmarks.torch_models import PreActResNet18, WideResNet, draw_statistics
from nn_adv import attacks, models, zoo

# For each name of `models.create`: the module, the options of both, and those that make a small one.
NETWORKS: dict[str, tuple[type, dict, dict]] = {
    "preact_resnet18": (PreActResNet18, {"width": 64}, {"width": 8}),
    "wide_resnet": (WideResNet, {"depth": 28, "widen_factor": 10}, {"depth": 10, "widen_factor": 1}),
}
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
PASSES = ("forward", "forward and backward")
# Of logits and of gradients, relative in l2: float32, and TF32 on GPUs. A unit at the kink of a ReLU may be rounded to
# either side and then changes the gradient of its whole image.
_TOLERANCES = {"cpu": (1e-5, 1e-2), "gpu": (1e-2, 1e-1)}


class Comparison:
    """One network with the same weights in both frameworks."""

    def __init__(self, name: str, options: dict, batch_size: int):
        torch.manual_seed(0)
        self.module = draw_statistics(NETWORKS[name][0](10, **options)).requires_grad_(False)
        self.device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        self.images = jax.random.uniform(jax.random.key(0), (batch_size, 32, 32, 3))
        self.labels = jax.random.randint(jax.random.key(1), (batch_size,), 0, 10)
        state = {key: value.numpy() for key, value in self.module.state_dict().items()}
        self.variables = zoo.from_state_dict(models.create(name, 10, **options), state)
        self.create = lambda dtype: models.create(name, 10, dtype=dtype, **options)

    def flax(self, dtype: str) -> dict[str, Callable]:
        """Return the passes of the port."""
        return self._compiled(jax.tree_util.Partial(self.create(dtype).apply, self.variables))

    def bridge(self) -> dict[str, Callable]:
        """Return the passes of the PyTorch module inside JAX."""
        return self._compiled(zoo.from_torch(copy.deepcopy(self.module).to(self.device), 10))

    def _compiled(self, logits_fn) -> dict[str, Callable]:
        forward = jax.jit(lambda fn, images: fn(images))
        gradient = jax.jit(jax.grad(lambda images, fn: jnp.sum(attacks.cross_entropy(fn(images), self.labels))))
        calls = lambda: forward(logits_fn, self.images), lambda: gradient(self.images, logits_fn)
        return dict(zip(PASSES, calls, strict=True))

    def torch(self, dtype: str, layout: str) -> dict[str, Callable]:
        """Return the passes in PyTorch, on images that have its device and layout already."""
        like = {"device": self.device, "dtype": getattr(torch, dtype), "memory_format": LAYOUTS[layout]}
        module = copy.deepcopy(self.module).to(**like)
        images = torch.tensor(np.moveaxis(np.asarray(self.images), 3, 1).copy()).to(**like)
        labels = torch.tensor(np.asarray(self.labels), device=self.device).long()

        def forward():
            with torch.no_grad():
                return module(images)

        def gradient():
            inputs = images.detach().requires_grad_()
            loss = functional.cross_entropy(module(inputs), labels, reduction="sum")
            return torch.autograd.grad(loss, inputs)[0].permute(0, 2, 3, 1)

        return dict(zip(PASSES, (forward, gradient), strict=True))


def run_network(name: str, options: dict, batch_size: int, repeats: int, dtypes: list[str]) -> dict:
    """Check and time one network; return rows, and what bfloat16 changes."""
    comparison = Comparison(name, options, batch_size)
    contestants = {("nn_adv", dtype): comparison.flax(dtype) for dtype in dtypes}
    contestants["bridge", "float32"] = comparison.bridge()
    contestants |= {
        (f"PyTorch, {layout}", dtype): comparison.torch(dtype, layout) for dtype in dtypes for layout in LAYOUTS
    }
    results = {key: [_numpy(passes[which]()) for which in PASSES] for key, passes in contestants.items()}  # compiles
    check(results)
    rows = []
    for which in PASSES:
        seconds = take_turns({key: passes[which] for key, passes in contestants.items()}, repeats)
        rows += make_rows(which, seconds, batch_size)
    precision = {
        who: compare(results[who, "float32"][0], logits)
        for (who, dtype), (logits, _) in results.items()
        if dtype == "bfloat16"
    }
    return {"options": options, "batch": list(comparison.images.shape), "rows": rows, "bfloat16": precision}


def check(results: dict[tuple[str, str], list[np.ndarray]]) -> None:
    """Raise if logits or gradients in float32 differ from PyTorch's."""
    expected = results["PyTorch, channels first", "float32"]
    for (who, dtype), found in results.items():
        for which, ours, theirs, limit in zip(PASSES, found, expected, _TOLERANCES[jax.default_backend()], strict=True):
            difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            if dtype == "float32" and not difference <= limit:
                raise RuntimeError(f"{who}, {which}: off by {difference:.1e}, relatively")


def compare(exact: np.ndarray, rounded: np.ndarray) -> dict[str, float]:
    """Say how far logits are from those in float32."""
    deviation = np.abs(rounded - exact).max() / np.abs(exact).max()
    return {
        "largest_deviation": round(float(deviation), 5),
        "equal_predictions": float(np.mean(rounded.argmax(axis=1) == exact.argmax(axis=1))),
    }


def make_rows(which: str, seconds: dict, batch_size: int) -> list[dict]:
    """Make one line for each contestant of a pass."""
    median = {key: np.median(turns, axis=0) for key, turns in seconds.items()}
    peers = [times for (who, dtype), times in median.items() if "PyTorch" in who and dtype == "float32"]
    best_wall, best_processor = np.min(peers, axis=0)
    return [
        {
            "name": who,
            "dtype": dtype,
            "pass": which,
            "seconds": round(float(wall), 5),
            "spread": [round(float(limit), 5) for limit in (turns[:, 0].min(), turns[:, 0].max())],
            "processor_seconds": round(float(processor), 5),
            "images_per_second": round(batch_size / float(wall), 1),
            "speed": round(float(best_wall / wall), 2),
            "processor_speed": round(float(best_processor / processor), 2),
        }
        for ((who, dtype), turns), (wall, processor) in zip(seconds.items(), median.values(), strict=True)
    ]


def _numpy(result) -> np.ndarray:
    return result.float().cpu().numpy() if isinstance(result, torch.Tensor) else np.asarray(result, np.float32)


def main() -> None:
    """Run the networks and print, and with ``--output`` write, the results."""
    parser = command(__doc__, repeats=5)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX does; nothing on CPUs
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    report = kept(arguments.output)
    dtypes = sorted({"float32", *arguments.dtypes}, reverse=True)
    for name in arguments.networks:
        options = NETWORKS[name][2 if arguments.small else 1]
        result = run_network(name, options, arguments.batch_size, arguments.repeats, dtypes)
        report[name] = {"environment": environment("flax", "torch"), "repeats": arguments.repeats} | result
        print(f"{name} {options}, batch {result['batch']}")
        for row in result["rows"]:
            label = f"{row['name']}, {row['dtype']}"
            wall, processor = f"{row['seconds']:9.4f} s", f"{row['processor_seconds']:9.4f} s"
            speeds = f"{wall} x{row['speed']:<6}{processor} x{row['processor_speed']}"
            print(f"  {row['pass']:22}{label:36}{speeds}", flush=True)
        print(f"  bfloat16: {result['bfloat16']}")
        keep(arguments.output, report)


if __name__ == "__main__":
    main()
