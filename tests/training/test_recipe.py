"""Recipes: wrong values are refused by name, schedules and the optimiser are what they say."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nn_adv import training
from nn_adv.threat import Threat

_LINF = (Threat("linf", 0.1),)


def test_equal_recipes_are_equal():
    a = training.Recipe(threats=[Threat("l2", jnp.float32(0.5))], step_sizes=[None])
    b = training.Recipe(threats=(Threat("l2", 0.5),), step_sizes=(None,))
    assert a == b and hash(a) == hash(b)
    assert a != training.Recipe(threats=(Threat("l2", 0.25),), step_sizes=(None,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mart"}, "objective must be one of adversarial, standard, trades, got 'mart'"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, step, got 'linear'"),
        ({"augment": "mixup"}, "augment must be one of crop_flip, none, got 'mixup'"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, at least 1, got 1.5"),
        ({"batch_size": 9, "batch_norm_groups": 2}, r"batch_norm_groups must divide batch_size \(9\), got 2"),
        ({"select_every": True}, "select_every must be a whole number, at least 0, got True"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"beta": -1.0}, "beta must be a number >= 0, got -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number >= 0, got nan"),
        ({"momentum": 1.0}, "momentum must be one number >= 0 and < 1, got 1.0"),
        ({"ema_decay": "0.9"}, "ema_decay must be a number >= 0, got '0.9'"),
        ({"threats": ()}, "threats must hold at least one Threat for the objective 'trades', got none"),
        ({"objective": "standard"}, "threats must be empty for the objective 'standard', got 1"),
        ({"threats": (Threat("l1", 1.0),)}, "threats of TRADES must be in l2 or linf, got l1"),
        ({"step_sizes": (0.1, 0.1)}, "step_sizes must be one per threat \\(1\\), got 2"),
        ({"step_sizes": (float("nan"),)}, "step_sizes must be a number >= 0, got nan"),
        ({"threats": Threat("linf", 0.1)}, "threats must be a tuple, got Threat"),
        ({"threats": None}, "threats must be a tuple, got None"),
        (
            {"threats": (Threat("linf", np.array([0.1, 0.2])),)},
            r"threats must have one epsilon each, got \(2,\)",
        ),
        ({"threats": (Threat("linf", np.inf),)}, "epsilon must be finite here, got inf"),
        ({"threats": (Threat("linf", 0.1, (0.4, 0.6)),)}, r"bounds of threats must hold \[0, 1\], where images are"),
        ({"step_sizes": 0.1}, "step_sizes must be a tuple, got 0.1"),
        ({"step_sizes": (np.array([0.1, 0.2]),)}, "step_sizes must be one finite number >= 0, got"),
        ({"drop_epochs": 5}, "drop_epochs must be a tuple, got 5"),
        ({"drop_epochs": (-5,)}, "drop_epochs must be at least 0, got -5"),
        ({"schedule": "step"}, "drop_epochs must name at least one epoch"),
        ({"drop_epochs": (5,)}, "drop_epochs must be empty for the schedule 'cosine', got \\(5,\\)"),
    ],
)
def test_wrong_values(changes, message):
    with pytest.raises(ValueError, match=message):
        training.Recipe(**({"threats": _LINF} | changes))


def test_numbers_of_numpy_are_numbers():
    recipe = training.Recipe(
        threats=_LINF, num_epochs=np.int64(3), learning_rate=np.float64(0.1), nesterov=np.True_, augment=np.str_("none")
    )
    assert repr(recipe) == repr(training.Recipe(threats=_LINF, num_epochs=3, learning_rate=0.1, nesterov=True))


def test_schedules():
    cosine = training.Recipe(threats=_LINF, learning_rate=0.2, num_epochs=10).learning_rates(5)
    np.testing.assert_allclose([cosine(0), cosine(25), cosine(50)], [0.2, 0.1, 0.0], atol=1e-7)
    step = training.Recipe(threats=_LINF, learning_rate=0.2, schedule="step", drop_epochs=(2, 4)).learning_rates(5)
    # optax drops after the boundary step has been counted, so the first step of epoch 2 has number 10.
    np.testing.assert_allclose([step(9), step(10), step(19), step(20)], [0.2, 0.02, 0.02, 0.002], rtol=1e-6)
    constant = training.Recipe(threats=_LINF, learning_rate=0.2, schedule="constant").learning_rates(5)
    np.testing.assert_allclose([constant(0), constant(999)], 0.2, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizer_is_pytorch_sgd(nesterov):
    """Against the update as PyTorch documents it: the decay joins the gradient, the rate multiplies last."""
    recipe = training.Recipe(
        threats=_LINF, schedule="step", drop_epochs=(1,), learning_rate=0.1, weight_decay=0.01, nesterov=nesterov
    )
    optimizer = recipe.optimizer(2)
    weight, velocity = np.array([1.0, -2.0]), np.zeros(2)
    ours = jnp.asarray(weight)
    state = optimizer.init(ours)
    for step in range(4):
        gradient = np.array([0.3, -0.1]) * (step + 1)
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        gradient = gradient + 0.01 * weight
        velocity = 0.9 * velocity + gradient
        direction = gradient + 0.9 * velocity if nesterov else velocity
        weight = weight - (0.1 if step < 2 else 0.01) * direction
        np.testing.assert_allclose(ours, weight, rtol=1e-5)
