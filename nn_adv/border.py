"""The border of the library: labels, images, bounds and keys as users have them, made into what the library works with.

Lists, arrays of NumPy and of JAX, any byte order and any width are right where the numbers are; what is wrong is a
ValueError of one line that names the argument, the first bad value and its index. Inside jit only shapes and dtypes
can be seen, so values of traced arrays are taken as they are.
"""

from __future__ import annotations

import operator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

_CHECKED_AT_A_TIME = 2**20  # pixels: few enough for the cache
_ROUNDING = 1e-3  # as far out of [0, 1] as arithmetic or resampling takes pixels that were meant to be inside
_LARGEST = np.iinfo(np.int32).max


def as_array(values: Any, name: str) -> chex.Array:
    """Return an array of the machine's byte order, of JAX as it came, any other of NumPy; ValueError for no array."""
    if isinstance(values, jax.Array):
        return values
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be one array, got rows of different shapes or no numbers") from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_integers(values: Any, name: str, *, low: int = 0, high: int = _LARGEST, count: int | None = None) -> chex.Array:
    """Return integers ``[N]`` from ``low`` to ``high``, N being ``count`` if given, as int32 on the host, or traced.

    ``high`` is at most the largest int32.

    Raises:
      ValueError: another shape, another kind of numbers, or one that is not allowed.
    """
    array = as_array(values, name)
    array = array if isinstance(array, jax.core.Tracer) else np.asarray(array)
    wanted = f"integers [{'N' if count is None else count}]"
    if array.ndim != 1 or count not in (None, array.shape[0]):
        remedy = f": take {name}[:, 0]" if array.shape == (count, 1) else ""
        remedy = f": of one-hot rows take {name}.argmax(axis=1)" if array.ndim == 2 and not remedy else remedy
        raise ValueError(f"{name} must be {wanted}, got {array.dtype} of shape {array.shape}{remedy}")
    if not jnp.issubdtype(array.dtype, jnp.integer) and array.shape[0]:
        value = "" if isinstance(array, jax.core.Tracer) else f"{array.tolist()[0]!r} at index 0 of "
        raise ValueError(f"{name} must be {wanted}, got {value}dtype {array.dtype}")
    if isinstance(array, jax.core.Tracer):
        return array.astype(jnp.int32)
    is_outside = (array < low) | (array > high)
    if is_outside.any():
        first = int(np.argmax(is_outside))
        raise ValueError(f"{name} must be in {low}..{high}, got {array[first]} at index {first}")
    return array.astype(np.int32)


def as_labels(
    labels: Any, num_classes: int | None = None, *, count: int | None = None, name: str = "labels"
) -> chex.Array:
    """Return class indices ``[N]`` as int32, those of ``count`` images; otherwise as `as_integers`.

    Raises:
      ValueError: labels that are not ``[N]`` integers in ``0 .. num_classes - 1`` (0 or more, if that is None).
    """
    return as_integers(labels, name, high=_LARGEST if num_classes is None else num_classes - 1, count=count)


def as_images(
    images: Any,
    *,
    name: str = "images",
    bounds: tuple[float, float] | None = None,
    takes_uint8: bool = True,
    rank: int | None = None,
    num_pixels: int | None = None,
    float_dtype: Any = None,
    may_be_none: bool = True,
) -> chex.Array:
    """Return images ``[N, ...]`` as uint8 or floats: on the host, or as the JAX array that they came as.

    Half precisions become float32, and so does float64 unless JAX has it enabled or ``float_dtype`` says otherwise.

    Args:
      images: uint8 or floats, as an array or nested lists.
      name: of the argument.
      bounds: lowest and highest pixel (of uint8, v stands for v / 255), rounded as the images are: 0.2 in float32
        exceeds 0.2. None for any that are finite.
      takes_uint8: whether uint8 images are right.
      rank: number of axes, 4 for ``[N, H, W, C]``; None for 2 or more.
      num_pixels: of one image; None for any, at least 1.
      float_dtype: what floats become.
      may_be_none: whether ``[0, ...]`` is right.

    Raises:
      ValueError: another shape, another kind of numbers, or pixels that are not finite or outside the bounds.
    """
    array = as_array(images, name)
    _check_kind(array, name, takes_uint8)
    _check_shape(array, name, rank, num_pixels, may_be_none)
    if array.dtype != np.uint8:
        wide = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype
        usual = jax.dtypes.canonicalize_dtype(jnp.promote_types(wide, jnp.float32))
        dtype = usual if float_dtype is None else float_dtype
        with np.errstate(over="ignore"):  # found below
            array = array if array.dtype == dtype else array.astype(dtype)
    if not isinstance(array, jax.core.Tracer):
        _check_pixels(np.asarray(array), name, bounds)
    return array


def as_count(value: Any, name: str, *, low: int = 1, high: int | None = None, what: str = "") -> int:
    """Return a whole number from ``low`` to ``high`` as a plain one, so that equal ones share a compilation.

    ``what`` says in the message why these are the limits.

    Raises:
      ValueError: another kind of number, or one that is not allowed.
    """
    allowed = (f"at least {low}" if high is None else f"in {low}..{high}") + (what and f", {what}")
    try:
        if isinstance(value, bool):  # a number to Python
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, {allowed}, got {value!r}") from None
    if count < low or (high is not None and count > high):
        raise ValueError(f"{name} must be {allowed}, got {count}")
    return count


def check_size(value: Any, name: str) -> None:
    """Raise ValueError unless ``value`` is a number, or an array of them, of 0 or more. Traced ones pass."""
    if isinstance(value, jax.core.Tracer):
        return
    is_number = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and not isinstance(value, bool)
    if not is_number or np.asarray(value).dtype.kind in "OSUb" or not np.all(np.asarray(value) >= 0):
        raise ValueError(f"{name} must be a number >= 0, got {value!r}")


def check_sizes(value: Any, name: str, count: int) -> None:
    """Raise ValueError unless ``value`` is one number of 0 or more, or one per image ``[count]``."""
    check_size(value, name)
    if np.shape(value) not in ((), (count,)):
        raise ValueError(f"{name} must be one, or one per image [{count}], got shape {np.shape(value)}")


def as_number(value: Any, name: str, *, below: float = np.inf) -> float:
    """Return a number of 0 or more, less than ``below`` and not traced, as a plain one.

    Raises:
      ValueError: no number, several, or one that is not allowed.
    """
    check_size(value, name)
    if np.ndim(value) or not value < below:
        allowed = f"one number >= 0 and < {below}" if below < np.inf else "one finite number >= 0"
        raise ValueError(f"{name} must be {allowed}, got {np.asarray(value).tolist()}")
    return float(value)


def as_key(key: Any, *, count: int | None = None, name: str = "key") -> chex.PRNGKey:
    """Return one key, or with ``count`` also one per image ``[count]``, as typed ones; old-style ones become such.

    Raises:
      ValueError: no key of `jax.random`, or another number of them.
    """
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise ValueError(f"{name} must be a key from jax.random.key, got {key!r} ({type(key).__name__})")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        impl = {2: "threefry2x32", 4: "rbg"}.get(key.shape[-1]) if key.ndim else None
        if key.dtype != np.uint32 or impl is None:
            raise ValueError(f"{name} must be a key from jax.random.key, got {key.dtype} of shape {key.shape}")
        key = jax.random.wrap_key_data(jnp.asarray(key), impl=impl)
    if key.shape not in ((), (count,)):
        allowed = "one key" if count is None else f"one key, or one per image [{count}]"
        raise ValueError(f"{name} must be {allowed}, got keys of shape {key.shape}")
    return key


def as_bounds(bounds: Any) -> tuple[float, float] | None:
    """Return pixel bounds as two plain numbers, so that equal ones share a compilation; None for no bounds.

    Raises:
      ValueError: bounds that are not two numbers in order.
    """
    if bounds is None:
        return None
    try:
        ends = np.asarray(bounds).tolist()
    except ValueError:  # ends of different shapes
        ends = None
    is_pair = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)
    if not is_pair or not ends[0] < ends[1]:
        raise ValueError(f"bounds must be (lowest, highest) or None, got {bounds!r}")
    return float(ends[0]), float(ends[1])


def _check_kind(array: chex.Array, name: str, takes_uint8: bool) -> None:
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if is_float or (takes_uint8 and array.dtype == np.uint8):
        return
    wanted = "uint8 or floating point" if takes_uint8 else "floating point"
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    remedy = "; give pixels of 0..255 as uint8, or divide them by 255" if takes_uint8 else "; divide pixels by 255"
    raise ValueError(f"{name} must be {wanted}, got dtype {array.dtype}{remedy if is_integer else ''}")


def _check_shape(array: chex.Array, name: str, rank: int | None, num_pixels: int | None, may_be_none: bool) -> None:
    wanted = "[N, H, W, C]" if rank == 4 else "[N, ...]"
    if array.ndim < 2 or rank not in (None, array.ndim):
        remedy = f": add the channel axis, {name}[..., None]" if array.ndim == 3 and rank == 4 else ""
        raise ValueError(f"{name} must be {wanted}, got shape {array.shape}{remedy}")
    size = int(np.prod(array.shape[1:]))
    if size == 0 or num_pixels not in (None, size):
        pixels = "at least one pixel" if num_pixels is None else f"{num_pixels} pixels"
        raise ValueError(f"{name} must be {wanted} with {pixels} each, got shape {array.shape}")
    if not array.shape[0] and not may_be_none:
        raise ValueError(f"{name} must be {wanted} with at least one image, got shape {array.shape}")


def _check_pixels(images: np.ndarray, name: str, bounds: tuple[float, float] | None) -> None:
    """Raise ValueError for the first image ``[N, ...]`` with a pixel that is not finite or outside the bounds."""
    unit = np.float32(1)
    if images.dtype == np.uint8:
        if bounds is None or (bounds[0] <= 0 and bounds[1] >= 1):
            return
        unit = np.float32(255)
    ends = (-np.inf, np.inf) if bounds is None else bounds
    low, high = (np.asarray(end).astype(images.dtype if unit == 1 else np.float32) for end in ends)

    def fits(values):
        return np.isfinite(values) & (values >= low) & (values <= high)

    step = max(1, _CHECKED_AT_A_TIME // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        part = images[start : start + step]
        if fits(np.array([part.min(), part.max()]) / unit).all():
            continue
        values = (part / unit).reshape(len(part), -1)
        first = int(np.argmin(fits(values).all(axis=1)))
        bad = values[first][~fits(values[first])][0]
        limits = "" if bounds is None else f" and inside ({low!s}, {high!s})"
        raise ValueError(
            f"{name} must be finite{limits}, got {bad!s} at index {start + first}{_remedy(part, name, bounds)}"
        )


def _remedy(part: np.ndarray, name: str, bounds: tuple[float, float] | None) -> str:
    """Guess from pixels that do not fit the unit interval what they are."""
    if bounds is None or tuple(bounds) != (0, 1) or not np.isfinite(part).all():
        return ""
    if part.min() >= -_ROUNDING and part.max() <= 1 + _ROUNDING:
        return f"; np.clip({name}, 0, 1) undoes such rounding"
    if part.min() < 0:
        return "; give pixels as they are: normalisation belongs inside the model"
    return "; divide pixels of 0..255 by 255, or give them as uint8" if part.max() > 2 else ""
