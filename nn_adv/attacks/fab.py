"""FAB: minimum-norm attack by projections onto the linearised decision border (Croce & Hein 2020, arXiv 1907.02044)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from nn_adv.attacks import common
from nn_adv.attacks.losses import margin, targeted_margin
from nn_adv.attacks.programs import run
from nn_adv.border import as_count
from nn_adv.threat import (
    Threat,
    check_norm,
    covering_threshold,
    dual_norm,
    per_image,
    perturbation_size,
    random_start,
    sum_per_image,
)

# The values of the authors' code.
_ALPHA_MAX = 0.1  # largest weight of the image's projection
_ETA = 1.05  # how far to go along a projection; 1 would be the border itself
_BETA = 0.9  # what remains of the offset of a misclassified point


class _Nearest(NamedTuple):
    """The nearest misclassified points ``[B, ...]`` found so far and their distances ``[B]``, inf where none was."""

    images: chex.Array
    distance: chex.Array


def fab(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int | None = None,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> common.AttackResult:
    """Search the nearest misclassified point and tell whether it lies inside the ball (Algorithm 1). Jittable.

    Each step projects the current point and the image onto the border of the classifier linearised at the current
    point, goes a little beyond both projections, and mixes them with a bias to the image. A point that is
    misclassified is pulled back towards the image. Any change of the prediction counts, whatever class a step aims
    at: untargeted, the class whose linearised border is nearest (one gradient per class); targeted (FAB-T), in turn
    each of the ``num_targets`` highest other logits of the clean image (one gradient, ``num_targets`` runs). The final
    search of the paper is left out, as in the authors' code. Wrap the call in ``jax.jit``: the radius is traced.

    Arguments that are not listed are those of `pgd`.

    Args:
      key: as for `pgd`; only restarts use it.
      threat: the perturbations allowed. The radius, which may be infinite, decides success, and how far away restarts
        begin: at most half of it, and half of the distance found. Steps do not use it.
      num_steps: gradient steps per run, at least 1.
      num_restarts: runs from random points beside the first, which begins at the image, make up this number. Where all
        of the gradient at an image is zero, only they get away from it.
      num_targets: classes to aim at in turn, at most C - 1; None for the untargeted attack.
      predict_fn: as for `pgd`, but asked at every step. Steps end at the border of ``logits_fn``: what another
        classifier gets wrong only far beyond it is not found.

    Returns:
      An `AttackResult`. ``distance`` is that of the nearest misclassified point found, inf where there was none. Where
      it exceeds the radius, ``success`` is False and ``adversarial`` is the image. ``loss`` is the `margin`.

    Raises:
      ValueError: ``num_steps`` below 1, ``num_targets`` outside 1 to C - 1; and as in `pgd`.
    """
    images, labels, keys, threat = common.check_inputs(images, labels, key, threat, finite=False)
    num_steps = as_count(num_steps, "num_steps")
    num_restarts = as_count(num_restarts, "num_restarts")
    if images.shape[0] == 0:
        return common.nothing_found(images)
    clean_logits = common.check_clean_logits(run(common.logits_of, logits_fn, images), labels)
    targets = None if num_targets is None else common.highest_others(clean_logits, labels, num_targets)
    arrays = (images, labels, clean_logits, targets, keys, threat)
    return run(_search, logits_fn, predict_fn, *arrays, num_steps=num_steps, num_restarts=num_restarts)


def _search(
    logits_fn, predict_fn, images, labels, clean_logits, targets, keys, threat, *, num_steps, num_restarts
) -> common.AttackResult:
    num_runs = 1 if targets is None else targets.shape[1]
    logits_fn = functools.partial(common.logits_of, logits_fn)

    def step(target, points, nearest):
        gap, normal = _border(logits_fn, points, labels, target, threat.norm)
        # The same border seen from the image: gap and normal belong to the linearisation at the current point.
        gap_of_image = gap - sum_per_image(normal * (images - points))
        from_point = project_onto_hyperplane(threat.norm, threat.bounds, points, normal, gap)
        from_image = project_onto_hyperplane(threat.norm, threat.bounds, images, normal, gap_of_image)
        size, size_of_image = (perturbation_size(threat.norm, move) for move in (from_point, from_image))
        total = size + size_of_image
        alpha = per_image(jnp.minimum(size / jnp.where(total > 0, total, 1), _ALPHA_MAX), images)
        points = (1 - alpha) * (points + _ETA * from_point) + alpha * (images + _ETA * from_image)
        points = threat.clip(points)
        found = common.judged(predict_fn, logits_fn(points), points, labels)
        distance = jnp.where(found, perturbation_size(threat.norm, points - images), jnp.inf)
        nearest = common.where_each(distance < nearest.distance, _Nearest(points, distance), nearest)
        return common.where_each(found, images + _BETA * (points - images), points), nearest

    def run_once(number, nearest):
        target = None if targets is None else targets[:, number % num_runs]
        # Half of an infinite radius is nowhere: such a restart begins at the image again.
        reach = jnp.minimum(nearest.distance, threat.epsilon) / 2
        around = Threat(threat.norm, jnp.where(jnp.isfinite(reach), reach, 0), threat.bounds)
        start = jnp.where(number < num_runs, images, random_start(around, common.fold_in_each(keys, number), images))
        return jax.lax.fori_loop(0, num_steps, lambda _, carry: step(target, *carry), (start, nearest))[1]

    is_wrong_clean = common.judged(predict_fn, clean_logits, images, labels)
    clean = _Nearest(images, jnp.where(is_wrong_clean, 0, jnp.inf).astype(images.dtype))
    nearest = jax.lax.fori_loop(0, num_restarts * num_runs, run_once, clean)
    success = nearest.distance <= threat.epsilon
    adversarial = common.where_each(success, nearest.images, images)
    return common.AttackResult(adversarial, success, margin(logits_fn(adversarial), labels), nearest.distance)


def project_onto_hyperplane(
    norm: str, bounds: tuple[float, float] | None, points: chex.Array, normal: chex.Array, gap: chex.Array
) -> chex.Array:
    """Find the smallest move of each point within the bounds onto a hyperplane: ``normal . move = gap``.

    With ``r`` the room of each component towards the hyperplane, the optimality conditions leave one number per point
    to find (section 3.2 of the paper, in other words):

      linf: |move| = min(t, r);   l2: |move| = min(t |normal|, r);   l1: |move| = r in the largest |normal| first.

    Points ``[B, ...]`` are inside the bounds, normals ``[B, ...]``, gaps ``[B]``. Where the hyperplane misses the box,
    the move ends in the corner nearest to it; a zero normal gives no move. ValueError for an unknown norm.
    """
    check_norm(norm)
    count = points.shape[0]
    toward = (normal * jnp.where(per_image(gap, points) < 0, -1, 1)).reshape(count, -1)
    weight, flat, gap = jnp.abs(toward), points.reshape(count, -1), jnp.abs(gap)[:, None]
    if bounds is None:
        room = jnp.full_like(flat, jnp.inf)
    else:
        room = jnp.maximum(jnp.where(toward > 0, bounds[1] - flat, flat - bounds[0]), 0)
    room = jnp.where(weight > 0, room, 0)
    # In units of the largest weight nothing under- or overflows where gradients have almost vanished.
    largest = jnp.max(weight, axis=1, keepdims=True)
    weight, gap = (values / jnp.where(largest > 0, largest, 1) for values in (weight, gap))
    if norm == "l1":
        size = _fill_largest_first(weight, room, gap)
    else:
        size = _rise_together(jnp.ones_like(weight) if norm == "linf" else weight, weight, room, gap)
    return (jnp.sign(toward) * size).reshape(points.shape)


def _rise_together(speed, weight, room, gap):
    """Solve ``sum weight min(t speed, room) = gap`` for ``t``, by Newton's steps on a concave function from its left.

    Each step assumes that no further component runs out of room, so ``t`` only rises and ends at the root, once that
    is true; a handful of steps is usual.
    """

    def rise(state):
        time, _, count = state
        is_free = time * speed < room
        filled = sum_per_image(jnp.where(is_free, 0, weight * room))[:, None]
        slope = sum_per_image(jnp.where(is_free, weight * speed, 0))[:, None]
        risen = jnp.where(slope > 0, (gap - filled) / jnp.where(slope > 0, slope, 1), time)
        return jnp.maximum(risen, time), jnp.any(risen > time), count + 1

    time, *_ = jax.lax.while_loop(lambda state: state[1] & (state[2] < 50), rise, (jnp.zeros_like(gap), True, 0))
    return jnp.where(room > 0, jnp.minimum(time * speed, room), 0)


def _fill_largest_first(weight, room, gap):
    """Use up the room of the components with the largest weights, until ``sum weight size = gap``."""
    room = jnp.minimum(room, gap / jnp.where(weight > 0, weight, 1))  # finite without bounds: none needs more
    last = covering_threshold(weight, weight * room, gap[:, 0])[:, None]
    filled = sum_per_image(jnp.where(weight > last, weight * room, 0))[:, None]
    left = sum_per_image(jnp.where(weight == last, weight * room, 0))[:, None]
    share = jnp.clip((gap - filled) / jnp.where(left > 0, left, 1), 0, 1)
    return jnp.where(weight > last, room, jnp.where(weight == last, share * room, 0))


def _border(logits_fn, points, labels, target, norm):
    """Linearise the border between the label and another class: the gap ``[B]`` to close, and its slope ``[B, ...]``.

    The gap is the label's logit minus the other's, the slope the gradient of the other's minus the label's. Without a
    target the other class is the one whose linearised border is nearest in ``norm``, bounds aside.
    """

    def gap_and_slope(other):
        value, pull = jax.vjp(lambda points: targeted_margin(logits_fn(points), labels, other), points)
        return -value, common.finite_or_zero(pull(jnp.ones_like(value))[0])

    if target is not None:
        return gap_and_slope(target)
    num_classes = jax.eval_shape(logits_fn, points).shape[1]
    classes = jnp.broadcast_to(jnp.arange(num_classes)[:, None], (num_classes, len(labels)))
    gaps, slopes = jax.vmap(gap_and_slope)(classes)
    steepness = jax.vmap(lambda slope: perturbation_size(dual_norm(norm), slope))(slopes)
    away = jnp.where(steepness > 0, jnp.abs(gaps) / jnp.where(steepness > 0, steepness, 1), jnp.inf)
    nearest = jnp.argmin(jnp.where(classes == labels, jnp.inf, away), axis=0)
    chosen = (nearest, jnp.arange(len(labels)))
    return gaps[chosen], slopes[chosen]
