"""The compiled parts of a training: its state, its steps, and its measure on held-out images.

Functions are for one member; ``grouped=True`` maps them over a leading member axis of state, data and keys. Model and
recipe are static, so members of the same shape share a compilation, from one call of `nn_adv.training.train` to the
next.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from nn_adv import attacks
from nn_adv.pixels import as_float
from nn_adv.training import objectives
from nn_adv.training.recipe import Recipe

_PAD = 4


@struct.dataclass
class State:
    """One member in training."""

    step: chex.Array  # steps made
    variables: Any  # "params", and "batch_stats" where the network has them
    opt_state: Any  # of the optimiser
    average: Any  # moving average of `variables`; None without `ema_decay`
    best: Any  # the variables with the best score so far; None without `select_every`
    best_score: chex.Array  # -1 before the first
    best_epoch: chex.Array  # -1 before the first

    def evaluated(self) -> Any:
        """Give the variables to evaluate: the moving average where there is one."""
        return self.variables if self.average is None else self.average


def init(model: nn.Module, recipe: Recipe, key: chex.PRNGKey, image_shape: tuple[int, ...], *, grouped: bool) -> State:
    """Draw the first weights from ``key``; recipes of one model share what is compiled."""
    variables = _first_variables(model, key, image_shape, grouped=grouped)

    def one(variables):
        return State(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            opt_state=recipe.optimizer(1).init(variables["params"]),
            average=jax.tree.map(jnp.copy, variables) if recipe.ema_decay else None,
            best=jax.tree.map(jnp.copy, variables) if recipe.select_every else None,
            best_score=-jnp.ones(()),
            best_epoch=-jnp.ones((), jnp.int32),
        )

    return (jax.vmap(one) if grouped else one)(variables)


@functools.partial(jax.jit, static_argnames=("model", "image_shape", "grouped"))
def _first_variables(model, key, image_shape, *, grouped):
    def one(key):
        return model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)

    return jax.vmap(one)(key) if grouped else one(key)


@functools.partial(jax.jit, static_argnames=("model", "recipe", "steps_per_epoch", "grouped"), donate_argnames="state")
def advance(
    model: nn.Module,
    recipe: Recipe,
    state: State,
    images: chex.Array,
    indices: chex.Array,
    labels: chex.Array,
    key: chex.PRNGKey,
    *,
    steps_per_epoch: int,
    grouped: bool,
) -> tuple[State, chex.Array]:
    """Make S steps on images ``indices`` ``[S, B]`` of the whole dataset, which members share; losses are ``[S]``.

    Each step folds its number into ``key``.
    """
    optimizer = recipe.optimizer(steps_per_epoch)

    def one(state, indices, labels, key):
        def step(state, data):
            return _step(model, recipe, optimizer, state, images, *data, key)

        if indices.shape[0] > 1:
            return jax.lax.scan(step, state, (indices, labels))
        state, loss = step(state, (indices[0], labels[0]))
        return state, loss[None]

    return (jax.vmap(one) if grouped else one)(state, indices, labels, key)


def _step(model, recipe, optimizer, state, images, indices, labels, key):
    augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = objectives.Batch(as_float(images[indices]), labels)
    if recipe.augment == "crop_flip":
        batch = batch._replace(images=crop_flip(augment_key, batch.images))
    objective, groups = _objective(recipe), recipe.batch_norm_groups

    def group_loss_fn(params, group, key):
        loss, aux = objective(model.apply, {**state.variables, "params": params}, group, key=key)
        return loss, aux.batch_stats

    def loss_fn(params):
        if groups == 1:  # which keeps the random numbers of a whole batch
            return group_loss_fn(params, batch, loss_key)
        split = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), batch)
        found = jax.vmap(group_loss_fn, in_axes=(None, 0, 0))(params, split, jax.random.split(loss_key, groups))
        return jax.tree.map(lambda x: x.mean(axis=0), found)

    params = state.variables["params"]
    (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    variables = {**state.variables, "params": optax.apply_updates(params, updates)}
    if batch_stats:
        variables["batch_stats"] = batch_stats
    step = state.step + 1
    average = state.average
    if average is not None:
        # The first weights are forgotten as fast as the average has seen others.
        decay = jnp.minimum(recipe.ema_decay, step / (step + 9.0))
        average = optax.incremental_update(variables, average, 1 - decay)
    return state.replace(step=step, variables=variables, opt_state=opt_state, average=average), loss


def crop_flip(key: chex.PRNGKey, images: chex.Array) -> chex.Array:
    """Pad images ``[B, H, W, C]`` by 4 black pixels, crop each back at a random place, mirror half of them."""
    chex.assert_rank(images, 4)
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    corners = jax.random.randint(crop_key, (count, 2), 0, 2 * _PAD + 1)
    cropped = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (height, width, channels)))(
        padded, corners
    )
    flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    return jnp.where(flip, cropped[:, :, ::-1], cropped)


def _objective(recipe):
    inner = {"threats": recipe.threats, "num_steps": recipe.num_steps, "step_sizes": recipe.step_sizes}
    if recipe.objective == "trades":
        return functools.partial(objectives.trades, beta=recipe.beta, **inner)
    if recipe.objective == "adversarial":
        return functools.partial(objectives.adversarial, **inner)
    return objectives.standard


@functools.partial(jax.jit, static_argnames=("model", "recipe", "grouped"))
def count_correct(
    model: nn.Module,
    recipe: Recipe,
    state: State,
    images: chex.Array,
    indices: chex.Array,
    labels: chex.Array,
    key: chex.PRNGKey,
    *,
    grouped: bool,
) -> chex.Array:
    """Count held-out images classified correctly, ``[2]``: clean, and attacked under each of the recipe's threats.

    ``indices`` ``[B]`` are places in the whole dataset, which are folded into ``key``; -1 for one to leave out.
    """

    def one(variables, indices, labels, key):
        batch = as_float(images[indices])

        def logits_fn(batch):
            return model.apply(variables, batch, train=False)

        clean = (jnp.argmax(logits_fn(batch), axis=1) == labels) & (indices >= 0)
        robust = clean
        keys = attacks.example_keys(key, indices)
        for threat in recipe.threats:
            found = attacks.pgd(logits_fn, batch, labels, key=keys, threat=threat, num_steps=recipe.select_steps)
            robust &= ~found.success
        return jnp.stack([jnp.sum(clean), jnp.sum(robust)])

    return (jax.vmap(one) if grouped else one)(state.evaluated(), indices, labels, key)


@functools.partial(jax.jit, static_argnames="grouped")
def keep_best(state: State, score: chex.Array, epoch: chex.Numeric, *, grouped: bool) -> State:
    """Remember the evaluated variables where ``score`` (a scalar, ``[M]`` grouped) is not below the best so far.

    The latest among equals stays: on a few held-out images many epochs tie, and longer training tends to be better.
    """

    def one(state, score):
        better = score >= state.best_score
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.evaluated(), state.best)
        best_epoch = jnp.where(better, epoch, state.best_epoch).astype(jnp.int32)
        return state.replace(best=best, best_score=jnp.maximum(score, state.best_score), best_epoch=best_epoch)

    return (jax.vmap(one) if grouped else one)(state, score)
