"""What is computed in which numbers: the policy of `nn_adv.precision`, in what is compiled and in what comes out."""

from __future__ import annotations

import logging
import re
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import neighbors, precision
from nn_adv.certify import screening
from nn_adv.neighbors import search, soft

# Every name of both fields.
CHOICES = [
    precision.Products(*names) for names in (("int8", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32"))
]
_DOT = re.compile(
    r"stablehlo.dot_general.*?precision = \[(\w+), (\w+)\]"
    r".*?: \(tensor<.*?(\w+)>, tensor<.*?(\w+)>\) -> tensor<.*?(\w+)>"
)


def _images(seed: int, count: int, dtype: str = "uint8", size: int = 1030) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (count, size)).astype(np.uint8)
    return values if dtype == "uint8" else np.clip(values / np.float32(255) + np.float32(0.01), 0, 1)


def _products(program) -> set[tuple[str, str, str]]:
    """Return precision, operands and sums of all products of matrices in a lowered program."""
    found = {match.groups() for line in program.as_text().splitlines() if (match := _DOT.search(line))}
    assert all(one[0] == one[1] and one[2].split("x")[-1] == one[3].split("x")[-1] for one in found)
    return {(one[0], *(name.split("x")[-1] for name in one[3:])) for one in found}


@pytest.mark.parametrize(
    ("product", "operand", "total"), [("int8", "i8", "i32"), ("bfloat16", "bf16", "f32"), ("float32", "f32", "f32")]
)
def test_screens_multiply_in_what_was_chosen(product, operand, total):
    reference = neighbors.fit(_images(0, 40), np.zeros(40, int), 1, products=precision.Products(product, "bfloat16"))
    for lower in (
        lambda queries: search._nearest.lower(reference, queries, k=2, norm="l2"),
        lambda queries: screening._score.lower(reference, queries),
    ):
        assert _products(lower(_images(1, 5))) == {("HIGHEST", operand, total)}
        assert _products(lower(_images(1, 5, "float32"))) == {("HIGHEST", "bf16", "f32")}


def test_float_points_are_multiplied_in_float32_whatever_the_default():
    reference = neighbors.fit(_images(0, 40, "float32"), np.zeros(40, int), 1)
    queries = _images(1, 5, "float32")
    with jax.default_matmul_precision("bfloat16"):
        programs = [
            search._nearest.lower(reference, queries, k=2, norm="l2"),
            jax.jit(jax.grad(lambda q: soft.soft_logits(reference, q, 0.1).sum())).lower(queries),
        ]
        a, b = (np.random.default_rng(i).standard_normal((8, 1024)).astype(np.float32) for i in range(2))
        found = precision.matmul_t(a, b)
    for program in programs:
        assert _products(program) == {("HIGHEST", "f32", "f32")}
    bound = 1024 * 2.0**-24 * np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    assert (np.abs(found - a.astype(np.float64) @ b.astype(np.float64).T) <= bound).all()


def test_what_is_compiled_keeps_the_operands():
    reference = neighbors.fit(_images(0, 40), np.zeros(40, int), 1, products=precision.Products("int8", "float32"))
    text = search._nearest.lower(reference, _images(1, 5), k=1, norm="l2").compile().as_text()
    products = [line for line in text.splitlines() if re.search(r" dot\(", line)]
    assert products and all(re.search(r"s32\[\S* dot\(s8|s32\[.*dot\(", line) for line in products)


def test_rounding_to_bfloat16_is_seen():
    values = np.float32([100.24, -0.3, 127.0])
    low, kept = jax.jit(precision.rounded, static_argnums=1)(values, "bfloat16")
    np.testing.assert_array_equal(low.astype(jnp.float32), kept)
    np.testing.assert_allclose(kept, [100.0, -0.30078125, 127.0])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_answers_do_not_depend_on_the_choice(dtype):
    labels, queries, found = np.arange(60) % 3, _images(1, 7, dtype), []
    for products in CHOICES:
        reference = neighbors.fit(_images(0, 60), labels, 3, products=products)
        found.append(neighbors.nearest(reference, queries, 3))
    for one in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], one)


def test_the_choice_is_measured_once_and_told(caplog, monkeypatch):
    def form(product, values):  # "int8" is not exact here
        took = {"bfloat16": 0.004, "float32": 0.001}.get(product)
        return took and (lambda: types.SimpleNamespace(block_until_ready=lambda: time.sleep(took)))

    precision.fastest.cache_clear()
    monkeypatch.setattr(precision, "_exact_form", form)
    with caplog.at_level(logging.INFO, "nn_adv.precision"):
        assert precision.fastest() == precision.fastest() == precision.Products("float32", "float32")
    precision.fastest.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.search(r": bfloat16 \d+, float32 \d+ 10\^9", line) and "float32 between integers" in line


def test_products_of_few_points_are_not_measured(monkeypatch):
    monkeypatch.setattr(precision, "fastest", lambda: precision.Products("int8", "bfloat16"))
    few, many = (np.zeros((count, 1024), np.uint8) for count in (4095, 4096))
    for prepare in (neighbors.fit, lambda *points: neighbors.stream(*points).head):
        assert prepare(few, np.zeros(len(few), int), 1).products == precision.Products("float32", "float32")
        assert prepare(many, np.zeros(len(many), int), 1).products == precision.Products("int8", "bfloat16")


def test_a_product_that_is_not_exact_is_left_out(monkeypatch):
    values = np.arange(16 * 1024, dtype=np.uint8).reshape(16, 1024)
    assert precision._exact_form("float32", values)().shape == (16, 16)
    monkeypatch.setattr(precision, "integer_products", lambda a, b, product: jnp.zeros((16, 16), jnp.int32))
    assert precision._exact_form("float32", values) is None


def test_other_products():
    with pytest.raises(ValueError, match=r"products must be Products\(integers, floats\), of int8, .* got 'int8'"):
        neighbors.fit(_images(0, 4), np.zeros(4, int), 1, products="int8")
