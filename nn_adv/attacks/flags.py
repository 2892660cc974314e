"""Signs that what attacks leave of a classifier says little of it (after the checks of Croce & Hein 2020's AutoAttack).

Each asks for another attack, not for another classifier: what to do is in the sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nn_adv.attacks.common import are_probabilities, evaluate_loss, example_keys, logits_of
from nn_adv.attacks.losses import cross_entropy, margin
from nn_adv.attacks.programs import depends_on_arguments, run, traceable
from nn_adv.border import as_count, as_images, as_labels

_LOSSES = {"cross-entropy": cross_entropy, "margin": margin}
_MANY_GRADIENTS, _MANY_BROKEN = 0.1, 0.01  # of the images
_ROUNDING = 1e-4  # between two calls, in parts of the largest logit: sums in another order differ by less


def flags(logits_fn: Callable[[chex.Array], chex.Array], images: chex.Array, labels: chex.Array) -> tuple[str, ...]:
    """Look for what makes an evaluation by gradients say little: a sentence for each thing that is found.

    Two calls that differ: the classifier is random. Probabilities in place of logits. A gradient of the cross-entropy,
    or of the margin, that is exactly zero for more than a tenth of the images: rounding, saturation or a step function
    hides it. Nothing found proves nothing. Host code; it classifies the images twice and takes two gradients of each.

    Args:
      logits_fn: differentiable, images ``[B, ...]`` to logits ``[B, C]``.
      images: clean images ``[B, ...]``, floating point; one batch of them will do.
      labels: class indices ``[B]``.

    Raises:
      ValueError: images or labels of a wrong type or shape, logits of a wrong shape, labels out of range.
    """
    images = as_images(images, takes_uint8=False)
    labels = as_labels(labels, count=len(images))
    if not len(images):
        return ()
    found = []
    logits, again = (np.asarray(run(logits_of, logits_fn, images)) for _ in range(2))
    as_labels(labels, logits.shape[1])
    is_finite = np.isfinite(logits) & np.isfinite(again)
    difference = np.max(np.abs(np.subtract(logits, again, where=is_finite, out=np.zeros_like(logits))))
    if difference > _ROUNDING * max(float(np.max(np.abs(logits[is_finite]), initial=0)), 1):
        found.append(
            f"random outputs: two calls on the same images differ by up to {difference:.3g}; average over its random "
            "numbers (attacks.eot)"
        )
    if are_probabilities(logits):
        found.append("probabilities in place of logits: gradients vanish where one is near 1; leave out the softmax")
    for name, is_zero in run(_zero_gradients, logits_fn, images, labels).items():
        if np.mean(is_zero) > _MANY_GRADIENTS:
            found.append(
                f"zero gradient: that of the {name} is zero for {int(np.sum(is_zero))} of {len(images)} images; "
                "attacks that climb it do not move there"
            )
    return tuple(found)


def square_flag(num_unbroken: Mapping[str, int]) -> str | None:
    """Say so if Square, which sees no gradient, broke more than 1 % of the images that attacks before it did not.

    Args:
      num_unbroken: images left by "clean" and then by each attack in its turn, as from `ensemble`:
        ``dict(zip(("clean", *found.names), found.num_unbroken))``.

    Returns:
      A sentence, or None: nothing to say, or no "square" after another attack.
    """
    names = list(num_unbroken)
    if "square" not in names[2:]:
        return None
    before, after = (num_unbroken[names[names.index("square") + step]] for step in (-1, 0))
    if before - after <= _MANY_BROKEN * num_unbroken[names[0]]:
        return None
    return (
        f"Square broke {before - after} of the {before} images that the attacks before it left, without gradients: "
        "those say too little here"
    )


def eot(
    random_logits_fn: Callable[[chex.Array, chex.PRNGKey], chex.Array], *, key: chex.PRNGKey, num_samples: int
) -> Callable[[chex.Array], chex.Array]:
    """Make a logits_fn of a random classifier: the mean of its logits over samples (Athalye et al. 2018, EOT).

    The paper (arXiv 1707.07397) climbs the expectation over the random numbers. Here they are drawn once, so what
    comes out is deterministic, as attacks and `ensemble` want it, and its gradient is the mean of the samples'
    gradients. Judge what breaks by the classifier itself, with another key.

    Args:
      random_logits_fn: differentiable, images ``[B, ...]`` and a key to logits ``[B, C]``.
      key: one typed key.
      num_samples: 1 or more; memory grows with it.

    Raises:
      ValueError: no key, several, or ``num_samples`` below 1.
    """
    keys = example_keys(key, np.arange(as_count(num_samples, "num_samples")))
    if depends_on_arguments(random_logits_fn):
        return Partial(_mean_logits, traceable(random_logits_fn), keys)
    return lambda images: _mean_logits(random_logits_fn, keys, images)  # which may change, as attacks see


def _mean_logits(random_logits_fn, keys, images):
    return jnp.mean(jax.vmap(random_logits_fn, in_axes=(None, 0))(images, keys), axis=0)


def _zero_gradients(logits_fn, images, labels) -> dict[str, jax.Array]:
    axes = tuple(range(1, images.ndim))
    gradients = {name: evaluate_loss(logits_fn, loss, images, labels)[1] for name, loss in _LOSSES.items()}
    return {name: jnp.all(gradient == 0, axis=axes) for name, gradient in gradients.items()}
