"""Train one network, or several of one shape side by side, on tasks that share a dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import operator
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from nn_adv.border import as_count, as_images, as_integers, as_labels
from nn_adv.training import steps
from nn_adv.training.recipe import Recipe
from nn_adv.training.spread import Spread

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Member(NamedTuple):
    """One network's data: positions in the dataset, and classes 0..C-1.

    Attributes:
      train_index: ``[n]`` the images it learns from.
      train_labels: ``[n]`` their classes.
      holdout_index: ``[h]`` training images kept aside to choose among epochs; may be empty without selection.
      holdout_labels: ``[h]`` their classes.
    """

    train_index: np.ndarray
    train_labels: np.ndarray
    holdout_index: np.ndarray = np.zeros(0, np.int32)
    holdout_labels: np.ndarray = np.zeros(0, np.int32)


class History(NamedTuple):
    """What was seen, for M members and E epochs; NaN where an accuracy was not measured.

    Attributes:
      loss: ``[M, E]`` mean training loss of an epoch.
      clean: ``[M, E]`` share of the held-out images classified correctly after it.
      robust: ``[M, E]`` share still correct under PGD in every threat of the recipe; an upper bound of robustness.
      seconds: ``[M, E]`` time of an epoch and its measurement, shared equally between the members.
    """

    loss: np.ndarray
    clean: np.ndarray
    robust: np.ndarray
    seconds: np.ndarray


class Trained(NamedTuple):
    """The result for M members.

    Attributes:
      variables: one tree per member, ready for ``model.apply``.
      history: `History`.
      selected_epoch: ``[M]`` the epoch (from 0) after which the variables were taken.
    """

    variables: list[Any]
    history: History
    selected_epoch: np.ndarray


def train(
    model: nn.Module,
    images: Any,
    members: Sequence[Member],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    steps_per_epoch: int | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int = 1,
    mesh: Mesh | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
) -> Trained:
    """Train ``model`` once per member.

    One member is trained plainly, several as one program mapped over members. Weights, order, crops and attacks of a
    member come from its own seed, so apart from rounding it does not matter which others are beside it, as long as
    ``steps_per_epoch`` is the same.

    Side by side pays where one network leaves the device idle. On a CPU it does not: convolutions with a kernel per
    member take four times the processor time of training the members in turn, dense networks about as long as in turn.

    An epoch is a permutation of a member's images, continued from its beginning until ``steps_per_epoch`` batches are
    full: no image is left out. Calls that agree in model, recipe, number of members, ``steps_per_epoch`` and the
    shape of ``images`` share one compilation.

    Args:
      model: from `nn_adv.models`, or any Linen module with ``__call__(images, train)``. With TRADES the momentum of
        its batch normalisations is to be 0.9, as `trades` has it.
      images: ``[N, H, W, C]``, uint8 or floats in [0, 1], the dataset the members' indices point into; floats are
        taken as float32, and normalisation belongs inside the model. A `jax.Array` is used where it is.
      members: one or more.
      recipe: how to train.
      seeds: one integer >= 0 per member.
      steps_per_epoch: None for the least that shows every member all its images; give the largest over all tasks to
        make results and compilations independent of the grouping.
      checkpoint_dir: a folder of this training's own. A training found there continues, and a finished one is loaded.
      checkpoint_every: save after so many epochs, and at the end.
      mesh: of one axis, "data", over whose devices the batches of one member, or the members, are split evenly. A batch
        stays one batch: its losses and the statistics of its normalisation are those of all devices. What was saved
        continues on any mesh.
      on_epoch: called after each epoch with its number and the history so far.

    Raises:
      ImportError: ``checkpoint_dir`` is given, and Orbax is not installed.
      ValueError: images, indices or labels that are none, members or seeds that do not fit, ``checkpoint_dir`` holds
        another training, or a mesh of other axes or over which batch or members cannot be split evenly.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, got {recipe!r}")
    images = as_images(images, bounds=(0, 1), rank=4)
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    members = _as_members(members, len(images), _num_classes(model, images.shape[1:]), recipe)
    seeds = as_integers(seeds, "seeds", count=len(members)).tolist()
    checkpoint_every = as_count(checkpoint_every, "checkpoint_every")
    needed = -(-max(len(member.train_index) for member in members) // recipe.batch_size)
    if steps_per_epoch is None:
        steps_per_epoch = needed
    steps_per_epoch = as_count(steps_per_epoch, "steps_per_epoch", low=needed, what="to show every image")
    grouped = len(members) > 1
    spread = Spread.over(mesh, len(members), recipe.batch_size)
    images = jnp.asarray(spread.whole(images))
    init_keys, train_keys, select_keys = _keys(seeds, grouped)
    state = steps.init(model, recipe, init_keys, images.shape[1:], grouped=grouped)
    history = History(*(np.full((len(members), recipe.num_epochs), np.nan) for _ in History._fields))

    with contextlib.ExitStack() as stack:
        saved, first_epoch = None, 0
        if checkpoint_dir is not None:
            identity = _identity(model, images, members, recipe, seeds, steps_per_epoch)
            saved = stack.enter_context(_checkpoints(checkpoint_dir, identity))
            first_epoch, (state, history) = saved.restore((state, history))
        state, train_keys, select_keys = (spread.members(some) for some in (state, train_keys, select_keys))
        for epoch in range(first_epoch, recipe.num_epochs):
            start = time.perf_counter()
            order = [
                _order(member, seed, epoch, steps_per_epoch, recipe.batch_size)
                for member, seed in zip(members, seeds, strict=True)
            ]
            state, loss = _run_epoch(model, recipe, state, images, order, train_keys, grouped, spread)
            history.loss[:, epoch] = loss
            last = epoch + 1 == recipe.num_epochs
            if recipe.select_every and ((epoch + 1) % recipe.select_every == 0 or last):
                clean, robust = _measure(model, recipe, state, images, members, select_keys, grouped)
                history.clean[:, epoch], history.robust[:, epoch] = clean, robust
                state = steps.keep_best(state, _stack(list(robust), grouped), epoch, grouped=grouped)
            history.seconds[:, epoch] = (time.perf_counter() - start) / len(members)
            if saved and (last or (epoch + 1) % checkpoint_every == 0):
                saved.save(epoch + 1, (state, history))
            if on_epoch is not None:
                on_epoch(epoch, history)
    return _result(state, history, recipe, len(members))


def _checkpoints(folder, identity):
    try:  # Orbax is an extra
        from nn_adv.training.checkpoints import Checkpoints
    except ModuleNotFoundError as error:
        raise ImportError(f"checkpoint_dir needs {error.name}: pip install 'nn_adv[experiments]'") from error
    return Checkpoints(folder, identity)


def _run_epoch(model, recipe, state, images, order, keys, grouped, spread):
    """Make one epoch's steps and give the mean loss of each member ``[M]``."""
    indices, labels = (_stack(list(field), grouped) for field in zip(*order, strict=True))
    num_steps = order[0][0].shape[0]
    # Inside a loop XLA's CPU backend runs the convolutions of a training step ten times slower.
    chunk = 1 if jax.default_backend() == "cpu" else num_steps
    losses = []
    for start in range(0, num_steps, chunk):
        part = np.s_[:, start : start + chunk] if grouped else np.s_[start : start + chunk]
        state, loss = steps.advance(
            model, recipe, state, images, *spread.batches((indices[part], labels[part])), keys,
            steps_per_epoch=num_steps, grouped=grouped,
        )  # fmt: skip
        losses.append(loss)
    return state, np.mean(np.concatenate([np.atleast_2d(jax.device_get(loss)) for loss in losses], axis=1), axis=1)


def _measure(model, recipe, state, images, members, keys, grouped):
    """Give the clean and the robust accuracy ``[M]`` on the held-out images, in batches of one shape."""
    size = recipe.batch_size
    num_batches = -(-max(len(m.holdout_index) for m in members) // size)
    padded = [[np.pad(a, (0, num_batches * size - len(a)), constant_values=-1) for a in m[2:]] for m in members]
    indices, labels = (_stack(list(field), grouped) for field in zip(*padded, strict=True))
    correct = 0
    for start in range(0, num_batches * size, size):
        part = np.s_[..., start : start + size]
        counts = steps.count_correct(model, recipe, state, images, indices[part], labels[part], keys, grouped=grouped)
        correct = correct + np.atleast_2d(jax.device_get(counts))
    return (correct / np.array([[len(m.holdout_index)] for m in members])).T


def _order(member, seed, epoch, steps_per_epoch, batch_size):
    """Give the images and labels of an epoch, each ``[S, B]``."""
    permutation = np.random.default_rng([seed, epoch]).permutation(len(member.train_index))
    shape = (steps_per_epoch, batch_size)
    taken = np.resize(permutation, shape)
    return member.train_index[taken], member.train_labels[taken]


def _keys(seeds, grouped):
    keys = jnp.stack([jax.random.split(jax.random.key(seed), 3) for seed in seeds], axis=1)
    return tuple(keys if grouped else keys[:, 0])


def _stack(arrays, grouped):
    return np.stack(arrays) if grouped else arrays[0]


def _result(state, history, recipe, num_members):
    chosen = state.best if recipe.select_every else state.evaluated()
    epochs = np.atleast_1d(state.best_epoch) if recipe.select_every else np.full(num_members, recipe.num_epochs - 1)
    if num_members == 1:
        return Trained([chosen], history, epochs)
    each = [jax.tree.map(operator.itemgetter(i), chosen) for i in range(num_members)]
    return Trained(each, history, epochs)


def _identity(model, images, members, recipe, seeds, steps_per_epoch):
    """Describe a training so that two different ones differ; large arrays, and what functions do, by their hash."""
    digest = hashlib.sha256()
    for member in members:
        for array in member:
            digest.update(np.ascontiguousarray(array, np.int64).tobytes() + b"|")
    return {
        "model": _described(model, images),
        "recipe": repr(recipe),
        "members": digest.hexdigest(),
        "images": hashlib.sha256(f"{images.shape}{images.dtype}".encode() + np.asarray(images).tobytes()).hexdigest(),
        "seeds": repr(seeds),
        "steps_per_epoch": str(steps_per_epoch),
    }


def _described(model, images):
    """Return the repr of a module, and a hash of its program where a function is in it, of which repr says the name."""
    text = _ADDRESS.sub("", repr(model))
    if not _has_function(model):
        return text
    digest = hashlib.sha256()
    like = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    for train in (False, True):

        def call(key, images, train=train):
            return model.init_with_output({"params": key, "dropout": key}, images, train=train)

        program = jax.make_jaxpr(call)(jax.random.key(0), like)
        digest.update(_ADDRESS.sub("", str(program)).encode())
        for array in map(np.asarray, program.consts):  # what its functions close over
            digest.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
    return f"{text} {digest.hexdigest()}"


def _has_function(module):
    fields = (field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name"))
    values = jax.tree.leaves([getattr(module, name) for name in fields], is_leaf=callable)
    functions = (value for value in values if callable(value) and not isinstance(value, type))
    return any(not isinstance(value, nn.Module) or _has_function(value) for value in functions)


def _num_classes(model, image_shape):
    like = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logits = jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), like)[0]
    if getattr(logits, "ndim", None) != 2:
        raise ValueError(f"model must return logits [B, C], got {logits}")
    return logits.shape[1]


def _as_members(members, num_images, num_classes, recipe):
    if not members:
        raise ValueError("members must hold at least one Member, got none")
    checked = []
    for number, member in enumerate(members):
        if not isinstance(member, Member):
            raise ValueError(f"members[{number}] must be a Member, got {type(member).__name__}")
        fields = []
        for part in ("train", "holdout"):
            names = [f"members[{number}].{part}_{field}" for field in ("index", "labels")]
            index = as_integers(getattr(member, f"{part}_index"), names[0], high=num_images - 1)
            labels = getattr(member, f"{part}_labels")
            fields += [index, as_labels(labels, num_classes, count=len(index), name=names[1])]
        checked.append(Member(*fields))
        if not len(checked[-1].train_index):
            raise ValueError(f"members[{number}] has no training images")
        if recipe.select_every and not len(checked[-1].holdout_index):
            raise ValueError(
                f"members[{number}] has no held-out images, which select_every={recipe.select_every} needs"
            )
    return checked
