"""The Python of the documents runs."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.slow
def test_our_side_of_other_libraries_runs():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(6, 8, 8, 3)).astype(np.float32)
    weights = rng.standard_normal((192, 4)).astype(np.float32)

    def logits_fn(x):
        return x.reshape(len(x), -1) @ weights

    found = {"images": images, "labels": np.asarray(jnp.argmax(logits_fn(images), axis=1)), "logits_fn": logits_fn}
    found |= {"X": rng.uniform(size=(30, 5)), "y": np.arange(30) % 2, "X_test": rng.uniform(size=(4, 5))}
    found["y_test"] = np.arange(4) % 2
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "other_libraries.md").read_text(), re.DOTALL):
        *lines, last = block.rstrip().splitlines()
        exec("\n".join(lines), found)
        value, _, said = last.partition("   # ")
        if last[:1] == "[":
            assert [round(score, 2) for score in eval(value, found)] == [float(number) for number in said.split(",")]
        else:
            exec(last, found)
