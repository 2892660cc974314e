"""What the attacks on a network break as the radius grows; goes on from a file where it was stopped."""

from __future__ import annotations

import functools
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import chex
import jax
import numpy as np

from experiments import classifiers
from experiments.storage import write_whole
from nn_adv import attacks
from nn_adv.threat import Threat

_SECONDS_BETWEEN_SAVES = 20
_IMAGES_THAT_TELL = 16  # networks apart


def broken_by(
    classifier: classifiers.Classifier,
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
) -> list[np.ndarray]:
    """Attack every image at growing radii of each norm; an image broken at one radius counts at the larger ones.

    Args:
      classifier: whose logits are attacked.
      images: ``[N, ...]`` float32.
      labels: ``[N]``.
      suite: the attacks in their order.
      threats: norm by norm, radii growing.
      key: of the attacks' random numbers.
      indices: ``[N]`` what the random numbers of each image belong to.
      batch_size: images per call.
      progress_file: where the progress is kept while it runs, and read from at the start; the caller removes it.
      show: called after each batch with a few words on where it belongs.

    Returns:
      For each threat ``[N]``: the place in ``suite`` of the attack that broke the image there or at a smaller radius,
      or ``attacks.CLEAN``, or ``attacks.UNBROKEN``.

    Raises:
      ValueError: the progress file cannot be read; the message says what to do.
    """
    network = _fingerprint(classifier, images, batch_size)
    done, state = _load(progress_file, network, images)
    saved = time.monotonic()

    def keep(state: attacks.EnsembleState) -> None:
        nonlocal saved
        name = suite[state.attack].name if state.attack >= 0 else "clean"
        show(f"{threat.norm} {threat.epsilon:.4g}, {name}, {state.num_done} of {state.num_rows}")
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            _save(progress_file, network, done, state)
            saved = time.monotonic()

    for number in range(len(done), len(threats)):
        threat = threats[number]
        is_first = number == 0 or threats[number - 1].norm != threat.norm
        before = None if is_first else done[-1]
        if state is None and before is not None:
            left = np.where(before == attacks.UNBROKEN, attacks.UNBROKEN, attacks.CLEAN)
            state = attacks.EnsembleState(images, left, 0, 0)
        found = attacks.ensemble(
            classifier.logits_fn,
            images,
            labels,
            key=key,
            threat=threat,
            attacks=suite,
            batch_size=batch_size,
            predict_fn=classifier.predict_fn,
            indices=indices,
            state=state,
            on_batch=keep,
        ).broken_by
        done.append(found if before is None else np.where(before == attacks.UNBROKEN, found, before))
        state = None
    return done


def _fingerprint(classifier: classifiers.Classifier, images: np.ndarray, batch_size: int) -> int:
    """Return a number that tells networks apart: a run that was changed in between may have trained another one.

    What the network says of some images, the same however large the batches are, stands for what is hidden in a
    function, such as a torch module's weights.
    """
    contents = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(classifier)]
    starts = range(0, min(_IMAGES_THAT_TELL, len(images)), batch_size)
    said = [np.asarray(classifiers.predict(classifier, images[start : start + batch_size])) for start in starts]
    contents.append(np.concatenate(said)[:_IMAGES_THAT_TELL].tobytes())
    return functools.reduce(lambda crc, content: zlib.crc32(content, crc), contents, 0)


def _save(path: Path, network: int, done: list[np.ndarray], state: attacks.EnsembleState) -> None:
    """Write the arrays of the threats that are done, and of the one at work what is needed to go on; no images."""
    buffer = io.BytesIO()
    numbers = np.array([network, state.attack, state.num_done])
    np.savez(buffer, numbers=numbers, done=np.array(done), broken_by=state.broken_by)
    write_whole(path, buffer.getvalue())


def _load(path: Path, network: int, images: np.ndarray) -> tuple[list[np.ndarray], attacks.EnsembleState | None]:
    """Read what `_save` wrote of this network; nothing is done where there is nothing of it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            of_network, attack, num_done = file["numbers"].tolist()
            if of_network != network:
                return [], None
            return list(file["done"]), attacks.EnsembleState(images, file["broken_by"], attack, num_done)
    except FileNotFoundError:
        return [], None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): remove it, which lets this network start anew, and run the same command "
            "again"
        ) from error
