"""What the tests of experiments share: each program is compiled once for all of them and the commands they start."""

from __future__ import annotations

import os
import sys
import warnings
from typing import NamedTuple

import jax
import pytest
from absl.testing import flagsaver
from jax.experimental.compilation_cache import compilation_cache

from experiments import main
from experiments.report.figures import Drawing


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run ``python -m experiments.main`` with the flags of a command line in this process."""

    def run(command: list[str]) -> Done:
        status = 0
        argv = command[command.index("experiments.main") :]
        with monkeypatch.context() as patch, flagsaver.flagsaver():
            patch.setattr(sys, "argv", argv)  # where configurations look for their flags
            patch.setattr(warnings, "formatwarning", warnings.formatwarning)
            try:
                main.main(main.parse_flags(argv))
            except SystemExit as ended:
                status = ended.code
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The folder of `tiny_leaderboard.make_weights`."""
    from tests.experiments import tiny_leaderboard

    return tiny_leaderboard.make_weights(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def undrawn(monkeypatch):
    """Put the figures of reports together without drawing them, for tests of what a report says beside them."""
    monkeypatch.setattr(Drawing, "_saved", (b"\x89PNG", b"<svg>"))


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory):
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # it is kept for all tests, and for the next run
        yield
        return
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: jax.config.values[name] for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))  # for commands
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it has looked for a folder already
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
