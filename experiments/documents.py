"""README.md and pages of docs/ with their figures, written from the rows that are kept in results/.

    python -m experiments.documents

Their text is in results/templates/, a file each; the numbers of tables and findings come from folders of rows, or from
files of docs/benchmarks/ (`excerpts`). Every table is a CSV file too.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments import console
from experiments.excerpts import Excerpts, tables
from experiments.files import write_whole
from experiments.report import binary_tasks, cost, labels, neighbor_variants, page, pairs, rates, records

_FIGURES = "docs/results"
_TABLES = f"{_FIGURES}/tables"
_FILTERS = {
    "by": lambda rows, name: {row[name]: row for row in rows},
    "condition": labels.condition_label,
    "line": binary_tasks.line_label,
    "percent": labels.percent,
    "share": lambda value, digits=1: f"{100 * value:.{digits}f}",
    "tables": tables,
}
# Parts of the report that templates call by themselves.
_PARTS = {"costs": cost, "neighbor_variants": neighbor_variants, "pairs": pairs, "rates": rates, "index": records.index}


def documents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file that is written, as its path in the repository and its content."""
    figures: dict[str, bytes] = {}
    environment = page.templates(root / "results" / "templates", _FILTERS)
    environment.globals |= _PARTS | {"attack_blocks": binary_tasks.attack_blocks}
    for file in environment.list_templates(extensions=["md"]):
        # Where the document lies, and the way from it to its figures.
        name, way = (file, _FIGURES) if file == "README.md" else (f"docs/{file}", Path(_FIGURES).name)
        excerpts = Excerpts(root, way)
        text = environment.get_template(file).render(excerpts.offered)
        yield name, text.encode()
        for table, lines in _tables(text):
            yield f"{_TABLES}/{Path(file).stem.lower()}{table}.csv", _csv(lines)
        figures |= excerpts.files
    for name, content in sorted(figures.items()):
        yield f"{_FIGURES}/{name}", content


def _tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the cells of each table of a page, but of those of pictures, named by the heading that it is below."""
    heading, seen = "", Counter[str]()
    lines = [line.strip() for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines()]
    for kind, group in itertools.groupby(lines, lambda line: line[:1]):
        if kind == "#":
            heading = "-" + "-".join(re.findall(r"[a-z0-9]+", list(group)[-1].lower()))
        elif kind == "|" and "![" not in (rows := "\n".join(group)):
            seen[heading] += 1
            cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows.splitlines()]
            del cells[1]  # the line below the header
            yield heading + (f"-{seen[heading]}" if seen[heading] > 1 else ""), cells


def _csv(lines: list[list[str]]) -> bytes:
    """Write cells as they read, without the marks of Markdown."""

    def plain(cell: str) -> str:
        return re.sub(r"\*\*|`|\\(?=\W)", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell)).strip()

    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([plain(cell) for cell in line] for line in lines)
    return file.getvalue().encode()


def main() -> None:
    """Write all of them into the folder that this repository lies in."""
    about = "Write README.md, pages of docs/ and their figures from the rows that are kept in results/."
    argparse.ArgumentParser(prog="python -m experiments.documents", description=about).parse_args()
    root = Path(__file__).resolve().parents[1]
    try:
        for name, content in documents(root):
            write_whole(root / name, content)
            console.say(name)
    except (ValueError, OSError) as error:
        console.say(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
