"""What all attacks share: their result, keys per example, and the best point visited so far."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.border import as_count, as_images, as_integers, as_key, as_labels
from nn_adv.threat import Threat, as_threat, check_threat, perturbation_size

_PROBABILITY_TOLERANCE = 1e-2  # a softmax in bfloat16 is off by up to a few thousandths
GENERATOR = "threefry2x32"


class AttackResult(NamedTuple):
    """What an attack found for each image.

    Attributes:
      adversarial: ``[B, ...]`` the best point visited, inside bounds and (up to rounding) ball; the image itself if
        nothing is better.
      success: ``[B]`` whether the classifier gets ``adversarial`` wrong. False proves nothing.
      loss: ``[B]`` loss at ``adversarial``.
      distance: ``[B]`` size of the perturbation in the threat's norm.
    """

    adversarial: chex.Array
    success: chex.Array
    loss: chex.Array
    distance: chex.Array


def nothing_found(images: chex.Array) -> AttackResult:
    """Return the result for no images ``[0, ...]``: classifiers need not take none."""
    none = jnp.zeros(0, images.dtype)
    return AttackResult(jnp.asarray(images), jnp.zeros(0, bool), none, none)


class Visited(NamedTuple):
    """Points ``[B, ...]``, whether each is misclassified ``[B]``, and their losses ``[B]``."""

    images: chex.Array
    success: chex.Array
    loss: chex.Array


def result_of(best: Visited, images: chex.Array, norm: str) -> AttackResult:
    """Return the best points visited, and how far they are from the clean images ``[B, ...]``."""
    return AttackResult(best.images, best.success, best.loss, perturbation_size(norm, best.images - images))


class Highest(NamedTuple):
    """Where an ascent's loss was highest: points ``[B, ...]``, gradients there ``[B, ...]`` and losses ``[B]``."""

    points: chex.Array
    gradient: chex.Array
    loss: chex.Array


def example_keys(key: chex.PRNGKey, indices: chex.Array) -> chex.PRNGKey:
    """Derive one key per example from its index in the dataset. Jittable.

    Given such keys an attack's result for an example depends neither on the batch it is in nor on its place there.

    Args:
      key: one key of `jax.random`.
      indices: integers ``[B]``, 0 or more.

    Returns:
      Typed keys ``[B]``.

    Raises:
      ValueError: no key, several, or indices that are no such integers.
    """
    key, indices = _as_threefry(as_key(key)), as_integers(indices, "indices")
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(indices))


def _as_threefry(key: chex.PRNGKey) -> chex.PRNGKey:
    """Turn keys of other generators, which under vmap draw numbers that depend on the batch, into keys of threefry.

    The first half of an rbg key is the threefry key of the same seed.
    """
    if jax.random.key_impl(key) == GENERATOR:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl=GENERATOR)


def fold_in_each(keys: chex.PRNGKey, index: chex.Numeric) -> chex.PRNGKey:
    """Fold one number, such as that of a restart or a step, into every image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def better(best: Visited, other: Visited) -> Visited:
    """Keep for each image what breaks it, then what has the higher loss; the first of equals, but no NaN."""
    is_higher = (other.loss > best.loss) | jnp.isnan(best.loss)
    wins = (other.success & ~best.success) | ((other.success == best.success) & is_higher)
    return where_each(wins, other, best)


def is_wrong(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Tell ``[B]`` which logits ``[B, C]`` give another class than the label; NaN gives none."""
    return (jnp.argmax(logits, axis=1) != labels) & ~jnp.any(jnp.isnan(logits), axis=1)


def is_judged_wrong(predict_fn: Callable, points: chex.Array, labels: chex.Array) -> chex.Array:
    """Tell ``[B]`` which points ``[B, ...]`` another classifier gives another class than the label; NaN counts not."""
    has_nan = jnp.any(jnp.isnan(points.reshape(points.shape[0], -1)), axis=1)
    predicted = predict_fn(points)
    if not isinstance(predicted, jax.Array | np.ndarray) or predicted.shape != labels.shape:
        got = getattr(predicted, "shape", None)
        got = f"a {type(predicted).__name__}" if got is None else f"shape {got}"
        raise ValueError(f"predict_fn must return a class per image, [{len(labels)}], got {got}")
    return (predicted != labels) & ~has_nan


def judged(predict_fn: Callable | None, logits: chex.Array, points: chex.Array, labels: chex.Array) -> chex.Array:
    """Tell ``[B]`` which points are misclassified: by ``predict_fn``, or without it by their logits."""
    return is_wrong(logits, labels) if predict_fn is None else is_judged_wrong(predict_fn, points, labels)


def rejudged(predict_fn: Callable | None, best: Visited, labels: chex.Array) -> Visited:
    """Let ``predict_fn``, where there is one, decide which points are misclassified."""
    return best if predict_fn is None else best._replace(success=is_judged_wrong(predict_fn, best.images, labels))


def attack_in_turn(attack: Callable[[chex.Numeric], Visited], count: int, best: Visited) -> Visited:
    """Run attacks number 0 to ``count - 1``, each on the images that are left, until none is; the best points."""

    def attack_survivors(state):
        number, best = state
        return number + 1, where_each(best.success, best, better(best, attack(number)))

    return jax.lax.while_loop(
        lambda state: (state[0] < count) & ~jnp.all(state[1].success), attack_survivors, (0, best)
    )[1]


def higher(best: Highest, other: Highest) -> Highest:
    """Keep for each image the point of the higher loss, misclassified or not; the first of equals, but no NaN."""
    return where_each((other.loss > best.loss) | jnp.isnan(best.loss), other, best)


def where_each(condition, yes, no):
    """Choose per image, field by field."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b), yes, no)


def highest_others(logits: chex.Array, labels: chex.Array, count: int) -> chex.Array:
    """Return the classes other than the label with the highest logits ``[B, C]``, the highest first, ``[B, count]``.

    Raises:
      ValueError: ``count``, which callers name ``num_targets``, outside 1 to C - 1.
    """
    num_classes = logits.shape[1]
    count = as_count(count, "num_targets", high=num_classes - 1, what=f"there are {num_classes} classes")
    own = jax.nn.one_hot(labels, num_classes, dtype=bool)
    logits = jnp.asarray(logits)
    finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)  # of other classes; below it the label
    return jax.lax.top_k(jnp.where(own, -jnp.inf, finite), count)[1]


def finite_or_zero(gradient: chex.Array) -> chex.Array:
    """Zero what is not finite: one NaN, as of a root at 0, would end an attack and read as robustness."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


def evaluate_loss(
    logits_fn: Callable, loss_fn: Callable, points: chex.Array, *classes: chex.Array
) -> tuple[chex.Array, chex.Array, chex.Array]:
    """Return loss ``[B]``, its gradient ``[B, ...]`` and logits ``[B, C]`` at points; ``classes`` are for the loss."""

    def total_loss(points):
        logits = logits_of(logits_fn, points)
        loss = loss_fn(logits, *classes)
        return jnp.sum(loss), (loss, logits)

    (_, (loss, logits)), gradient = jax.value_and_grad(total_loss, has_aux=True)(points)
    return loss, finite_or_zero(gradient), logits


def check_inputs(
    images: chex.Array, labels: chex.Array, key: chex.PRNGKey, threat: Threat, *, finite: bool = True
) -> tuple[chex.Array, chex.Array, chex.PRNGKey, Threat]:
    """Return what an attack is given in the form in which it computes.

    Images ``[B, ...]`` are of float32 or wider, keys ``[B]`` of threefry; the threat is in the images' dtype.

    Raises:
      ValueError: as `nn_adv.border` does; images must be floats, and inside the bounds as far as their values are seen;
        an infinite radius, unless ``finite`` is False.
    """
    check_threat(threat, finite=finite)
    images = as_images(images, bounds=threat.bounds, takes_uint8=False)
    count = images.shape[0]
    key = as_key(key, count=count)
    keys = _as_threefry(key) if key.ndim else example_keys(key, np.arange(count))
    return images, as_labels(labels, count=count), keys, as_threat(threat, images)


def is_inside(images: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """Tell of each pixel whether it lies in the bounds, as rounded to the images' type: 0.2 in float32 exceeds 0.2."""
    low, high = (np.asarray(end).astype(images.dtype) for end in bounds or (-np.inf, np.inf))
    return (images >= low) & (images <= high)


def check_clean_logits(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Return the logits ``[B, C]`` of clean images; raise ValueError for labels that are none of their classes.

    Values are seen only outside jit: those that `check_logit_values` refuses or warns of.
    """
    as_labels(labels, logits.shape[1])
    if not isinstance(logits, jax.core.Tracer):
        check_logit_values(np.asarray(logits))
    return logits


def check_loss(loss_fn: Callable[..., chex.Array], logits: chex.Array, *classes: chex.Array) -> None:
    """Raise ValueError for a loss that does not take logits ``[B, C]`` and these classes, or gives no ``[B]``."""
    try:
        inspect.signature(loss_fn).bind(logits, *classes)
    except TypeError:
        wanted = "logits, labels and targets" if len(classes) > 1 else "logits and labels, without num_targets"
        raise ValueError(f"loss_fn must take {wanted}, got {getattr(loss_fn, '__name__', loss_fn)}") from None
    loss = jax.eval_shape(loss_fn, logits, *classes)
    if getattr(loss, "shape", None) != logits.shape[:1]:
        raise ValueError(f"loss_fn must return a loss for each image, [{len(logits)}], got {loss}")


def check_logit_values(logits: np.ndarray, rows: np.ndarray | None = None, *, stacklevel: int = 4) -> None:
    """Raise ValueError for NaN among the logits ``[B, C]`` of images ``rows [B]``, and warn of probabilities."""
    is_nan = np.isnan(logits).any(axis=1)
    if is_nan.any():
        place = int(np.argmax(is_nan))
        image = place if rows is None else rows[place]
        raise ValueError(f"logits_fn must return numbers, for image {image} it returned NaN")
    if len(logits) and are_probabilities(logits):
        warnings.warn("logits_fn seems to return probabilities; attacks need logits", stacklevel=stacklevel)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Tell whether outputs ``[B, C]`` are none below 0 and sum to 1 for every image, half precisions included."""
    sums = outputs.astype(np.float64).sum(axis=1)
    return bool(np.all(outputs >= 0) and np.all(np.abs(sums - 1) <= _PROBABILITY_TOLERANCE))


def logits_of(logits_fn: Callable[..., chex.Array], points: chex.Array, *args: chex.Array) -> chex.Array:
    """Return the logits ``[B, C]`` of points ``[B, ...]``, C >= 2; ``args`` are for ``logits_fn`` as well.

    They take the dtype of the points, float32 or wider: losses in half precision would not tell points apart.

    Raises:
      ValueError: ``logits_fn`` returns anything else.
    """
    logits, wanted = logits_fn(points, *args), f"logits_fn must return [{points.shape[0]}, C] with C >= 2, got "
    if not isinstance(logits, jax.Array | np.ndarray):
        raise ValueError(f"{wanted}a {type(logits).__name__}: let it return the array of logits alone")
    if logits.ndim != 2 or logits.shape[0] != points.shape[0] or logits.shape[1] < 2:
        raise ValueError(f"{wanted}shape {logits.shape}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{wanted}dtype {logits.dtype}: let it return floating-point logits")
    return logits.astype(points.dtype)
