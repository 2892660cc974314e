"""The dearest programs on an accelerator, beside PyTorch on the same device and beside what the device can do.

  roofline      products of square matrices in each number format, and copying, in this run
  nearest       10,000 images among 50,000, uint8, beside torch.cdist and topk
  soft 1NN      the gradient of its loss at 512 images, beside the same in PyTorch
  radius        10,000 images among 50,000, ten classes, l2: seconds, compilation apart
  TRADES step   PreActResNet-18 and WRN-28-10, beside the published PyTorch step
  APGD step     on the same networks, beside a forward and backward pass in PyTorch

float32 is without TF32 in both frameworks; "tf32" allows it in both; "bfloat16" is mixed precision in both. All take
turns; medians. Each program is compiled, or chosen, before it is timed. Less than ten minutes on one GPU:

  XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks.gpu --output=docs/benchmarks/gpu.json
  python -m benchmarks.gpu --small --output=gpu.json      # anywhere, in minutes: does it run?

The file is written after each part, and a part that fails is named in it and costs no other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks.timing import command, environment, keep, take_turns
from benchmarks.trades_step import NETWORKS, Comparison
from nn_adv import Threat, attacks, certify, data, neighbors, precision

_DEVICE = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
_FORMATS = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
_TEMPERATURE = 0.1


@contextlib.contextmanager
def computed_in(name: str) -> Iterator[None]:
    """Let both frameworks compute in a format of ``_FORMATS``."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    mixed = torch.autocast(_DEVICE, torch.bfloat16, enabled=name == "bfloat16")
    with jax.default_matmul_precision("tensorfloat32" if name == "tf32" else "float32"), mixed:
        yield


def time_all(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, after one that compiles."""
    take_turns(calls, 1)  # compiles
    return {name: float(np.median(turns[:, 0])) for name, turns in take_turns(calls, repeats).items()}


class Images:
    """Points and queries, of CIFAR-10 or drawn."""

    def __init__(self, data_dir: str | None, num_points: int, num_queries: int):
        rng = np.random.default_rng(0)
        if data_dir:
            found = data.load("cifar10", data_dir=data_dir)
            self.title = found.title
            self.points, self.labels = found.train_images[:num_points], found.train_labels[:num_points]
            self.queries, self.of_queries = found.test_images[:num_queries], found.test_labels[:num_queries]
        else:
            self.title = "random pixels"
            self.points, self.queries = (
                rng.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (num_points, num_queries)
            )
            self.labels, self.of_queries = (rng.integers(0, 10, n).astype(np.int32) for n in (num_points, num_queries))
        self.reference = neighbors.fit(self.points, self.labels, 10)
        flat = (torch.tensor(x.reshape(len(x), -1), device=_DEVICE) / 255 for x in (self.points, self.queries))
        self.torch_points, self.torch_queries = flat


def roofline(arguments: argparse.Namespace, _: Images) -> dict:
    """Measure 10^12 operations a second of products, and 10^9 bytes a second of copying (read and write)."""
    size = 1024 if arguments.small else 8192
    found = {}
    for name in precision.INTEGERS:
        operand = precision.centered_pixels(jnp.zeros((size, 1024), jnp.uint8), name)
        call = jax.jit(lambda x, name=name: precision.integer_products(x, x, name))
        seconds = time_all({name: lambda call=call, operand=operand: call(operand)}, arguments.repeats)[name]
        found[f"products of integers in {name}"] = 2 * size**2 * 1024 / seconds / 1e12
    for name, dtype in _FORMATS.items():
        with computed_in(name):
            values = jnp.zeros((size, size), dtype)
            call = jax.jit(lambda x: x @ x)
            seconds = time_all({name: lambda call=call, values=values: call(values)}, arguments.repeats)[name]
        found[f"products in {name}"] = 2 * size**3 / seconds / 1e12
    values = jnp.zeros(2**24 if arguments.small else 2**28)
    copy = jax.jit(lambda x: x + 1)
    seconds = time_all({"copy": lambda: copy(values)}, arguments.repeats)["copy"]
    return found | {"copying": 2 * values.nbytes / seconds / 1e9}


def nearest(arguments: argparse.Namespace, images: Images) -> dict:
    """Time the search, and give its share of the rate of the product that it uses."""
    queries = jax.device_put(images.queries)

    def theirs():
        distances = (torch.cdist(part, images.torch_points) for part in images.torch_queries.split(1000))
        return [part.topk(1, largest=False).indices for part in distances]

    calls = {"nn_adv": lambda: neighbors.nearest(images.reference, queries), "torch.cdist and topk": theirs}
    seconds = time_all(calls, arguments.repeats)
    operations = 2 * len(queries) * images.points.size
    product = images.reference.products.integers
    return {"seconds": seconds, "product": product, "tera_operations": operations / seconds["nn_adv"] / 1e12}


def soft(arguments: argparse.Namespace, images: Images) -> dict:
    """Time the gradient of the cross-entropy through the soft 1NN."""
    queries, labels = jnp.asarray(images.queries[:512], jnp.float32) / 255, jnp.asarray(images.of_queries[:512])

    def loss(x):
        return attacks.cross_entropy(neighbors.soft_logits(images.reference, x, _TEMPERATURE), labels).sum()

    gradient = jax.jit(jax.grad(loss))
    theirs_labels = torch.tensor(images.labels, device=_DEVICE).long()
    target = torch.tensor(np.asarray(labels), device=_DEVICE).long()
    classes = [images.torch_points[theirs_labels == label] for label in range(10)]

    def theirs():
        inputs = images.torch_queries[:512].detach().requires_grad_()
        logits = [torch.logsumexp(-torch.cdist(inputs, points).square() / _TEMPERATURE, dim=1) for points in classes]
        return torch.autograd.grad(functional.cross_entropy(torch.stack(logits, 1), target, reduction="sum"), inputs)

    return {"seconds": time_all({"nn_adv": lambda: gradient(queries), "PyTorch": theirs}, arguments.repeats)}


def radius(arguments: argparse.Namespace, images: Images) -> dict:
    """Time all exact radii in l2, once what it needs is compiled, and the recheck of all opponents with it."""

    def radii():
        return certify.radius(images.reference, images.queries, images.of_queries, norm="l2")

    found = radii()
    seconds = time_all({"nn_adv": radii}, 1)
    return {"seconds": seconds, "images": len(images.queries), "exact": float(np.mean(found.is_exact))}


def _networks(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[str], Comparison]]]:
    """Yield a name, and what makes the step of a network for a threat; the format holds while it is used."""
    for network in NETWORKS[:1] if arguments.small else NETWORKS[1:]:
        for name in ["float32"] if arguments.small else _FORMATS:
            with computed_in(name):
                yield (
                    f"{network.name}, {name}",
                    lambda threat, network=network, name=name: Comparison(
                        network, threat, 4 if arguments.small else 128, torch.channels_last, _FORMATS[name]
                    ),
                )


def trades(arguments: argparse.Namespace, _: Images) -> dict:
    """Time the step of a batch in each format; in float32 the losses are compared first."""
    found = {}
    for name, step in _networks(arguments):
        for threat in ("linf", "l2"):
            one = step(threat)
            if "float32" in name:
                one.check()
            calls = {"nn_adv": one.ours, "PyTorch published": functools.partial(one.theirs, False)}
            found[f"{name}, {threat}"] = time_all(calls, arguments.repeats)
    return {"seconds": found}


def apgd(arguments: argparse.Namespace, _: Images) -> dict:
    """Time a step of APGD, from runs of few and of more steps, beside a pass to the images and back."""
    found = {}
    few, more = (1, 3) if arguments.small else (5, 25)
    for name, step in _networks(arguments):
        one = step("linf")
        one.torch_network.eval()
        attack = functools.partial(
            attacks.apgd,
            jax.tree_util.Partial(one.model.apply, one.variables),
            *one.batch,
            key=jax.random.key(0),
            threat=Threat("linf", 8 / 255),
        )

        def theirs(one=one):
            inputs = one.torch_images.detach().requires_grad_()
            loss = functional.cross_entropy(one.torch_network(inputs), one.torch_labels, reduction="sum")
            return torch.autograd.grad(loss, inputs)

        runs = {"few": functools.partial(attack, num_steps=few), "more": functools.partial(attack, num_steps=more)}
        seconds = time_all(runs | {"PyTorch, one pass": theirs}, arguments.repeats)
        found[name] = {"nn_adv": (seconds.pop("more") - seconds.pop("few")) / (more - few), **seconds}
    return {"seconds": found}


PARTS = (roofline, nearest, soft, radius, trades, apgd)


def main() -> None:
    parser = command(__doc__, repeats=5, required=True)
    parser.add_argument("--data_dir", help="tensorflow-datasets folder with cifar10; random pixels without it")
    parser.add_argument("--small", action="store_true", help="few and small arrays: to see that all parts run")
    parser.add_argument("--parts", nargs="+", default=[part.__name__ for part in PARTS], help="some of these")
    arguments = parser.parse_args()
    images = Images(arguments.data_dir, *((2000, 100) if arguments.small else (50_000, 10_000)))
    report: dict = {"environment": environment("flax", "torch"), "kind": jax.devices()[0].device_kind}
    report["data"] = images.title
    for part in PARTS:
        if part.__name__ in arguments.parts:
            try:
                report[part.__name__] = part(arguments, images)
            except Exception:  # whatever it is: the other parts still count
                report[part.__name__] = {"failed": traceback.format_exc().splitlines()[-1]}
                traceback.print_exc()
            print(part.__name__, json.dumps(report[part.__name__], indent=1), flush=True)
            keep(arguments.output, report)


if __name__ == "__main__":
    main()
