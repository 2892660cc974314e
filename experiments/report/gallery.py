"""Images beside what changes their label: for each method the adversarial point, and the difference, magnified."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.pictures import Pictures
from experiments.report import figures
from experiments.report.labels import method_label
from experiments.report.page import Block, Heading, Image, Table, Text, file_name
from experiments.report.records import Row, method_key, norm_key, task_key

_READING = (
    "Images that the method classifies correctly. Changed, of 1NN: the witness at the exact radius, the least change "
    "to another label. Changed, of networks: the least change that FAB finds; there may be a smaller one. Difference: "
    "what was added, magnified; grey is nothing. Distances are of pixels in [0, 1], those of the nearest training "
    "images in l2."
)


def picture_blocks(rows: Sequence[Row], pictures: Mapping[str, Pictures]) -> list[Block]:
    """Show the pictures of the first and of the last task that has some, of each method once."""
    tasks: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: (task_key(row["task"]), method_key(row["method"]), row["seed"])):
        of = pictures.get(row["unit"])
        if of and len(of.clean) and of.clean.shape[-1] in (1, 3):  # grey or colours
            tasks.setdefault(row["task"], {}).setdefault(row["method"], row)
    found: list[Block] = []
    shown = list(tasks.items())
    for task, methods in shown[:1] + shown[1:][-1:]:
        found += [Heading(task, 3), _table({method: (row, pictures[row["unit"]]) for method, row in methods.items()})]
    return [Heading("Images and what changes their label"), *found, Text(_READING, "note")] if found else []


def _table(of: Mapping[str, tuple[Row, Pictures]]) -> Table:
    """Lay out image after image, a line for each method; what these lines share stands in the first."""
    lines: dict[tuple[int, int], list[list[str | Image]]] = {}
    for method, (row, pictures) in of.items():
        for place, key in enumerate(zip(pictures.label.tolist(), pictures.image.tolist(), strict=True)):
            own = lines.setdefault(key, [])
            own.append([method_label(method), *_line(row, pictures, place, is_first=not own)])
    first = next(iter(of.values()))[1]
    norms = [str(first.norms[number]) for number in _norm_order(first)]
    return Table(
        ["", "clean", *("changed", "difference") * len(norms), "own class", "other class"],
        [line for _, own in sorted(lines.items()) for line in own],
        groups=[("", 2), *((norm, 2) for norm in norms), ("nearest training image", 2)],
    )


def _line(row: Row, pictures: Pictures, place: int, *, is_first: bool) -> list[str | Image]:
    clean, split = pictures.clean[place], pictures.split[place]
    what = f"{split} image {pictures.image[place]}"

    def image(pixels: np.ndarray, about: str, caption: str) -> Image:
        name = file_name(row["task"], row["method"], what, about)
        alt = f"{row['task']}, {what}, {method_label(row['method'])}: {about}"
        return Image(name, alt, figures.pixels(pixels), caption)

    def shared(pixels: np.ndarray, about: str, caption: str) -> str | Image:
        return image(pixels, about, caption) if is_first else ""

    cells = [shared(clean, "clean", f"{row['classes'][pictures.label[place]]}, {what}")]
    for number in _norm_order(pictures):
        norm = str(pictures.norms[number])
        changed, distance = pictures.adversarial[number, place], pictures.distance[number, place]
        if not math.isfinite(distance):
            cells += ["none found", ""]
            continue
        times = _magnification(changed - clean)
        cells.append(image(changed, f"changed in {norm}", f"at {distance:.4g}"))
        cells.append(image(0.5 + times * (changed - clean), f"difference in {norm}", f"× {times}"))
    cells.append(shared(pictures.own[place], "nearest of its class", f"at {pictures.own_distance[place]:.4g}"))
    cells.append(shared(pictures.other[place], "nearest of another", f"at {pictures.other_distance[place]:.4g}"))
    return cells


def _norm_order(pictures: Pictures) -> list[int]:
    return sorted(range(len(pictures.norms)), key=lambda number: norm_key(str(pictures.norms[number])))


def _magnification(difference: np.ndarray) -> int:
    """Return the largest of 1, 2, 5, 10, 20, ... that keeps a difference within half of the range of pixels."""
    most = 0.5 / float(np.max(np.abs(difference)))
    steps = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    return max([step for step in steps if step <= most], default=1)
