"""Networks by name, with their options checked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nn_adv.models.meansparse import meansparse_dm_wide_resnet, meansparse_ra_wide_resnet
from nn_adv.models.mixed import composite, mixednuts
from nn_adv.models.mlp import MLP
from nn_adv.models.preact_ensemble import PreActEnsemble
from nn_adv.models.preact_resnet import dm_preact_resnet18, preact_resnet18
from nn_adv.models.resnest import ResNeSt
from nn_adv.models.resnet import ResNet
from nn_adv.models.robust_architectures import ra_wide_resnet, wrn_a4
from nn_adv.models.small_cnn import SmallCNN
from nn_adv.models.sodef import SODEF
from nn_adv.models.strided_cnn import StridedCNN
from nn_adv.models.wide_resnet import BOOSTING_FORM, PSSILU_FORM, dm_wide_resnet, robust_wide_resnet, wide_resnet
from nn_adv.models.xcit import XCiT

_PIXELS = ("mean", "std")
_COMMON = (*_PIXELS, "dtype")
_WIDE_PUBLISHED = ("depth", "widen_factor", *_PIXELS)
_WIDE = (*_WIDE_PUBLISHED, "dtype")

# For each name: how it is built, and its options.
_BUILDERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "boosting_wide_resnet": (functools.partial(wide_resnet, form=BOOSTING_FORM), _WIDE),
    "dm_preact_resnet18": (dm_preact_resnet18, ("width", *_COMMON)),
    "dm_wide_resnet": (dm_wide_resnet, _WIDE),
    "mlp": (MLP, ("hidden_sizes", *_COMMON)),
    "preact_resnet18": (preact_resnet18, ("width", "stem_features", "full_preactivation", *_COMMON)),
    "preact_resnet50_ensemble": (PreActEnsemble, ("num_members", "stage_sizes", "width", *_COMMON)),
    "pssilu_wide_resnet": (functools.partial(wide_resnet, form=PSSILU_FORM), _WIDE),
    "resnet18": (functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)), ("width", *_COMMON)),
    "resnet50": (functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True), ("width", *_COMMON)),
    "robust_wide_resnet": (robust_wide_resnet, ("stage_sizes", "widths", *_COMMON)),
    "small_cnn": (SmallCNN, ("conv_features", "dense_features", "dropout", *_COMMON)),
    "strided_cnn": (StridedCNN, ("widths", "strides", *_COMMON)),
    "wide_resnet": (wide_resnet, ("standardise_images", *_WIDE)),
}
# Likewise, of networks that are here for their published weights: they compute in the precision of those.
_PUBLISHED: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "composite": (composite, ()),
    "meansparse_dm_wide_resnet": (meansparse_dm_wide_resnet, _WIDE_PUBLISHED),
    "meansparse_ra_wide_resnet": (meansparse_ra_wide_resnet, ("stage_sizes", "widths", "stem_features", *_PIXELS)),
    "mixednuts": (mixednuts, ()),
    "ra_wide_resnet": (ra_wide_resnet, ("stage_sizes", "widths", "stem_features", *_PIXELS)),
    "resnest152": (ResNeSt, ("stage_sizes", "width", *_PIXELS)),
    "sodef": (SODEF, ("depth", "widen_factor", "features", "tolerance", *_PIXELS)),
    "wrn_a4": (wrn_a4, ("stage_sizes", "widths", *_PIXELS)),
    "xcit": (XCiT, ("embed_dim", "depth", "num_heads", *_PIXELS)),
}

NAMES = tuple(sorted(_BUILDERS))
PUBLISHED_NAMES = tuple(sorted(_PUBLISHED))


def create(name: str, num_classes: int = 2, **options: Any) -> nn.Module:
    """Build a network by name; it takes images ``[B, H, W, C]`` in [0, 1] and gives logits ``[B, num_classes]``.

    Networks compare and hash by their options, so two equal ones share one compilation. Call ``model.apply(variables,
    images, train=True, mutable=["batch_stats"], rngs={"dropout": key})`` to train, ``model.apply(variables, images)``
    to predict.

    Args:
      name: one of `NAMES`, or of `PUBLISHED_NAMES`, which are for weights from elsewhere.
      num_classes: number of logits, at least 2.
      **options: of that network, see its class or function; among them are ``mean`` and ``std`` (a number, or one per
        channel) and ``dtype`` (of the computation, such as "bfloat16"). Lists are taken for tuples.

    Raises:
      ValueError: unknown name or option, or a value of another kind or out of range.
    """
    builders = _BUILDERS | _PUBLISHED
    if name not in builders:
        raise ValueError(f"model must be one of {', '.join(sorted(builders))}, got {name!r}")
    build, known = builders[name]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"options of {name} are {', '.join(known) or 'none'}, got {', '.join(unknown)}")
    if not _is_integer(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes must be a whole number of at least 2, got {num_classes!r}")
    options = {key: _hashable(key, value) for key, value in options.items()}
    for option, value in options.items():
        expected, fits = _KINDS.get(option, ("a positive whole number", _is_count))
        if not fits(value):
            raise ValueError(f"{option} of {name} must be {expected}, got {value!r}")
    return build(num_classes=num_classes, **options)


def _hashable(option: str, value: Any) -> Any:
    """Bring an option into the form in which equal networks are equal."""
    if option == "dtype" and value is not None:
        with contextlib.suppress(TypeError):  # no dtype: refused as what it is
            return jnp.dtype(value).name
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if option in ("mean", "std") and isinstance(value, (int, float)):
        return (float(value),)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_float(value: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_tuple(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(of, value))


_COUNTS = ("a list of positive whole numbers", lambda value: _is_tuple(value, _is_count))
# What an option must be, in words and as a test; any other is a count.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mean": ("a number or one for each channel", lambda value: value is None or _is_tuple(value, _is_number)),
    "std": (
        "a positive number or one for each channel",
        lambda value: value is None or _is_tuple(value, lambda one: _is_number(one) and one > 0),
    ),
    "dtype": (
        "the name of a floating-point type",
        lambda value: value is None or _is_float(value),
    ),
    "dropout": ("a number", _is_number),
    "tolerance": ("a number", _is_number),
    "full_preactivation": ("True or False", _is_bool),
    "standardise_images": ("True or False", _is_bool),
    "conv_features": ("four positive whole numbers", lambda value: _COUNTS[1](value) and len(value) == 4),
    "hidden_sizes": ("a list of positive whole numbers or empty", lambda value: value == () or _COUNTS[1](value)),
    "stage_sizes": _COUNTS,
    "strides": _COUNTS,
    "widths": _COUNTS,
}
