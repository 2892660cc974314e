"""Attacks one after the other, each on what those before it left unbroken (Croce & Hein 2020, arXiv 2003.01690).

Host code around jitted attacks: it can stop after any batch and go on from there to the same bits.
"""

from __future__ import annotations

import functools
import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks import common
from nn_adv.attacks.apgd import apgd
from nn_adv.attacks.fab import fab
from nn_adv.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from nn_adv.attacks.pgd import pgd
from nn_adv.attacks.programs import run, traceable
from nn_adv.attacks.square import square
from nn_adv.border import as_count, as_images, as_integers, as_key, as_labels
from nn_adv.threat import Threat, check_threat, float64_sizes

UNBROKEN, CLEAN = -2, -1  # in `EnsembleState.broken_by`; other numbers are places in the list of attacks
_MAX_TARGETS = 9  # of targeted attacks, as in the published ensemble
# Rows of the smallest call: products with one or a few rows are other programs, which round differently.
_LEAST_ROWS = 8


# For each name: the attack, its options, how many classes it needs, and what to take where there are fewer.
_NAMED: dict[str, tuple[Callable[..., common.AttackResult], dict, int, str]] = {
    "apgd-ce": (apgd, {"loss_fn": cross_entropy}, 2, ""),
    "apgd-dlr": (apgd, {"loss_fn": dlr}, 3, "apgd-margin"),
    "apgd-margin": (apgd, {"loss_fn": margin}, 2, ""),
    "apgd-t": (apgd, {"loss_fn": targeted_dlr, "num_targets": _MAX_TARGETS}, 4, "apgd-margin-t"),
    "apgd-margin-t": (apgd, {"loss_fn": targeted_margin, "num_targets": _MAX_TARGETS}, 2, ""),
    "fab": (fab, {}, 2, ""),
    "fab-t": (fab, {"num_targets": _MAX_TARGETS}, 2, ""),
    "square": (square, {}, 2, ""),
    "pgd": (pgd, {"loss_fn": margin}, 2, ""),
}
_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
_COUNTS = {"num_steps", "num_restarts", "num_queries"}


class Attack(NamedTuple):
    """An attack with its options: ``fn(logits_fn, images, labels, *, key, threat, predict_fn) -> AttackResult``.

    ``fn`` is compiled for each object: make it once, not once a call.
    """

    name: str
    fn: Callable[..., common.AttackResult]


class EnsembleState(NamedTuple):
    """How far an ensemble is; arrays to keep anywhere, from which `ensemble` goes on.

    Attributes:
      adversarial: ``[N, ...]``; the image itself while it is unbroken.
      broken_by: ``[N]`` place of the attack that broke each image, or `UNBROKEN`, or `CLEAN` where the clean image is
        misclassified.
      attack: place of the attack at work; -1 while the clean images are classified.
      num_done: images that this attack has been through.
      num_rows: images that this attack goes through; for showing progress.
    """

    adversarial: np.ndarray
    broken_by: np.ndarray
    attack: int
    num_done: int
    num_rows: int = 0


class EnsembleResult(NamedTuple):
    """What an ensemble found.

    Attributes:
      adversarial: ``[N, ...]``; the image itself where it is unbroken.
      success: ``[N]`` whether it is broken, misclassified clean images included. False proves nothing.
      loss: ``[N]`` the margin of ``adversarial``.
      distance: ``[N]`` size of the perturbation in the threat's norm.
      broken_by: as in `EnsembleState`.
      names: of the attacks.
      num_unbroken: images left by the clean classification and then by each attack, ``[1 + attacks]``.
    """

    adversarial: np.ndarray
    success: np.ndarray
    loss: np.ndarray
    distance: np.ndarray
    broken_by: np.ndarray
    names: tuple[str, ...]
    num_unbroken: tuple[int, ...]


def named_attack(name: str, num_classes: int, **options: int) -> Attack:
    """Return an attack of the published ensemble, or one of its relatives, by default at its published size.

    Args:
      name: "apgd-ce", "apgd-dlr", "apgd-margin", "apgd-t", "apgd-margin-t", "fab", "fab-t", "square" or "pgd".
      num_classes: of the classifier; targeted attacks try all other classes, at most nine.
      **options: ``num_steps`` and ``num_restarts``, or of "square" ``num_queries``.

    Raises:
      ValueError: an unknown name, an option that the attack has not or that is no whole number, or fewer classes than
        its loss needs.
    """
    if not isinstance(name, str) or name not in _NAMED:
        raise ValueError(f"attack must be one of {', '.join(_NAMED)}, got {name!r}")
    fn, _, least, fallback = _NAMED[name]
    num_classes = as_count(num_classes, "num_classes")
    if num_classes < least:
        remedy = f": take {fallback}" if fallback else ""
        raise ValueError(f"{name} needs at least {least} classes, got {num_classes}{remedy}")
    unknown = set(options) - (_COUNTS & set(inspect.signature(fn).parameters))
    if unknown:
        raise ValueError(f"{name} takes no {', '.join(sorted(unknown))} here; make an Attack of your own for it")
    return _made(name, num_classes, **{option: as_count(value, option, low=0) for option, value in options.items()})


@functools.cache  # the same object for the same name, so that jit recognises it
def _made(name: str, num_classes: int, **options: int) -> Attack:
    fn, usual, *_ = _NAMED[name]
    if "num_targets" in usual:
        usual = usual | {"num_targets": min(usual["num_targets"], num_classes - 1)}
    return Attack(name, functools.partial(fn, **usual | options))


def standard_attacks(num_classes: int) -> tuple[Attack, ...]:
    """Return the published ensemble; below four classes the margin takes the place of the targeted DLR loss.

    It is that of l2 and linf. In l1 the published one has five restarts of apgd-ce, five targets of apgd-t, and balls
    of more than the radius at first. Square stretches its schedule to its queries, which the published one does not.
    """
    names = (name if num_classes >= _NAMED[name][2] else _NAMED[name][3] for name in _STANDARD)
    return tuple(named_attack(name, num_classes) for name in names)


def ensemble(
    logits_fn: Callable[[chex.Array], chex.Array],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: chex.PRNGKey,
    threat: Threat,
    attacks: Sequence[Attack] | None = None,
    batch_size: int = 128,
    predict_fn: Callable[[chex.Array], chex.Array] | None = None,
    indices: np.ndarray | None = None,
    state: EnsembleState | None = None,
    on_batch: Callable[[EnsembleState], None] | None = None,
) -> EnsembleResult:
    """Run attacks one after the other, each on the images that are still unbroken.

    Random numbers belong to an image's index and an attack's name, so results depend on the batch size only through
    rounding, which can grow. For deterministic classifiers. Not jittable; every attack is compiled once.

    Args:
      logits_fn: differentiable, float images ``[B, ...]`` to logits ``[B, C]``. A plain function is traced in each
        call, and must not change during one; ``jax.tree_util.Partial(fn, variables)`` is traced once for all networks
        that differ in their variables alone.
      images: ``[N, ...]`` floating point, inside the bounds; float64 is rounded to float32, unless JAX has it enabled.
      labels: ``[N]``.
      key: a typed key.
      threat: the perturbations allowed, one epsilon for all images.
      attacks: in their order; by default `standard_attacks`. What they claim to break is classified again.
      batch_size: images per call; the last batch, and one of fewer than 8, is filled up.
      predict_fn: the classifier that decides, images to labels, where it is not the argmax of ``logits_fn``.
      indices: ``[N]`` what an image's random numbers belong to, such as its number in the dataset; by default its
        place in ``images``.
      state: where an earlier call with the same arguments stopped.
      on_batch: called with the state after each batch, to keep it or to show progress. The next batch changes the
        arrays it holds: write them out, or copy them.

    Raises:
      ValueError: images that are not finite floats inside the bounds, labels out of range or of another length, an
        epsilon for each image, two attacks of one name, logits of a wrong shape or, for a clean image, NaN,
        ``batch_size`` below 1, indices of another length, a state of other images, attacks or of a larger threat, or an
        attack that leaves the ball or the bounds with what it claims to break; ``on_batch`` was given what had been
        found before.
    """
    batch_size = as_count(batch_size, "batch_size")
    images, labels, indices, key = _check_inputs(images, labels, indices, key, threat)
    logits_fn, predict_fn = traceable(logits_fn), predict_fn and traceable(predict_fn)
    compiled = functools.partial(run, kept={})  # for all batches of this call
    classify = functools.partial(compiled, _classify, logits_fn, predict_fn)
    num_filled = max(batch_size, _LEAST_ROWS)
    shapes = [jax.ShapeDtypeStruct((num_filled, *array.shape[1:]), array.dtype) for array in (images, labels)]
    num_classes = jax.eval_shape(_classify, logits_fn, predict_fn, *shapes)[0].shape[1]
    as_labels(labels, num_classes)
    attacks = standard_attacks(num_classes) if attacks is None else tuple(attacks)
    if others := [one for one in attacks if not isinstance(one, Attack)]:
        raise ValueError(f"attacks must be a list of Attack, as named_attack makes them, got {others[0]!r} in it")
    if len({attack.name for attack in attacks}) < len(attacks):
        raise ValueError(f"attacks must have different names, got {', '.join(attack.name for attack in attacks)}")
    state = _state_to_go_on_from(state, images, attacks, threat)
    if state.attack != CLEAN and len(images):  # the clean pass warned an earlier run only
        first = np.arange(num_filled) % len(images)
        common.check_logit_values(np.asarray(classify(images[first], labels[first])[0]), first, stacklevel=3)

    for place in range(state.attack, len(attacks)):
        if place != state.attack:
            state = state._replace(attack=place, num_done=0)
        keys = _keys(key, "clean" if place == CLEAN else attacks[place].name, indices)
        # What was unbroken when this attack began: also after it was resumed.
        rows = np.flatnonzero((state.broken_by == UNBROKEN) | (state.broken_by == place))
        state = state._replace(num_rows=len(rows))
        for start in range(state.num_done, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            filled = rows[np.arange(start, start + num_filled) % len(rows)]
            if place == CLEAN:
                found = images[filled]
                logits, success = map(np.asarray, classify(found, labels[filled]))
                common.check_logit_values(logits[: len(batch)], batch, stacklevel=3)
            else:
                inputs = (jnp.asarray(images[filled]), jnp.asarray(labels[filled]), keys[filled], threat)
                result = compiled(_attack, logits_fn, predict_fn, *inputs, attack=attacks[place].fn)
                claimed, found = map(np.asarray, result)
                _check_allowed(attacks[place].name, claimed, found, images[filled], threat)
                # Judged again, as the clean images were: a claim may be wrong, or owe itself to rounding.
                success = claimed & np.asarray(classify(found, inputs[1])[1])
            is_broken = success[: len(batch)]
            state.broken_by[batch[is_broken]] = place
            state.adversarial[batch[is_broken]] = found[: len(batch)][is_broken]
            state = state._replace(num_done=start + len(batch))
            if on_batch is not None:
                on_batch(state)

    names = tuple(attack.name for attack in attacks)
    is_broken = state.broken_by != UNBROKEN
    loss = _margins(classify, state.adversarial, labels, batch_size)
    distance = float64_sizes(threat.norm, state.adversarial - images).astype(images.dtype)
    left = count_unbroken(state.broken_by, len(attacks))
    return EnsembleResult(state.adversarial, is_broken, loss, distance, state.broken_by, names, left)


def _margins(classify, points, labels, batch_size) -> np.ndarray:
    """Return the margins of points ``[N, ...]``, by the program that classified the clean images."""
    found = [np.zeros(0, points.dtype)]
    for start in range(0, len(points), batch_size):
        rows = np.arange(start, min(start + batch_size, len(points)))
        filled = np.resize(rows, max(batch_size, _LEAST_ROWS))
        found.append(np.asarray(margin(classify(points[filled], labels[filled])[0], labels[filled]))[: len(rows)])
    return np.concatenate(found)


def _check_inputs(images, labels, indices, key, threat) -> tuple[np.ndarray, np.ndarray, np.ndarray, chex.PRNGKey]:
    check_threat(threat, finite=True)
    if np.ndim(threat.epsilon):
        raise ValueError(f"threat must have one epsilon for all images, got {np.shape(threat.epsilon)} of them")
    images = np.asarray(as_images(images, bounds=threat.bounds, takes_uint8=False))
    labels = as_labels(labels, count=len(images))
    indices = np.arange(len(images)) if indices is None else as_integers(indices, "indices", count=len(images))
    return images, labels, indices, as_key(key)


def _state_to_go_on_from(state: EnsembleState | None, images, attacks, threat: Threat) -> EnsembleState:
    """Return a state with arrays of its own, new where there is none; ValueError for one that does not fit."""
    if state is None:
        state = EnsembleState(images, np.full(len(images), UNBROKEN), CLEAN, 0)
    if not isinstance(state, EnsembleState):
        raise ValueError(f"state must be an EnsembleState, as on_batch is given, got {type(state).__name__}")
    if state.adversarial.shape != images.shape or not CLEAN <= state.attack < len(attacks):
        raise ValueError(
            f"state must be of the same images and attacks, {images.shape} and {len(attacks)}, "
            f"got one of {state.adversarial.shape} at attack {state.attack}"
        )
    as_count(state.num_done, "state.num_done", low=0, high=len(images))
    limits = {"low": UNBROKEN, "high": len(attacks) - 1, "count": len(images)}
    # Changed in place from here on: a copy for each batch would cost more than many a batch.
    broken_by = np.array(as_integers(state.broken_by, "state.broken_by", **limits))
    adversarial = np.array(state.adversarial, images.dtype)
    is_moved = broken_by >= 0
    if not np.array_equal(adversarial[~is_moved], images[~is_moved]):
        raise ValueError("state must be of the same images, got others that are unbroken in it")
    _check_allowed("of the state", is_moved, adversarial, images, threat)
    return state._replace(adversarial=adversarial, broken_by=broken_by)


def count_unbroken(broken_by: np.ndarray, num_attacks: int) -> tuple[int, ...]:
    """Count the images left by the clean classification and then by each attack, ``[1 + attacks]``."""
    places = range(CLEAN, num_attacks)
    return tuple(int(np.sum((broken_by == UNBROKEN) | (broken_by > place))) for place in places)


def _attack(logits_fn, predict_fn, images, labels, key_data, threat, *, attack):
    keys = jax.random.wrap_key_data(key_data, impl=common.GENERATOR)
    result = attack(logits_fn, images, labels, key=keys, threat=threat, predict_fn=predict_fn)
    return result.success, result.adversarial


def _check_allowed(name: str, claimed: np.ndarray, points: np.ndarray, images: np.ndarray, threat: Threat) -> None:
    """Raise ValueError if a point that is claimed to break its image is not in ball and bounds, up to rounding."""
    points, images = (values.reshape(len(values), math.prod(values.shape[1:])) for values in (points, images))
    distance = float64_sizes(threat.norm, points.astype(np.float64) - images)
    ulp = float(jnp.finfo(points.dtype).eps) * max(float(np.max(np.abs(images), initial=0)), 1)
    rounding = float64_sizes(threat.norm, np.full((1, images.shape[1]), ulp))
    is_far = ~(distance <= threat.epsilon * (1 + 1e-5) + rounding)
    is_out = ~np.all(common.is_inside(points, threat.bounds), axis=1)
    is_outside = claimed & (is_far | is_out)
    if is_outside.any():
        place = np.argmax(is_outside)
        raise ValueError(
            f"attack {name} left the ball or the bounds: distance {distance[place]:.6g} of {threat.epsilon:.6g}, "
            f"pixels from {points[place].min():.6g} to {points[place].max():.6g}"
        )


def _classify(logits_fn, predict_fn, images, labels):
    logits = common.logits_of(logits_fn, images)
    return logits, common.judged(predict_fn, logits, images, labels)


def _keys(key: chex.PRNGKey, name: str, indices: np.ndarray) -> np.ndarray:
    """Return the data of one key per image for an attack, on the host."""
    own = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return np.asarray(jax.random.key_data(common.example_keys(own, indices)))
