"""What all attacks share: their result, keys per example, and the best point visited so far."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

_PROBABILITY_TOLERANCE = 1e-2  # a softmax in bfloat16 is off by up to a few thousandths


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


class Visited(NamedTuple):
    """Points ``[B, ...]``, whether each is misclassified ``[B]``, and their losses ``[B]``."""

    images: chex.Array
    success: chex.Array
    loss: chex.Array


class Highest(NamedTuple):
    """Where an ascent's loss was highest: points ``[B, ...]``, gradients there ``[B, ...]`` and losses ``[B]``."""

    points: chex.Array
    gradient: chex.Array
    loss: chex.Array


def example_keys(key: chex.PRNGKey, indices: chex.Array) -> chex.PRNGKey:
    """Derive one key per example from its index in the dataset.

    Given such keys an attack's result for an example depends neither on the batch it is in nor on its place there.

    Args:
      key: a typed key (``jax.random.key``).
      indices: integers ``[B]``.

    Returns:
      Keys ``[B]``.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.asarray(indices))


def image_keys(key: chex.PRNGKey, count: int) -> chex.PRNGKey:
    """Return one key per image ``[count]``: those given, or those of the places 0 to count - 1."""
    return key if key.ndim else example_keys(key, jnp.arange(count))


def fold_in_each(keys: chex.PRNGKey, index: chex.Numeric) -> chex.PRNGKey:
    """Fold one number, such as that of a restart or a step, into every image's key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)


def better(best: Visited, other: Visited) -> Visited:
    """Keep for each image what breaks it, then what has the higher loss; the first of equals."""
    wins = (other.success & ~best.success) | ((other.success == best.success) & (other.loss > best.loss))
    return where_each(wins, other, best)


def is_wrong(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Tell ``[B]`` which logits ``[B, C]`` give another class than the label; NaN gives none."""
    return (jnp.argmax(logits, axis=1) != labels) & ~jnp.any(jnp.isnan(logits), axis=1)


def is_judged_wrong(predict_fn: Callable, points: chex.Array, labels: chex.Array) -> chex.Array:
    """Tell ``[B]`` which points ``[B, ...]`` another classifier gives another class than the label; NaN counts not."""
    has_nan = jnp.any(jnp.isnan(points.reshape(points.shape[0], -1)), axis=1)
    predicted = predict_fn(points)
    if predicted.shape != labels.shape:
        raise ValueError(f"predict_fn must return a class per image, [{len(labels)}], got shape {predicted.shape}")
    return (predicted != labels) & ~has_nan


def higher(best: Highest, other: Highest) -> Highest:
    """Keep for each image the point of the higher loss, misclassified or not; the first of equals."""
    return where_each(other.loss > best.loss, other, best)


def where_each(condition, yes, no):
    """Choose per image, field by field."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b), yes, no)


def highest_others(logits: chex.Array, labels: chex.Array, count: int) -> chex.Array:
    """Rank the classes other than the label by their logits.

    Args:
      logits: ``[B, C]``.
      labels: class indices ``[B]``.
      count: how many, 1 to C - 1.

    Returns:
      Class indices ``[B, count]``, highest logit first.

    Raises:
      ValueError: ``count``, which callers name ``num_targets``, outside 1 to C - 1.
    """
    num_classes = logits.shape[1]
    if not 1 <= count < num_classes:
        raise ValueError(f"num_targets must be None or 1 to {num_classes - 1} for {num_classes} classes, got {count}")
    own = jax.nn.one_hot(labels, num_classes, dtype=bool)
    return jax.lax.top_k(jnp.where(own, -jnp.inf, logits), count)[1]


def finite_or_zero(gradient: chex.Array) -> chex.Array:
    """Zero what is not finite: one NaN, as of a root at 0, would end an attack and read as robustness."""
    return jnp.where(jnp.isfinite(gradient), gradient, 0)


def check_images_and_key(
    images: chex.Array, labels: chex.Array, key: chex.PRNGKey, bounds: tuple[float, float] | None
) -> None:
    """Raise ValueError for images that `check_images` refuses or an old-style integer key."""
    check_images(images, bounds)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key from jax.random.key, got an array of {key.dtype}")
    chex.assert_equal_shape_prefix([images, labels], 1)


def check_images(images: chex.Array, bounds: tuple[float, float] | None) -> None:
    """Raise ValueError for images that are integers or, seen only outside jit, not finite or outside the bounds."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}; divide uint8 images by 255")
    if isinstance(images, jax.core.Tracer):
        return
    values = np.asarray(images)
    is_valid = (np.isfinite(values) & is_inside(values, bounds)).reshape(len(values), -1).all(axis=1)
    if not is_valid.all():
        raise ValueError(f"images must be finite and inside {bounds}, which image {np.argmin(is_valid)} is not")


def is_inside(images: np.ndarray, bounds: tuple[float, float] | None) -> np.ndarray:
    """Tell of each pixel whether it lies in the bounds, as rounded to the images' type: 0.2 in float32 exceeds 0.2."""
    low, high = (np.asarray(end).astype(images.dtype) for end in bounds or (-np.inf, np.inf))
    return (images >= low) & (images <= high)


def check_clean_logits(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Return the logits ``[B, C]`` of clean images; raise ValueError for another shape or what `check_labels` refuses.

    Values are seen only outside jit: those that `check_logit_values` refuses or warns of.
    """
    check_labels(labels, check_logits(logits, len(labels)).shape[1])
    if not isinstance(logits, jax.core.Tracer):
        check_logit_values(np.asarray(logits))
    return logits


def check_logit_values(logits: np.ndarray, rows: np.ndarray | None = None, *, stacklevel: int = 4) -> None:
    """Raise ValueError for NaN among the logits ``[B, C]`` of images ``rows [B]``, and warn of probabilities."""
    is_nan = np.isnan(logits).any(axis=1)
    if is_nan.any():
        place = int(np.argmax(is_nan))
        image = place if rows is None else rows[place]
        raise ValueError(f"logits_fn must return numbers, for image {image} it returned NaN")
    if are_probabilities(logits):
        warnings.warn("logits_fn seems to return probabilities; attacks need logits", stacklevel=stacklevel)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Tell whether outputs ``[B, C]`` are none below 0 and sum to 1 for every image, half precisions included."""
    sums = outputs.astype(np.float64).sum(axis=1)
    return bool(np.all(outputs >= 0) and np.all(np.abs(sums - 1) <= _PROBABILITY_TOLERANCE))


def check_logits(logits: chex.Array, num_images: int) -> chex.Array:
    """Return logits ``[B, C]``, C >= 2; raise ValueError for another shape."""
    if logits.ndim != 2 or logits.shape[0] != num_images or logits.shape[1] < 2:
        raise ValueError(f"logits_fn must return [{num_images}, C] with C >= 2, got shape {logits.shape}")
    return logits


def check_labels(labels: chex.Array, num_classes: int) -> None:
    """Raise ValueError for labels that are no integers or, seen only outside jit, out of range."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    if not np.all((values >= 0) & (values < num_classes)):
        raise ValueError(f"labels must be 0 to {num_classes - 1}, got {values.min()} to {values.max()}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ValueError unless ``value`` is at least ``least``."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
