"""What numbers are computed in: the one place that says so, and the products of matrices that keep to it.

  what                                    operands             sums              why it is enough
  l2 scores, uint8 to uint8               `Products.integers`  int32, float32    exact: pixels less 128, and their sums
  l2 scores, floats to uint8 points       `Products.floats`    float32           the error is bounded, float64 decides
                                          (bfloat16 numbers)
  l2 scores, float points; soft logits    float32              float32           the error is bounded, float64 decides
  l1 and linf scores                      int16, float32       int32, float32    likewise
  distances measured again, subproblems   float64              float64           they decide
  networks                                their ``dtype``      their ``dtype``   what an attack claims is judged again

No product of float32 numbers may be computed in fewer digits, whatever the device does by default. Which products are
fastest differs by processor, so it is measured; the answers do not depend on it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Products", "fastest"]  # the rest is for the library

# Products of two values in -128..127 are at most 2^14, so sums of 1024 of them fit the 24 bits of a float32.
_EXACT_TERMS = 1024
_DTYPES = {"int8": jnp.int8, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
INTEGERS = ("int8", "bfloat16", "float32")
FLOATS = ("bfloat16", "float32")
_TURNS, _CHECKED = 40, 64  # of a measurement: how often, and rows that are compared with float64
_BY_ROWS = (((1,), (1,)), ((), ()))


class Products(NamedTuple):
    """In what the products of screens against uint8 points are formed.

    Attributes:
      integers: with uint8 queries: "int8", "bfloat16" or "float32".
      floats: with float queries, which are rounded to bfloat16 in any case: "bfloat16" or "float32".
    """

    integers: str
    floats: str


def check_products(products: Products) -> Products:
    """Return products; raise ValueError for something else, or other names."""
    if not isinstance(products, Products) or products.integers not in INTEGERS or products.floats not in FLOATS:
        raise ValueError(
            f"products must be Products(integers, floats), of {', '.join(INTEGERS)} and of {', '.join(FLOATS)}, "
            f"got {products!r}"
        )
    return products


def matmul_t(a: chex.Array, b: chex.Array) -> jax.Array:
    """Return ``a @ b.T`` with float32 accumulation and no reduced precision: ``[Q, d], [b, d] -> [Q, b]``."""
    return float_products(a, b, "float32")


def matmul(a: chex.Array, b: chex.Array) -> jax.Array:
    """Return ``a @ b`` as `matmul_t`: ``[Q, b], [b, d] -> [Q, d]``."""
    return lax.dot(a, b, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def centered_pixels(values: chex.Array, product: str) -> jax.Array:
    """Shift pixels of 0..255 to -128..127, as operands of a product: all hold these integers exactly."""
    return (values.astype(jnp.int16) - 128).astype(_DTYPES[product])


def rounded(values: chex.Array, product: str) -> tuple[jax.Array, jax.Array]:
    """Return floats rounded to bfloat16, as operands of a product and as float32; XLA may drop a plain cast."""
    kept = lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
    return kept.astype(_DTYPES[product]), kept


def integer_products(a: chex.Array, b: chex.Array, product: str) -> jax.Array:
    """Return exact ``a @ b.T`` of `centered_pixels` ``[Q, d], [b, d]``, in int32."""
    chunks = range(0, a.shape[-1], _EXACT_TERMS)
    parts = [float_products(a[:, i : i + _EXACT_TERMS], b[:, i : i + _EXACT_TERMS], product) for i in chunks]
    return functools.reduce(jnp.add, [part.astype(jnp.int32) for part in parts])


def float_products(a: chex.Array, b: chex.Array, product: str) -> jax.Array:
    """Return ``a @ b.T`` of operands ``[Q, d], [b, d]``; sums are in int32 for int8, and otherwise in float32."""
    accumulator = jnp.int32 if product == "int8" else jnp.float32
    return lax.dot_general(a, b, _BY_ROWS, precision=lax.Precision.HIGHEST, preferred_element_type=accumulator)


@functools.cache
def fastest() -> Products:
    """Measure, once per process, which products are fastest on the device that JAX uses; those not exact are left out.

    One line in the log (`logging`, level INFO) says what was found.
    """
    shape = (512, 1024) if jax.default_backend() == "cpu" else (4096, 1024)
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    values[:2] = [[0], [255]]  # the longest sums
    forms = {name: form for name in INTEGERS if (form := _exact_form(name, values)) is not None}
    seconds = dict.fromkeys(forms, np.inf)
    for _ in range(_TURNS):  # in turns, so that what else the machine does meets all
        for name, form in forms.items():
            start = time.perf_counter()
            form().block_until_ready()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    rates = {name: 2 * shape[0] ** 2 * shape[1] / least for name, least in seconds.items()}
    chosen = Products(*(max(set(some) & set(rates), key=rates.__getitem__) for some in (INTEGERS, FLOATS)))
    told = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    logging.getLogger(__name__).info(
        "products on %s: %s 10^9 operations a second; screens use %s between integers, %s for floats",
        jax.devices()[0].device_kind, told, *chosen,
    )  # fmt: skip
    return chosen


def _exact_form(product: str, values: np.ndarray) -> Callable[[], jax.Array] | None:
    """Return what forms the products of integers ``[n, d]`` with themselves; None where they are not exact."""
    operand = centered_pixels(jnp.asarray(values), product)
    form = functools.partial(jax.jit(functools.partial(integer_products, product=product)), operand, operand)
    signed = values.astype(np.float64) - 128
    return form if np.array_equal(form()[:_CHECKED], signed[:_CHECKED] @ signed.T) else None
