"""An attack on 1NN itself: APGD through its soft form at several temperatures.

This package knows nothing of `nn_adv.neighbors`: points and classifiers are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks import common
from nn_adv.attacks.apgd import apgd
from nn_adv.attacks.losses import margin
from nn_adv.attacks.programs import run
from nn_adv.threat import Threat


def tempered_apgd(
    logits_fn: Callable[[chex.Array, chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    predict_fn: Callable[[chex.Array], chex.Array],
    temperatures: Sequence[float] | chex.Array = (0.03, 0.01, 0.1, 0.3),
    num_steps: int = 100,
) -> common.AttackResult:
    """Attack 1NN through its soft form: `apgd` on the margin at each temperature, on what is left. Jittable.

    Too warm, the soft form is another classifier; too cold, its gradient sees one point of each class. What is best
    differs between data sets and images. The runs have random starts of their own, so a temperature may be repeated.
    Wrap the call in ``jax.jit``: radius and temperatures are traced.

    Arguments that are not listed are those of `pgd`.

    Args:
      logits_fn: the soft 1NN: ``lambda x, temperature: neighbors.soft_logits(reference, x, temperature)``.
      predict_fn: the 1NN that decides, images to labels: ``lambda x: neighbors.predict(reference, x)``.
      temperatures: above 0, squared pixel units, in the order of the runs; by default those that served best on
        digits (8 x 8), whose test images have their nearest point at a squared distance of about 1.
      num_steps: gradient steps of each run.

    Returns:
      An `AttackResult`. Its ``loss`` is the margin times the temperature, which compares between temperatures: a
      difference of softened squared distances.

    Raises:
      ValueError: no temperature, or one that is not above 0 or infinite (seen only outside jit); and as in `pgd`.
    """
    images, labels, keys, threat = common.check_inputs(images, labels, key, threat)
    temperatures = _check_temperatures(temperatures)
    if images.shape[0] == 0:
        return common.nothing_found(images)
    common.check_clean_logits(run(common.logits_of, logits_fn, images, temperatures[0]), labels)
    arrays = (images, labels, keys, threat, temperatures)
    return run(_attack_in_turn, logits_fn, predict_fn, *arrays, num_steps=num_steps)


def _attack_in_turn(
    logits_fn, predict_fn, images, labels, keys, threat, temperatures, *, num_steps
) -> common.AttackResult:
    def attack(number):
        temperature = temperatures[number]
        result = apgd(
            lambda points: temperature * logits_fn(points, temperature),
            images,
            labels,
            key=common.fold_in_each(keys, number),
            threat=threat,
            num_steps=num_steps,
            loss_fn=margin,
            predict_fn=predict_fn,
        )
        return common.Visited(result.adversarial, result.success, result.loss.astype(images.dtype))

    nothing = common.Visited(images, jnp.zeros(labels.shape, bool), jnp.full(labels.shape, -jnp.inf, images.dtype))
    best = common.attack_in_turn(attack, len(temperatures), nothing)
    return common.result_of(best, images, threat.norm)


def _check_temperatures(temperatures: Sequence[float] | chex.Array) -> jax.Array:
    if not isinstance(temperatures, jax.core.Tracer) and not (
        np.size(temperatures) and np.all((np.asarray(temperatures) > 0) & np.isfinite(temperatures))
    ):
        raise ValueError(f"temperatures must be at least one number above 0, all finite, got {temperatures}")
    return jnp.atleast_1d(jnp.asarray(temperatures, jnp.float32))
