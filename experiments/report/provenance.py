"""How the numbers were made, gathered from the rows themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.report.labels import method_label, norm_label
from experiments.report.page import Block, Heading, Table, Text
from experiments.report.tables import Row, index_rows

_MAX_VALUES = 6


def provenance_blocks(rows: Sequence[Row]) -> list[Block]:
    """Return the section on how it was made: configuration, versions, sizes, seeds, settings, time."""
    blocks: list[Block] = [Heading("How it was made"), _general(rows)]
    methods = list(dict.fromkeys(method for results in index_rows(rows) for method in results.methods))
    for title, field in (("Attack", "attack"), ("Exact radii", "radii"), ("Training", "training")):
        lines = _settings_lines(
            {method: [row.get(field) for row in rows if row["method"] == method] for method in methods}
        )
        if lines:
            blocks += [Heading(title, 3), Table(["method", "settings"], lines, numeric=False)]
    note = Text("What was interrupted tells the time since it went on.", "note")
    return [*blocks, Heading("Time", 3), _seconds(rows, methods), note]


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


def _general(rows: Sequence[Row]) -> Table:
    lines = [
        ("configuration", _values(row["config_hash"] for row in rows)),
        ("versions", _listed(_summary(row.get("versions") for row in rows))),
        ("device", _values(row.get("device") for row in rows)),
        ("seeds", _values(row["seed"] for row in rows)),
        ("finished", _span([row["finished"] for row in rows if row.get("finished")])),
    ]
    for results in index_rows(rows):
        own = [row for row in rows if row["dataset"] == results.dataset]
        radii = ", ".join(f"{norm_label(norm)} {value:.6g}" for norm, value in results.main_radii.items())
        lines += [
            (f"data: {results.dataset}", _values(row.get("dataset_note") for row in own)),
            ("tasks", f"{len(results.tasks)}: {', '.join(results.tasks)}"),
            (_trained_on(own), _values(row.get("num_train") for row in own)),
            *(
                (
                    f"{split} images judged per task",
                    _values(item["count"] for row in own for item in row["evaluations"] if item["split"] == split),
                )
                for split in results.splits
                if split != "both"
            ),
            ("main radii", f"{radii} (pixels in [0, 1])"),
        ]
    return Table(["", ""], [line for line in lines if line[1]], numeric=False)


def _trained_on(rows: Sequence[Row]) -> str:
    """Name the number of training images; those of networks from elsewhere are not known."""
    known = sorted({row["method"] for row in rows if row.get("num_train")})
    if len(known) == len({row["method"] for row in rows}):
        return "training images per task"
    return f"training images of {', '.join(map(method_label, known))}"


def _seconds(rows: Sequence[Row], methods: Sequence[str]) -> Table:
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        for stage, seconds in row["seconds"].items():
            totals[row["method"]][stage] += seconds
    stages = list(dict.fromkeys(stage for row in rows for stage in row["seconds"]))
    lines = [
        [
            method_label(method),
            str(sum(row["method"] == method for row in rows)),
            *(f"{totals[method][stage]:.1f}" for stage in stages),
            f"{sum(totals[method].values()):.1f}",
        ]
        for method in methods
    ]
    return Table(["method", "units", *(f"{stage}, s" for stage in stages), "total, s"], lines)


def _summary(settings: Iterable[Any]) -> dict[str, str]:
    """Write each setting's value; where units differ, their range or their different values."""
    found: dict[str, list] = defaultdict(list)
    for item in settings:
        for name, value in _flatten(item):
            found[name].append(value)
    return {name: _values(values) for name, values in found.items()}


def _listed(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" if name else value for name, value in settings.items())


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)] if value is not None else []
    return [pair for key, item in value.items() for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))]


def _values(values: Iterable[Any]) -> str:
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


def _span(values: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys((min(values), max(values)))) if values else ""
