"""The main table as plain text, for the end of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from experiments.report.content import line_label, shown_tasks, tasks_note
from experiments.report.labels import SPLIT_TITLES, error_points, norm_label, percent, threat_label
from experiments.report.tables import Line, Results, Row, Threat, index_rows, main_table

_WIDTH = 100
_CELL = 7
_LEGEND = "in %, ± standard error over tasks; ≤ attacked (upper bound), = exact, ≥ certified (lower bound)"


def terminal_table(rows: Iterable[Row]) -> str:
    """Return the main table of each dataset in at most 100 columns; the groups wrap if there are many norms."""
    return "\n\n".join(_dataset_table(results) for results in index_rows(rows))


def _dataset_table(results: Results) -> str:
    lines = main_table(results, shown_tasks(results))
    name_width = max(len(_name(line)) for line in lines) + 1
    group_width = 1 + _CELL * len(results.main_threats)
    per_row = max(1, (_WIDTH - name_width) // group_width)
    parts = [results.dataset, *_wrapped(tasks_note(results))]
    for start in range(0, len(results.splits), per_row):
        parts += ["", *_groups(results, lines, results.splits[start : start + per_row], name_width)]
    radii = ", ".join(threat_label(Threat(norm, value)) for norm, value in results.main_radii.items())
    return "\n".join(line.rstrip() for line in [*parts, "", *_wrapped(f"{radii}; {_LEGEND}")])


def _groups(results: Results, lines: Sequence[Line], splits: Sequence[str], name_width: int) -> list[str]:
    threats = results.main_threats
    names = ["clean" if threat.norm is None else norm_label(threat.norm) for threat in threats]
    width = _CELL * len(threats)
    text = [
        " " * name_width + "".join(f" {SPLIT_TITLES[split]:^{width}}" for split in splits),
        f"{'':{name_width}}" + "".join(" " + "".join(f"{name:>{_CELL}}" for name in names) for _ in splits),
    ]
    for line in lines:
        cells = {split: [line.cells[split][threat] for threat in threats] for split in splits}
        text.append(
            f"{_name(line):{name_width}}"
            + "".join(
                " " + "".join(f"{percent(mean, error=False).replace(' ', ''):>{_CELL}}" for mean in cells[split])
                for split in splits
            )
        )
        text.append(
            f"{'':{name_width}}"
            + "".join(
                " " + "".join(f"{'±' + error_points(mean.error) if mean else '':>{_CELL}}" for mean in cells[split])
                for split in splits
            )
        )
    return text


def _name(line: Line) -> str:
    return "  certified" if line.certified else line_label(line)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)
