"""Prototypes for 1NN, learned so that it is robust: few points that need be no training images.

The bound that is pushed up (Voracek & Hein 2022, Provably robust nearest prototype classifiers): with D_i the squared
distance of an image to prototype i, no perturbation smaller than
    min over j of other classes, max over i of the own class: (D_j - D_i) / (2 ||w_j - w_i||_q),  q dual to p,
changes the class. `nn_adv.certify.radius` gives the exact radius of what was learned.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy.cluster import vq

from nn_adv.border import as_count, as_images, as_key, as_labels, as_number
from nn_adv.pixels import as_float
from nn_adv.threat import Threat, check_threat, dual_norm

_TINY = 1e-12  # below the squared distance of any two prototypes that differ; a root has no gradient at 0
_CLUSTER_STEPS = 10


def cluster_prototypes(
    points: chex.Array, labels: chex.Array, *, key: chex.PRNGKey, per_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """Condense the points of each class to the centres of their clusters (k-means, started at points drawn at random).

    Args:
      points: ``[n, ...]`` in [0, 1], uint8 or float.
      labels: ``[n]`` integers from 0.
      key: consumed.
      per_class: how many centres, at least 1; a class of no more points keeps them.

    Returns:
      Prototypes ``[m, ...]`` float32 in [0, 1], class after class, and their labels ``[m]``.

    Raises:
      ValueError: points, labels, a key or a count that are unfit.
    """
    images, labels = _checked(points, labels)
    per_class = as_count(per_class, "per_class")
    classes = np.unique(labels)
    seeds = np.asarray(jax.random.bits(as_key(key), (len(classes),), np.uint32))
    flat = images.reshape(len(images), -1)
    found = []
    for label, seed in zip(classes, seeds.tolist(), strict=True):
        own = flat[labels == label]
        if len(own) > per_class:
            own = _centres(own, per_class, seed)
        found.append((own, np.full(len(own), label, np.int32)))
    centres, of = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.clip(centres, 0, 1).reshape(len(centres), *images.shape[1:]), of


def _checked(points: chex.Array, labels: chex.Array) -> tuple[np.ndarray, np.ndarray]:
    points = as_images(points, name="points", bounds=(0, 1), float_dtype=np.float32, may_be_none=False)
    return np.asarray(as_float(points), np.float32), np.asarray(as_labels(labels, count=len(points)))


def _centres(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a cluster may lose all its points
        centres, member = vq.kmeans2(points, count, _CLUSTER_STEPS, minit="points", seed=seed)
    return centres[np.unique(member)]


def learn_prototypes(
    points: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    per_class: int,
    threats: Sequence[Threat],
    num_steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Learn prototypes, starting from `cluster_prototypes`, so that 1NN of them is robust.

    Adam lowers the mean over images and threats of ``max(0, 1 - bound / epsilon)``, the bound being that of the module.

    Arguments that are not listed are those of `cluster_prototypes`.

    Args:
      threats: with finite epsilons above 0, in whose norms 1NN is to be robust.
      num_steps: of Adam.
      batch_size: images a step, drawn with replacement.
      learning_rate: at the start; it falls to 0 as a cosine.

    Returns:
      As `cluster_prototypes`.

    Raises:
      ValueError: as `cluster_prototypes`, labels of one class, threats that are none, or a learning rate that is
        negative or not finite.
    """
    for threat in [threats] if isinstance(threats, Threat) else threats:
        check_threat(threat)
    if (
        isinstance(threats, Threat)
        or not threats
        or any(np.ndim(threat.epsilon) or not 0 < threat.epsilon < np.inf for threat in threats)
    ):
        raise ValueError(f"threats must hold at least one Threat, each of one finite epsilon above 0, got {threats!r}")
    num_steps, batch_size = as_count(num_steps, "num_steps"), as_count(batch_size, "batch_size")
    learning_rate = as_number(learning_rate, "learning_rate")
    start_key, batch_key = jax.random.split(as_key(key))
    images, of = map(jnp.asarray, _checked(points, labels))
    if (of == of[0]).all():
        raise ValueError(f"labels must be of two classes or more, got {len(of)} of class {of[0]} alone")
    prototypes, classes = cluster_prototypes(points, labels, key=start_key, per_class=per_class)
    shape = prototypes.shape
    images = images.reshape(len(images), -1)
    weights = jnp.asarray(prototypes.reshape(len(prototypes), -1))
    rate = (learning_rate, num_steps)
    state = _optimizer(rate).init(weights)
    sizes = tuple((threat.norm, float(np.asarray(threat.epsilon))) for threat in threats)
    for number in range(num_steps):
        step_key = jax.random.fold_in(batch_key, number)
        weights, state = _step(weights, state, images, of, jnp.asarray(classes), step_key, sizes, rate, batch_size)
    return np.asarray(weights).reshape(shape), classes


def _optimizer(rate: tuple[float, int]) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(*rate))


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _step(weights, state, images, labels, classes, key, sizes, rate, batch_size):
    rows = jax.random.randint(key, (batch_size,), 0, len(images))
    gradients = jax.grad(_loss)(weights, images[rows], labels[rows], classes, sizes)
    updates, state = _optimizer(rate).update(gradients, state)
    return jnp.clip(optax.apply_updates(weights, updates), 0, 1), state


def _loss(weights, images, labels, classes, sizes) -> jax.Array:
    is_own = labels[:, None] == classes
    squares = jnp.sum(weights**2, axis=1) - 2 * images @ weights.T  # less what all have in common
    difference = squares[:, None, :] - squares[:, :, None]  # D_j - D_i, [B, i, j]
    losses = []
    for norm, epsilon in sizes:
        # One i and one j decide for each image: the gradient is that of their bound.
        bounds = lax.stop_gradient(difference / (2 * _pair_sizes(weights, dual_norm(norm))))
        bounds = jnp.where(is_own[:, :, None], bounds, -jnp.inf)
        j = jnp.argmin(jnp.where(is_own, jnp.inf, jnp.max(bounds, axis=1)), axis=1)
        i = jnp.argmax(jnp.take_along_axis(bounds, j[:, None, None], axis=2)[:, :, 0], axis=1)
        # Products with one-hot rows: the gradient of an index is a scatter, which is slow on CPUs.
        other, own = (jax.nn.one_hot(chosen, len(weights)) @ weights for chosen in (j, i))
        bound = jnp.sum((other - own) * (other + own - 2 * images), axis=1) / (2 * _size(other - own, dual_norm(norm)))
        losses.append(jnp.mean(jax.nn.relu(1 - bound / epsilon)))
    return jnp.mean(jnp.stack(losses))


def _pair_sizes(weights: jax.Array, norm: str) -> jax.Array:
    """Return the size of the difference of every two rows ``[m, m]``."""
    if norm != "l2":
        return _size(weights[:, None] - weights, norm)
    squares = jnp.sum(weights**2, axis=1)
    return jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * weights @ weights.T, _TINY))


def _size(differences: jax.Array, norm: str) -> jax.Array:
    """Return the sizes of rows, at least a little above 0."""
    if norm == "l2":
        return jnp.sqrt(jnp.sum(differences**2, axis=-1) + _TINY)
    sizes = jnp.abs(differences)
    return jnp.maximum(jnp.sum(sizes, axis=-1) if norm == "l1" else jnp.max(sizes, axis=-1), _TINY)
