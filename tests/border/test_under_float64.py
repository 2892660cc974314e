"""A part of the table of the border where JAX computes with 64 bits, in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_table_holds_under_float64():
    here = pathlib.Path(__file__).parent
    chosen = "no_images or queries or pgd or ensemble or trades"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, str(here / "test_border.py")],
        cwd=here.parents[1],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
