"""What rows may never say: bounds that contradict each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_BOUND_ORDER = ("certified", "exact", "attacked", "clean")


def order_violations(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """List where bounds contradict each other for one unit, split and norm: never by rights.

    At one radius certified <= exact <= attacked <= clean; and what is proven at some radius (certified, exact) may
    not exceed what is known at a smaller one not to be exceeded (exact, attacked).
    """
    problems = []
    for row in (row for row in rows if "evaluations" in row):
        clean = {item["split"]: item for item in row["evaluations"] if item["kind"] == "clean"}
        found: dict[tuple, list[Mapping]] = defaultdict(list)
        for item in row["evaluations"]:
            if item["kind"] != "clean":
                found[item["split"], item["norm"]].append(item)
        for (split, norm), items in found.items():
            where = f"{row['unit']}, {split} images, {norm}"
            start = [clean[split]] if split in clean else []
            problems += [f"{where}{problem}" for problem in _contradictions(items, start)]
    return problems


def _contradictions(items: Iterable[Mapping], clean: list[Mapping]) -> list[str]:
    """Compare the neighbours at each radius, then each radius with the lowest upper bound before it."""
    by_radius: dict[float | None, dict[str, Mapping]] = defaultdict(dict)
    for item in items:
        by_radius[item["epsilon"]][item["kind"]] = item
    problems = []
    ceiling = None
    for epsilon, kinds in sorted(by_radius.items(), key=lambda pair: pair[0] or 0.0):
        ordered = [kinds[kind] for kind in _BOUND_ORDER if kind in kinds]
        pairs = list(zip(ordered, [*ordered[1:], *clean], strict=False))
        if ceiling is not None:
            pairs += [(kinds[kind], ceiling) for kind in ("exact", "certified") if kind in kinds][:1]
        radius = "" if epsilon is None else f" {epsilon:g}"
        for lower, upper in pairs:
            if lower["count"] == upper["count"] and lower["robust"] > upper["robust"]:
                at = f" at {upper['epsilon']:g}" if upper is ceiling else ""
                problems.append(
                    f"{radius}: {lower['kind']} {lower['robust']} > {upper['kind']} {upper['robust']}{at} "
                    f"of {lower['count']}"
                )
        bounds = [kinds[kind] for kind in ("exact", "attacked") if kind in kinds]
        ceiling = min([*([ceiling] if ceiling else []), *bounds], key=lambda item: item["robust"], default=None)
    return problems
