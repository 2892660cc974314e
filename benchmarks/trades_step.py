"""How long does a TRADES step take, beside a plain PyTorch step written from the loss's definition?

A step is inner maximisation, loss, gradient and SGD update in float32. Two PyTorch steps are timed. "published"
evaluates p(x) wherever the published loss does and, in l2, sends the gradient of the inner maximisation through the
weights too: 39, 69 and 105 forward-equivalents for linf, l2 and both at 10 steps. "lean" leaves out what does not
change the result, as we do: 27, 27 and 50. Weights, images and noise are the same. The losses are compared first; then
the peers take turns, and medians of wall and of processor time are reported (other programs on the machine disturb the
latter less).

  python benchmarks/trades_step.py
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import torch
from timing import environment, take_turns
from torch import nn
from torch.nn import functional

from nn_adv import models, training
from nn_adv.threat import Threat

_NUM_STEPS = 10
_BETA = 6.0
_RATE = 1e-3
# Crafting amplifies rounding: two correct float32 runs were seen to differ by .4 %.
_TOLERANCE = 0.01
_EQUIVALENTS = {"published": {"linf": 39, "l2": 69, "both": 105}, "lean": {"linf": 27, "l2": 27, "both": 50}}


class Network(NamedTuple):
    """A network in both frameworks, its images, and the radii its data is trained for."""

    name: str
    shape: tuple[int, int, int]
    options: dict
    radii: dict[str, float]


NETWORKS = (
    Network("small_cnn", (28, 28, 1), {"dropout": 0.0}, {"linf": 0.1, "l2": 2.8}),
    Network("preact_resnet18", (32, 32, 3), {"full_preactivation": True}, {"linf": 8 / 255, "l2": 1.74}),
)


class SmallCNN(nn.Sequential):
    """The network of `nn_adv.models.SmallCNN` without dropout."""

    def __init__(self, num_classes: int):
        convolutions = []
        for position, (before, after) in enumerate([(1, 32), (32, 32), (32, 64), (64, 64)]):
            convolutions += [nn.Conv2d(before, after, 3), nn.ReLU()] + [nn.MaxPool2d(2)] * (position % 2)
        dense = [nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, num_classes)]
        super().__init__(*convolutions, nn.Flatten(), *dense)


class PreActBlock(nn.Module):
    """The block of `nn_adv.models.PreActResNet`."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        resize = stride != 1 or before != after
        self.shortcut_conv = nn.Conv2d(before, after, 1, stride, bias=False) if resize else None
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.bn1(x))
        shortcut = x if self.shortcut_conv is None else self.shortcut_conv(active)
        return self.conv2(functional.relu(self.bn2(self.conv1(active)))) + shortcut


class PreActResNet18(nn.Sequential):
    """The network of `nn_adv.models.PreActResNet` with ``full_preactivation``."""

    def __init__(self, num_classes: int):
        widths = [64, 64, 128, 256, 512]
        blocks = [
            PreActBlock(widths[stage + (block > 0)], widths[stage + 1], 2 if stage and not block else 1)
            for stage in range(4)
            for block in range(2)
        ]
        last = [nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes)]
        super().__init__(nn.Conv2d(3, 64, 3, 1, 1, bias=False), *blocks, *last)


def load_weights(network: nn.Module, params: dict) -> None:
    """Copy Flax weights; both frameworks list the layers in the order in which they are applied."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    for layer, source in zip(layers, _in_order(params), strict=True):
        weight = np.asarray(source["scale"] if "scale" in source else source["kernel"])
        if weight.ndim == 4:
            weight = weight.transpose(3, 2, 0, 1)
        elif weight.ndim == 2:
            if weight.shape[0] == 1024:  # flattened 4x4x64: ours by row, column, channel; there by channel first
                weight = weight.reshape(4, 4, 64, -1).transpose(2, 0, 1, 3).reshape(1024, -1)
            weight = weight.T
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.ascontiguousarray(weight)))
            if "bias" in source:
                layer.bias.copy_(torch.tensor(np.asarray(source["bias"])))


def _in_order(params: dict) -> list[dict]:
    """List the layers of a tree of weights as the networks above list them."""
    rank = ["conv1", "conv2", "conv3", "conv4", "dense1", "dense2", "layer", "bn", "linear", "head"]
    inner = ["bn1", "shortcut.0", "conv1", "bn2", "conv2"]
    layers = []
    for name in sorted(params, key=lambda name: (rank.index("layer" if "layer" in name else name), name)):
        block = params[name]
        layers += [block[part] for part in inner if part in block] if "layer" in name else [block]
    return layers


def torch_loss(network: nn.Module, images, labels, noise: dict, radii: dict[str, float], *, lean: bool):
    """Compute the TRADES loss by its definition; ``noise`` and ``radii`` are by norm, ``lean`` as explained above."""
    network.eval()
    with torch.no_grad():
        target = functional.softmax(network(images), dim=1)

    def divergence(adversarial):
        wanted = target if lean else functional.softmax(network(images), dim=1)
        return functional.kl_div(functional.log_softmax(network(adversarial), dim=1), wanted, reduction="sum")

    found = [_torch_maximize(divergence, norm, images, noise[norm], radius, lean) for norm, radius in radii.items()]
    network.train()
    network.zero_grad()
    logits = network(images)
    loss = functional.cross_entropy(logits, labels)
    for adversarial in found:
        wanted = functional.softmax(logits if lean else network(images), dim=1)
        predicted = functional.log_softmax(network(adversarial), dim=1)
        loss = loss + _BETA / len(images) * functional.kl_div(predicted, wanted, reduction="sum")
    return loss


def _torch_maximize(divergence, norm, images, noise, radius, lean):
    """Ascend the divergence by sign steps (linf) or steps of unit norm (l2)."""
    adversarial = images + 0.001 * noise
    step_size = 2 * radius / _NUM_STEPS
    for _ in range(_NUM_STEPS):
        adversarial = adversarial.detach().requires_grad_()
        value = divergence(adversarial)
        if norm == "linf" or lean:
            (gradient,) = torch.autograd.grad(value, [adversarial])
        else:
            value.backward()
            gradient = adversarial.grad
        with torch.no_grad():
            if norm == "linf":
                moved = adversarial + step_size * gradient.sign()
                adversarial = torch.clamp(torch.minimum(torch.maximum(moved, images - radius), images + radius), 0, 1)
            else:
                gradient = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                offset = torch.clamp(adversarial + step_size * gradient, 0, 1) - images
                adversarial = images + offset.renorm(2, 0, radius)
    return adversarial.detach()


class Comparison:
    """One network and threat: the same step three times."""

    def __init__(self, network: Network, threat: str, batch_size: int, layout: torch.memory_format):
        self.radii = network.radii if threat == "both" else {threat: network.radii[threat]}
        keys = jax.random.split(jax.random.key(0), 3)
        images = jax.random.uniform(keys[0], (batch_size, *network.shape))
        self.batch = training.Batch(images, jax.random.randint(keys[1], (batch_size,), 0, 2))
        self.model = models.create(network.name, 2, **network.options)
        self.variables = jax.jit(self.model.init)(keys[2], images[:1])
        self.noise = [training.draw_noise(key, images) for key in jax.random.split(keys[0], len(self.radii))]
        self._step = self._build()

        device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        self.torch_network = (SmallCNN if network.name == "small_cnn" else PreActResNet18)(2)
        self.torch_network.to(device=device, memory_format=layout)
        self.device = device
        load_weights(self.torch_network, self.variables["params"])
        self.torch_images, *noise = (
            torch.tensor(np.moveaxis(np.asarray(array), 3, 1).copy(), device=device).to(memory_format=layout)
            for array in (images, *(noise.start for noise in self.noise))
        )
        self.torch_noise = dict(zip(self.radii, noise, strict=True))
        self.torch_labels = torch.tensor(np.asarray(self.batch.labels), device=device).long()
        self.optimizer = torch.optim.SGD(self.torch_network.parameters(), lr=_RATE, momentum=0.9)

    def _build(self) -> Callable:
        threats = tuple(Threat(norm, radius) for norm, radius in self.radii.items())
        optimizer = optax.sgd(_RATE, momentum=0.9)
        self.state = self.variables, optimizer.init(self.variables["params"])

        @jax.jit
        def step(state, batch, noise):
            variables, momentum = state

            def loss_fn(params):
                return training.trades(
                    self.model.apply, {**variables, "params": params}, batch, key=jax.random.key(1), threats=threats,
                    beta=_BETA, num_steps=_NUM_STEPS, noise=noise,
                )  # fmt: skip

            (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
            updates, momentum = optimizer.update(gradient, momentum)
            variables = {**variables, "params": optax.apply_updates(variables["params"], updates)}
            if aux.batch_stats:
                variables["batch_stats"] = aux.batch_stats
            return loss, (variables, momentum)

        return step

    def ours(self) -> float:
        loss, self.state = jax.block_until_ready(self._step(self.state, self.batch, self.noise))
        return float(loss)

    def theirs(self, lean: bool) -> float:
        loss = torch_loss(
            self.torch_network, self.torch_images, self.torch_labels, self.torch_noise, self.radii, lean=lean
        )
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def check(self) -> dict[str, float]:
        """Give the loss of each at the same weights; raise if they differ."""
        before = {name: value.clone() for name, value in self.torch_network.state_dict().items()}
        losses = {"nn_adv": self.ours()}
        for name in ("published", "lean"):
            self.torch_network.load_state_dict(before)
            losses[f"PyTorch {name}"] = self.theirs(name == "lean")
        for loss in losses.values():
            if not abs(loss - losses["nn_adv"]) <= _TOLERANCE * abs(loss):
                raise RuntimeError(f"losses differ: {losses}")
        return losses


def run_case(network: Network, threat: str, batch_size: int, layout: torch.memory_format, repeats: int) -> dict:
    """Check and time one case."""
    comparison = Comparison(network, threat, batch_size, layout)
    losses = comparison.check()
    contestants = {
        "nn_adv": comparison.ours,
        "PyTorch published": lambda: comparison.theirs(False),
        "PyTorch lean": lambda: comparison.theirs(True),
    }
    seconds = take_turns(contestants, repeats)
    rows = []
    ours = np.median(seconds["nn_adv"], axis=0)
    for name, values in seconds.items():
        wall, processor = np.median(values, axis=0)
        spread = [round(float(value), 4) for value in (values[:, 0].min(), values[:, 0].max())]
        equivalents = _EQUIVALENTS["published" if "published" in name else "lean"][threat]
        rows.append({
            "name": name, "seconds": round(wall, 4), "spread": spread,
            "processor_seconds": round(processor, 4), "forward_equivalents": equivalents,
            "ratio": round(wall / ours[0], 2), "processor_ratio": round(processor / ours[1], 2),
            "loss": round(losses[name], 6),
        })  # fmt: skip
    return {"case": f"{network.name}, {threat}", "batch": [batch_size, *network.shape], "rows": rows}


def main() -> None:
    """Run the cases and print, and with ``--output`` write, the results."""
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[n.name for n in NETWORKS], choices=[n.name for n in NETWORKS])
    parser.add_argument("--threats", nargs="+", default=["linf", "l2", "both"], choices=["linf", "l2", "both"])
    parser.add_argument("--batch_size", type=int, default=128, help="of small_cnn")
    parser.add_argument("--resnet_batch_size", type=int, default=8 if on_cpu else 128, help="of preact_resnet18")
    parser.add_argument("--layout", default="contiguous_format",
                        choices=["channels_last", "contiguous_format"],
                        help="PyTorch's")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5 if on_cpu else 20)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = getattr(torch, arguments.layout)
    report: dict = {
        "environment": environment("flax", "torch"),
        "num_steps": _NUM_STEPS,
        "dtype": "float32",
        "cases": [],
    }
    report["environment"]["torch_layout"] = arguments.layout
    for network in NETWORKS:
        size = arguments.batch_size if network.name == "small_cnn" else arguments.resnet_batch_size
        for threat in arguments.threats if network.name in arguments.networks else ():
            case = run_case(network, threat, size, layout, arguments.repeats)
            report["cases"].append(case)
            print(f"{case['case']}, batch {case['batch']}")
            for row in case["rows"]:
                wall, processor = f"{row['seconds']:8.3f} s", f"{row['processor_seconds']:8.3f} s"
                print(f"  {row['name']:18}{wall} x{row['ratio']:<6}{processor} x{row['processor_ratio']}", flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
