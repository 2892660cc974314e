"""Attack losses against float64 definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from nn_adv.attacks import losses

# A program each.
cross_entropy, cross_entropy_plain, dlr, margin, targeted_dlr, targeted_margin = map(
    jax.jit,
    (
        *(losses.cross_entropy, losses.cross_entropy_plain, losses.dlr, losses.margin),
        *(losses.targeted_dlr, losses.targeted_margin),
    ),
)

LOGITS = np.array([[1.0, 3.0, -2.0], [40.0, 0.0, 1.0], [0.0, 0.0, 0.0], [-900.0, 5.0, 900.0]], np.float32)
LABELS = np.array([0, 0, 2, 2])


def test_cross_entropy_is_minus_log_softmax():
    wide = LOGITS.astype(np.float64)
    expected = logsumexp(wide, axis=1) - wide[np.arange(4), LABELS]
    # The truth itself rounds at 1e-16; the float32 form does not.
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), expected, rtol=1e-6, atol=1e-15)


def test_cross_entropy_gradient_does_not_vanish_on_confident_logits():
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(losses.cross_entropy(z, LABELS[1:2]))))(LOGITS[1:2])
    # d/dz_y = -(1 - p_y) = -(e^-40 + e^-39), which rounds to 0 in the usual float32 form.
    np.testing.assert_allclose(gradient[0, 0], -(np.exp(-40) + np.exp(-39)), rtol=1e-3)


def test_margin_is_positive_exactly_where_wrong():
    np.testing.assert_allclose(margin(LOGITS, LABELS), [2, -39, 0, -895])


def _random_logits(count=50, classes=6):
    rng = np.random.default_rng(0)
    return rng.normal(0, 5, (count, classes)), rng.integers(0, classes, count), rng.integers(0, classes, count)


def test_plain_cross_entropy_has_the_same_value_and_loses_its_gradient():
    logits, labels, _ = _random_logits()
    np.testing.assert_allclose(
        cross_entropy_plain(logits.astype(np.float32), labels),
        cross_entropy(logits.astype(np.float32), labels),
        rtol=1e-4,
        atol=1e-6,
    )
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(losses.cross_entropy_plain(z, LABELS[1:2]))))(LOGITS[1:2])
    assert gradient[0, 0] == 0  # the reason why it is not the default


def test_dlr_is_the_margin_over_the_spread_of_the_three_largest():
    logits, labels, _ = _random_logits()
    for row, label, value in zip(logits, labels, dlr(logits.astype(np.float32), labels), strict=True):
        largest = sorted(row, reverse=True)
        expected = (max(np.delete(row, label)) - row[label]) / (largest[0] - largest[2])
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_targeted_dlr_is_the_targeted_margin_over_the_spread_of_the_four_largest():
    logits, labels, targets = _random_logits()
    values = targeted_dlr(logits.astype(np.float32), labels, targets)
    margins = targeted_margin(logits.astype(np.float32), labels, targets)
    for row, label, target, value, gap in zip(logits, labels, targets, values, margins, strict=True):
        largest = sorted(row, reverse=True)
        np.testing.assert_allclose(gap, row[target] - row[label], rtol=1e-5, atol=1e-5)
        spread = largest[0] - (largest[2] + largest[3]) / 2
        np.testing.assert_allclose(value, (row[target] - row[label]) / spread, rtol=1e-5, atol=1e-6)


def test_dlr_forgets_the_scale_of_the_logits():
    logits, labels, targets = (jnp.asarray(a) for a in _random_logits())
    np.testing.assert_allclose(dlr(100 * logits + 3, labels), dlr(logits, labels), rtol=1e-4)
    np.testing.assert_allclose(
        targeted_dlr(100 * logits + 3, labels, targets),
        targeted_dlr(logits, labels, targets),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("loss_fn", [dlr, cross_entropy, cross_entropy_plain, margin])
def test_equal_logits_give_finite_gradients(loss_fn):
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(loss_fn(z, np.array([1, 2])))))(jnp.ones((2, 4)))
    assert np.all(np.isfinite(gradient))


def test_too_few_classes_are_refused_with_the_remedy():
    labels = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match="at least 3 classes.*margin"):
        losses.dlr(np.zeros((3, 2), np.float32), labels)
    with pytest.raises(ValueError, match="at least 4 classes.*targeted_margin"):
        losses.targeted_dlr(np.zeros((3, 3), np.float32), labels, labels + 1)
    with pytest.raises(ValueError, match="at least 2 classes"):
        losses.targeted_margin(np.zeros((3, 1), np.float32), labels, labels)
    with pytest.raises(ValueError, match="at least 2 classes"):
        losses.cross_entropy_plain(np.zeros((3, 1), np.float32), labels)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        losses.margin(np.zeros((3, 1), np.float32), np.zeros(3, np.int32))
