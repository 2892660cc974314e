"""What an entry of the table is: a public function, and what it takes of what is tried."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tests.border.inputs import KINDS, Case

_NOT_PER_IMAGE = ("bounds", "file", "k", "key", "linear map", "norm", "path", "threat")


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A public function, called with small inputs.

    Attributes:
      name: "package.function" as in nn_adv, with what belongs to it after a further dot.
      call: takes what is tried, by keyword, and returns what the function does: arrays in any tree.
      takes: keyword of ``call`` to the kind of argument (`KINDS`).
      shown: what the function calls an argument in its errors, where that is not the keyword; a regular expression.
      shared: keywords of what is not one per image.
      needs_some: why there must be an image; empty where there may be none.
      narrows: keyword, then case, to the reason why it is otherwise here: refused in one line, or a result of its own.
    """

    name: str
    call: Callable[..., Any]
    takes: Mapping[str, str]
    shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shared: tuple[str, ...] = ()
    needs_some: str = ""
    narrows: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def __call__(self, **changed: Any) -> Any:
        """Call it with the right values, but for those given."""
        return self.call(**{keyword: KINDS[kind].standard for keyword, kind in self.takes.items()} | changed)

    def try_case(self, keyword: str, case: Case) -> Any:
        """Call it with one value changed."""
        return self(**{keyword: case.make(KINDS[self.takes[keyword]].standard)})

    @property
    def per_image(self) -> tuple[str, ...]:
        """Keywords of what is one per image."""
        kinds = {keyword: kind for keyword, kind in self.takes.items() if keyword not in self.shared}
        return tuple(keyword for keyword, kind in kinds.items() if kind not in _NOT_PER_IMAGE)

    def try_nothing(self) -> Any:
        """Call it without images."""
        return self(**{keyword: KINDS[self.takes[keyword]].standard[:0] for keyword in self.per_image})

    def message(self, keyword: str, case: Case) -> str:
        """Give the regular expression that the error must match."""
        shown = self.shown.get(keyword, keyword)
        return (case.message or "{name} must be ").replace("{name}", shown)

    @functools.cached_property
    def standard(self) -> list[np.ndarray]:
        """What it returns for the right values."""
        return leaves(self())


def leaves(result: Any) -> list[np.ndarray]:
    """List the arrays of a result."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
