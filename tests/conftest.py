"""What all tests share: the device, and the folder of prepared data sets and published outputs."""

from __future__ import annotations

import collections
import gc
import os
import pathlib

import jax
import pytest

# JAX, imported above, has read its environment; programs that tests start read this one.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
# Eight devices to split work over; what does not ask for them runs on the first.
if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a quick run take the first so many cases of a test marked `quick_cases`: the others become slow."""
    seen: collections.Counter[str] = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("quick_cases"):
            name = item.nodeid.partition("[")[0]
            seen[name] += 1
            if seen[name] > marker.args[0]:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Collect garbage less often, and not among what is imported by now: it takes a twentieth of the time otherwise."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Free what a file compiled: each program maps memory, and a process that maps too often (65,530 times) crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def fully_compiled():
    """Compile as users do, whatever the command says: for files that compute more than they compile."""
    yield from _most_optimizations_disabled(False)


@pytest.fixture(scope="module")
def quickly_compiled():
    """Compile without most optimizations: for files that compile more than they compute."""
    yield from _most_optimizations_disabled(True)


def _most_optimizations_disabled(value: bool):
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", value)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """Folder of material that is not part of the project: NN_ADV_SHARED, or ../shared beside the checkout."""
    folder = pathlib.Path(os.environ.get("NN_ADV_SHARED") or _ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}, or another one named by NN_ADV_SHARED")
    return folder


@pytest.fixture(scope="session")
def tfds_dir(shared_dir: pathlib.Path) -> pathlib.Path:
    """Folder of prepared tensorflow-datasets, a data_dir."""
    folder = shared_dir / "tfds"
    if not folder.is_dir():
        pytest.skip(f"needs prepared data sets in {folder}")
    return folder


@pytest.fixture(scope="session")
def eight_devices() -> None:
    """Skip where there are no eight devices; the quick tests simulate them on the CPU."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
