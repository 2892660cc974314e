"""Networks whose logits are in half precision: attacked in float32, as if they had been cast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks
from nn_adv.threat import Threat
from tests.attacks import small_networks
from tests.attacks.test_bad_classifiers import ATTACKS

pytestmark = pytest.mark.usefixtures("quickly_compiled")

KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if (name, dtype) == ("apgd", jnp.bfloat16) else pytest.mark.slow)
        for name in ATTACKS
        for dtype in (jnp.bfloat16, jnp.float16)
    ],
)
def test_half_precision_logits_are_attacked_as_their_float32_values(name, dtype):
    problem = small_networks.network(12)
    found, expected = (
        ATTACKS[name](fn, problem.images, problem.labels, key=KEY)
        for fn in (
            lambda x: problem.logits_fn(x).astype(dtype),
            lambda x: problem.logits_fn(x).astype(dtype).astype(jnp.float32),
        )
    )
    assert np.any(found.success) and found.adversarial.dtype == found.distance.dtype == np.float32
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_the_ensemble_takes_logits_and_images_in_half_precision(norm):
    problem = small_networks.network(12)
    images = problem.images.astype(jnp.bfloat16)
    suite = [attacks.named_attack(name, 4, num_steps=3) for name in ("apgd-ce", "fab-t")]
    options = {"key": KEY, "threat": Threat(norm, 0.3), "attacks": suite, "batch_size": 16}
    seen = set()

    def logits_fn(x):
        seen.add(x.dtype)
        return problem.logits_fn(x).astype(jnp.bfloat16)

    found = attacks.ensemble(logits_fn, images, problem.labels, **options)
    assert seen == {np.dtype(np.float32)} and found.adversarial.dtype == np.float32
    assert np.any(found.broken_by >= 0)
    unbroken = ~found.success
    np.testing.assert_array_equal(found.adversarial[unbroken], images[unbroken].astype(np.float32))
