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
    known |= {"starts"}
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
def test_every_value_is_right_or_refused_in_one_line(entry, keyword):
    """Right ones give the result of the standard value to the bit, wrong ones a ValueError that says what is wrong."""
    cases = KINDS[entry.takes[keyword]].cases
    assert set(entry.narrows.get(keyword, {})) <= {case.name for case in cases}
    converts = entry.name.startswith("border.")
    _check(entry, keyword, [case for case in cases if converts or not case.is_repeated])


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "keyword"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_other_way_to_give_a_right_value_is_taken(entry, keyword):
    _check(entry, keyword, [case for case in KINDS[entry.takes[keyword]].cases if case.is_repeated])


def _check(entry, keyword, cases):
    failures = {case.name: failure for case in cases if (failure := _fails(entry, keyword, case))}
    assert not failures, "\n" + "\n".join(f"{name}: {failure}" for name, failure in failures.items())


@pytest.mark.quick_cases(25)
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.per_image], ids=lambda entry: entry.name)
def test_no_images_have_an_empty_result(entry):
    if entry.needs_some:
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            entry.try_nothing()
        return
    for found, some in zip(leaves(entry.try_nothing()), entry.standard, strict=True):
        if some.shape[:1] == (COUNT,):
            assert found.shape == (0, *some.shape[1:]) and found.dtype == some.dtype
