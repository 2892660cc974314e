"""Classifiers small enough for exact answers, for tests of attacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from nn_adv import attacks


class Problem(NamedTuple):
    """A classifier ``[B, ...]`` to logits, images that it gets right, and their labels."""

    logits_fn: Callable[[jax.Array], jax.Array]
    images: np.ndarray
    labels: np.ndarray


@functools.cache
def network(count: int, shape: tuple[int, ...] = (6, 6, 2), num_classes: int = 4, seed: int = 0) -> Problem:
    """Makes a random network of one hidden layer."""
    rng = np.random.default_rng(seed)
    size, hidden = int(np.prod(shape)), 16
    first = rng.standard_normal((size, hidden)).astype(np.float32) / np.float32(np.sqrt(size))
    second = rng.standard_normal((hidden, num_classes)).astype(np.float32)

    def logits_fn(images):
        return jax.nn.relu((images.reshape(images.shape[0], -1) - 0.5) @ first) @ second

    images = rng.uniform(0, 1, (count, *shape)).astype(np.float32)
    return Problem(logits_fn, images, np.argmax(np.asarray(logits_fn(images)), axis=1))


def one_by_one(logits_fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Handles one image after the other, so that its logits have the same bits in every batch."""
    return lambda images: jax.lax.map(lambda image: logits_fn(image[None])[0], images)


def check_that_batches_do_not_matter(attack: Callable, *, sizes: Sequence[int] = (7, 1), to_the_bit=False) -> None:
    """Fails unless ``attack(logits_fn, images, labels, key=)`` gives 64 images the same at once and in batches."""
    problem = network(64)
    logits_fn = one_by_one(problem.logits_fn)
    keys = attacks.example_keys(jax.random.key(5), np.arange(64))
    run = jax.jit(lambda images, labels, keys: attack(logits_fn, images, labels, key=keys))
    together = run(problem.images, problem.labels, keys)
    for size in sizes:
        for start in (0, 14, 63 - 63 % size - size):
            rows = slice(start, start + size)
            alone = run(problem.images[rows], problem.labels[rows], keys[rows])
            np.testing.assert_array_equal(alone.success, together.success[rows])
            # XLA adds up the rows of different batches in different orders, so sums differ in the last bits.
            np.testing.assert_allclose(alone.distance, together.distance[rows], rtol=1e-5, atol=1e-6)
            tolerance = 0 if to_the_bit else 1e-5
            np.testing.assert_allclose(alone.adversarial, together.adversarial[rows], rtol=0, atol=tolerance)


class Linear(NamedTuple):
    """A linear classifier, its images and labels, and its weights ``[D, C]`` and offsets ``[C]``."""

    logits_fn: Callable[[jax.Array], jax.Array]
    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    def radius(self, index: int, norm: str, bounds: tuple[float, float] | None) -> float:
        """Returns the exact distance from an image to its nearest other class."""
        label, image = self.labels[index], self.images[index].ravel().astype(np.float64)
        logits = image @ self.weights.astype(np.float64) + self.offsets
        others = [c for c in range(self.weights.shape[1]) if c != label]
        return min(
            smallest_move(norm, bounds, image, self.weights[:, c] - self.weights[:, label], logits[label] - logits[c])
            for c in others
        )


@functools.cache
def linear(count: int, shape: tuple[int, ...] = (4, 4, 1), num_classes: int = 3, seed: int = 0) -> Linear:
    """Makes a random linear classifier."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((int(np.prod(shape)), num_classes)).astype(np.float32)
    images = rng.uniform(0, 1, (count, *shape)).astype(np.float32)
    offsets = (-0.5 * np.sum(weights, axis=0)).astype(np.float32)

    def logits_fn(images):
        return jnp.matmul(images.reshape(images.shape[0], -1), weights, precision="highest") + offsets

    return Linear(logits_fn, images, np.argmax(np.asarray(logits_fn(images)), axis=1), weights, offsets)


def smallest_move(norm, bounds, point, normal, gap) -> float:
    """Solves min ||d|| with normal . d = gap and point + d in the bounds, by solvers for general problems; or inf."""
    point, normal = np.asarray(point, np.float64), np.asarray(normal, np.float64)
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    limits = list(zip(low - point, high - point, strict=True))
    size = len(point)
    if norm == "l2":
        result = optimize.minimize(
            lambda d: d @ d / 2,
            np.zeros(size),
            jac=lambda d: d,
            bounds=limits,
            constraints={"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return float(np.linalg.norm(result.x)) if abs(normal @ result.x - gap) < 1e-6 else np.inf
    # Variables d and t with |d| <= t: one t for all components in linf, one for each in l1.
    bound = np.ones((size, 1)) if norm == "linf" else np.eye(size)
    count = bound.shape[1]
    result = optimize.linprog(
        np.r_[np.zeros(size), np.ones(count)],
        A_ub=np.block([[np.eye(size), -bound], [-np.eye(size), -bound]]),
        b_ub=np.zeros(2 * size),
        A_eq=np.r_[normal, np.zeros(count)][None],
        b_eq=[gap],
        bounds=limits + [(0, None)] * count,
    )
    return float(result.fun) if result.status == 0 else np.inf
