"""Pixels as floats, equal to NumPy's to the last bit, under jit too."""

import jax
import numpy as np
import pytest

from nn_adv.pixels import as_float, float64_pixels

EVERY = np.tile(np.arange(256).astype(np.uint8), 8).reshape(2, 8, 128)  # enough for vector instructions


@pytest.mark.parametrize("convert", [as_float, jax.jit(as_float)])
def test_every_uint8_value_equals_numpy(convert):
    np.testing.assert_array_equal(convert(EVERY), EVERY.astype(np.float32) / np.float32(255))


def test_every_uint8_value_as_float64_is_that_float32():
    with jax.enable_x64(True):
        found = jax.jit(float64_pixels)(EVERY)
    np.testing.assert_array_equal(found, (EVERY.astype(np.float32) / np.float32(255)).astype(np.float64))


def test_floats_are_passed_on():
    floats = np.array([0.1, 0.9])
    assert as_float(floats) is floats
