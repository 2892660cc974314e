"""What must not be overlooked, and how the numbers were made, gathered from the rows themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.configuration import flatten
from experiments.report.labels import counted, method_label
from experiments.report.page import Block, Bullets, Heading, Table, Text
from experiments.report.records import Results, Row, Run

REDRAW = "python -m experiments.report WORKDIR"  # all tables and figures, from the rows alone
_MAX_VALUES = 6
_MAX_LISTED = 50


def incomplete(run: Run, *, noun: str = "unit") -> list[Block]:
    """Say, as alerts, what has no row: what is missing or failed, and what was left out on purpose."""
    missing = run.num_missing + len(run.failed)
    told = [f"{missing} of {counted(missing + len(run.rows), noun)} are missing"] if missing else []
    told += [absence] if (absence := run.settings.get("absence")) else []
    return [Text(f"Not complete: {text}.", "alert") for text in told]


def alerts(run: Run, *, noun: str = "unit") -> list[Block]:
    """Return what failed, contradicts itself or is damaged, as alerts; ``noun`` is what a unit is called."""
    names = [one["unit"] if noun == "unit" else one["unit"].partition("/")[2] for one in run.failed]
    lists = {
        f"{counted(len(run.failed), noun)} failed and not in the table:": [
            f"{name}: {one['reason']}" for name, one in zip(names, run.failed, strict=True)
        ],
        "certified ≤ exact ≤ attacked ≤ clean is violated as follows. At least one of these numbers is wrong: trust "
        "nothing in this report before it is explained.": run.contradictions,
        "Found while reading the stored rows:": run.problems,
    }
    return [
        Bullets([*lines[:_MAX_LISTED], *[f"and {len(lines) - _MAX_LISTED} more"] * (len(lines) > _MAX_LISTED)], title)
        for title, lines in lists.items()
        if lines
    ]


def command_blocks(run: Run) -> list[Block]:
    """Begin the section on how it was made with the commands that make it again."""
    blocks: list[Block] = [Heading("How it was made")]
    if command := run.settings.get("command"):
        blocks += [Text("The command of the run, the last one if there were several:"), Text(command, "command")]
    note = "The command below each section makes its tables and figures again, from the rows alone. WORKDIR is the "
    return [*blocks, Text(note + "folder that report/ is in.")]


def provenance_blocks(run: Run, results: Results) -> list[Block]:
    """Return the section on how it was made: commands, configuration, versions, sizes, seeds, settings, time."""
    rows = run.rows
    blocks: list[Block] = [*command_blocks(run), _general(rows, results)]
    for title, field in (("Attack", "attack"), ("Exact radii", "radii"), ("Training", "training")):
        settings = {method: [row.get(field) for row in rows if row["method"] == method] for method in results.methods}
        if lines := _settings_lines(settings):
            blocks += [Heading(title, 3), Table(["method", "settings"], lines, numeric=False)]
    note = Text("What was interrupted tells the time since it went on.", "note")
    return [*blocks, Heading("Time", 3), _seconds(rows, results.methods), note]


def _settings_lines(settings: Mapping[str, Sequence[Any]]) -> list[list[str]]:
    """List the settings that all methods share, then what is each method's own."""
    found = {method: texts for method, values in settings.items() if (texts := _summary(values))}
    shared = set.intersection(*(set(texts.items()) for texts in found.values())) if len(found) > 1 else set()
    lines = []
    if shared:
        common = {name: value for name, value in next(iter(found.values())).items() if (name, value) in shared}
        lines.append([", ".join(map(method_label, found)), _listed(common)])
    for method, texts in found.items():
        own = {name: value for name, value in texts.items() if (name, value) not in shared}
        lines += [[method_label(method), _listed(own)]] if own else []
    return lines


def _general(rows: Sequence[Row], results: Results) -> Table:
    finished = [row["finished"] for row in rows if row.get("finished")]
    lines = [
        ("configuration", _values(row["config_hash"] for row in rows)),
        ("versions", _listed(_summary(row.get("versions") for row in rows))),
        ("device", _values(row.get("device") for row in rows)),
        ("seeds", _values(row["seed"] for row in rows)),
        ("finished", " to ".join(dict.fromkeys((min(finished), max(finished)))) if finished else ""),
    ]
    epsilons = ", ".join(f"{norm} {value:.6g}" for norm, value in results.main_epsilons.items())
    lines += [
        (f"data: {results.dataset}", _values(row.get("dataset_note") for row in rows)),
        ("tasks", f"{len(results.tasks)}: {', '.join(results.tasks)}"),
        (_trained_on(rows), _values(row.get("num_train") for row in rows)),
    ]
    for split in results.single_splits:
        counts = (item["count"] for row in rows for item in row["evaluations"] if item["split"] == split)
        lines.append((f"{split} images judged per task", _values(counts)))
    lines.append(("main radii", f"{epsilons} (pixels in [0, 1])"))
    return Table(["", ""], [line for line in lines if line[1]], numeric=False)


def _trained_on(rows: Sequence[Row]) -> str:
    """Name the number of training images; those of networks from elsewhere are not known."""
    known = sorted({row["method"] for row in rows if row.get("num_train")})
    if len(known) == len({row["method"] for row in rows}):
        return "training images per task"
    return f"training images of {', '.join(map(method_label, known))}"


def _seconds(rows: Sequence[Row], methods: Sequence[str]) -> Table:
    stages = list(dict.fromkeys(stage for row in rows for stage in row["seconds"]))
    lines = []
    for method in methods:
        own = [row["seconds"] for row in rows if row["method"] == method]
        totals = [sum(seconds.get(stage, 0.0) for seconds in own) for stage in stages]
        lines.append([method_label(method), str(len(own)), *(f"{total:.1f}" for total in (*totals, sum(totals)))])
    return Table(["method", "units", *(f"{stage}, s" for stage in stages), "total, s"], lines)


def _summary(settings: Iterable[Any]) -> dict[str, str]:
    """Write each setting's value; where units differ, their range or their different values."""
    found: dict[str, list] = defaultdict(list)
    for item in settings:
        for name, value in flatten(item).items():
            if value is not None:
                found[name].append(value)
    return {name: _values(values) for name, values in found.items()}


def _listed(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" if name else value for name, value in settings.items())


def _values(values: Iterable[Any]) -> str:
    """Write each different value once; the range of many numbers."""
    texts = {_text(value): value for value in values if value is not None and value != ""}
    if len(texts) > _MAX_VALUES and all(isinstance(value, (int, float)) for value in texts.values()):
        return f"{_text(min(texts.values()))} to {_text(max(texts.values()))}"
    more = len(texts) - _MAX_VALUES
    return ", ".join(list(texts)[:_MAX_VALUES]) + (f" and {more} more" if more > 0 else "")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
