"""README.md and pages of docs/ with their figures, written from the rows that are kept in results/.

    python -m experiments.documents

Their text is in results/templates/, a file each; the numbers of tables and findings come from folders of rows, or from
files of docs/benchmarks/.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments import console, report
from experiments.files import write_whole
from experiments.report import (
    binary_tasks,
    cost,
    findings,
    labels,
    means,
    neighbor_variants,
    page,
    pairs,
    rates,
    records,
    sweeps,
)
from experiments.report import figures as report_figures
from experiments.report.records import Results

_FIGURES = "docs/results"


class Study:
    """What the documents say of the rows in a folder, on the tasks that all of these methods have; none named: all.

    Raises:
      ValueError: rows are missing, damaged, contradict each other, or are of more than one kind of data.
    """

    def __init__(self, folder: Path, methods: Sequence[str] = ()):
        _, run = report.read(folder)
        _check(folder, run)
        rows = [row for row in run.rows if not methods or row["method"] in methods]
        labels_of_data = {f"{row['dataset']} ({row['dataset_note']})" for row in rows}
        if len(labels_of_data) != 1:
            raise ValueError(f"{folder} must have rows of one kind of data, got {', '.join(labels_of_data) or 'none'}")
        self.tasks = records.index(rows)[0].common_tasks
        if not self.tasks:
            raise ValueError(f"{folder} has no task that all methods of its table were run on")
        self.rows = [row for row in rows if row["task"] in self.tasks]
        (results,) = records.index(self.rows)
        self.results: Results = results._replace(dataset=folder.name)  # which begins the names of its figures
        lines = means.main_table(results, self.tasks)
        self.lines = [line for line in lines if line.method != records.CEILING]
        self._ceilings = [line for line in lines if line.method == records.CEILING]
        self.collapsed = binary_tasks.collapsed_networks(self.rows)

    def says(self, split: str, norm: str) -> str:
        """Say whether 1NN is ahead of the best other method in a norm at its main epsilon, and by how much."""
        condition = next(one for one in self.results.main_conditions if one.norm == norm)
        return findings.comparison(self.results, split, condition, self.tasks) or ""

    @property
    def hides(self) -> list[str]:
        """Say what the mean over train and test images hides."""
        told = (findings.hidden(self.results, one, self.tasks) for one in self.results.main_conditions[1:])
        return [sentence for sentence in told if sentence]

    @property
    def ceiling(self) -> str:
        """Say what no classifier can exceed on these images at the main epsilons (`nn_adv.evaluation.ceiling`)."""
        (line,) = self._ceilings
        found = {
            f"{split} images, {labels.condition_label(condition)}": line.cells[split][condition]
            for split in self.results.single_splits
            for condition in self.results.main_conditions
            if condition.norm in self.results.main_epsilons
        }
        if all(mean and mean.value == 1 for mean in found.values()):
            return (
                "No two of these images of different classes of a pair are closer than two radii: 100 % is possible on "
                "every pair, at both radii."
            )
        told = (f"{where}: {labels.percent(mean, error=False)} %" for where, mean in found.items())
        return f"What no classifier can exceed on these images: {'; '.join(told)}."

    @property
    def wins(self) -> str:
        """The table of how many pairs 1NN and the best TRADES network of each win."""
        return _table(pairs.tally_blocks(self.results))

    @property
    def sizes(self) -> str:
        """Say which attacks there were, and how many steps and queries they took."""
        settings = next(row["attack"] for row in self.rows if row["attack"])
        queries = f" and {settings['num_queries']} queries" if "square" in settings["attacks"] else ""
        return f"attacks {', '.join(settings['attacks'])}, {settings['num_steps']} steps a run{queries}"

    @property
    def attacks(self) -> str:
        """The table of what each attack left."""
        return _table(binary_tasks.attack_blocks(self.results, self.rows))

    @functools.cached_property
    def figures(self) -> dict[str, page.Image]:
        """The report's figures by their names, which begin with the name of the study."""
        blocks = [*pairs.curve_blocks(self.results, self.tasks), *pairs.heat_map_blocks(self.results)]
        return {image.name: image for block in blocks if isinstance(block, page.Panels) for image in block.images}


def _table(blocks: Sequence[page.Block]) -> str:
    return page.to_markdown([block for block in blocks if isinstance(block, page.Table)], folder="").strip()


def documents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file that is written, as its path in the repository and its content."""
    figures: dict[str, bytes] = {}
    studies: dict[tuple, Study] = {}

    def study(name: str, *methods: str) -> Study:
        if (name, methods) not in studies:
            studies[name, methods] = Study(root / "results" / name, methods)
        return studies[name, methods]

    def show(blocks: Sequence[page.Block], way: str) -> str:
        for image in page.images(blocks):
            figures.update((f"{_FIGURES}/{name}", content) for name, content in image.files.items())
        return page.to_markdown(blocks, folder=way).strip()

    environment = _environment(root)
    for file in environment.list_templates(extensions=["md"]):
        # Where the document lies, and the way from it to its figures.
        name, way = (file, _FIGURES) if file == "README.md" else (f"docs/{file}", Path(_FIGURES).name)

        def figure(of: Study, *parts: str, way: str = way) -> str:
            image = of.figures[page.file_name(of.results.dataset, *parts)]
            figures[f"{_FIGURES}/{image.name}"] = image.png
            return f"![{image.alt}]({way}/{image.name})"

        def section(of: str, heading: str, way: str = way) -> str:
            return show(_section(root / "results" / of, heading), way)

        def sweep(of: str, setting: str, base: float, way: str = way) -> str:
            return show(_sweep(root / "results" / of, setting, base), way)

        def costs(of: Study, measured: str, way: str = way) -> str:
            return show(cost.blocks(of.results, of.rows, _benchmark(root, measured)), way)

        def command(of: str) -> str:
            return report.read(root / "results" / of)[1].settings["command"]

        def needed(of: str, networks: Study) -> str:
            return _table([rates.needed_table(_rows(root / "results" / of), networks.results)])

        def lead(of: str, networks: Study) -> str:
            (results,) = records.index(_rows(root / "results" / of))
            return _table([neighbor_variants.lead_table(results, networks.results)])

        def histogram(of: str, norm: str, way: str = way) -> str:
            image = _histogram(of, _benchmark(root, of), norm)
            figures[f"{_FIGURES}/{image.name}"] = image.png
            return f"![{image.alt}]({way}/{image.name})"

        benchmark = functools.partial(_benchmark, root)
        text = environment.get_template(file).render(
            study=study,
            figure=figure,
            section=section,
            sweep=sweep,
            costs=costs,
            command=command,
            needed=needed,
            lead=lead,
            histogram=histogram,
            benchmark=benchmark,
        )
        yield name, text.encode()
    yield from sorted(figures.items())


def _section(folder: Path, heading: str) -> list[page.Block]:
    """Return what the report of a study has below a heading; the names of its figures begin with that of the study.

    Raises:
      ValueError: the rows are damaged or contradict each other, or there is no such heading.
    """
    experiment, run = report.read(folder)
    _check(folder, run)
    found: list[page.Block] = []
    level = 0
    for block in report.blocks(experiment, run):
        if isinstance(block, page.Heading) and (block.text == heading or block.level <= level):
            level = block.level if block.text == heading else 0
        elif level:
            found.append(page.renamed(block, f"{folder.name}-"))
    if not found:
        raise ValueError(f"the report of {folder} has nothing below a heading {heading!r}")
    return found


def _rows(folder: Path) -> Sequence[records.Row]:
    _, run = report.read(folder)
    _check(folder, run)
    return run.rows


def _sweep(folder: Path, setting: str, base: float) -> list[page.Block]:
    """Return what the runs of a sweep say of one setting, whose value in the run called base is ``base``."""
    runs = {}
    for workdir in sorted(folder.iterdir()):
        name, _, value = workdir.name.partition("-")[2].partition("=")
        if name in ("base", setting):
            _, run = report.read(workdir)
            _check(workdir, run)
            runs[float(value or base)] = run
    return [page.renamed(block, f"{folder.name}-") for block in sweeps.blocks(runs, setting)]


def _histogram(name: str, found: Mapping[str, Any], norm: str) -> page.Image:
    """Draw the shares of images by their distance to another class, as benchmarks/separation.py counted them."""
    sets = {what: one for what, one in found["norms"][norm].items() if what != "edges"}
    edges = found["norms"][norm]["edges"]
    middles = [edge + (edges[1] - edges[0]) / 2 for edge in edges]
    lines = []
    for (what, one), (color, _) in zip(sets.items(), report_figures.PALETTE, strict=False):
        shares = [100 * count / one["images"] for count in one["histogram"]]
        lines.append(report_figures.Curve(list(zip(middles, shares, strict=True)), what, color))
    title = f"{found['data']}, {labels.norm_label(norm)}"
    xlabel = "distance to the nearest image of another class"
    png = report_figures.curves(lines, title=title, xlabel=xlabel, ylabel="images in %")
    return page.Image(page.file_name(name, norm), f"{title}: histogram of the {xlabel}", png)


def _check(folder: Path, run: records.Run) -> None:
    if wrong := [*run.problems, *run.contradictions]:
        raise ValueError(f"{folder} is not fit to be printed: {wrong[0]}")


def _benchmark(root: Path, name: str) -> Any:
    return json.loads((root / "docs" / "benchmarks" / f"{name}.json").read_bytes())


def _environment(root: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root / "results" / "templates"),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "condition": labels.condition_label,
        "line": binary_tasks.line_label,
        "percent": labels.percent,
        "share": lambda value, digits=1: f"{100 * value:.{digits}f}",
    }
    return environment


def main() -> None:
    """Write all of them into the folder that this repository lies in."""
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
