"""Records of what failed, and the reasons in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import failures


def _reason(tmp_path, error):
    failures.record(tmp_path, "digits/One", failures.describe(error))
    return failures.read(tmp_path)["digits/One"]["reason"]


def _error_of(fn):
    try:
        jax.block_until_ready(jax.jit(fn)(jnp.ones(2)))
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _in_a_callback(images):
    def call(_):
        raise RuntimeError("first line\n  and its second")

    return jax.pure_callback(call, jax.ShapeDtypeStruct((2,), jnp.float32), images)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("a\n  b"), "a b"),
        (ValueError("x" * 2000), "x" * 2000),  # of the project: the remedy stands at its end
        (OSError(), "no message"),
        (RuntimeError("x" * 2000), f"RuntimeError: {'x' * 486} ..."),
        (
            MemoryError("x.pt does not fit into memory"),
            "out of memory, a batch_size may be lower: MemoryError",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nmore"),
            "out of memory, a batch_size may be lower: RuntimeError: RESOURCE_EXHAUSTED: Out of memory",
        ),
        (_error_of(_in_a_callback), "RuntimeError: first line and its second"),
        (_error_of(lambda images: jnp.asarray(np.asarray(images))), "it uses NumPy on the images: use jax.numpy"),
    ],
    ids=range(8),
)
def test_a_reason_is_one_line_that_names_the_error(tmp_path, error, reason):
    found = _reason(tmp_path, error)
    assert found.startswith(reason) and "\n" not in found


def test_records_that_cannot_be_read_are_left_out(tmp_path):
    failures.record(tmp_path, "digits/One", failures.describe(ValueError("why")))
    for name, content in (("half", "{"), ("other", json.dumps([1])), ("nameless", "{}")):
        (tmp_path / "failures" / f"{name}.json").write_text(content)
    assert set(failures.read(tmp_path)) == {"digits/One"}
    failures.forget(tmp_path, "digits/One")
    assert failures.read(tmp_path) == {}
