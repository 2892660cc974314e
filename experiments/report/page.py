"""Write a list of blocks as one self-contained HTML page or as Markdown."""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple


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

    items: Sequence[str]
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


class Image(NamedTuple):
    """A PNG; name is its file name in the Markdown version, alt says what it shows."""

    name: str
    alt: str
    png: bytes


class Images(NamedTuple):
    """Panels that belong side by side, with one caption."""

    images: Sequence[Image]
    caption: str


Block = Heading | Text | Bullets | Table | Images

_CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 74rem; padding: 1.2rem 1rem 4rem; background: #fff; color: #1b1b1b;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .6rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid #ddd; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 46rem; margin: .5rem 0 .8rem; }
li { margin: .3rem 0; }
.note, figcaption { color: #555; font-size: .88rem; }
.alert { border-left: 4px solid #b3261e; background: #fdf1f0; padding: .6rem .9rem; max-width: 46rem; margin: .8rem 0; }
.alert ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .32rem .6rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid #888; vertical-align: bottom; }
tr.groups th { border-bottom: 1px solid #ccc; text-align: left; padding-top: .5rem; }
td { border-bottom: 1px solid #ececec; }
tr > :first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0; }
.start { border-left: 1px solid #ccc; padding-left: .9rem; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
.words tr > :first-child { min-width: 7rem; position: static; color: #555; }
small { display: block; color: #666; font-size: .8em; line-height: 1.1; }
figure { margin: 1rem 0 1.6rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .8rem; }
.panels img { width: 100%; max-width: 35rem; height: auto; }
@media print { .scroll { overflow: visible; } }
"""


def to_html(blocks: Sequence[Block], *, title: str) -> str:
    """Return a page that needs nothing else: no script, no font, no file, no network."""
    body = "\n".join(_html_block(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block], *, folder: str) -> str:
    """Return Markdown whose images lie in `folder` beside it."""
    return "\n\n".join(_markdown_block(block, folder) for block in blocks) + "\n"


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_html_text(text)}</h{level}>"
        case Text(text, style):
            return f'<p class="{style}">{_html_text(text)}</p>'
        case Bullets(items, alert):
            lines = "".join(f"<li>{_html_text(item)}</li>" for item in items)
            return f'<div class="alert">{_html_text(alert)}<ul>{lines}</ul></div>' if alert else f"<ul>{lines}</ul>"
        case Images(images, caption):
            panels = "".join(f'<img alt="{html.escape(image.alt)}" src="{_data_uri(image.png)}">' for image in images)
            return f'<figure><div class="panels">{panels}</div><figcaption>{_html_text(caption)}</figcaption></figure>'
    return _html_table(block)


def _html_text(text: str) -> str:
    """Escape, and keep a number on one line with its sign and its unit."""
    return re.sub(r"(?<=[≤≥=±]) (?=\d)| (?=[±%])", "&nbsp;", html.escape(text))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _html_table(table: Table) -> str:
    starts = list(itertools.accumulate((span for _, span in table.groups), initial=0))[:-1]

    def line(tag: str, cells: Sequence[str], columns: Sequence[int], spans: Sequence[int] = ()) -> str:
        marks = [' class="start"' if column in starts[1:] else "" for column in columns]
        widths = [f' colspan="{span}"' for span in spans] or [""] * len(cells)
        parts = zip(marks, widths, cells, strict=True)
        return "".join(f"<{tag}{mark}{width}>{cell}</{tag}>" for mark, width, cell in parts)

    every = range(len(table.header))
    lines = []
    if table.groups:
        titles = [html.escape(text) for text, _ in table.groups]
        lines.append(f'<tr class="groups">{line("th", titles, starts, [span for _, span in table.groups])}</tr>')
    if any(table.header):
        lines.append(f"<tr>{line('th', [html.escape(text) for text in table.header], every)}</tr>")
    for number, row in enumerate(table.rows):
        cells = [_html_cell(text, strong=(number, column) in table.strong) for column, text in enumerate(row)]
        lines.append(f"<tr>{line('td', cells, every)}</tr>")
    kind = "numbers" if table.numeric else "words"
    return f'<div class="scroll"><table class="{kind}">\n' + "\n".join(lines) + "\n</table></div>"


def _html_cell(text: str, *, strong: bool) -> str:
    value, sign, error = text.partition(" ± ")
    value = f"<b>{html.escape(value)}</b>" if strong else html.escape(value)
    return value + (f" <small>± {html.escape(error)}</small>" if sign else "")


def _markdown_block(block: Block, folder: str) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_escape(text)}"
        case Text(text, style):
            return f"**{_escape(text)}**" if style == "alert" else _escape(text)
        case Bullets(items, alert):
            lines = "\n".join(f"- {_escape(item)}" for item in items)
            return f"**{_escape(alert)}**\n\n{lines}" if alert else lines
        case Images(images, caption):
            cells = " | ".join(f"![{_escape(image.alt)}]({folder}/{image.name})" for image in images)
            rule = " | ".join("---" for _ in images)
            heads = " | ".join(" " for _ in images)
            return f"| {heads} |\n| {rule} |\n| {cells} |\n\n{_escape(caption)}"
    return _markdown_table(block)


def _markdown_table(table: Table) -> str:
    groups = [text for text, span in table.groups for _ in range(span)] or [""] * len(table.header)
    header = [f"{group}: {text}" if group else text for group, text in zip(groups, table.header, strict=True)]
    rule = ["---"] + [("---:" if table.numeric else "---")] * (len(header) - 1)
    rows = [
        [f"**{_escape(text)}**" if (number, i) in table.strong else _escape(text) for i, text in enumerate(row)]
        for number, row in enumerate(table.rows)
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in [[_escape(text) for text in header], rule, *rows])


def _escape(text: str) -> str:
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
