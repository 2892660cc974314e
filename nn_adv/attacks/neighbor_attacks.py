"""Attacks on 1NN itself: along segments to its points, and APGD through its soft form at several temperatures.

This package knows nothing of `nn_adv.neighbors`: points and classifiers are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks.apgd import apgd
from nn_adv.attacks.common import (
    AttackResult,
    Visited,
    better,
    check_clean_logits,
    check_inputs,
    fold_in_each,
    is_judged_wrong,
    logits_of,
    nothing_found,
    where_each,
)
from nn_adv.attacks.losses import margin
from nn_adv.attacks.minimum_norm import MinimumNorm
from nn_adv.attacks.programs import run
from nn_adv.border import as_images, as_labels
from nn_adv.threat import Threat, check_norm, perturbation_size

# Shares of the rest of a segment by which to step beyond the border, tried in turn: the first is about what float32
# can tell, the last ends at the candidate itself.
_BEYOND = 4.0 ** np.arange(-10, 1)


def segment_attack(
    points: chex.Array,
    point_labels: chex.Array,
    images: chex.Array,
    labels: chex.Array,
    *,
    norm: str,
    predict_fn: Callable[[chex.Array], chex.Array],
    num_candidates: int = 10,
) -> MinimumNorm:
    """Bound the radius of 1NN from above without a gradient: walk towards the nearest points of other classes.

    With ``D_i = ||x - z_i||_2^2``, the candidate ``z_j`` becomes as near as every own-class point at the share

      t_j = max over own i with D_i < D_j of (D_j - D_i) / (D_j - D_i + ||z_j - z_i||_2^2)

    of the way from x to it: own points that are farther than ``z_j`` at x stay so on the way, and the place is the same
    for every norm. The candidate of the smallest ``t_j ||z_j - x||`` is tried first. ``predict_fn`` judges a point a
    hair beyond ``t_j``, then points farther on, then the next candidate: ties, copies and rounding cost size, not
    truth. A box that holds the points and images holds the segments. Wrap the call in ``jax.jit``, with ``points`` as
    an argument.

    Args:
      points: ``[n, ...]`` floating point, those that 1NN was fitted on, in the units of the images.
      point_labels: ``[n]``.
      images: ``[B, ...]`` floating point, with as many pixels as a point. A few tables of B n floats are made.
      labels: ``[B]``.
      norm: "l1", "l2" or "linf", of the distance to be small.
      predict_fn: the 1NN that decides, images to labels: ``lambda x: neighbors.predict(reference, x)``.
      num_candidates: nearest points of other classes (in l2) to try, 1 to n.

    Returns:
      A `MinimumNorm`: within epsilon it breaks the images with ``distance <= epsilon``. An image that is
      misclassified itself is returned with distance 0.

    Raises:
      ValueError: unknown norm, integer points or images, points of another size than the images, or
        ``num_candidates`` outside 1 to n.
    """
    check_norm(norm)
    points = as_images(points, name="points", takes_uint8=False)
    images = as_images(images, takes_uint8=False, num_pixels=int(np.prod(points.shape[1:])))
    points = points.astype(images.dtype)
    if not 1 <= num_candidates <= points.shape[0]:
        raise ValueError(f"num_candidates must be 1 to the number of points, {points.shape[0]}, got {num_candidates}")
    point_labels = as_labels(point_labels, count=points.shape[0], name="point_labels")
    labels = as_labels(labels, count=images.shape[0])
    if images.shape[0] == 0:
        return MinimumNorm(images, jnp.zeros(0, images.dtype), jnp.zeros(0, bool))
    arrays = (points, point_labels, images, labels)
    return run(_walk, predict_fn, *arrays, norm=norm, num_candidates=num_candidates)


def _walk(predict_fn, points, point_labels, images, labels, *, norm, num_candidates) -> MinimumNorm:
    x, z = images.reshape(images.shape[0], -1), points.reshape(points.shape[0], -1)
    # Expanded squares lose fewer digits around the mean.
    center = jnp.mean(z, axis=0)
    centered = z - center
    sq_norms = jnp.sum(jnp.square(centered), axis=1)

    def sq_distances(queries):
        products = jnp.matmul(queries, centered.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(jnp.sum(jnp.square(queries), axis=1)[:, None] + sq_norms - 2 * products, 0)

    is_own = labels[:, None] == point_labels
    sq = sq_distances(x - center)
    candidates = jax.lax.top_k(jnp.where(is_own, -jnp.inf, -sq), num_candidates)[1].T

    def border(rows):
        gain = jnp.take_along_axis(sq, rows[:, None], axis=1) - sq
        constrains = is_own & (gain > 0)
        share = jnp.where(constrains, gain / jnp.where(constrains, gain + sq_distances(centered[rows]), 1), 0)
        share = jnp.max(share, axis=1)
        size = share * perturbation_size(norm, z[rows] - x)
        # Where other classes run out of points, own ones fill the list: they come last.
        return share, jnp.where(point_labels[rows] == labels, jnp.inf, size)

    # One candidate of each image at a time: tables of B n numbers, not of B n num_candidates.
    shares, sizes = jax.lax.map(border, candidates)
    order = jnp.argsort(sizes, axis=0)
    candidates, shares = (jnp.take_along_axis(values, order, axis=0) for values in (candidates, shares))

    def attempt(state):
        number, best = state
        target, share = z[candidates[number // len(_BEYOND)]], shares[number // len(_BEYOND)]
        beyond = share + jnp.asarray(_BEYOND, x.dtype)[number % len(_BEYOND)] * (1 - share)
        moved = x + jnp.where(number < 0, 0, beyond)[:, None] * (target - x)
        moved = jnp.clip(moved, jnp.minimum(x, target), jnp.maximum(x, target)).reshape(images.shape)
        is_found = is_judged_wrong(predict_fn, moved, labels)
        found = MinimumNorm(moved, perturbation_size(norm, moved - images), is_found)
        return number + 1, where_each(found.success & ~best.success, found, best)

    nothing = MinimumNorm(images, jnp.full(labels.shape, jnp.inf, x.dtype), jnp.zeros(labels.shape, bool))
    num_attempts = num_candidates * len(_BEYOND)
    # Number -1 judges the image itself.
    _, best = jax.lax.while_loop(
        lambda state: (state[0] < num_attempts) & ~jnp.all(state[1].success), attempt, (-1, nothing)
    )
    return best


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
) -> AttackResult:
    """Attack 1NN through its soft form: one run of `apgd` on the margin per temperature, each on what is left.

    Too warm, the soft form is another classifier; too cold, its gradient sees one point of each class. What is best
    differs between data sets and images. The runs have random starts of their own, so a temperature may be repeated.
    Wrap the call in ``jax.jit``: radius and temperatures are traced.

    Args:
      logits_fn: the soft 1NN: ``lambda x, temperature: neighbors.soft_logits(reference, x, temperature)``.
      images: clean images ``[B, ...]``, floating point, inside the bounds.
      labels: class indices ``[B]``.
      key: one typed key, or one per image ``[B]`` from `example_keys`; it is consumed here.
      threat: the perturbations allowed.
      predict_fn: the 1NN that decides, images to labels: ``lambda x: neighbors.predict(reference, x)``.
      temperatures: above 0, squared pixel units, in the order of the runs; by default those that served best on
        digits (8 x 8), whose test images have their nearest point at a squared distance of about 1.
      num_steps: gradient steps of each run.

    Returns:
      An `AttackResult`. Its ``loss`` is the margin times the temperature, which compares between temperatures: a
      difference of softened squared distances.

    Raises:
      ValueError: no temperature, or one that is not above 0 (seen only outside jit); and as in `apgd`.
    """
    images, labels, keys, threat = check_inputs(images, labels, key, threat)
    temperatures = _check_temperatures(temperatures)
    if images.shape[0] == 0:
        return nothing_found(images)
    check_clean_logits(run(logits_of, logits_fn, images, temperatures[0]), labels)
    arrays = (images, labels, keys, threat, temperatures)
    return run(_attack_in_turn, logits_fn, predict_fn, *arrays, num_steps=num_steps)


def _attack_in_turn(logits_fn, predict_fn, images, labels, keys, threat, temperatures, *, num_steps) -> AttackResult:
    def attack(number):
        temperature = temperatures[number]
        result = apgd(
            lambda points: temperature * logits_fn(points, temperature),
            images,
            labels,
            key=fold_in_each(keys, number),
            threat=threat,
            num_steps=num_steps,
            loss_fn=margin,
            predict_fn=predict_fn,
        )
        return Visited(result.adversarial, result.success, result.loss.astype(images.dtype))

    def attack_survivors(state):
        number, best = state
        return number + 1, where_each(best.success, best, better(best, attack(number)))

    nothing = Visited(images, jnp.zeros(labels.shape, bool), jnp.full(labels.shape, -jnp.inf, images.dtype))
    _, best = jax.lax.while_loop(
        lambda state: (state[0] < len(temperatures)) & ~jnp.all(state[1].success), attack_survivors, (0, nothing)
    )
    return AttackResult(best.images, best.success, best.loss, perturbation_size(threat.norm, best.images - images))


def _check_temperatures(temperatures: Sequence[float] | chex.Array) -> jax.Array:
    is_traced = isinstance(temperatures, jax.core.Tracer)
    if not is_traced and not (np.size(temperatures) and np.all(np.asarray(temperatures) > 0)):
        raise ValueError(f"temperatures must be at least one number above 0, got {temperatures}")
    return jnp.atleast_1d(jnp.asarray(temperatures, jnp.float32))
