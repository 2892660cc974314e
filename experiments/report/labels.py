"""How methods, threats and numbers are written."""

from __future__ import annotations

from experiments.methods import NEIGHBOR, is_neighbor
from experiments.report.means import Mean
from experiments.report.records import Condition

_SIGNS = {"attacked": "≤", "certified": "≥", "exact": "=", "ceiling": "≤", "clean": ""}
_MOST_GREY_LEVELS = 32.5  # 0.2 is 51/255 too, but nobody calls it so
MISSING = "–"
SPLIT_TITLES = {"train": "train images", "test": "test images", "both": "mean over both"}


def counted(number: int, noun: str) -> str:
    """Write a number of things: 1 task, 2 tasks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def method_label(method: str) -> str:
    """Write a method's name: "1nn+mirror" as 1NN+mirror, "trades-linf" as TRADES-linf."""
    if is_neighbor(method):
        return "1NN" + method.removeprefix(NEIGHBOR)
    name, _, rest = method.partition("-")
    name = name.upper() if name in ("trades", "pgd") else name
    return f"{name}-{rest}" if rest else name


def condition_label(condition: Condition) -> str:
    """Write a condition, e.g. "linf 8/255"."""
    if condition.norm is None:
        return "clean"
    return condition.norm if condition.epsilon is None else f"{condition.norm} {radius(condition)}"


def condition_phrase(condition: Condition) -> str:
    """Write a condition for the middle of a sentence."""
    return "the worst of the norms" if condition.norm == "worst" else condition_label(condition)


def in_grey_levels(condition: Condition) -> bool:
    """Say whether a radius is a whole number of 1/255, as it is given in the literature on colour images."""
    levels = (condition.epsilon or 0.0) * 255
    return condition.norm == "linf" and 0.5 < levels < _MOST_GREY_LEVELS and abs(levels - round(levels)) < 1e-3


def radius(condition: Condition) -> str:
    """Write a condition's radius, in 1/255 where it is a whole number of them."""
    epsilon = condition.epsilon or 0.0
    return f"{round(epsilon * 255)}/255" if in_grey_levels(condition) else f"{epsilon:.4g}"


def percent(mean: Mean | None, *, error: bool = True) -> str:
    """Write a mean accuracy in percent with what it is: "≤ 63.1 ± 1.2" is an upper bound, "≥" a lower one."""
    if mean is None:
        return MISSING
    text = f"{_SIGNS[mean.kind]} {100 * mean.value:.1f}".strip()
    return f"{text} ± {error_points(mean.error)}" if error else text


def error_points(error: float | None) -> str:
    """Write a standard error in points; it is not defined for a single task."""
    return MISSING if error is None else f"{100 * error:.1f}"


def number(value: float, digits: int, sign: str = "") -> str:
    """Write a number with a true minus, and 0 without one; ``sign`` "+" gives positive ones theirs."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def signed_points(value: float) -> str:
    """Write a difference in points with its sign."""
    return number(100 * value, 1, "+")
