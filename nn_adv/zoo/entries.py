"""The published networks as data: what each is, how well it did, where its weights are and how they are read."""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import importlib.resources
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from nn_adv.paths import as_path

OUTPUTS = ("logits", "probabilities", "log_probabilities")
_PUBLISHED = importlib.resources.files("nn_adv.zoo").joinpath("catalogue.json")
_REQUIRED = ("name", "dataset", "threat", "architecture", "files")


@dataclasses.dataclass(frozen=True)
class File:
    """A file of weights, or one entry of it.

    Attributes:
      name: of the file, in the folder FOLDER/DATASET/THREAT.
      source: where it is: "gdrive:ID" or an http(s) address; empty where it cannot be downloaded.
      outer_key: the entry that holds the weights.
      into: what the keys of the network have in front of those of the file.
    """

    name: str
    source: str = ""
    outer_key: str | None = None
    into: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network with published weights.

    Attributes:
      name: as RobustBench has it.
      dataset: it was trained on, a name of `nn_adv.data`.
      threat: it was trained for, as RobustBench writes it: "Linf".
      architecture: a name of `nn_adv.models.create`.
      arguments: options for it.
      files: that hold its weights.
      num_classes: number of its outputs.
      image_shape: ``(H, W, C)`` of the images it takes.
      output: "logits", "probabilities" or "log_probabilities".
      unused: regular expressions of keys the network has no use for.
      prefixes: words taken off the keys (`read_state_dict`).
      renames: pairs of a regular expression and what replaces it in the keys of a file, after ``prefixes``: a text, or
        several, for an array that is to be cut into as many equal parts along its first axis.
      epsilon: radius it was trained or listed for, in units of pixels in [0, 1].
      clean_accuracy: in per cent, published, on the test images; None where it is not known.
      autoattack_accuracy: in per cent, published, under perturbations up to epsilon.
      best_known_accuracy: that under the best attack known, where one did better than AutoAttack.
      in_paper: whether it is among the 69 networks of arXiv 2404.06313.
      extra_data: whether it was trained on real images of others than the dataset.
      paper: address of its paper.
      venue: of that.
      licence: of the weights.
      notes: what someone who reads its figures should know.
    """

    name: str
    dataset: str
    threat: str
    architecture: str
    files: tuple[File, ...]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    num_classes: int = 10
    image_shape: tuple[int, int, int] = (32, 32, 3)
    output: str = "logits"
    unused: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    epsilon: float | None = None
    clean_accuracy: float | None = None
    autoattack_accuracy: float | None = None
    best_known_accuracy: float | None = None
    in_paper: bool = False
    extra_data: bool = False
    paper: str = ""
    venue: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()


def catalogue(path: str | os.PathLike[str] | None = None) -> dict[str, Entry]:
    """Read a catalogue.

    Args:
      path: a JSON list of records with the fields of `Entry`; name, dataset, threat, architecture and files are
        required, and epsilon may be a fraction, "8/255". Without a path: RobustBench's networks for CIFAR-10 and Linf.

    Returns:
      Entries by name, in the order of the file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not of that form; one line that names the record and the field.
    """
    where = _where(path)
    file = _PUBLISHED if path is None else as_path(path, "catalogue")
    try:
        records = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error})") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{where} must be a list of records, one for each network")
    entries: dict[str, Entry] = {}
    for number, record in enumerate(records):
        try:
            entry = _entry(record)
        except (ValueError, re.error) as error:
            raise ValueError(f"{where}, record {record.get('name', number)!r}: {error}") from error
        if entry.name in entries:
            raise ValueError(f"{where} has two records of the name {entry.name!r}")
        entries[entry.name] = entry
    return entries


def find(name: str, path: str | os.PathLike[str] | None = None) -> Entry:
    """Look up a network in a catalogue (`catalogue`).

    Raises:
      OSError: the catalogue cannot be read.
      ValueError: it is not of the right form, or has no such name; the error says which are near.
    """
    entries = catalogue(path)
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(str(name), entries, n=3) or list(entries)[:3]
    raise ValueError(f"no network {name!r} in {_where(path)}; it has {', '.join(near)}, {len(entries)} in all")


def _where(path: str | os.PathLike[str] | None) -> str:
    return "the catalogue" if path is None else str(path)


def _entry(record: dict[str, Any]) -> Entry:
    if isinstance(record.get("epsilon"), str):
        record = record | {"epsilon": _fraction(record["epsilon"])}
    _check_fields(record, Entry, _REQUIRED)
    for file in record["files"]:
        _check_fields(file, File, ("name",))
        if pathlib.PurePath(file["name"]).name != file["name"]:
            raise ValueError(f"the name of a file must have no folder, got {file['name']!r}")
        if not re.fullmatch(r"(gdrive:\S+|https?://.+)?", file.get("source", "")):
            raise ValueError(f"the source of a file must be gdrive:ID or an http address, got {file['source']!r}")
    for name in ("name", "dataset", "threat"):  # they become folders and names of files
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", record[name]):
            raise ValueError(f"{name} must be of letters, digits and . _ + -, got {record[name]!r}")
    if record.get("output", "logits") not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {record['output']!r}")
    for name, (limits, is_inside) in _LIMITS.items():
        value = record.get(name)
        if value is not None and not is_inside(value):
            raise ValueError(f"{name} must be {limits}, got {value!r}")
    for pattern in (*record.get("unused", ()), *(pattern for pattern, _ in record.get("renames", ()))):
        re.compile(pattern)
    fields = {key: _frozen(value) for key, value in record.items() if key not in ("arguments", "files")}
    files = tuple(File(**file) for file in record["files"])
    return Entry(arguments=record.get("arguments", {}), files=files, **fields)


def _fraction(text: str) -> float:
    try:
        return float(fractions.Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"epsilon must be a number or a fraction such as 8/255, got {text!r}") from error


def _check_fields(record: dict[str, Any], kind: type, required: tuple[str, ...]) -> None:
    """Raise ValueError for fields that are unknown, missing or of another type than `Entry` or `File` has them."""
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    unknown = [name for name in record if name not in types]
    missing = [name for name in required if name not in record]
    if unknown or missing:
        problem = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ValueError(f"{problem}; the fields of {kind.__name__} are {', '.join(types)}")
    for name, value in record.items():
        expected, fits = _TYPES[types[name]]
        if not fits(value):
            raise ValueError(f"{'files: ' * (kind is File)}{name} must be {expected}, got {value!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_list(value: Any, of: Callable[[Any], bool], size: int | None = None) -> bool:
    return isinstance(value, list) and size in (None, len(value)) and all(map(of, value))


def _is_text_or_texts(value: Any) -> bool:
    return _is_text(value) or (value != [] and _is_list(value, _is_text))


# What the JSON of a field must be, by the type of the field: in words, and as a test.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", _is_text),
    "str | None": ("a text or null", lambda value: value is None or _is_text(value)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", _is_integer),
    "float | None": ("a number or null", lambda value: value is None or _is_number(value)),
    "Mapping[str, Any]": ("options by name", lambda value: isinstance(value, dict)),
    "tuple[int, int, int]": ("a list of three whole numbers", lambda value: _is_list(value, _is_integer, 3)),
    "tuple[str, ...]": ("a list of texts", lambda value: _is_list(value, _is_text)),
    "tuple[tuple[str, str | tuple[str, ...]], ...]": (
        "a list of pairs of a text and one or more texts",
        lambda value: _is_list(value, lambda pair: _is_list(pair, _is_text_or_texts, 2) and _is_text(pair[0])),
    ),
    "tuple[File, ...]": (
        "a list of one or more records",
        lambda value: value != [] and _is_list(value, lambda file: isinstance(file, dict)),
    ),
}
# What values must be beyond that.
_ACCURACY = ("a percentage", lambda value: 0 <= value <= 100)
_LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_classes": ("at least 2", lambda value: value >= 2),
    "image_shape": ("positive", lambda value: min(value) > 0),
    "epsilon": ("at least 0", lambda value: value >= 0),
    "clean_accuracy": _ACCURACY,
    "autoattack_accuracy": _ACCURACY,
    "best_known_accuracy": _ACCURACY,
}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
