"""What the attacks on a network break as the radius grows; goes on from a file where it was stopped."""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.files import read_arrays, write_arrays
from nn_adv import attacks
from nn_adv.threat import Threat

_SECONDS_BETWEEN_SAVES = 20
_IMAGES_THAT_TELL = 16  # networks apart
_IN_DOUBT = -3  # beside the numbers of attacks, CLEAN and UNBROKEN


class Outcome(NamedTuple):
    """What broke each image in one threat."""

    threat: Threat  # norm and epsilon
    # ``[N]`` number in the suite of the attack that broke the image there or at a smaller radius, or ``attacks.CLEAN``,
    # or ``attacks.UNBROKEN``
    attack_index: np.ndarray


def broken_by(
    logits_fn: Partial,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    suite: Sequence[attacks.Attack],
    threats: Sequence[Threat],
    key: chex.PRNGKey,
    indices: np.ndarray,
    batch_size: int,
    progress_file: Path,
    show: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Attack images at several radii of each norm, each only where the radii before it leave a doubt.

    An image broken at one radius is broken at the larger ones. One that no attack breaks at a radius counts as unbroken
    at the smaller ones: their balls lie inside the one that was searched. So an image goes through all attacks about
    once a norm, not once a radius; the counts are still upper bounds of the robust accuracy.

    Arguments that `attacks.ensemble` has too are as there, the ``suite`` is its ``attacks``; images are float32. The
    larger the radius of a norm, the more is broken.

    Args:
      threats: in the order in which they are tried. At the first of a norm every image is attacked.
      progress_file: where the progress is kept while it runs, and read from at the start; the caller removes it.
      show: called after each batch with a few words on where it belongs.

    Raises:
      ValueError: the progress file cannot be read; the message says what to do.
    """
    network = _fingerprint(logits_fn, images, batch_size)
    done, state = _load(progress_file, network, images)
    saved = time.monotonic()

    def keep(state: attacks.EnsembleState) -> None:
        nonlocal saved
        name = suite[state.attack].name if state.attack >= 0 else "clean"
        show(f"{threat.norm} {threat.epsilon:.4g}, {name}, {state.num_done} of {state.num_rows}")
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            _save(progress_file, network, done, state)
            saved = time.monotonic()

    for threat in threats[len(done) :]:
        known = _known(threat, threats, done)
        if state is None and known is not None:
            state = attacks.EnsembleState(images, np.where(known == _IN_DOUBT, attacks.UNBROKEN, attacks.CLEAN), 0, 0)
        result = attacks.ensemble(
            logits_fn,
            images,
            labels,
            key=key,
            threat=threat,
            attacks=suite,
            batch_size=batch_size,
            indices=indices,
            state=state,
            on_batch=keep,
        )
        found = result.broken_by
        done.append(found if known is None else np.where(known == _IN_DOUBT, found, known))
        state = None
    return [Outcome(*found) for found in zip(threats, done, strict=True)]


def _known(threat: Threat, threats: Sequence[Threat], done: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return what the radii of the norm that were tried tell of each image at this one; None if there are none."""
    tried = {other.epsilon: index for other, index in zip(threats, done, strict=False) if other.norm == threat.norm}
    if not tried:
        return None
    known = np.full(len(done[0]), _IN_DOUBT)
    if larger := [epsilon for epsilon in tried if epsilon > threat.epsilon]:
        index = tried[min(larger)]
        known = np.where(index < 0, index, known)  # unbroken, or misclassified clean
    if smaller := [epsilon for epsilon in tried if epsilon < threat.epsilon]:
        index = tried[max(smaller)]
        known = np.where(index != attacks.UNBROKEN, index, known)
    return known


@jax.jit
def predict(logits_fn: Partial, images: chex.Array) -> chex.Array:
    """Classify images ``[B, ...]``; returns labels ``[B]``."""
    return jnp.argmax(logits_fn(images), axis=1)


def _fingerprint(logits_fn: Partial, images: np.ndarray, batch_size: int) -> int:
    """Return a number that tells networks apart: a run that was changed in between may have trained another one.

    What the network says of some images, the same however large the batches are, stands for what is hidden in a
    function, such as a torch module's weights.
    """
    contents = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(logits_fn)]
    starts = range(0, min(_IMAGES_THAT_TELL, len(images)), batch_size)
    said = [np.asarray(predict(logits_fn, images[start : start + batch_size])) for start in starts]
    contents.append(np.concatenate(said)[:_IMAGES_THAT_TELL].tobytes())
    return functools.reduce(lambda crc, content: zlib.crc32(content, crc), contents, 0)


def _save(path: Path, network: int, done: list[np.ndarray], state: attacks.EnsembleState) -> None:
    """Write what broke the images in the threats that are done, and of the one at work what is needed to go on."""
    numbers = np.array([network, state.attack, state.num_done])
    write_arrays(path, numbers=numbers, done=np.array(done), broken_by=state.broken_by)


def _load(path: Path, network: int, images: np.ndarray) -> tuple[list[np.ndarray], attacks.EnsembleState | None]:
    """Read what `_save` wrote of this network; nothing is done where there is nothing of it."""
    try:
        kept = read_arrays(path)
        of_network, attack, num_done = kept["numbers"].tolist()
        done, broken_by = list(kept["done"]), kept["broken_by"]
    except FileNotFoundError:
        return [], None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{error}: remove it, which lets this network start anew, and run the same command again"
        ) from error
    if of_network != network:
        return [], None
    return done, attacks.EnsembleState(images.copy(), broken_by, attack, num_done)
