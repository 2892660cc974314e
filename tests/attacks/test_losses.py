"""Attack losses against float64 definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from nn_adv.attacks import losses

LOGITS = np.array([[1.0, 3.0, -2.0], [40.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-900.0, 5.0, 900.0]], np.float32)
LABELS = np.array([0, 0, 2, 2])


def test_cross_entropy_is_minus_log_softmax():
    wide = LOGITS.astype(np.float64)
    expected = logsumexp(wide, axis=1) - wide[np.arange(4), LABELS]
    # The truth itself rounds at 1e-16; the float32 form does not.
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-6, atol=1e-15)


def test_cross_entropy_gradient_does_not_vanish_on_confident_logits():
    gradient = jax.grad(lambda z: jnp.sum(losses.cross_entropy(z, LABELS[1:2])))(LOGITS[1:2])
    # d/dz_y = -(1 - p_y) = -(e^-40 + e^-39), which rounds to 0 in the usual float32 form.
    np.testing.assert_allclose(gradient[0, 0], -(np.exp(-40) + np.exp(-39)), rtol=1e-3)


def test_margin_is_positive_exactly_where_wrong():
    np.testing.assert_allclose(losses.margin(LOGITS, LABELS), [2, -39, 0, -895])


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        losses.margin(np.zeros((3, 1), np.float32), np.zeros(3, np.int32))
