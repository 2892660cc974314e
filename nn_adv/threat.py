"""The set of perturbations an attacker may use: an lp ball around the image, cut by the pixel bounds.

Everything that depends on the norm of a perturbation lives here, so that attacks and training objectives
are written once for all norms. Images are ``[B, ...]`` in pixel units (``[0, 1]``), and so are radii.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.border import as_bounds, check_size, check_sizes

NORMS = ("l1", "l2", "linf")

# A steepest ascent step in l1 moves one pixel; moving the top 5 % at once needs far fewer steps
# (Tramer & Boneh 2019, "Adversarial Training and Robustness for Multiple Perturbations", section 4).
_L1_SHARE_OF_PIXELS = 0.05
_MAX_SLICES = 16  # of a sum over an image: more are no faster


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Threat:
    """All ``v`` with ``||v||_norm <= epsilon`` and ``x + v`` within ``bounds``.

    A pytree: ``norm`` and ``bounds`` are static, ``epsilon`` is traced, so one compilation serves a sweep of radii.

    Attributes:
      norm: "l1", "l2" or "linf".
      epsilon: radius in pixel units, a scalar or one value per image ``[B]``; not negative.
      bounds: lowest and highest pixel value, or None for no box.

    Raises:
      ValueError: unknown norm, bounds out of order, or a negative or NaN epsilon given as a Python or NumPy number.
    """

    norm: str = dataclasses.field(metadata={"static": True})
    epsilon: chex.Numeric
    bounds: tuple[float, float] | None = dataclasses.field(default=(0.0, 1.0), metadata={"static": True})

    def __post_init__(self) -> None:
        check_norm(self.norm)
        # Tree transformations put placeholders here, and reading an array of a device would wait for it.
        if isinstance(self.epsilon, (str, bytes, int, float, np.ndarray, np.generic)):
            check_size(self.epsilon, "epsilon")
        object.__setattr__(self, "bounds", as_bounds(self.bounds))

    def clip(self, images: chex.Array) -> chex.Array:
        """Move pixels that are outside the bounds onto them."""
        return images if self.bounds is None else jnp.clip(images, *self.bounds)


def check_threat(threat: Threat, *, finite: bool = False) -> None:
    """Raise ValueError for anything but a `Threat` with a radius, or radii, of 0 or more.

    With ``finite`` also for infinite ones: attacks that step by parts of the radius would move to NaN, and count every
    image as robust.
    """
    if not isinstance(threat, Threat):
        raise ValueError(f"threat must be a Threat, got {threat!r}")
    check_size(threat.epsilon, "epsilon")
    if finite and not isinstance(threat.epsilon, jax.core.Tracer) and not np.all(np.isfinite(threat.epsilon)):
        raise ValueError(f"epsilon must be finite here, got {threat.epsilon}: give the size of the box, or less")


def as_threat(threat: Threat, images: chex.Array) -> Threat:
    """Return the threat with its radius, or radii, in the dtype of ``images [B, ...]``, as steps and distances are."""
    check_sizes(threat.epsilon, "epsilon", len(images))
    return dataclasses.replace(threat, epsilon=jnp.asarray(threat.epsilon, images.dtype))


def check_norm(norm: str) -> None:
    """Raise ValueError unless ``norm`` is one of `NORMS`."""
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def dual_norm(norm: str) -> str:
    """Name the norm q dual to p (1/p + 1/q = 1): ``max {g.v : ||v||_p <= 1} = ||g||_q``."""
    check_norm(norm)
    return {"l1": "linf", "l2": "l2", "linf": "l1"}[norm]


def perturbation_size(norm: str, perturbation: chex.Array) -> chex.Array:
    """Measure each perturbation ``[B, ...]`` in ``norm``; returns ``[B]``."""
    check_norm(norm)
    if norm == "l1":
        return sum_per_image(jnp.abs(perturbation))
    if norm == "l2":
        return jnp.sqrt(sum_per_image(jnp.square(perturbation)))
    return jnp.max(jnp.abs(_as_rows(perturbation)), axis=1)


def float64_sizes(norm: str, perturbations: np.ndarray) -> np.ndarray:
    """Measure perturbations ``[B, ...]`` on the host in float64, where that of `perturbation_size` is too coarse."""
    check_norm(norm)
    flat = _as_rows(np.asarray(perturbations, np.float64))
    return np.linalg.norm(flat, {"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1)


def sum_per_image(values: chex.Array) -> chex.Array:
    """Add up all values of each image, ``[B, ...]`` to ``[B]``, in one order whatever the batch.

    Slice by slice, then half onto half: XLA's own sum takes another order for one image than for many. The slices are
    one expression, which XLA computes together with the values themselves.
    """
    flat = _as_rows(values)
    width = max((1 << (flat.shape[1] - 1).bit_length()) // _MAX_SLICES, 1)
    flat = jnp.pad(flat, ((0, 0), (0, -flat.shape[1] % width)))
    total = functools.reduce(jnp.add, jnp.split(flat, flat.shape[1] // width, axis=1))
    while width > 1:
        width //= 2
        total = total[:, :width] + total[:, width:]
    return total[:, 0]


def _as_rows(values: Any) -> Any:
    """Shape arrays ``[B, ...]`` as ``[B, d]``, none of them too."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def per_image(values: chex.Numeric, images: chex.Array) -> chex.Array:
    """Shape a scalar, or one value per image ``[B]``, so that it broadcasts against ``images [B, ...]``."""
    values = jnp.asarray(values, images.dtype)
    chex.assert_rank(values, {0, 1})
    return values.reshape(values.shape + (1,) * (images.ndim - 1)) if values.ndim else values


def project(threat: Threat, images: chex.Array, center: chex.Array) -> chex.Array:
    """Move each image to the nearest point (Euclidean) allowed by ``threat`` around ``center``.

    The projection ``v`` of an offset ``w`` onto ball and box together is, by its optimality conditions, a
    clipped one-parameter family, ``lo = bounds[0] - center`` and ``hi = bounds[1] - center``:

      linf: v = clip(w, max(lo, -epsilon), min(hi, epsilon))
      l2:   v = clip(s w, lo, hi),                            the largest s in [0, 1] with ||v||_2 <= epsilon
      l1:   v = clip(sign(w) max(|w| - t, 0), lo, hi),        the smallest t >= 0 with ||v||_1 <= epsilon

    ``s`` and ``t`` are taken from the feasible side of the root, so the result never leaves the ball (up to the
    rounding of ``center + v``). Clipping after scaling into the ball would also be allowed, but not nearest; in l1 it
    wastes most of the radius (Croce & Hein 2021, "Mind the Box", section 2).

    Args:
      threat: the allowed set; ``epsilon`` 0 gives ``center`` itself.
      images: points to project, ``[B, ...]``; in l2 so near that the squared distance does not overflow.
      center: clean images ``[B, ...]`` inside the bounds.

    Returns:
      Points ``[B, ...]``.
    """
    chex.assert_equal_shape([images, center])
    epsilon = per_image(threat.epsilon, images)
    offset = images - center
    # How far each pixel may move down (<= 0) and up (>= 0).
    lower, upper = (-jnp.inf, jnp.inf) if threat.bounds is None else (end - center for end in threat.bounds)
    if threat.norm == "linf":
        offset = jnp.clip(offset, jnp.maximum(lower, -epsilon), jnp.minimum(upper, epsilon))
    else:
        offset = (_project_l2 if threat.norm == "l2" else _project_l1)(offset, epsilon, lower, upper)
    return threat.clip(center + offset)


def random_start(threat: Threat, keys: chex.PRNGKey, images: chex.Array) -> chex.Array:
    """Draw a point uniformly from the ball around each image, then clip it into the bounds.

    Args:
      threat: the allowed set.
      keys: one key per image ``[B]`` (see `nn_adv.attacks.example_keys`).
      images: clean images ``[B, ...]``.

    Returns:
      Starting points ``[B, ...]``.
    """
    draw = jax.vmap(lambda key: _draw_direction(threat.norm, key, images.shape[1:], images.dtype))
    direction, share = draw(keys)
    # One factor per image: of two, compilers may multiply either first, depending on the batch.
    return threat.clip(images + per_image(threat.epsilon * share, images) * direction)


def steepest_step(threat: Threat, gradient: chex.Array, images: chex.Array) -> chex.Array:
    """Give the direction of unit ``threat.norm`` along which a step from ``images`` gains most.

    Components that would push a pixel already at its bound outwards are dropped first. Then: linf, the sign;
    l2, the normalised gradient; l1, equal steps in the 5 % largest components (at least one). A zero gradient
    gives a zero step. All are ``[B, ...]``; the radius is not used.
    """
    chex.assert_equal_shape([gradient, images])
    gradient = drop_outward(threat, gradient, images)
    if threat.norm == "linf":
        return jnp.sign(gradient)
    if threat.norm == "l2":
        gradient = _near_one(gradient)
        size = per_image(perturbation_size("l2", gradient), gradient)
        return gradient / jnp.where(size > 0, size, 1)
    num_pixels = math.prod(gradient.shape[1:])
    return sparse_step(gradient, jnp.full(len(gradient), round(_L1_SHARE_OF_PIXELS * num_pixels)))


def _near_one(gradient: chex.Array) -> chex.Array:
    """Scale each image's gradient by a power of two, without rounding, so that squares neither vanish nor overflow."""
    limits = jnp.finfo(gradient.dtype)
    exponent = jnp.clip(-jnp.frexp(perturbation_size("linf", gradient))[1], limits.minexp, limits.maxexp - 1)
    return gradient * per_image(jnp.ldexp(jnp.ones((), gradient.dtype), exponent), gradient)


def sparse_step(gradient: chex.Array, count: chex.Array) -> chex.Array:
    """Give equal steps, of l1 size 1 together, in the ``count [B]`` largest components (at least one) of each image.

    Components of exactly the size of the last one take part too; a zero gradient gives a zero step.
    """
    sizes = _as_rows(jnp.abs(gradient))
    threshold = per_image(covering_threshold(sizes, jnp.ones(sizes.shape, jnp.int32), jnp.maximum(count, 1)), gradient)
    signs = jnp.where(jnp.abs(gradient) >= threshold, jnp.sign(gradient), 0)
    return signs / jnp.maximum(per_image(perturbation_size("l1", signs), gradient), 1)


def drop_outward(threat: Threat, gradient: chex.Array, images: chex.Array) -> chex.Array:
    """Set the components to 0 that would push a pixel already at its bound outwards; all ``[B, ...]``."""
    if threat.bounds is None:
        return gradient
    outward = ((images <= threat.bounds[0]) & (gradient < 0)) | ((images >= threat.bounds[1]) & (gradient > 0))
    return jnp.where(outward, 0, gradient)


def covering_threshold(sizes: chex.Array, values: chex.Array, goal: chex.Array) -> chex.Array:
    """Return for each row the largest threshold whose ``values`` of at least this size add up to ``goal [B]``.

    Sizes are floats and, like the values, not negative ``[B, d]``. Such floats have the order of their bits, so halving
    finds the very number, on a CPU some fifty times as fast as a sort. Where all values fall short it is 0; where the
    goal is 0 nothing is needed, and it is NaN, which no size reaches.
    """
    num_bits = 8 * sizes.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(sizes, jnp.dtype(f"int{num_bits}"))

    def halve(_, bracket):
        low, high = bracket
        middle = low + (high - low) // 2
        is_reached = sum_per_image(jnp.where(bits >= middle[:, None], values, 0)) >= goal
        return jnp.where(is_reached, middle, low), jnp.where(is_reached, high, middle)

    low = jnp.zeros(len(bits), bits.dtype)
    low, _ = jax.lax.fori_loop(0, num_bits, halve, (low, jnp.full_like(low, jnp.iinfo(bits.dtype).max)))
    return jax.lax.bitcast_convert_type(low, sizes.dtype)


def _project_l2(offset, epsilon, lower, upper):
    """Find the scale of `project` by Newton's steps on the squared size.

    A component clipped at one scale stays clipped at every larger one, and the others grow at most as ``s``. So the
    scale at which the squared size would reach ``epsilon^2`` if no further component were clipped is never too large:
    the steps rise to the root from below and end there once no further component is clipped.
    """

    def rise(state):
        scale, _, count = state
        clipped = jnp.clip(scale * offset, lower, upper)
        is_free = clipped == scale * offset
        fixed = per_image(sum_per_image(jnp.where(is_free, 0, jnp.square(clipped))), offset)
        free = per_image(sum_per_image(jnp.where(is_free, jnp.square(offset), 0)), offset)
        left = jnp.maximum(jnp.square(epsilon) - fixed, 0)
        risen = jnp.where(left < free, jnp.sqrt(left / jnp.where(free > 0, free, 1)), 1)
        # Rounding may lead back a little; an image that is done waits for the others of its batch where it is.
        return jnp.maximum(risen, scale), jnp.any(risen > scale), count + 1

    start = jnp.zeros((offset.shape[0],) + (1,) * (offset.ndim - 1), offset.dtype)
    # A handful of steps is usual; any number of them ends inside the ball.
    scale, *_ = jax.lax.while_loop(lambda state: state[1] & (state[2] < 50), rise, (start, True, 0))
    return jnp.clip(scale * offset, lower, upper)


def _project_l1(offset, epsilon, lower, upper):
    """Find ``t`` of `project` by Newton's steps on the size, which is linear between the kinks, inside a bracket.

    The size falls with ``t``, convex but where pixels reach a bound: a step that would leave the bracket halves it. The
    upper end of the bracket is always inside the ball, and is what is returned.
    """
    sizes, room = jnp.abs(offset), jnp.where(offset > 0, upper, -lower)
    unit = jnp.finfo(offset.dtype).eps
    aim = epsilon * (1 - 8 * unit)  # a little inside, so that rounding does not end outside

    def measure(threshold):
        kept = jnp.clip(sizes - threshold, 0, room)
        is_free = (kept > 0) & (kept < room)
        return per_image(sum_per_image(kept), offset), per_image(sum_per_image(is_free.astype(jnp.int32)), offset)

    def narrow(state):
        threshold, size, num_free, low, high, count, _ = state
        is_outside = size > epsilon
        low, high = jnp.where(is_outside, threshold, low), jnp.where(is_outside, high, threshold)
        is_done = ~is_outside & ((threshold <= 0) | (size >= epsilon * (1 - 16 * unit)))
        is_done |= high - low <= high * unit
        step = threshold + (size - aim) / jnp.maximum(num_free, 1)
        step = jnp.where((step > low) & (step < high), step, (low + high) / 2)
        step = jnp.where(is_done, high, step)
        return step, *measure(step), low, high, count + 1, jnp.any(~is_done)

    largest = per_image(perturbation_size("linf", offset), offset)
    start = jnp.zeros_like(largest)
    # About eight steps are usual.
    state = (start, *measure(start), start - 1, largest, 0, True)
    high = jax.lax.while_loop(lambda state: state[-1] & (state[-2] < 60), narrow, state)[4]
    # Radius 0 apart: a compiler that computes the offset twice may round it differently there and in the bracket.
    return jnp.where(epsilon > 0, jnp.sign(offset) * jnp.clip(sizes - high, 0, room), 0)


def _draw_direction(norm, key, shape, dtype):
    """Draw a direction and the share of it that makes the product uniform in the unit ball."""
    if norm == "linf":
        return jax.random.uniform(key, shape, dtype, -1, 1), jnp.ones((), dtype)
    key_direction, key_radius = jax.random.split(key)
    sample = jax.random.normal if norm == "l2" else jax.random.laplace
    direction = sample(key_direction, shape, dtype)
    # The volume within radius r grows as r^d.
    share = jax.random.uniform(key_radius, (), dtype) ** (1 / direction.size)
    return direction, share / perturbation_size(norm, direction[None])[0]
