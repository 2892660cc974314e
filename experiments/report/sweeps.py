"""One setting against its values, over the runs of a sweep: a table and a curve for each norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.report import figures
from experiments.report.labels import condition_label, counted, method_label, percent
from experiments.report.means import mean_of
from experiments.report.page import Block, Image, Panels, Table, Text, file_name
from experiments.report.records import Condition, Results, Run, index


def blocks(runs: Mapping[float, Run], setting: str, base: float) -> list[Block]:
    """Lay out the accuracies of the runs at each value of a setting, over the tasks that all of them have.

    Args:
      runs: one of pairs of one dataset for each value.
      setting: its name.
      base: the value whose run has the epsilons to judge all of them at.

    Raises:
      ValueError: the runs have no task in common.
    """
    indexed = {value: index(run.rows) for value, run in sorted(runs.items())}
    first = next(iter(indexed.values()))
    tasks = [task for task in first.tasks if all(task in one.common_tasks for one in indexed.values())]
    if not tasks:
        raise ValueError(f"the runs of {setting} have no task that all methods of all of them were run on")
    lines, panels = [], []
    conditions = indexed[base].single_conditions
    for condition in conditions:
        curves = []
        for number, method in enumerate(first.methods):
            for split in first.single_splits:
                means = [mean_of(one, method, split, condition, tasks) for one in indexed.values()]
                label = f"{method_label(method)}, {split} images"
                lines.append([f"{label}, {condition_label(condition)}", *map(percent, means)])
                points = [(value, 100 * mean.value) for value, mean in zip(indexed, means, strict=True) if mean]
                style = {"linestyle": figures.BROKEN if split == "train" else "-"}
                curves.append(figures.Curve(points, label, *figures.pen(1 + number), style))
        title = condition_label(condition)
        scale = "linear" if setting == "seed" else "log"
        drawing = figures.curves(curves, title=title, xlabel=setting, ylabel="accuracy in %", xscale=scale)
        norm = condition.norm or "clean"
        panels.append(
            Image(file_name(setting, condition.norm or "clean"), f"Accuracy against {setting}, {norm}", drawing)
        )
    caption = f"Means over {counted(len(tasks), 'task')}. Solid: test images. Broken: train images."
    return [
        Text(_finding(indexed, setting, conditions, tasks)),
        Panels(panels, caption),
        Table([setting, *(f"{value:g}" for value in indexed)], lines),
        Text(f"Per cent ± standard error over {counted(len(tasks), 'task')}; ≤ attacked, an upper bound.", "note"),
    ]


def _finding(indexed: Mapping[float, Results], setting: str, conditions: Sequence[Condition], tasks: list[str]) -> str:
    """Say at which value each network is most and least robust in the norm that it is trained for, on test images."""
    first = next(iter(indexed.values()))
    told = []
    for method in first.methods:
        for condition in conditions:
            if condition.norm and method.endswith(condition.norm):
                means = {value: mean_of(one, method, "test", condition, tasks) for value, one in indexed.items()}
                if not (found := {value: mean for value, mean in means.items() if mean}):
                    continue  # test images were not asked for
                least, most = (pick(found, key=lambda value: found[value].value) for pick in (min, max))
                told.append(
                    f"{method_label(method)}, lowest {percent(found[least])} % ({setting} {least:g}), "
                    f"highest {percent(found[most])} % ({setting} {most:g})"
                )
    return f"Test images, at the main radius of the norm trained for: {'; '.join(told)}."
