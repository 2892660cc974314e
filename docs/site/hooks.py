"""Hooks of mkdocs: notebooks become pages as they are kept, with their outputs, and formulas become MathML."""

from __future__ import annotations

import base64
import html
import json
import pathlib
import re
from collections.abc import Iterator

import latex2mathml.converter
from mkdocs.structure.files import File

_NOTEBOOKS = pathlib.Path(__file__).parents[2] / "notebooks"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files, config):
    """Add a page and its pictures for each notebook."""
    for path in sorted(_NOTEBOOKS.glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        page = "\n\n".join(_parts(json.loads(path.read_text("utf-8")), path.stem, pictures))
        for name, content in {f"{path.stem}.md": page, **pictures}.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _parts(notebook: dict, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the Markdown of a notebook's cells and outputs; its pictures are put into ``pictures``."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                picture = f"{name}-{len(pictures)}.png"
                pictures[picture] = base64.b64decode(data["image/png"])
                yield f"![{name}, figure {len(pictures)}]({picture})"
            else:
                yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def on_page_markdown(markdown, **_):
    """Let links to notebooks, and from them, lead to pages; in the repository they lead to files."""
    return re.sub(r"\(\.\./\.\./notebooks/(\w+)\.ipynb", r"(../notebooks/\1.md", markdown).replace("(../docs/", "(../")


def on_page_content(content, **_):
    """Set the formulas that arithmatex has marked."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match) -> str:
    latex = html.unescape(found[2]).strip()
    if found[1] == "span":
        return latex2mathml.converter.convert(latex)
    return f'<div class="formula">{latex2mathml.converter.convert(latex, display="block")}</div>'
