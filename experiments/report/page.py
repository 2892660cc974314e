"""A report's pages: a list of blocks as one self-contained HTML page and as Markdown, by the files in templates/."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from experiments.report.figures import Drawing, Pixels

TEXT_WIDTH = 100  # columns of a terminal


class Heading(NamedTuple):
    """A section's title; level 1 is the page's."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph. style: "plain", "note" (small print), "alert" (must not be overlooked) or "command" (to type)."""

    text: str
    style: str = "plain"


class Bullets(NamedTuple):
    """A list of sentences; with a title it is an alert."""

    sentences: Sequence[str]
    alert: str = ""


class Image(NamedTuple):
    """A picture; name is its PNG's file name, alt says what it shows; caption is for images in tables."""

    name: str
    alt: str
    drawing: Drawing | Pixels
    caption: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """Return what is written of it, by the names of the files."""
        svg = self.drawing.svg
        return {self.name: self.drawing.png} | ({self.name.removesuffix(".png") + ".svg": svg} if svg else {})


class Table(NamedTuple):
    """A table of text or images; the first column is on the left, numbers are on the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Image]]
    # (title, number of columns) over the header, or empty. The first covers the first column.
    groups: Sequence[tuple[str, int]] = ()
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the cells to set in bold
    numeric: bool = True  # False for a table of words
    sortable: bool = False  # a click on the header of a column sorts the HTML version by it

    @property
    def starts(self) -> list[int]:
        """Columns at which a group begins, but the first."""
        return list(accumulate(span for _, span in self.groups))[:-1]

    @property
    def full_header(self) -> list[str]:
        """The header with the group of each column in it."""
        groups = [title for title, span in self.groups for _ in range(span)] or [""] * len(self.header)
        return [f"{group}: {text}" if group else text for group, text in zip(groups, self.header, strict=True)]


class Panels(NamedTuple):
    """Panels that belong side by side, with one caption."""

    images: Sequence[Image]
    caption: str


Block = Heading | Text | Bullets | Table | Panels


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Return a page that needs nothing else: no font, no file, no network; its script only sorts tables."""
    sortable = any(isinstance(block, Table) and block.sortable for block in blocks)
    return _TEMPLATES.get_template("page.html").render(title=title, blocks=blocks, sortable=sortable)


def to_markdown(blocks: Sequence[Block], *, way: str) -> str:
    """Return Markdown; ``way`` is what stands before the names of its images."""
    return _TEMPLATES.get_template("page.md").render(blocks=blocks, way=way)


def text_table(lines: Sequence[Sequence[str]], titles: Sequence[str] = ()) -> list[str]:
    """Lay out lines of texts, the header first, for a terminal; columns that do not fit stand in a table below.

    Args:
      lines: texts of each line, of which the first is on the left and the others are on the right.
      titles: over groups of equally many columns, which stay together.
    """
    first, width = (1 + max(len(text) for line in lines for text in line[part]) for part in (slice(1), slice(1, None)))
    span = (len(lines[0]) - 1) // len(titles) if titles else 1
    gap = int(len(titles) > 1 and first + len(titles) * (span * width + 1) <= TEXT_WIDTH)
    at_once = span * max(1, (TEXT_WIDTH - first) // (span * width + gap))
    found = []
    for start in range(0, len(lines[0]) - 1, at_once):
        shown = range(start, min(start + at_once, len(lines[0]) - 1))
        found += [""] if start else []
        if titles:
            found.append(" " * first + "".join(f"{titles[at // span]:^{span * width + gap}}" for at in shown[::span]))
        for name, *texts in lines:
            cells = (f"{texts[at]:>{width + gap * (at % span == 0)}}" for at in shown)
            found.append(f"{name:{first}}" + "".join(cells))
    return [line.rstrip() for line in found]


def images(blocks: Sequence[Block]) -> Iterator[Image]:
    """Yield every image of panels and tables."""
    for block in blocks:
        if isinstance(block, Panels):
            yield from block.images
        elif isinstance(block, Table):
            yield from (cell for row in block.rows for cell in row if isinstance(cell, Image))


def signed(blocks: Sequence[Block], command: str) -> list[Block]:
    """Put the command that makes them below the tables and figures of each section."""
    found: list[Block] = []
    is_unsigned = False
    for block in (*blocks, Heading("")):
        if isinstance(block, Heading) and block.level <= 2 and is_unsigned:
            found.append(Text(command, "command"))
            is_unsigned = False
        is_unsigned |= isinstance(block, Table | Panels)
        found.append(block)
    return found[:-1]


def file_name(*parts: object) -> str:
    """Join texts to the name of a picture's file, without separators and signs."""
    return re.sub(r"[^\w.]+", "-", "-".join(map(str, parts))).strip("-") + ".png"


def _html_text(text: str) -> Markup:
    """Escape, and keep a number on one line with its sign and its unit."""
    return Markup(re.sub(r"(?<=[≤≥=±]) (?=\d)| (?=[±%])", "&nbsp;", str(escape(text))))


def _html_cell(cell: str | Image, is_strong: bool) -> Markup:
    if isinstance(cell, Image):
        tag = Markup('<img alt="{}" src="{}"><small>{}</small>')
        return tag.format(cell.alt, _data_uri(cell.drawing.png), _html_text(cell.caption))
    return _html_words(cell, is_strong)


def _html_words(text: str, is_strong: bool) -> Markup:
    value, sign, error = text.partition(" ± ")
    cell = Markup("<b>{}</b>").format(value) if is_strong else escape(value)
    return cell + Markup(" <small>± {}</small>").format(error) if sign else cell


def _markdown_cell(cell: str | Image, is_strong: bool, way: str) -> str:
    if isinstance(cell, Image):
        return f"![{_markdown(cell.alt)}]({way}{cell.name})<br>{_markdown(cell.caption)}"
    return f"**{_markdown(cell)}**" if is_strong else _markdown(cell)


def _markdown(text: str) -> str:
    return " ".join(re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text).split())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def templates(folder: Path, filters: Mapping[str, Any]) -> jinja2.Environment:
    """Open the templates of a folder; values in those of HTML are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment


_TEMPLATES = templates(
    Path(__file__).parent / "templates",
    {
        "kind": lambda block: type(block).__name__,
        "text": _html_text,
        "cell": _html_cell,
        "md": _markdown,
        "md_cell": _markdown_cell,
        "uri": _data_uri,
    },
)
