"""How long does a TRADES step take, beside a plain PyTorch step written from the loss's definition?

A step is inner maximisation, loss, gradient and SGD update in float32. Two PyTorch steps are timed. "published"
evaluates p(x) wherever the published loss does and, in l2, sends the gradient of the inner maximisation through the
weights too: 39, 69 and 105 forward-equivalents for linf, l2 and both at 10 steps. "lean" leaves out what does not
change the result, as we do: 27, 27 and 50. Weights, images and noise are the same. The losses are compared first; then
the peers take turns, and medians of wall and of processor time are reported (other programs on the machine disturb the
latter less).

  python -m benchmarks.trades_step
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import torch
from torch import nn
from torch.nn import functional

from benchmarks import torch_models
from benchmarks.timing import command, environment, keep, take_turns
from nn_adv import models, training, zoo
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
    module: type[nn.Module]
    options: dict
    shape: tuple[int, int, int]
    radii: dict[str, float]


class SmallCNN(nn.Module):
    """The network of `nn_adv.models.SmallCNN` without dropout, under its names."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3)
        self.conv3, self.conv4 = nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)
        self.dense1, self.dense2, self.head = nn.Linear(1024, 200), nn.Linear(200, 200), nn.Linear(200, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one, two in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = functional.max_pool2d(functional.relu(two(functional.relu(one(x)))), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)  # by row, column and channel, as ours
        return self.head(functional.relu(self.dense2(functional.relu(self.dense1(x)))))


_CIFAR10 = (32, 32, 3), {"linf": 8 / 255, "l2": 1.74}
NETWORKS = (
    Network("small_cnn", SmallCNN, {"dropout": 0.0}, (28, 28, 1), {"linf": 0.1, "l2": 2.8}),
    Network("preact_resnet18", torch_models.PreActResNet18, {}, *_CIFAR10),
    Network("wide_resnet", torch_models.WideResNet, {}, *_CIFAR10),
)


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
                norms = gradient.flatten(1).norm(dim=1)
                gradient = gradient / norms.view(-1, 1, 1, 1)
                if (norms == 0).any():  # as its authors do
                    gradient[norms == 0] = torch.randn_like(gradient[norms == 0])
                offset = torch.clamp(adversarial + step_size * gradient, 0, 1) - images
                adversarial = images + offset.renorm(2, 0, radius)
    return adversarial.detach()


class Comparison:
    """One network and threat: the same step three times."""

    def __init__(
        self, network: Network, threat: str, batch_size: int, layout: torch.memory_format, dtype: str = "float32"
    ):
        self.radii = network.radii if threat == "both" else {threat: network.radii[threat]}
        keys = jax.random.split(jax.random.key(0), 2)
        images = jax.random.uniform(keys[0], (batch_size, *network.shape))
        self.batch = training.Batch(images, jax.random.randint(keys[1], (batch_size,), 0, 2))
        torch.manual_seed(0)
        self.torch_network = network.module(2)
        self.model = models.create(network.name, 2, dtype=dtype, **network.options)
        state = {key: value.numpy().copy() for key, value in self.torch_network.state_dict().items()}
        self.variables = zoo.from_state_dict(self.model, state, image_shape=network.shape)
        self.noise = [training.draw_noise(key, images) for key in jax.random.split(keys[0], len(self.radii))]
        self._step = self._build()

        device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        self.torch_network.to(device=device, memory_format=layout)
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
    parser = command(__doc__, repeats=5 if on_cpu else 20)
    parser.add_argument("--networks", nargs="+", default=["small_cnn", "preact_resnet18"],
                        choices=[n.name for n in NETWORKS])  # fmt: skip
    parser.add_argument("--threats", nargs="+", default=["linf", "l2", "both"], choices=["linf", "l2", "both"])
    parser.add_argument("--batch_size", type=int, default=128, help="of small_cnn")
    parser.add_argument("--resnet_batch_size", type=int, default=8 if on_cpu else 128, help="of the other networks")
    parser.add_argument("--layout", default="contiguous_format",
                        choices=["channels_last", "contiguous_format"],
                        help="PyTorch's")  # fmt: skip
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
            keep(arguments.output, report)


if __name__ == "__main__":
    main()
