"""A report's pages: a list of blocks as one self-contained HTML page and as Markdown, by the files in templates/."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape


class Heading(NamedTuple):
    """A section's title; level 1 is the page's."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph. style: "plain", "note" (small print) or "alert" (must not be overlooked)."""

    text: str
    style: str = "plain"


class Bullets(NamedTuple):
    """A list of sentences; with a title it is an alert."""

    sentences: Sequence[str]
    alert: str = ""


class Table(NamedTuple):
    """A table of text; the first column is on the left, numbers are on the right.

    Attributes:
      groups: (title, number of columns) over the header, or empty. The first covers the first column.
      strong: (row, column) of the cells to set in bold.
      numeric: False for a table of words.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    strong: frozenset[tuple[int, int]] = frozenset()
    numeric: bool = True

    @property
    def starts(self) -> list[int]:
        """Columns at which a group begins, but the first."""
        return list(accumulate(span for _, span in self.groups))[:-1]

    @property
    def full_header(self) -> list[str]:
        """The header with the group of each column in it."""
        groups = [title for title, span in self.groups for _ in range(span)] or [""] * len(self.header)
        return [f"{group}: {text}" if group else text for group, text in zip(groups, self.header, strict=True)]


class Image(NamedTuple):
    """A PNG; name is its file name in the Markdown version, alt says what it shows."""

    name: str
    alt: str
    png: bytes


class Panels(NamedTuple):
    """Panels that belong side by side, with one caption."""

    images: Sequence[Image]
    caption: str


Block = Heading | Text | Bullets | Table | Panels


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Return a page that needs nothing else: no script, no font, no file, no network."""
    return _TEMPLATES.get_template("page.html").render(blocks=blocks, title=title)


def to_markdown(blocks: Sequence[Block], *, folder: str) -> str:
    """Return Markdown whose images lie in `folder` beside it."""
    return _TEMPLATES.get_template("page.md").render(blocks=blocks, folder=folder)


def file_name(*parts: object, ending: str = ".png") -> str:
    """Join texts to the name of a file, without separators and signs."""
    return re.sub(r"[^\w.]+", "-", "-".join(map(str, parts))).strip("-") + ending


def _html_text(text: str) -> Markup:
    """Escape, and keep a number on one line with its sign and its unit."""
    return Markup(re.sub(r"(?<=[≤≥=±]) (?=\d)| (?=[±%])", "&nbsp;", str(escape(text))))


def _html_cell(text: str, is_strong: bool) -> Markup:
    value, sign, error = text.partition(" ± ")
    cell = Markup("<b>{}</b>").format(value) if is_strong else escape(value)
    return cell + Markup(" <small>± {}</small>").format(error) if sign else cell


def _markdown(text: str) -> str:
    return " ".join(re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text).split())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "kind": lambda block: type(block).__name__,
    "text": _html_text,
    "cell": _html_cell,
    "md": _markdown,
    "uri": _data_uri,
}
