"""What GPUs and TPUs will see: every jitted entry point is lowered for both, on the path that they take.

No accelerator is needed. The library asks `jax.default_backend` where paths differ, which is made to say "gpu" here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nn_adv import Threat, attacks, models, neighbors, training
from nn_adv.certify import screening, subproblems
from nn_adv.certify.bounds import knn_attack, knn_counting
from nn_adv.neighbors import search, soft
from nn_adv.training import steps

_QUICK = ("nearest, l2, floats to uint8", "scores", "pgd")
# Where float64 is in a program, and why. It is slow on GPUs and emulated on TPUs, so it is for few numbers.
DECIDES = "distances of a few points are measured again, and decide"
PROVES = "bounds and multipliers prove something"
ROUNDS = "uint8 pixels are divided by 255 with one rounding"
NEVER = ""


class Entry(NamedTuple):
    """A jitted function, a call of it (static arguments by keyword), and why there is float64 in it."""

    function: Callable[..., Any]
    arguments: Callable[[], tuple]
    options: dict[str, Any]
    float64: str


def _images(dtype: str = "float32", count: int = 8) -> np.ndarray:
    values = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return values if dtype == "uint8" else values / np.float32(255)


@functools.cache
def _reference(dtype: str) -> neighbors.Reference:
    products = neighbors.Products("int8", "bfloat16")
    return neighbors.fit(_images(dtype, 64), np.arange(64) % 3, 3, products=products)


def _search(points: str, queries: str) -> Callable[[], tuple]:
    return lambda: (_reference(points), _images(queries).reshape(8, -1))


def _problems() -> tuple:
    rng, size, width, d = np.random.default_rng(0), 8, 8, 64
    points = rng.random((size, d)), rng.random((size, d)), rng.random((size, width, d))
    ones = np.ones(size)
    flags, multipliers = np.ones((size, width), bool), np.zeros((size, width))
    return (
        *points,
        flags,
        multipliers,
        ones,
        np.zeros((size, d)),
        np.zeros(size, np.int32),
        ones,
        ones,
        0 * ones,
        ones,
    )


_MODEL = models.create("strided_cnn", 3, widths=(4,), strides=(2,))
_THREATS = (Threat("linf", 0.1), Threat("l2", 0.5))
_RECIPE = training.Recipe(threats=_THREATS, num_steps=2, num_epochs=1, batch_size=4, select_every=1, select_steps=2)


def _logits(images):
    return jnp.stack([images.mean(axis=(1, 2, 3)), images.max(axis=(1, 2, 3)), images.min(axis=(1, 2, 3))], axis=1)


def _attack(name: str, norm: str, **options) -> Entry:
    def attack(images, labels, key):
        return getattr(attacks, name)(_logits, images, labels, key=key, threat=Threat(norm, 0.1), **options)

    return Entry(jax.jit(attack), lambda: (_images(), np.arange(8) % 3, jax.random.key(0)), {}, NEVER)


def _train() -> tuple:
    state = steps.init(_MODEL, _RECIPE, jax.random.key(0), (8, 8, 1), grouped=False)
    return state, _images("uint8"), np.zeros((2, 4), np.int32), np.zeros((2, 4), np.int32), jax.random.key(1)


def _measure() -> tuple:
    return _train()[0], _images("uint8"), np.arange(4), np.zeros(4, np.int32), jax.random.key(1)


def _reach() -> tuple:
    own = _images(count=8).reshape(8, 1, 64)
    return _reference("float32"), _images().reshape(8, -1), own, np.ones((8, 1), bool), np.ones(8, np.float32)


_ENTRIES = {
    "nearest, l2, uint8": Entry(search._nearest, _search("uint8", "uint8"), {"k": 3, "norm": "l2"}, DECIDES),
    "nearest, l2, floats to uint8": Entry(
        search._nearest, _search("uint8", "float32"), {"k": 1, "norm": "l2"}, DECIDES
    ),
    "nearest, l2, floats": Entry(search._nearest, _search("float32", "float32"), {"k": 1, "norm": "l2"}, DECIDES),
    "nearest, l1": Entry(search._nearest, _search("uint8", "uint8"), {"k": 1, "norm": "l1"}, DECIDES),
    "nearest, linf": Entry(search._nearest, _search("float32", "float32"), {"k": 1, "norm": "linf"}, DECIDES),
    "nearest_in_class": Entry(
        search._nearest_in_class, lambda: (*_search("uint8", "uint8")(), np.int32(1)), {"k": 2}, DECIDES
    ),
    "class_distances": Entry(search._class_distances, _search("uint8", "uint8"), {"norm": "l2"}, DECIDES),
    "soft_logits": Entry(
        jax.jit(jax.grad(lambda q, r: soft.soft_logits(r, q, 0.1).sum())),
        lambda: _search("float32", "float32")()[::-1], {}, NEVER,
    ),
    "scores": Entry(screening._score, _search("uint8", "uint8"), {}, NEVER),
    "linf reach": Entry(
        screening._linf_reach, _reach, {"pixel_range": (np.float32(0), np.float32(1)), "bounds": (0.0, 1.0)}, NEVER
    ),
    **{
        f"subproblems, {norm}": Entry(
            subproblems._solve_all, _problems, {"norm": norm, "bounds": (0.0, 1.0), "one_by_one": False}, PROVES
        )
        for norm in ("l2", "l1", "linf")
    },
    "votes counted": Entry(knn_counting._scores, lambda: (_reference("float32"), _images().reshape(8, -1)), {}, NEVER),
    "votes": Entry(knn_attack.winner, lambda: (np.zeros((8, 3), np.int32),), {"num_classes": 3}, NEVER),
    "pgd": _attack("pgd", "linf", num_steps=2),
    "apgd": _attack("apgd", "l2", num_steps=5),
    "apgd, l1": _attack("apgd", "l1", num_steps=5),
    "square": _attack("square", "linf", num_steps=3),
    "a training step": Entry(
        functools.partial(steps.advance, _MODEL, _RECIPE), _train, {"steps_per_epoch": 2, "grouped": False}, ROUNDS
    ),
    "held-out accuracy": Entry(
        functools.partial(steps.count_correct, _MODEL, _RECIPE), _measure, {"grouped": False}, ROUNDS
    ),
}  # fmt: skip


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", sorted(_ENTRIES, key=lambda name: name not in _QUICK))
def test_entry_points_are_lowered_for_accelerators(name, monkeypatch):
    entry = _ENTRIES[name]
    arguments = entry.arguments()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    with jax.enable_x64(entry.float64 == PROVES):
        function = jax.jit(functools.partial(entry.function, **entry.options))
        lowered = export.export(function, platforms=["cuda", "tpu"])(*arguments)
    jax.clear_caches()
    text = str(lowered.mlir_module())
    assert lowered.platforms == ("cuda", "tpu")
    assert not re.search(r"callback", text), "nothing calls the host"
    assert bool(re.search(r"tensor<(\d+x)*f64>", text)) == bool(entry.float64)
