"""Two processes that know of each other (`jax.distributed`) have the answers of one."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import two_processes

_ROOT = pathlib.Path(two_processes.__file__).parents[1]


@pytest.mark.slow
def test_two_processes_have_the_answers_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, two_processes.__file__]
    started = [subprocess.Popen([*command, str(i), str(port), str(tmp_path)], env=environment) for i in range(2)]
    try:
        assert [process.wait(timeout=500) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    expected = two_processes.answers(two_processes.points(), None)
    for process in range(2):
        found = np.load(tmp_path / f"{process}.npz")
        for name, values in expected.items():
            if name in ("soft", "loss"):
                np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)
            else:
                np.testing.assert_array_equal(found[name], values, err_msg=name)
