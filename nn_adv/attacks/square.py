"""Square Attack: random search by coloured squares, from scores alone, without gradients.

Andriushchenko et al. 2020 (arXiv 1912.00049) for linf and l2; Croce & Hein 2021 (arXiv 2103.01208) take it to l1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks import common
from nn_adv.attacks.losses import margin
from nn_adv.attacks.programs import run
from nn_adv.border import as_count, as_number
from nn_adv.threat import Threat, perturbation_size, project

# The share of pixels in a square is halved at these queries of 10,000 (section 5 of the paper).
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_HALVED_OF = 10_000


def square(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: chex.Array,
    labels: chex.Array,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    num_queries: int = 5000,
    initial_share: float = 0.8,
    loss_fn: Callable[[chex.Array, chex.Array], chex.Array] = margin,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
) -> common.AttackResult:
    """Attack a classifier by random squares, each kept where it raises the loss (Algorithm 1). Jittable.

    The first query is a pattern over the whole image (linf: vertical stripes; l2 and l1: tiles of bumps). Each further
    one changes the best point so far inside a random square of every image's own, and is projected onto ball and
    bounds; in l1 it spends more than the ball holds, as the authors' code does. The squares shrink by the paper's
    schedule, stretched to ``num_queries``. An image is not changed again once it is broken; one that is wrong from the
    start is returned unchanged. ``logits_fn`` needs no gradient. Wrap the call in ``jax.jit``: the radius is traced.

    Arguments that are not listed are those of `pgd`.

    Args:
      logits_fn: images ``[B, H, W, C]`` to logits ``[B, K]``.
      images: clean images ``[B, H, W, C]``, floating point, inside the bounds; flat images have no squares.
      num_queries: points scored for each image besides the clean one, at least 1.
      initial_share: share of the pixels in the first squares, in (0, 1].
      predict_fn: as for `pgd`, but asked at every query.

    Raises:
      ValueError: images that are not ``[B, H, W, C]``, ``num_queries`` below 1, ``initial_share`` outside (0, 1]; and
        as in `pgd`.
    """
    images, labels, keys, threat = common.check_inputs(images, labels, key, threat)
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C] for squares to exist, got shape {images.shape}")
    num_queries = as_count(num_queries, "num_queries")
    if not 0 < as_number(initial_share, "initial_share") <= 1:
        raise ValueError(f"initial_share must be in (0, 1], got {initial_share}")
    if images.shape[0] == 0:
        return common.nothing_found(images)
    clean_logits = common.check_clean_logits(run(common.logits_of, logits_fn, images), labels)
    common.check_loss(loss_fn, clean_logits, labels)
    functions = (logits_fn, loss_fn, predict_fn)
    arrays = (images, labels, clean_logits, keys, threat)
    return run(_search, *functions, *arrays, num_queries=num_queries, initial_share=float(initial_share))


def _search(
    logits_fn, loss_fn, predict_fn, images, labels, clean_logits, keys, threat, *, num_queries, initial_share
) -> common.AttackResult:
    if threat.norm == "linf":
        start, propose, least = _stripes, _recolour, 1
    else:
        start, propose, least = functools.partial(_tiles, threat.norm), functools.partial(_move_mass, threat.norm), 3
    sides = jnp.asarray(_sides(images.shape, num_queries, initial_share, least))
    radii = jnp.broadcast_to(jnp.asarray(threat.epsilon, images.dtype), labels.shape)

    def visit(points, logits) -> common.Visited:
        return common.Visited(points, common.judged(predict_fn, logits, points, labels), loss_fn(logits, labels))

    def ask(offset) -> common.Visited:
        points = project(threat, images + offset, images)
        return visit(points, common.logits_of(logits_fn, points))

    def query(number, best):
        draw = jax.vmap(lambda key, offset, radius: propose(key, offset, radius, sides[number]))
        proposed = ask(draw(common.fold_in_each(keys, number), best.images - images, radii))
        return common.where_each(best.success, best, common.better(best, proposed))

    clean = visit(images, clean_logits)
    begin = jax.vmap(lambda key, radius: start(key, images.shape[1:], radius))
    best = jax.lax.fori_loop(1, num_queries, query, ask(begin(common.fold_in_each(keys, 0), radii)))
    best = common.where_each(clean.success, clean, common.better(clean, best))
    return common.result_of(best, images, threat.norm)


def _sides(shape: tuple[int, ...], num_queries: int, initial_share: float, least: int) -> np.ndarray:
    """Return the side of the square of each query ``[num_queries]``; odd where ``least`` is 3, as bumps need."""
    height, width = shape[1:3]
    halvings = np.searchsorted(_HALVED_AT, np.arange(num_queries) * (_HALVED_OF / num_queries))
    sides = np.maximum(np.round(np.sqrt(initial_share * 0.5**halvings * height * width)).astype(np.int32), least)
    if least == 3:
        sides += 1 - sides % 2
    return np.minimum(sides, min(height, width))


def _stripes(key, shape, radius):
    """Colour every column of every channel at random (the linf start, section 3.3)."""
    return radius * jnp.broadcast_to(jax.random.rademacher(key, (1, *shape[1:]), radius.dtype), shape)


def _recolour(key, offset, radius, side):
    """Set a random square to plus or minus the radius, one sign for each channel (Algorithm 2)."""
    place_key, sign_key = jax.random.split(key)
    rows, columns = _places_in_square(place_key, offset.shape, side)
    signs = jax.random.rademacher(sign_key, offset.shape[2:], offset.dtype)
    inside = _within(rows, columns, side)
    return jnp.where(inside[..., None], radius * signs, offset)


def _tiles(norm, key, shape, radius):
    """Cover the image with about five by five bumps of random signs (the start in l2 and l1, section 3.4)."""
    height, width, channels = shape
    side = max(min(height, width) // 5, 1)
    turn_key, sign_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (math.ceil(height / side), math.ceil(width / side), channels), radius.dtype)
    rows, columns = jnp.arange(height), jnp.arange(width)
    bumps = functools.partial(_bumps, norm, turn_key, side=side, largest=max(shape), dtype=radius.dtype)
    pattern = bumps(rows % side, columns % side)[..., None] * signs[rows // side][:, columns // side]
    if norm == "l1":  # a mass of 1 in each tile and channel
        return pattern * _divide(1, _mass(norm, bumps(jnp.arange(side), jnp.arange(side))))
    return pattern * _divide(radius, _mass(norm, pattern))


def _move_mass(norm, key, offset, radius, side):
    """Empty one random square and spend what it held on bumps in another (Algorithm 3).

    Mass is the norm of an offset, kept separately for each channel. The new bumps are mixed with what their square
    held; they get the mass of both squares, and an equal part of what the ball has left. In l1 they get as many times
    that as there are channels, which is for the projection to cut.
    """
    to_key, from_key, turn_key, sign_key = jax.random.split(key, 4)
    rows, columns = _places_in_square(to_key, offset.shape, side)
    inside = _within(rows, columns, side)[..., None]
    emptied = _within(*_places_in_square(from_key, offset.shape, side), side)[..., None]
    power = 2 if norm == "l2" else 1

    held = jnp.where(inside, offset, 0)
    signs = jax.random.rademacher(sign_key, offset.shape[2:], offset.dtype)
    bumps = _bumps(norm, turn_key, rows, columns, side, max(offset.shape), offset.dtype)[..., None]
    bumps = jnp.where(inside, bumps, 0)
    bumps = bumps * _divide(1, _masses(norm, bumps)) * signs + held * _divide(1, _masses(norm, held))
    both = _masses(norm, jnp.where(inside | emptied, offset, 0)) ** power
    unspent = jnp.maximum(radius**power - _mass(norm, offset) ** power, 0)
    share = (both + unspent / offset.shape[2]) ** (1 / power) * (offset.shape[2] if norm == "l1" else 1)
    moved = jnp.where(inside, bumps * _divide(share, _masses(norm, bumps)), jnp.where(emptied, 0, offset))
    return moved if norm == "l1" else moved * _divide(radius, _mass(norm, moved))


def _places_in_square(key, shape, side):
    """Put a square of a traced side somewhere inside the image; return each row's and column's place in it."""
    high = jnp.array(shape[:2]) - side + 1
    top, left = jax.random.randint(key, (2,), 0, high)
    return jnp.arange(shape[0]) - top, jnp.arange(shape[1]) - left


def _within(rows, columns, side):
    return ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))[None]


def _bumps(norm, key, rows, columns, side, largest, dtype):
    """Evaluate two opposite bumps side by side in a square (the eta of section 3.4), turned by chance.

    A bump over ``h x w`` pixels has height ``sum_k 1 / (k + 1)^2`` (in l1: ``^4``) over ``k`` from the (Chebyshev)
    distance to its centre up to ``max(h, w) // 2``. Outside the square the values mean nothing.
    """
    partial = jnp.asarray(np.cumsum(np.r_[0, np.arange(1.0, largest + 2) ** (-4 if norm == "l1" else -2)]), dtype)

    def bump(row, column, height, width):
        distance = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
        top = jnp.maximum(height, width) // 2 + 1
        return partial[top] - partial[jnp.clip(distance, 0, top)]

    def pair(row, column):
        half = side // 2
        first = bump(row, column, half, side)
        second = bump(row - half, column, side - half, side)
        return jnp.where(row < half, first, -second)

    return jnp.where(jax.random.bernoulli(key), pair(rows[:, None], columns[None]), pair(columns[None], rows[:, None]))


def _mass(norm, offset):
    return perturbation_size(norm, offset[None])[0]


def _masses(norm, offset):
    """Measure each channel of an offset ``[H, W, C]``, ``[C]``."""
    return perturbation_size(norm, jnp.moveaxis(offset, -1, 0))


def _divide(value, size):
    """Divide, and give 0 where ``size`` is 0."""
    return jnp.where(size > 0, value / jnp.where(size > 0, size, 1), 0)
