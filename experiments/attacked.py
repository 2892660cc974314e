"""What the attacks on a network break as the radius grows; goes on from a file where it was stopped."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from experiments import classifiers, plan
from experiments.storage import ResultsError, write_whole
from nn_adv import attacks
from nn_adv.threat import Threat

_SECONDS_BETWEEN_SAVES = 20


def broken_by(
    config: ml_collections.ConfigDict,
    classifier: classifiers.Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    seed: int,
    progress_file: Path,
    show: Callable[[str], None] = lambda text: None,
) -> dict[tuple[str, float], np.ndarray]:
    """Attack every image at growing radii of each norm; an image broken at one radius counts at the larger ones.

    Args:
      config: from `configs.binary_tasks`.
      classifier: whose logits are attacked.
      images: ``[N, ...]`` float32.
      labels: ``[N]``.
      num_classes: of the classifier.
      seed: of the attacks' random numbers.
      progress_file: where the progress is kept while it runs, and read from at the start; the caller removes it.
      show: called after each batch with a few words on where it belongs.

    Returns:
      For each norm and radius ``[N]``: the place in `plan.make_attacks` of the attack that broke the image there or at
      a smaller radius, or ``attacks.CLEAN``, or ``attacks.UNBROKEN``.
    """
    suite = plan.make_attacks(config, num_classes)
    threats = [
        Threat(norm, epsilon)
        for norm, radius in plan.main_radii(config).items()
        for epsilon in plan.curve_radii(config, radius)
    ]
    done, state = _load(progress_file)
    saved = time.monotonic()

    def keep(state: attacks.EnsembleState) -> None:
        nonlocal saved
        show(f"{threat.norm} {threat.epsilon:.4g}, {suite[state.attack].name if state.attack >= 0 else 'clean'}")
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            _save(progress_file, done, state)
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
            key=jax.random.key(seed),
            threat=threat,
            attacks=suite,
            batch_size=config.evaluation.batch_size,
            predict_fn=classifier.predict_fn,
            state=state,
            on_batch=keep,
        ).broken_by
        done.append(found if before is None else np.where(before == attacks.UNBROKEN, found, before))
        state = None
    return {(threat.norm, threat.epsilon): places for threat, places in zip(threats, done, strict=True)}


def left_by_each(places: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Count the images left by the clean classification and then by each attack, from an array of `broken_by`."""
    return {name: int(np.sum((places == attacks.UNBROKEN) | (places > place))) for place, name in enumerate(names)}


def _save(path: Path, done: list[np.ndarray], state: attacks.EnsembleState) -> None:
    """Write the arrays of the threats that are done, and the state of the one at work."""
    buffer = io.BytesIO()
    np.savez(buffer, done=np.array(done), **state._asdict())
    write_whole(path, buffer.getvalue())


def _load(path: Path) -> tuple[list[np.ndarray], attacks.EnsembleState | None]:
    """Read what `_save` wrote; nothing is done where there is no file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays, counts = (file["adversarial"], file["broken_by"]), (int(file["attack"]), int(file["num_done"]))
            return list(file["done"]), attacks.EnsembleState(*arrays, *counts)
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ResultsError(f"{path} cannot be read ({error}): remove it and run the same command again") from error
