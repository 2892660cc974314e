"""What each kind of argument is tried with: a right value, others that mean the same, and wrong ones.

Images are of a handful of pixels that are multiples of 1/8, so that every floating-point dtype holds them.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from nn_adv.threat import Threat

COUNT, SHAPE, NUM_CLASSES = 6, (4, 4, 1), 3


class Case(NamedTuple):
    """One value for an argument, made from the right one.

    Attributes:
      name: of the case.
      make: the right value to this one.
      message: of a wrong value, a regular expression that the error's one line must match; "{name}" in it stands for
        what the entry calls the argument. None where the value is right.
      error: what is raised for a wrong value.
      is_wide: whether its numbers may have more digits than a float32, which JAX keeps where float64 is enabled.
      differs: whether it is right, with a result of its own.
    """

    name: str
    make: Callable[[Any], Any]
    message: str | None = None
    error: type[Exception] | tuple[type[Exception], ...] = ValueError
    is_wide: bool = False
    differs: bool = False


class Kind(NamedTuple):
    """A kind of argument: a right value, and the cases."""

    standard: Any
    cases: tuple[Case, ...]


def _with(value, index=2):
    """Put a value into an array, in the dtype that both share."""

    def make(array):
        changed = np.array(array, np.result_type(array, np.asarray(value)))
        changed[index] = value
        return changed

    return make


def _images(seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 8, (count, *SHAPE)).astype(np.float32) / 8


def _integers(wrong: tuple[Case, ...], unsigned: bool = True) -> tuple[Case, ...]:
    """Cases of integers, one per image."""
    dtypes = ("i1", "i2", "i8", ">i2", ">i4", ">i8", *(("u1", "u2", "u4", "u8", ">u8") if unsigned else ()))
    return (
        *(Case(dtype, lambda x, dtype=dtype: x.astype(dtype)) for dtype in dtypes),
        Case("list", lambda x: x.tolist()),
        Case("tuple of NumPy scalars", lambda x: tuple(x)),
        Case("JAX array", jnp.asarray),
        Case("not contiguous", lambda x: np.repeat(x, 2)[::2]),
        Case("halves", lambda x: x + 0.5, "{name} must be integers .*got 0.5 at index 0"),
        Case("floats", lambda x: x.astype(np.float32), "{name} must be integers .*got 0.0 at index 0"),
        Case("text", lambda x: x.astype(str), "{name} must be integers .*got '0' at index 0"),
        Case("bool", lambda x: x > 0, "{name} must be integers .*got False at index 0"),
        Case("none of them", lambda x: None, "{name} must be integers .*got object of shape"),
        Case("column", lambda x: x[:, None], r"{name} must be integers .*got int32 of shape \(\d+, 1\)"),
        Case("one-hot", lambda x: np.eye(NUM_CLASSES)[x % NUM_CLASSES], r"{name} must be integers .*shape \(\d+, 3\)"),
        Case("one scalar", lambda x: np.int32(1), r"{name} must be integers .*got int32 of shape \(\)"),
        Case("one too few", lambda x: x[:-1], r"{name} must be integers .*got int32 of shape \(\d+,\)"),
        Case("ragged", lambda x: [[0], *x[1:].tolist()], "{name} must be one array"),
        *wrong,
    )


_OUTSIDE = "{name} must be in 0.*, got "
_LABELS = Kind(
    np.arange(COUNT, dtype=np.int32) % NUM_CLASSES,
    _integers(
        (
            Case("1..C", lambda x: x + 1, _OUTSIDE + "3 at index 2"),
            Case("one beyond", _with(10), _OUTSIDE + "10 at index 2"),
            Case("-1", _with(-1), _OUTSIDE + "-1 at index 2"),
            Case("beyond an int32", lambda x: x.astype(np.uint64) + 2**32, _OUTSIDE + "4294967296 at index 0"),
        )
    ),
)
_TWO_CLASSES = Kind(
    np.arange(COUNT, dtype=np.int32) % 2,
    _integers(
        (
            Case("1..C", lambda x: x + 1, _OUTSIDE + "2 at index 1"),
            Case("one beyond", _with(2), _OUTSIDE + "2 at index 2"),
            Case("-1", _with(-1), _OUTSIDE + "-1 at index 2"),
        )
    ),
)
# The index of a point that an image may not use, -1 for none.
_LEAVE_OUT = Kind(
    np.array([0, 1, -1, 3, -1, 5], np.int32),
    _integers(
        (
            Case("-2", _with(-2), "{name} must be in -1.*, got -2 at index 2"),
            Case("one beyond", _with(COUNT), "{name} must be in -1.*, got 6 at index 2"),
            Case("10^6", _with(10**6), "{name} must be in -1.*, got 1000000 at index 2"),
        ),
        unsigned=False,
    ),
)
_INDICES = Kind(np.arange(COUNT, dtype=np.int32), _integers((Case("-1", _with(-1), _OUTSIDE + "-1 at index 2"),)))


def _floats() -> tuple[Case, ...]:
    """Other arrays that hold the same pixels."""
    wide = ("f8", ">f8", "g")
    return (
        *(Case(np.dtype(dtype).name, lambda x, dtype=dtype: x.astype(dtype)) for dtype in ("f2", ml_dtypes.bfloat16)),
        *(Case(np.dtype(dtype).str, lambda x, dtype=dtype: x.astype(dtype), is_wide=True) for dtype in wide),
        Case(">f4", lambda x: x.astype(">f4")),
        Case("lists", lambda x: x.tolist(), is_wide=True),
        Case("list of arrays", list),
        Case("JAX array", jnp.asarray),
        Case("JAX array of bfloat16", lambda x: jnp.asarray(x, jnp.bfloat16)),
        Case("not contiguous", lambda x: np.repeat(x, 2, axis=2)[:, :, ::2]),
        Case("column-major", np.asfortranarray),
    )


def _no_pixels() -> tuple[Case, ...]:
    """Values that are pixels of nothing."""
    return (
        Case("objects", lambda x: x.astype(object), "{name} must be .*got dtype object"),
        Case("text", lambda x: x.astype(str), "{name} must be .*got dtype <U"),
        Case("bool", lambda x: x > 0.5, "{name} must be .*got dtype bool"),
        Case("complex", lambda x: x.astype(complex), "{name} must be .*got dtype complex"),
        Case("integers", lambda x: (x * 8).astype(np.int64), "{name} must be .*got dtype int64.* 255"),
        Case("none of them", lambda x: None, "{name} must be "),
        Case("one number", lambda x: np.float32(0.5), r"{name} must be .*got shape \(\)"),
        Case("one row", lambda x: x.ravel(), r"{name} must be .*got shape \(\d+,\)"),
        Case("no pixels", lambda x: x[..., :0], "{name} must be .*got shape"),
        Case("ragged", lambda x: [x[0], *x[1:, :2]], "{name} must be one array"),
        Case("NaN", _with(np.nan, (2, 1, 1, 0)), "{name} must be finite.*got nan at index 2"),
        Case("infinity", _with(-np.inf, (2, 1, 1, 0)), "{name} must be finite.*got -inf at index 2"),
        Case("NaN, in half precision", lambda x: _with(np.nan)(x).astype(np.float16), "{name} .*got nan at index 2"),
        Case(
            "too large for a float32",
            lambda x: _with(1e300)(x.astype(float)),
            "{name} .*got inf at index 2",
            is_wide=True,
        ),
    )


def _outside_the_unit_interval() -> tuple[Case, ...]:
    inside = r"{name} must be .*inside \(0.0, 1.0\), got "
    return (
        Case("0..255", lambda x: x * 255, inside + ".* at index 0.*255"),
        Case("[-1, 1]", lambda x: x * 2 - 1, inside + "-.* at index .*normalisation"),
        Case("normalised", lambda x: (x - 0.5) / 0.25, inside + ".*at index .*normalisation"),
        Case("a little above", _with(np.float32(1.001)), inside + "1.001 at index 2"),
        Case("rounded", _with(np.float32(1.00001)), inside + r"1.00001 at index 2; np.clip\("),
    )


# A uint8 image has its own pixels; that it equals its floats is for the tests of each function.
_UINT8 = Case("uint8", lambda x: (x * 255).astype(np.uint8), "{name} must be floating point.*got dtype uint8")
_KEY_MESSAGE = "{name} must be (a key|one key)"
_KEYS = (
    Case("rbg", lambda key: jax.random.key(3, impl="rbg")),
    Case("old-style", lambda key: jax.random.PRNGKey(3)),
    Case("old-style, NumPy", lambda key: np.asarray(jax.random.PRNGKey(3))),
    Case("seed", lambda key: 3, _KEY_MESSAGE + ".* got 3"),
    Case("None", lambda key: None, _KEY_MESSAGE + ".* got None"),
    Case("floats", lambda key: jnp.zeros(2), _KEY_MESSAGE + ".* got float"),
    Case("too many", lambda key: jax.random.split(key, COUNT + 1), _KEY_MESSAGE + r".* shape \(7,\)"),
    Case("a table", lambda key: jax.random.split(key, (COUNT, 2)), _KEY_MESSAGE + r".* shape \(6, 2\)"),
)
_THREATS = (
    Case("bounds as an array", lambda t: Threat(t.norm, t.epsilon, np.array([0, 1]))),
    Case("bounds as a list", lambda t: Threat(t.norm, t.epsilon, [0, 1])),
    Case("epsilon of NumPy", lambda t: dataclasses.replace(t, epsilon=np.float64(t.epsilon))),
    Case("epsilon of JAX", lambda t: dataclasses.replace(t, epsilon=jnp.float32(t.epsilon))),
    Case("epsilon of bfloat16", lambda t: dataclasses.replace(t, epsilon=jnp.bfloat16(t.epsilon))),
    Case("no threat", lambda t: 0.125, "{name} must be a Threat, got 0.125"),
)


def _path(name: str, path: Callable[[pathlib.Path], Any], message: str | None = None) -> Case:
    """Make a case out of the path of what is there, in the home: another one, or what lies elsewhere in its place."""
    return Case(name, lambda _: path, message, (OSError, ValueError))


def _beside(name: str, make: Callable[[pathlib.Path, bytes], Any]) -> Case:
    """Make a case of another file in place of the right one, which the error must name."""

    def path(good):
        other = good.with_name(name.replace(" ", "-") + good.suffix)
        make(other, good.read_bytes())
        return other

    return _path(name, path, name.replace(" ", "-"))


_NO_PATH = "{name} must be a path, a text that is not empty or a pathlib.Path, got "
_PATHS = (
    _path("text", str),
    _path("home", lambda good: f"~/{good.name}"),
    _path("home, as a path", lambda good: pathlib.Path("~") / good.name),
    _path("number", lambda good: 5, _NO_PATH + "5"),
    _path("bytes", lambda good: os.fsencode(good), _NO_PATH + "b'"),
    _path("empty", lambda good: "", _NO_PATH + "''"),
    _path("null byte", lambda good: f"{good}\0", _NO_PATH),
    _path("home of nobody", lambda good: "~no-such-user/a", "{name} ~no-such-user/a begins with a home that is not"),
)
_FILES = (
    _beside("missing", lambda path, content: None),
    _beside("folder", lambda path, content: path.mkdir()),
    _beside("emptied", lambda path, content: path.touch()),
    _beside("cut in half", lambda path, content: path.write_bytes(content[: len(content) // 2])),
    _beside("begun wrongly", lambda path, content: path.write_bytes(b"?!" + content[2:])),
    _beside("of another kind", lambda path, content: path.write_bytes(gzip.compress(content))),
    _beside("loop of links", lambda path, content: path.symlink_to(path)),
)
_NORM_MESSAGE = "norm must be one of l1, l2, linf, got "
_NORMS = (
    Case("text of NumPy", np.str_),
    Case("unknown", lambda norm: "l3", _NORM_MESSAGE + "'l3'"),
    Case("upper case", lambda norm: "L2", _NORM_MESSAGE + "'L2'"),
    Case("number", lambda norm: 2, _NORM_MESSAGE + "2"),
    Case("infinity", lambda norm: np.inf, _NORM_MESSAGE + "inf"),
    Case("bytes", lambda norm: b"l2", _NORM_MESSAGE + "b'l2'"),
    Case("None", lambda norm: None, _NORM_MESSAGE + "None"),
    Case("array", lambda norm: np.array(["l2"]), _NORM_MESSAGE + "array"),
)
_PIXELS = int(np.prod(SHAPE))
_MAP_SHAPE = rf"{{name}} must be \[k, {_PIXELS}\], a column for each pixel, got shape "
# A column for each pixel.
_LINEAR_MAPS = (
    *(Case(np.dtype(dtype).name, lambda m, dtype=dtype: m.astype(dtype)) for dtype in ("f2", ml_dtypes.bfloat16)),
    Case("float64", lambda m: m.astype(float)),
    Case("lists", lambda m: m.tolist()),
    Case("JAX array", jnp.asarray),
    Case("column-major", np.asfortranarray),
    Case("none of them", lambda m: None, differs=True),
    Case("one column too few", lambda m: m[:, :-1], _MAP_SHAPE + rf"\(2, {_PIXELS - 1}\)"),
    Case("transposed", np.transpose, _MAP_SHAPE + rf"\({_PIXELS}, 2\)"),
    Case("images", lambda m: m.reshape(-1, *SHAPE), _MAP_SHAPE + r"\(2, 4, 4, 1\)"),
    Case("no rows", lambda m: m[:0], _MAP_SHAPE + rf"\(0, {_PIXELS}\)"),
    Case("one row", lambda m: m[0], _MAP_SHAPE + rf"\({_PIXELS},\)"),
    Case("integers", lambda m: (8 * m).astype(int), "{name} must be floating point, got dtype int64"),
    Case("text", lambda m: m.astype(str), "{name} must be floating point, got dtype <U"),
    Case("ragged", lambda m: [m[0], m[1, :3]], "{name} must be one array"),
    Case("NaN", _with(np.nan, (1, 2)), "{name} must be finite, got nan at row 1, column 2"),
    Case("infinity", _with(np.inf, (1, 2)), "{name} must be finite, got inf at row 1, column 2"),
    Case("too large for a float32", lambda m: _with(1e300, (1, 2))(m.astype(float)), "{name} must be finite, got inf"),
)
# How many; there may be fewer points.
_NEIGHBORS = (
    Case("int64", np.int64),
    Case("uint8", np.uint8),
    Case("array without axes", np.array),
    Case("JAX number", jnp.asarray),
    Case("0", lambda k: 0, "{name} must be (in 1|at least 1).*, got 0"),
    Case("-1", lambda k: -1, "{name} must be (in 1|at least 1).*, got -1"),
    Case("one beyond", lambda k: COUNT + 1, differs=True),
    Case("far beyond", lambda k: 10_000, differs=True),
    Case("float", lambda k: 2.0, "{name} must be a whole number.*, got 2.0"),
    Case("text", lambda k: "2", "{name} must be a whole number.*, got '2'"),
    Case("list", lambda k: [2], r"{name} must be a whole number.*, got \[2\]"),
    Case("None", lambda k: None, "{name} must be a whole number.*, got None"),
)
_BOUNDS_MESSAGE = r"bounds must be \(lowest, highest\) or None, got "
_BOUNDS = (
    Case("list", list),
    Case("whole numbers", lambda bounds: (0, 1)),
    Case("array", np.array),
    Case("array of float16", lambda bounds: np.array(bounds, np.float16)),
    Case("JAX array", jnp.asarray),
    Case("numbers of NumPy", lambda bounds: tuple(map(np.float32, bounds))),
    Case("reversed", lambda bounds: bounds[::-1], _BOUNDS_MESSAGE),
    Case("equal", lambda bounds: (0.5, 0.5), _BOUNDS_MESSAGE),
    Case("NaN", lambda bounds: (0.0, np.nan), _BOUNDS_MESSAGE),
    Case("three", lambda bounds: (0.0, 0.5, 1.0), _BOUNDS_MESSAGE),
    Case("one", lambda bounds: 1.0, _BOUNDS_MESSAGE),
    Case("text", lambda bounds: "01", _BOUNDS_MESSAGE + "'01'"),
    Case("pair of texts", lambda bounds: ("0", "1"), _BOUNDS_MESSAGE),
    Case("a row for each", lambda bounds: [[0, 0], [1, 1]], _BOUNDS_MESSAGE),
)

KINDS: dict[str, Kind] = {
    "labels": _LABELS,
    "labels of two classes": _TWO_CLASSES,
    "indices": _INDICES,
    "leave_out": _LEAVE_OUT,
    # Floats inside the bounds of a threat.
    "images": Kind(_images(0), (*_floats(), *_no_pixels(), *_outside_the_unit_interval(), _UINT8)),
    # Pixels as data sets have them: uint8, or floats in [0, 1].
    "pixels": Kind(_images(0), (*_floats(), *_no_pixels(), *_outside_the_unit_interval())),
    # Any finite pixels.
    "points": Kind(_images(1), (*_floats(), *_no_pixels())),
    "queries": Kind(_images(2), (*_floats(), *_no_pixels())),
    "key": Kind(jax.random.key(3), _KEYS),
    "threat": Kind(Threat("linf", 0.125), _THREATS),
    # A function from the path of what is right to the path that is tried: of a file, or of anything.
    "path": Kind(lambda good: good, _PATHS),
    "file": Kind(lambda good: good, (*_PATHS, *_FILES)),
    "norm": Kind("l2", _NORMS),
    "k": Kind(2, _NEIGHBORS),
    "bounds": Kind((0.0, 1.0), _BOUNDS),
    "linear map": Kind(_images(4, 2).reshape(2, _PIXELS), _LINEAR_MAPS),
}
