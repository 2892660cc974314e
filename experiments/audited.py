"""What an audit holds against exact radii: an attack on 1NN, all that it asks counted, and what it breaks.

Each sees 1NN in one of three ways: with gradients, through the soft 1NN; by the scores of the soft 1NN; or by labels
alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from jax.tree_util import Partial

from nn_adv import attacks, evaluation, neighbors
from nn_adv.threat import NORMS, Threat, float64_sizes

# What attacks have asked for: "queries", images whose class or logits were computed; "gradients", of how many.
Spent = Counter[str]
LOSSES = {"cross-entropy": attacks.cross_entropy, "margin": attacks.margin}


class Problem(NamedTuple):
    """What an attack is given."""

    reference: neighbors.Reference  # the points of 1NN
    images: np.ndarray  # ``[B, ...]`` float32 in [0, 1], all classified correctly
    labels: np.ndarray  # ``[B]``
    starts: np.ndarray  # ``[B, ...]`` an image of another class for each; where attacks by labels begin
    key_data: np.ndarray  # ``[B, 2]`` a key for each image
    temperature: chex.Array  # of the soft 1NN, or those that an attack tries by itself
    epsilon: float | None  # the radius; None for an attack that finds distances


Search = Callable[[Problem], np.ndarray]  # to points [B, ...]


class Attack(NamedTuple):
    """An attack with its settings."""

    sees: str  # "gradients", "scores" or "labels"
    finds: str  # "distance", the nearest point that it can; or "radius", any point within a radius
    settings: Mapping[str, Any]  # what a row says of it
    make: Callable[[str, int, Spent], Search]  # norm, seed and `Spent` to a `Search`
    norms: tuple[str, ...] = NORMS  # those that it has
    package: str = ""  # what must be installed to run it; empty: nothing
    tries_temperatures: bool = False  # whether it tries the temperatures of the soft 1NN by itself

    def runs(self, temperatures: Sequence[float]) -> list[np.ndarray]:
        """Return what to run it with in turn: each temperature, or all at once; by scores alone, the coldest."""
        array = np.asarray(temperatures, np.float32)
        if self.sees != "gradients":
            return [array.min()]
        return [array] if self.tries_temperatures else list(array)


def soft_logits(spent: Spent, reference, temperature, points):
    """Return the logits of the soft 1NN; counts each call and each gradient, whether compiled or not."""

    @jax.custom_vjp
    def ask(reference, temperature, points):
        jax.debug.callback(functools.partial(spent.update, queries=len(points)))
        return soft(reference, temperature, points)

    def forward(reference, temperature, points):
        return ask(reference, temperature, points), (reference, temperature, points)

    def backward(asked, slope):
        jax.debug.callback(functools.partial(spent.update, gradients=len(slope)))
        return None, None, _pull_back(*asked, slope)

    ask.defvjp(forward, backward)
    return ask(reference, temperature, points)


def _classes(spent: Spent, reference, points):
    jax.debug.callback(functools.partial(spent.update, queries=len(points)))
    return neighbors.predict(reference, points)


@jax.jit
def soft(reference, temperature, points):
    """Return the logits of the soft 1NN, uncounted."""
    return neighbors.soft_logits(reference, points, temperature)


@jax.jit
def _pull_back(reference, temperature, points, slope):
    return jax.vjp(lambda points: soft(reference, temperature, points), points)[1](slope)[0]


def ours(attack: Callable[..., attacks.AttackResult], **options: Any) -> Callable[[str, int, Spent], Search]:
    """Make searches by one of our attacks, judged by 1NN at each step."""

    def make(norm: str, _: int, spent: Spent) -> Search:
        @jax.jit
        def points(reference, images, labels, key_data, temperature, epsilon):
            return attack(
                Partial(functools.partial(soft_logits, spent), reference, temperature),
                images,
                labels,
                key=jax.random.wrap_key_data(key_data),
                threat=Threat(norm, epsilon),
                predict_fn=Partial(functools.partial(_classes, spent), reference),
                **options,
            ).adversarial

        def search(problem: Problem) -> np.ndarray:
            reference, images, labels, _, key_data, temperature, epsilon = problem
            if epsilon is None:  # that of the whole box
                epsilon = {"linf": 1.0, "l2": images[0].size ** 0.5, "l1": float(images[0].size)}[norm]
            return np.asarray(points(reference, images, labels, key_data, temperature, epsilon))

        return search

    return make


def _pgd(logits_fn, images, labels, *, threat, num_steps, step_share, **options):
    step_size = step_share / max(num_steps, 1) * threat.epsilon
    return attacks.pgd(logits_fn, images, labels, threat=threat, num_steps=num_steps, step_size=step_size, **options)


def pgd_variant(num_steps: int, num_restarts: int, loss: str, step_share: float) -> Attack:
    """PGD through the soft 1NN, with these settings."""
    settings = {"num_steps": num_steps, "num_restarts": num_restarts, "loss": loss, "step_share": step_share}
    counts = {"num_steps": num_steps, "num_restarts": num_restarts, "step_share": step_share}
    # Between two classes the margin's gradient has the direction of the cross-entropy's, but it does not vanish where
    # the classifier is sure, as the soft 1NN of a low temperature is nearly everywhere.
    return Attack("gradients", "radius", settings, ours(_pgd, **counts, loss_fn=LOSSES[loss]))


def distances(
    reference: neighbors.Reference,
    norm: str,
    images: np.ndarray,
    labels: np.ndarray,
    points: np.ndarray,
    *,
    stretches: Sequence[float],
    batch_size: int,
) -> np.ndarray:
    """Return how far from its image each point ``[N, ...]`` breaks 1NN, ``[N]`` in float64; inf where it does not.

    Each point is tried at so many times its distance, the ``stretches``, along the same line, clipped to the box; 1NN
    decides in float64 (`neighbors.nearest`). ValueError for a point outside the box.
    """
    found = np.full(len(images), np.inf)
    for stretch in stretches:
        moved = points if stretch == 1 else np.clip(images + np.float32(stretch) * (points - images), 0, 1)
        predict = functools.partial(neighbors.predict, reference)
        broken = ~evaluation.correct(predict, moved, labels, batch_size=batch_size)
        sizes = float64_sizes(norm, moved.astype(np.float64) - images)
        found = np.where(broken, np.minimum(found, sizes), found)
    return found
