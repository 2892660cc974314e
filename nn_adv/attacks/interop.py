"""From and to other libraries: their call and array layout for our attacks, our classifiers as an estimator of ART."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from nn_adv.attacks.common import logits_of
from nn_adv.attacks.ensemble import ensemble, named_attack
from nn_adv.attacks.losses import cross_entropy
from nn_adv.border import as_array, as_bounds, as_count, as_images, as_labels, check_size
from nn_adv.threat import NORMS, Threat

_NORMS = {"1": "l1", "2": "l2", "inf": "linf"} | {norm: norm for norm in NORMS}


def perturb(
    logits_fn: Callable[[chex.Array], chex.Array],
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float,
    norm: float | str,
    attack: str = "standard",
    n_iter: int | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 128,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Attack images with the channels first, called as PyTorch libraries call their attacks.

    Short for `ensemble` with the axes moved there and back, so results do not depend on the batch size beyond rounding.

    Args:
      logits_fn: differentiable; takes images with the channels *last*, ``[B, H, W, C]``, to logits.
      x: ``[N, C, H, W]`` floating point, inside the bounds; any array that NumPy reads.
      y: class indices ``[N]``.
      eps: radius, in the units of ``x``.
      norm: 1, 2 or ``np.inf``, or a name: "l1", "L2", "Linf", "inf".
      attack: a name of `named_attack`, or "standard" for `standard_attacks`.
      n_iter: steps (of "square": queries) of a named attack; by default the published number.
      bounds: lowest and highest value.
      seed: of the random starts.
      batch_size: images per call; of fewer images, a power of two, so that few sizes are compiled.
      indices: ``[N]`` what an image's random numbers belong to, such as its number in the dataset; by default its
        place in ``x``.

    Returns:
      ``[N, C, H, W]`` float32: a misclassified image within eps, or the image itself where none was found.

    Raises:
      ValueError: unknown norm or attack, images that are not ``[N, C, H, W]``, ``n_iter`` for "standard" or negative;
        and as in `ensemble`.
    """
    check_size(eps, "eps")
    threat = Threat(_norm(norm), eps, bounds)
    x = np.asarray(as_images(x, name="x", bounds=threat.bounds, takes_uint8=False))
    if x.ndim != 4:
        raise ValueError(f"x must be [N, C, H, W], got shape {x.shape}; for other layouts call attacks.ensemble")
    images, chosen = np.moveaxis(x, 1, -1), None
    like = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    num_classes = jax.eval_shape(functools.partial(logits_of, logits_fn), like).shape[1]
    y = as_labels(y, num_classes, count=len(x), name="y")
    if attack != "standard":
        count = "num_queries" if attack == "square" else "num_steps"
        options = {} if n_iter is None else {count: n_iter}
        chosen = [named_attack(attack, num_classes, **options)]
    elif n_iter is not None:
        raise ValueError("n_iter is of a single attack: name one, or leave it out for the standard ensemble")
    found = ensemble(
        logits_fn,
        images,
        y,
        key=jax.random.key(seed),
        threat=threat,
        attacks=chosen,
        batch_size=min(as_count(batch_size, "batch_size"), 1 << (len(x) - 1).bit_length()),  # the last one is filled up
        indices=indices,
    )
    return np.moveaxis(found.adversarial, -1, 1)


def art_classifier(
    logits_fn: Callable[[chex.Array], chex.Array],
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Any:
    """Wrap a classifier as an estimator of the Adversarial Robustness Toolbox (ART 1.20), for its attacks.

    Predictions are logits; ``loss_gradient`` is that of `cross_entropy`. Arrays keep the layout of ``logits_fn``. Its
    PGD, DeepFool, Carlini & Wagner and HopSkipJump run on this; Auto-PGD and Square ask for more: take `apgd` and
    `square`. There is no ``fit``.

    Args:
      logits_fn: differentiable, images ``[B, ...]`` to logits ``[B, C]``.
      input_shape: of one image.
      num_classes: C.
      bounds: lowest and highest pixel value.

    Returns:
      An estimator with ``predict``, ``loss_gradient`` and ``class_gradient``.

    Raises:
      ImportError: ART is not installed (``pip install adversarial-robustness-toolbox``).
    """
    from art.estimators.classification.classifier import ClassGradientsMixin, ClassifierMixin
    from art.estimators.estimator import BaseEstimator, LossGradientsMixin

    predict = jax.jit(functools.partial(logits_of, logits_fn))

    @jax.jit
    def pull_back(x, weights):
        return jax.vjp(predict, x)[1](weights)[0]

    @jax.jit
    def loss_gradient(x, labels):
        return jax.grad(lambda x: jnp.sum(cross_entropy(predict(x), labels)))(x)

    class _Classifier(ClassGradientsMixin, ClassifierMixin, LossGradientsMixin, BaseEstimator):
        def __init__(self):
            super().__init__(model=logits_fn, clip_values=as_bounds(bounds))
            self.nb_classes = num_classes

        @property
        def input_shape(self):
            return input_shape

        def predict(self, x, batch_size=128, **_):
            x = _checked(x)
            parts = [np.asarray(predict(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
            return np.concatenate([np.zeros((0, num_classes), x.dtype), *parts])

        def loss_gradient(self, x, y, **_):
            x, y = _checked(x), as_array(y, "y")
            y = np.argmax(y, axis=1) if y.shape == (len(x), num_classes) else y  # one-hot, as ART has them
            y = as_labels(y, num_classes, count=len(x), name="y")
            return np.array(loss_gradient(x, y) if len(x) else x)

        def class_gradient(self, x, label=None, **_):
            x = _checked(x)
            labels = range(num_classes) if label is None else [label]
            rows = [np.full(len(x), label) if np.ndim(label) == 0 else label for label in labels]
            rows = [as_labels(labels, num_classes, count=len(x), name="label") for labels in rows]
            rows = [np.eye(num_classes, dtype=x.dtype)[labels] for labels in rows]
            return np.stack([pull_back(x, weights) if len(x) else x for weights in rows], axis=1)

        def fit(self, x, y, **_):
            raise NotImplementedError("this classifier is trained already")

    return _Classifier()


def _checked(x: Any) -> np.ndarray:
    return np.asarray(as_images(x, name="x", takes_uint8=False))


def _norm(norm: float | str) -> str:
    name = norm.lower() if isinstance(norm, str) else f"{norm:g}" if isinstance(norm, (int, float, np.number)) else ""
    if name not in _NORMS:
        raise ValueError(f"norm must be 1, 2, np.inf or one of {', '.join(NORMS)}, got {norm!r}")
    return _NORMS[name]
