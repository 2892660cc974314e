"""What GPUs and TPUs will see: every jitted entry point is lowered for both, on the path that they take.

No accelerator is needed. The library asks `jax.default_backend` where paths differ, which is made to say "gpu" or "tpu"
here. Where their compilers are installed, which need no device either, the programs are compiled for an H100 and a TPU
v5e as well (docs/scale.md says how).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from nn_adv import Threat, attacks, models, neighbors, training
from nn_adv.certify import screening, subproblems
from nn_adv.certify.bounds import knn_attack, knn_counting
from nn_adv.neighbors import search, soft
from nn_adv.pixels import as_float
from nn_adv.training import prototypes, steps

_QUICK = ("nearest, l2, floats to uint8", "scores", "pgd")
# Where float64 is in a program, and why. It is slow on GPUs and emulated on TPUs, so it is for few numbers.
DECIDES = "distances of a few points are measured again, and decide"
PROVES = "bounds and multipliers prove something"
BOUNDS = "norms that bound an error are summed in it"
MERGES = "distances are compared with those of the points read before"
NEVER = ""
_CALLED_WITH_X64 = (PROVES, MERGES)


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
    points = None, rng.random((size, d)), rng.random((size, d)), None, rng.random((size, width, d))  # no linear map
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
_RATE = (0.1, 10)
_RECIPE = training.Recipe(threats=_THREATS, num_steps=2, num_epochs=1, batch_size=4, select_every=1, select_steps=2)


def _logits(images):
    return jnp.stack([images.mean(axis=(1, 2, 3)), images.max(axis=(1, 2, 3)), images.min(axis=(1, 2, 3))], axis=1)


def _attack(name: str, norm: str, **options) -> Entry:
    fixed = {"norm": norm} if name == "fmn" else {"threat": Threat(norm, 0.1)}

    def attack(images, labels, key):
        return getattr(attacks, name)(_logits, images, labels, key=key, **fixed, **options)

    return Entry(jax.jit(attack), lambda: (_images(), np.arange(8) % 3, jax.random.key(0)), {}, NEVER)


def _tempered(images, labels, reference, key):
    return attacks.tempered_apgd(
        lambda x, temperature: neighbors.soft_logits(reference, x, temperature), images, labels, key=key,
        threat=Threat("l2", 0.1), predict_fn=lambda x: neighbors.predict(reference, x), num_steps=5,
    )  # fmt: skip


def _mapped() -> tuple:
    reference = neighbors.fit(_images(count=64), np.arange(64) % 3, 3, linear_map=np.eye(64, dtype=np.float32)[:8])
    return reference, _images().reshape(8, -1)


def _found_so_far() -> tuple:
    return *_search("uint8", "uint8")(), np.full((8, 2), np.inf), np.full((8, 2), 9, np.int32)


def _lists() -> tuple:
    points, flags = np.zeros((8, 4, 64), np.float32), np.ones((8, 4), bool)
    return None, _images().reshape(8, -1), points, points, flags, flags  # no linear map


def _votes() -> tuple:
    return _images().reshape(8, -1), np.arange(8) % 3, np.zeros((8, 16, 64), np.float32), np.zeros((8, 16), np.int32)


def _train() -> tuple:
    state = steps.init(_MODEL, _RECIPE, jax.random.key(0), (8, 8, 1), grouped=False)
    return state, _images("uint8"), np.zeros((2, 4), np.int32), np.zeros((2, 4), np.int32), jax.random.key(1)


def _prototypes() -> tuple:
    weights = jnp.asarray(_images().reshape(8, -1))
    state = prototypes._optimizer(_RATE).init(weights)
    return weights, state, _images(count=64).reshape(64, -1), np.arange(64) % 2, np.arange(8) % 2, jax.random.key(0)


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
        search._nearest, lambda: (*_search("uint8", "uint8")(), None, np.int32(1)), {"k": 2, "norm": "l2"}, DECIDES
    ),
    "class_distances": Entry(search._class_distances, _search("uint8", "uint8"), {"norm": "l2"}, DECIDES),
    "soft_logits": Entry(
        jax.jit(jax.grad(lambda q, r: soft.soft_logits(r, q, 0.1).sum())),
        lambda: _search("float32", "float32")()[::-1], {}, NEVER,
    ),
    "nearest, linear map": Entry(search._nearest, _mapped, {"k": 1, "norm": "l2"}, DECIDES),
    "nearest, points on disk": Entry(search._nearest_of_both, _found_so_far, {"norm": "l2"}, MERGES),
    "scores": Entry(screening._score, _search("uint8", "uint8"), {}, NEVER),
    "ceiling of scores": Entry(
        screening._score_ceiling, lambda: (*_search("uint8", "float32")(), np.ones(8, np.float32)), {}, BOUNDS
    ),
    "lowest scores": Entry(
        screening._lowest, lambda: (np.ones((8, 64), np.float32), np.ones((8, 64), bool)), {"count": 4}, NEVER
    ),
    **{
        f"one constraint, {norm}": Entry(
            screening._by_one_constraint, _lists, {"norm": norm, "bounds": (0.0, 1.0)}, PROVES
        )
        for norm in ("l2", "l1", "linf")
    },
    "linf reach": Entry(
        screening._linf_reach, _reach, {"pixel_range": (np.float32(0), np.float32(1)), "bounds": (0.0, 1.0)}, NEVER
    ),
    **{
        f"subproblems, {norm}": Entry(
            subproblems._solve_together, _problems, {"norm": norm, "bounds": (0.0, 1.0)}, PROVES
        )
        for norm in ("l2", "l1", "linf")
    },
    "votes counted": Entry(knn_counting._scores, lambda: (_reference("float32"), _images().reshape(8, -1)), {}, NEVER),
    "votes": Entry(knn_attack.winner, lambda: (np.zeros((8, 3), np.int32),), {"num_classes": 3}, NEVER),
    "attack on votes": Entry(
        knn_attack.attack, _votes,
        {"k": 3, "norm": "l2", "bounds": (0.0, 1.0), "num_classes": 3, "num_steps": 2}, NEVER,
    ),
    "pgd": _attack("pgd", "linf", num_steps=2),
    "apgd": _attack("apgd", "l2", num_steps=5),
    "apgd, l1": _attack("apgd", "l1", num_steps=5),
    "square": _attack("square", "linf", num_queries=3),
    "fab": _attack("fab", "linf", num_steps=2),
    "fmn": _attack("fmn", "l2", num_steps=2),
    "tempered apgd": Entry(
        jax.jit(_tempered),
        lambda: (_images(), np.arange(8) % 3, _reference("float32"), jax.random.key(0)), {}, DECIDES,
    ),
    "a training step": Entry(
        functools.partial(steps.advance, _MODEL, _RECIPE), _train, {"steps_per_epoch": 2, "grouped": False}, NEVER
    ),
    "a training step in groups": Entry(
        functools.partial(steps.advance, _MODEL, dataclasses.replace(_RECIPE, batch_norm_groups=2)),
        _train, {"steps_per_epoch": 2, "grouped": False}, NEVER,
    ),
    "the best so far": Entry(
        steps.keep_best, lambda: (_train()[0], np.float32(0.5), np.int32(1)), {"grouped": False}, NEVER
    ),
    "a step of prototypes": Entry(
        lambda *arrays: prototypes._step(*arrays, (("l2", 0.5), ("linf", 0.1)), _RATE, 4), _prototypes, {}, NEVER
    ),
    "held-out accuracy": Entry(
        functools.partial(steps.count_correct, _MODEL, _RECIPE), _measure, {"grouped": False}, NEVER
    ),
}  # fmt: skip


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", sorted(_ENTRIES, key=lambda name: name not in _QUICK))
def test_entry_points_are_lowered_for_accelerators(name, monkeypatch):
    entry = _ENTRIES[name]
    arguments = entry.arguments()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    with jax.enable_x64(entry.float64 in _CALLED_WITH_X64):
        function = jax.jit(functools.partial(entry.function, **entry.options))
        lowered = export.export(function, platforms=["cuda", "tpu"])(*arguments)
    jax.clear_caches()
    text = str(lowered.mlir_module())
    assert lowered.platforms == ("cuda", "tpu")
    assert not re.search(r"callback", text), "nothing calls the host"
    assert bool(re.search(r"tensor<(\d+x)*f64>", text)) == bool(entry.float64)


# What its compiler must know of an H100, in the text format of XLA's GpuTargetConfigProto (NVIDIA's data sheet).
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 device_memory_size: 84978434048 memory_bandwidth: 3352320000000
}
"""


@functools.cache
def _accelerators(platform: str) -> list:
    """Devices to compile for, on which nothing runs; skips where the compiler is not installed."""
    if platform == "tpu":
        libtpu = pytest.importorskip("libtpu", reason="TPU's compiler is not installed (docs/scale.md)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # nobody answers on a machine that is not Google's
            patch.setenv("TPU_LIBRARY_PATH", libtpu.get_library_path())
            return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    pytest.importorskip("jax_plugins.xla_cuda12", reason="CUDA's compiler is not installed (docs/scale.md)")
    return topologies.get_topology_desc("h100", "cuda", topology="1x1x8", target_config=_H100).devices


def _compile(platform: str, function: Callable, arguments: Any, monkeypatch) -> jax.stages.Compiled:
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    jax.clear_caches()
    options = {"xla_gpu_autotune_level": 0} if platform == "cuda" else {}  # there is nothing to try kernels on
    compiled = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).compile(options)
    jax.clear_caches()
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", _ENTRIES)
def test_entry_points_compile_for_accelerators(name, platform, monkeypatch):
    entry, one = _ENTRIES[name], SingleDeviceSharding(_accelerators(platform)[0])
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), entry.arguments())
    with jax.enable_x64(entry.float64 in _CALLED_WITH_X64):
        _compile(platform, functools.partial(entry.function, **entry.options), arguments, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_pixels_are_not_multiplied_by_a_rounded_reciprocal(platform, monkeypatch):
    one = SingleDeviceSharding(_accelerators(platform)[0])
    compiled = _compile(platform, as_float, [jax.ShapeDtypeStruct((4096,), jnp.uint8, sharding=one)], monkeypatch)
    assert re.search(r"f32\[4096\]\S* add\(", compiled.as_text())  # of both terms, for each pixel


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(("platform", "gathers"), [("cuda", 1), ("tpu", 2)])  # a TPU's float64 is two float32
def test_a_search_over_eight_accelerators_only_gathers(platform, gathers, monkeypatch):
    axes = ("points", "queries")
    mesh = Mesh(np.array(_accelerators(platform)).reshape(8, 1), axes)

    def there(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, array.sharding.spec))

    placed = neighbors.shard(_reference("uint8"), jax.make_mesh((8, 1), axes))
    arguments = dataclasses.replace(jax.tree.map(there, placed), mesh=mesh), _images("uint8").reshape(8, -1)
    compiled = _compile(platform, functools.partial(search._nearest, k=3, norm="l2"), arguments, monkeypatch)
    collectives = re.findall(r" (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\(", compiled.as_text())
    sent = [name.removesuffix("-start") for name in collectives if not name.endswith("-done")]
    assert sent == ["all-gather"] * gathers
