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
from scipy.cluster import vq

from nn_adv.border import as_count, as_images, as_key, as_labels
from nn_adv.pixels import as_float
from nn_adv.threat import Threat, check_threat, dual_norm

_TINY = 1e-12  # added to squared distances of prototypes, whose root has no gradient at 0
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
    seeds = np.asarray(jax.random.bits(as_key(key), (int(labels.max()) + 1,), np.uint32))
    flat = images.reshape(len(images), -1)
    found = []
    for label in np.unique(labels):
        own = flat[labels == label]
        if len(own) > per_class:
            own = _centres(own, per_class, int(seeds[label]))
        found.append((own, np.full(len(own), label, np.int32)))
    centres, of = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.clip(centres, 0, 1).reshape(len(centres), *images.shape[1:]), of


def _checked(points: chex.Array, labels: chex.Array) -> tuple[np.ndarray, np.ndarray]:
    points = as_images(points, name="points", bounds=(0, 1), float_dtype=np.float32)
    if not len(points):
        raise ValueError(f"points must hold at least one point, got shape {points.shape}")
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
    num_steps: int = 500,
    batch_size: int = 256,
    learning_rate: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Learn prototypes, starting from `cluster_prototypes`, so that 1NN of them is robust.

    Adam lowers the mean over images and threats of ``max(0, 1 - bound / epsilon)``, the bound being that of the module.

    Args:
      points: as in `cluster_prototypes`.
      labels: as in `cluster_prototypes`.
      key: consumed.
      per_class: as in `cluster_prototypes`.
      threats: with epsilons above 0, in whose norms 1NN is to be robust.
      num_steps: of Adam.
      batch_size: images a step, drawn with replacement.
      learning_rate: at the start; it falls to 0 as a cosine.

    Returns:
      As `cluster_prototypes`.

    Raises:
      ValueError: as `cluster_prototypes`, or threats that are none.
    """
    for threat in threats:
        check_threat(threat)
    num_steps, batch_size = as_count(num_steps, "num_steps"), as_count(batch_size, "batch_size")
    start_key, batch_key = jax.random.split(as_key(key))
    prototypes, classes = cluster_prototypes(points, labels, key=start_key, per_class=per_class)
    shape = prototypes.shape
    images, of = map(jnp.asarray, _checked(points, labels))
    images = images.reshape(len(images), -1)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    weights = jnp.asarray(prototypes.reshape(len(prototypes), -1))
    state = optimizer.init(weights)
    sizes = {threat.norm: float(np.asarray(threat.epsilon)) for threat in threats}
    step = jax.jit(functools.partial(_step, optimizer, tuple(sizes.items())))
    for number in range(num_steps):
        rows = jax.random.randint(jax.random.fold_in(batch_key, number), (batch_size,), 0, len(images))
        weights, state = step(weights, state, images[rows], of[rows], jnp.asarray(classes))
    return np.asarray(weights).reshape(shape), classes


def _step(optimizer, sizes, weights, state, images, labels, classes):
    gradients = jax.grad(_loss)(weights, images, labels, classes, sizes)
    updates, state = optimizer.update(gradients, state)
    return jnp.clip(optax.apply_updates(weights, updates), 0, 1), state


def _loss(weights, images, labels, classes, sizes) -> jax.Array:
    squares = jnp.sum(weights**2, axis=1) - 2 * images @ weights.T  # less what all have in common
    difference = squares[:, None, :] - squares[:, :, None]  # of j and i [B, i, j]
    is_own = labels[:, None] == classes
    losses = []
    for norm, epsilon in sizes:
        bound = difference / (2 * _differences(weights, dual_norm(norm)))
        bound = jnp.max(jnp.where(is_own[:, :, None], bound, -jnp.inf), axis=1)
        bound = jnp.min(jnp.where(is_own, jnp.inf, bound), axis=1)
        losses.append(jnp.mean(jax.nn.relu(1 - bound / epsilon)))
    return jnp.mean(jnp.stack(losses))


def _differences(weights: jax.Array, norm: str) -> jax.Array:
    """Return the size of the difference of every two rows ``[m, m]``, a little above 0 on the diagonal."""
    if norm == "l2":
        norms = jnp.sum(weights**2, axis=1)
        squares = norms[:, None] + norms - 2 * weights @ weights.T
        return jnp.sqrt(jnp.maximum(squares, _TINY))
    sizes = jnp.abs(weights[:, None] - weights)
    return jnp.maximum(sizes.sum(axis=-1) if norm == "l1" else sizes.max(axis=-1), _TINY)
