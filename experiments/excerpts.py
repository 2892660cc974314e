"""What the documents quote: numbers, tables and figures of the studies in results/ and of docs/benchmarks/."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import report
from experiments.report import (
    binary_tasks,
    figures,
    findings,
    labels,
    means,
    page,
    pairs,
    records,
    sweeps,
)
from experiments.report.records import Results


class Study:
    """What the documents say of the rows in a folder, on the tasks that all of these methods have; none named: all.

    Raises:
      ValueError: rows are missing, damaged, contradict each other, or are of more than one kind of data.
    """

    def __init__(self, folder: Path, methods: Sequence[str] = ()):
        rows = [row for row in _read(folder)[1].rows if not methods or row["method"] in methods]
        labels_of_data = {f"{row['dataset']} ({row['dataset_note']})" for row in rows}
        if len(labels_of_data) != 1:
            raise ValueError(f"{folder} must have rows of one kind of data, got {', '.join(labels_of_data) or 'none'}")
        self.tasks = records.index(rows).common_tasks
        if not self.tasks:
            raise ValueError(f"{folder} has no task that all methods of its table were run on")
        self.rows = [row for row in rows if row["task"] in self.tasks]
        results = records.index(self.rows)
        self.results: Results = results._replace(dataset=folder.name)  # which begins the names of its figures
        lines = means.main_table(results, self.tasks)
        self.lines = [line for line in lines if line.method != records.CEILING]
        self._ceilings = [line for line in lines if line.method == records.CEILING]
        self.collapsed = binary_tasks.collapsed_networks(self.rows)

    def says(self, split: str, norm: str) -> str:
        """Say whether 1NN is ahead of the best other method in a norm at its main epsilon, and by how much."""
        condition = next(one for one in self.results.main_conditions if one.norm == norm)
        return findings.comparison(self.results, split, condition, self.tasks) or ""

    def mean(self, method: str, split: str, norm: str) -> means.Mean | None:
        """Return the mean accuracy of a method in a norm at its main epsilon."""
        (line,) = (line for line in self.lines if line.method == method and not line.certified)
        return next(mean for one, mean in line.cells[split].items() if one.norm == norm)

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
        told = (f"{where}: {100 * mean.value:.1f} %" for where, mean in found.items() if mean)
        return f"What no classifier can exceed on these images: {'; '.join(told)}."

    @property
    def sizes(self) -> str:
        """Say which attacks there were, and how many steps and queries they took."""
        settings = next(row["attack"] for row in self.rows if row["attack"])
        queries = f" and {settings['num_queries']} queries" if "square" in settings["attacks"] else ""
        return f"attacks {', '.join(settings['attacks'])}, {settings['num_steps']} steps a run{queries}"

    @functools.cached_property
    def figures(self) -> dict[str, page.Image]:
        """The report's figures by their names, which begin with the name of the study."""
        blocks = [*pairs.curve_blocks(self.results, self.tasks), *pairs.heat_map_blocks(self.results)]
        return {image.name: image for block in blocks if isinstance(block, page.Panels) for image in block.images}


class Excerpts:
    """What a template may ask for: the names in ``offered``. Pictures that it shows are kept in ``files``, by name.

    Args:
      root: of the repository.
      way: from the document to the folder of its pictures.
    """

    def __init__(self, root: Path, way: str):
        self._root, self._way = root, way
        self.files: dict[str, bytes] = {}

    @property
    def offered(self) -> dict[str, Any]:
        """Every public method by its name."""
        names = [name for name, value in vars(Excerpts).items() if callable(value) and not name.startswith("_")]
        return {name: getattr(self, name) for name in names}

    def study(self, name: str, *methods: str) -> Study:
        """Read a study of pairs, see `Study`."""
        return _study(self._root / "results" / name, methods)

    def figure(self, of: Study, *parts: str) -> str:
        """Show a figure of a study of pairs."""
        return self._image(of.figures[page.file_name(of.results.dataset, *parts)])

    def section(self, of: str, heading: str) -> str:
        """Quote what the report of a study has below a heading; ValueError where there is no such heading."""
        folder, found, level = self._folder(of), list[page.Block](), 0
        for block in _report(folder):
            if isinstance(block, page.Heading) and (block.text == heading or block.level <= level):
                level = block.level if block.text == heading else 0
            elif level:
                found.append(block)
        if not found:
            raise ValueError(f"the report of {folder} has nothing below a heading {heading!r}")
        return self.show(found, f"{of}-")

    def sweep(self, of: str, setting: str, base: float) -> str:
        """Show what the runs of a sweep say of one setting, whose value in the run called base is ``base``."""
        folder = self._folder(of)
        runs = {}
        for workdir in sorted(folder.iterdir()):
            name, _, value = workdir.name.partition("-")[2].partition("=")
            if name in ("base", setting):
                runs[float(value or base)] = _read(workdir)[1]
        return self.show(sweeps.blocks(runs, setting, base), f"{of}-")

    def side_by_side(self, studies: Mapping[str, Study], split: str) -> str:
        """Set the methods of several studies side by side, each under its name, on the pairs that all of them have."""
        first = next(iter(studies.values()))
        tasks = [task for task in first.tasks if all(task in one.tasks for one in studies.values())]
        if not tasks:
            raise ValueError(f"{', '.join(studies)} have no pair in common")
        conditions = first.results.main_conditions[:-1]  # all but the worst of them
        lines = [
            [labels.method_label(method), name, *(_percent(one.results, method, split, at, tasks) for at in conditions)]
            for method in dict.fromkeys(method for one in studies.values() for method in one.results.methods)
            for name, one in studies.items()
            if method in one.results.methods
        ]
        header = [f"{split} images, mean over {', '.join(tasks)}", "", *map(labels.condition_label, conditions)]
        return tables([page.Table(header, lines)])

    def histogram(self, of: str, norm: str) -> str:
        """Draw the shares of images by their distance to another class, as benchmarks/separation.py counted them."""
        found = self.benchmark(of)
        sets = {what: one for what, one in found["norms"][norm].items() if what != "edges"}
        edges = found["norms"][norm]["edges"]
        middles = [edge + (edges[1] - edges[0]) / 2 for edge in edges]
        lines = []
        for (what, one), (color, _) in zip(sets.items(), figures.PALETTE, strict=False):
            shares = [100 * count / one["images"] for count in one["histogram"]]
            lines.append(figures.Curve(list(zip(middles, shares, strict=True)), what, color))
        title = f"{found['data']}, {norm}"
        xlabel = "distance to the nearest image of another class"
        drawing = figures.curves(lines, title=title, xlabel=xlabel, ylabel="images in %")
        return self._image(page.Image(page.file_name(of, norm), f"{title}: histogram of the {xlabel}", drawing))

    def votes(self, measured: str) -> str:
        """Draw the mean bounds on the radius of a vote against k, as benchmarks/bounds.py found them."""
        found = self.benchmark(measured)
        lines = [
            figures.Curve([(row["k"], row[bound]) for row in found["rows"]], label, *figures.PALETTE[place], style)
            for place, (bound, label, style) in enumerate(
                [("lower", "certified", {"linestyle": ":"}), ("upper", "what attacks find", {"linestyle": "--"})]
            )
        ]
        title = f"{found['data']}, {found['norm']}"
        drawing = figures.curves(lines, title=title, xlabel="k", ylabel="mean radius")
        alt = f"{title}: mean bounds on the radius of the vote of k neighbours"
        return self._image(page.Image(page.file_name(measured), alt, drawing))

    def run(self, of: str) -> records.Run:
        """Read a folder of rows."""
        return _read(self._folder(of))[1]

    def benchmark(self, name: str) -> Any:
        """Read a file of docs/benchmarks/."""
        return json.loads((self._root / "docs" / "benchmarks" / f"{name}.json").read_bytes())

    def _folder(self, of: str) -> Path:
        return self._root / "results" / of

    def _image(self, image: page.Image) -> str:
        self.files |= image.files
        return f"![{image.alt}]({self._way}/{image.name})"

    def show(self, blocks: Sequence[page.Block], prefix: str = "") -> str:
        """Write blocks, the names of whose pictures get a prefix."""
        for image in page.images(blocks):
            self.files |= {prefix + name: content for name, content in image.files.items()}
        return page.to_markdown(blocks, way=f"{self._way}/{prefix}").strip()


def tables(blocks: Sequence[page.Block]) -> str:
    """Write the tables among blocks."""
    return page.to_markdown([block for block in blocks if isinstance(block, page.Table)], way="").strip()


_study = functools.cache(Study)


@functools.cache
def _report(folder: Path) -> list[page.Block]:
    experiment, run = _read(folder)
    return report.of(experiment).blocks(run)


@functools.cache
def _read(folder: Path) -> tuple[str, records.Run]:
    """Read a workdir as `report.read` does, refusing what is damaged or contradicts itself."""
    experiment, run = report.read(folder)
    if wrong := [*run.problems, *run.contradictions]:
        raise ValueError(f"{folder} is not fit to be printed: {wrong[0]}")
    return experiment, run


def _percent(results: Results, method: str, split: str, condition: records.Condition, tasks: Sequence[str]) -> str:
    return labels.percent(means.mean_of(results, method, split, condition, tasks), error=False)
