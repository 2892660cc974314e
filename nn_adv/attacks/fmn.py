"""FMN: the nearest misclassified point by ascent inside a ball that grows and shrinks.

Pintor et al. 2021, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints" (arXiv 2102.12827).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from nn_adv.attacks import common
from nn_adv.attacks.losses import margin, targeted_margin
from nn_adv.attacks.programs import run
from nn_adv.border import as_count
from nn_adv.threat import Threat, dual_norm, per_image, perturbation_size, project, random_start

# The values of the authors' code, where a step is measured in pixel units.
_STEP_SIZE = 1.0  # Euclidean length of the first step, in radii of the ball (linf: in half diagonals of that cube)
_FINAL_STEP_SIZE = 0.01  # that of the last step
_GAMMA = 0.05  # share by which the ball first grows or shrinks


def fmn(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    norm: str,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int | None = None,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> common.AttackResult:
    """Search the nearest misclassified point of each image, whatever its distance (Algorithm 1). Jittable.

    A point climbs the margin inside a ball around the image. While none is misclassified, the ball reaches 5 % beyond
    the border of the linearised classifier; from then on it shrinks by 5 % at each misclassified point and grows by
    as much at each other. This share and the step fall along a cosine, the share to 0. Unlike in the paper, the first
    balls reach beyond the border, a step is measured in radii of the ball, so that images of any size take the same
    settings, and the projection is the exact one onto ball and bounds. Wrap the call in ``jax.jit``: all but counts,
    ``norm`` and ``bounds`` is traced.

    Arguments that are not listed are those of `pgd`.

    Args:
      key: as for `pgd`; only restarts use it.
      norm: "l1", "l2" or "linf", what is smallest.
      bounds: lowest and highest pixel value, or None for no box.
      num_steps: gradient steps per run, at least 1; the point after the last one counts too.
      num_restarts: the first begins at the image, each further one at a random point of the ball half as large as the
        nearest misclassified point so far is far (half as large as the box, where there is none). Where all of the
        gradient at an image is zero, only these get away from it.
      num_targets: highest other classes of the clean image to aim at in turn in each restart, at most C - 1, at the
        price of as many runs; None aims at whichever is highest at each step. Any wrong class counts either way.
      predict_fn: as for `pgd`, but asked at every step.

    Returns:
      An `AttackResult`: the nearest misclassified point, its distance an upper bound of the radius of robustness; the
      image itself at distance inf where none was found. A misclassified image is returned at distance 0. The loss is
      the margin.

    Raises:
      ValueError: unknown norm, ``num_steps`` below 1, ``num_targets`` outside 1 to C - 1; and as in `pgd`.
    """
    # A threat refuses an unknown norm and bounds that are none.
    images, labels, keys, threat = common.check_inputs(images, labels, key, Threat(norm, 0.0, bounds))
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
    norm, num_runs = threat.norm, 1 if targets is None else targets.shape[1]

    loss_fn: Callable[..., chex.Array] = margin if targets is None else targeted_margin

    def remember(best, points, logits):
        found = common.judged(predict_fn, logits, points, labels)
        distance = jnp.where(found, perturbation_size(norm, points - images), jnp.inf)
        result = common.AttackResult(points, found, margin(logits, labels), distance)
        return found, common.where_each(distance < best.distance, result, best)

    def step(index, carry, classes):
        points, radius, best = carry
        loss, slope, logits = common.evaluate_loss(logits_fn, loss_fn, points, *classes)
        found, best = remember(best, points, logits)
        falling = (1 + jnp.cos(jnp.pi * index / num_steps)) / 2
        steepness = perturbation_size(dual_norm(norm), slope)
        # Where another classifier decides, the linearised border may lie behind: then as far beyond it again.
        to_border = jnp.abs(loss) / jnp.where(steepness > 0, steepness, jnp.inf)
        # A little beyond the border: rounding would leave a point on it there for good.
        border = (perturbation_size(norm, points - images) + to_border) * (1 + _GAMMA)
        outward = jnp.where(jnp.isfinite(best.distance), radius * (1 + _GAMMA * falling), border)
        radius = jnp.where(found, jnp.minimum(radius * (1 - _GAMMA * falling), best.distance), outward)
        longest = radius * (images[0].size ** 0.5 if norm == "linf" else 1)  # Euclidean size of an offset in the ball
        length = (_FINAL_STEP_SIZE + (_STEP_SIZE - _FINAL_STEP_SIZE) * falling) * longest
        # Pixels at their bound keep their gradient: without it the projection would take back what they moved.
        size = perturbation_size("l2", slope)
        moved = points + per_image(length / jnp.where(size > 0, size, 1), images) * slope
        return project(dataclasses.replace(threat, epsilon=radius), moved, images), radius, best

    def run_once(number, best):
        classes = (labels,) if targets is None else (labels, targets[:, number % num_runs])
        reach = jnp.where(jnp.isfinite(best.distance), best.distance, _size_of_box(threat, images)) / 2
        around = random_start(dataclasses.replace(threat, epsilon=reach), common.fold_in_each(keys, number), images)
        start = jnp.where(number < num_runs, images, around)
        nothing = clean._replace(success=jnp.zeros_like(wrong), distance=jnp.full_like(best.distance, jnp.inf))
        carry = (start, nothing.distance, nothing)
        points, _, found = jax.lax.fori_loop(0, num_steps, functools.partial(step, classes=classes), carry)
        _, found = remember(found, points, common.logits_of(logits_fn, points))
        return common.where_each(found.distance < best.distance, found, best)

    wrong = common.judged(predict_fn, clean_logits, images, labels)
    distance = jnp.where(wrong, 0, jnp.inf).astype(images.dtype)
    clean = common.AttackResult(images, wrong, margin(clean_logits, labels), distance)
    return jax.lax.fori_loop(0, num_restarts * num_runs, run_once, clean)


def _size_of_box(threat, images):
    """Measure the diagonal of the box in the threat's norm; without bounds, that of the unit cube."""
    low, high = threat.bounds or (0.0, 1.0)
    return perturbation_size(threat.norm, jnp.full_like(images[:1], high - low))[0]
