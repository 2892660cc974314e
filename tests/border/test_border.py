"""Every public function with every bad or unusual input: right, or refused in one line that says what is wrong."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import jax
import numpy as np
import pytest

import nn_adv
from tests.border import of_attacks, of_certify, of_neighbors, of_others, of_paths, of_training
from tests.border.inputs import COUNT, KINDS
from tests.border.table import leaves

_PARTS = (of_attacks, of_certify, of_neighbors, of_others, of_paths, of_training)
ENTRIES = [entry for part in _PARTS for entry in part.ENTRIES]
EXEMPT = {name: reason for part in _PARTS for name, reason in part.EXEMPT.items()}
# Each compiles what it computes. The quick tests try right values where little is compiled and in some of each package.
COMPUTED = [entry.name for entry in (*of_others.ENTRIES, *of_paths.ENTRIES)] + [
    *("attacks.cross_entropy", "attacks.eot", "attacks.example_keys", "attacks.flags", "attacks.pgd"),
    *(
        "certify.average_pool",
        "certify.radius",
        "neighbors.fit",
        "neighbors.fit.mapped",
        "neighbors.nearest",
        "neighbors.prune",
    ),
    *("training.cluster_prototypes", "training.standard", "training.trades"),
]
PAIRS = [(entry, keyword) for entry in ENTRIES for keyword in entry.takes]

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def _public_names() -> set[str]:
    """Names "package.function" of everything that can be called."""
    names = set()
    for info in pkgutil.iter_modules(nn_adv.__path__):
        module = importlib.import_module(f"nn_adv.{info.name}")
        listed = getattr(module, "__all__", None)
        if listed is None:
            listed = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            ]
        names |= {f"{info.name}.{name}" for name in listed if callable(getattr(module, name))}
    return names


def test_every_public_function_is_in_the_table():
    listed = {".".join(entry.name.split(".")[:2]) for entry in ENTRIES}
    assert not listed & EXEMPT.keys()
    assert listed | EXEMPT.keys() == _public_names()


def test_an_entry_tries_what_its_function_takes():
    """A new argument of a kind that is tried must be tried: its name says what it is."""
    known = {"images", "labels", "queries", "points", "key", "threat", "indices", "leave_out", "x", "y"}
    known |= {"starts", "linear_map"}
    of_points = {"norm", "k", "bounds"}  # attacks have them in a threat
    tried: dict[str, set[str]] = {}
    for entry in ENTRIES:
        package, name, *rest = entry.name.split(".")
        tried.setdefault(f"{package}.{name}", set()).update(entry.takes)
    for full_name, keywords in tried.items():
        package, name = full_name.split(".")
        function = getattr(importlib.import_module(f"nn_adv.{package}"), name)
        if not inspect.isclass(function):
            wanted = known | of_points if package in ("certify", "neighbors") else known
            assert wanted & inspect.signature(function).parameters.keys() <= keywords, full_name


def _fails(entry, keyword, case) -> str:
    """Returns what is wrong with a case, or nothing."""
    is_narrowed = (case.is_wide and jax.config.jax_enable_x64) or case.name in entry.narrows.get(keyword, {})
    try:
        found = leaves(entry.try_case(keyword, case))
    except case.error as error:
        message = str(error)
        if is_narrowed or case.message is not None:
            fits = "\n" not in message and (is_narrowed or re.search(entry.message(keyword, case), message))
            return "" if fits else f"says: {message}"
        return f"refused: {message}"
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    if is_narrowed or case.differs:
        return ""
    if case.message is not None:
        return "taken"
    is_same = [np.array_equal(one, other, equal_nan=True) for one, other in zip(found, entry.standard, strict=True)]
    return "" if all(is_same) else "another result"


@pytest.mark.parametrize(("entry", "keyword"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_wrong_value_is_refused_in_one_line(entry, keyword):
    """With a ValueError that says what is wrong, and before anything is computed."""
    cases = KINDS[entry.takes[keyword]].cases
    narrowed = entry.narrows.get(keyword, {})
    assert set(narrowed) <= {case.name for case in cases}
    _check(entry, keyword, [case for case in cases if case.message is not None and case.name not in narrowed])


@pytest.mark.parametrize(
    ("entry", "keyword"),
    [
        pytest.param(*pair, marks=() if pair[0].name in COMPUTED else pytest.mark.slow, id=f"{pair[0].name}-{pair[1]}")
        for pair in PAIRS
    ],
)
def test_every_right_value_gives_the_result_of_the_standard_one(entry, keyword):
    """To the bit; or, where the entry says so, a result of its own or a refusal."""
    cases, narrowed = KINDS[entry.takes[keyword]].cases, entry.narrows.get(keyword, {})
    _check(entry, keyword, [case for case in cases if case.message is None or case.name in narrowed])


def _check(entry, keyword, cases):
    failures = {case.name: failure for case in cases if (failure := _fails(entry, keyword, case))}
    assert not failures, "\n" + "\n".join(f"{name}: {failure}" for name, failure in failures.items())


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, marks=() if entry.needs_some or entry.name in COMPUTED else pytest.mark.slow, id=entry.name)
        for entry in ENTRIES
        if entry.per_image
    ],
)
def test_no_images_have_an_empty_result(entry):
    if entry.needs_some:
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            entry.try_nothing()
        return
    for found, some in zip(leaves(entry.try_nothing()), entry.standard, strict=True):
        if some.shape[:1] == (COUNT,):
            assert found.shape == (0, *some.shape[1:]) and found.dtype == some.dtype
