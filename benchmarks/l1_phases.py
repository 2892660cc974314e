"""APGD in l1: all steps in the ball itself, or the first ones in wider balls, as in the paper (arXiv 2103.01208)?

Each run takes 100 steps on the cross-entropy. With the phases, 30 % of them in a ball of three times the radius, 30 %
in one of twice the radius and the rest in the ball. The share that is left unbroken is printed, three seeds each.

  python -m benchmarks.l1_phases --reference=REFERENCE_DIR

The folder holds the networks of the parity tests; digits and their network are made here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nn_adv import data, models
from nn_adv.threat import Threat
from tests.attacks import reference_models

apgd = importlib.import_module("nn_adv.attacks.apgd")  # the package's attribute of that name is the function
_in_the_ball = apgd.ascend_l1
_RADII = {"digits": (1.0, 1.5, 2.5), "c10": (4.0, 6.0, 8.0), "c2": (8.0, 12.0, 16.0)}
_SEEDS = 3


def _with_phases(evaluate: Callable, start, images, threat: Threat, num_steps: int):
    num_wide = 3 * num_steps // 10
    for factor in (3, 2):
        wide = dataclasses.replace(threat, epsilon=factor * threat.epsilon)
        start = _in_the_ball(evaluate, start, images, wide, num_wide).images
    return _in_the_ball(evaluate, start, images, threat, num_steps - 2 * num_wide)


def _digits():
    """Train a network on the digits; return it with 200 test images and their labels."""
    digits = data.load("digits")
    points, labels = jnp.asarray(digits.train_images, jnp.float32) / 255, jnp.asarray(digits.train_labels)
    model = models.create("mlp", 10, hidden_sizes=(128, 128))
    variables, optimizer = model.init(jax.random.key(0), points[:1]), optax.adam(1e-2)

    @jax.jit
    def step(variables, state, key):
        rows = jax.random.randint(key, (128,), 0, len(points))

        def loss(variables):
            logits = model.apply(variables, points[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    for number in range(600):
        variables, state = step(variables, state, jax.random.key(number))
    images = jnp.asarray(digits.test_images[:200], jnp.float32) / 255
    return jax.tree_util.Partial(model.apply, variables), images, jnp.asarray(digits.test_labels[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=pathlib.Path, required=True)
    folder = parser.parse_args().reference
    problems = {"digits": _digits()}
    for name in ("c10", "c2"):
        network = reference_models.load(folder, name)
        problems[name] = network.logits_fn, jnp.asarray(network.images), jnp.asarray(network.labels)
    for name, (logits_fn, images, labels) in problems.items():
        for radius in _RADII[name]:
            left = {}
            for how, ascend in (("ball", _in_the_ball), ("phases", _with_phases)):
                apgd.ascend_l1 = ascend
                runs = [
                    apgd.apgd(logits_fn, images, labels, key=jax.random.key(seed), threat=Threat("l1", radius))
                    for seed in range(_SEEDS)
                ]
                left[how] = [round(float(1 - np.mean(run.success)), 3) for run in runs]
            print(name, radius, left, flush=True)


if __name__ == "__main__":
    main()
