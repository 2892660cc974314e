"""Radii among images that can be saved: every pixel a whole number of 0 to 255.

What a solver finds lies between the levels of an 8-bit image. The nearest 8-bit image with another label is at least
as far away, and at a distance that such images can have; a rounded witness that still has another label bounds it from
above, and can be written as a picture and read again.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import numpy as np

from nn_adv import neighbors
from nn_adv.certify.bounds.margins import norm_ratio
from nn_adv.certify.inputs import Question, check_question, host_pixels, host_points
from nn_adv.certify.radius import Radius
from nn_adv.certify.state import power_of_two
from nn_adv.certify.verify import recheck
from nn_adv.threat import check_norm, float64_sizes

# By how much a witness is lengthened before it is rounded, until one has another label.
_GROWTH = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
_ROUNDING = 2.0**-24  # of the difference of two pixels v / 255, each rounded to float32: for linear maps


class EightBitRadius(NamedTuple):
    """Distance to the nearest 8-bit image with another label, in [lower, upper], for B images.

    Attributes:
      lower: ``[B]`` float64; 0 where the image is misclassified, inf where no perturbation changes the prediction.
      upper: ``[B]`` float64, that of ``adversarial``; inf where there is none.
      adversarial: ``[B, ...]`` uint8, which 1NN gives another label; the image itself where none was found.
    """

    lower: np.ndarray
    upper: np.ndarray
    adversarial: np.ndarray


def eight_bit_radius(
    reference: neighbors.Reference,
    images: chex.Array,
    labels: chex.Array,
    found: Radius,
    *,
    norm: str,
    leave_out: chex.Array | None = None,
) -> EightBitRadius:
    """Bound the distance to the nearest 8-bit image that 1NN gives another label, from radii of `radius`.

    Distances between 8-bit images are multiples of 1/255 in l1 and linf and roots of whole numbers over 255 in l2, so a
    lower bound, proved again in whole numbers, is raised to the next of them. In linf a witness is lengthened to whole
    levels, and the two bounds mostly meet. Witnesses are judged by `neighbors.nearest` in integers, as they are when
    they are read from a file. All opponents are checked once more, in memory. Where no rounded witness has another
    label, the training image it is nearest to does.

    Points and images are uint8; these, labels, norm and left-out points are what `radius` was given, with the bounds
    (0, 1), and ``found`` is what it returned.

    Raises:
      ValueError: unknown norm, another one than that of the radii, images or points that are not uint8, another number
        of radii than of images, radii of another question, or images, labels or left-out points as refused by `radius`.
    """
    check_norm(norm)
    question = check_question(reference, images, labels, bounds=(0, 1), leave_out=leave_out)
    for name, dtype in (("images", question.images.dtype), ("points of the reference", reference.dtype)):
        if dtype != np.uint8:
            raise ValueError(f"{name} must be uint8, got {dtype}")
    if not isinstance(found, Radius):
        raise ValueError(f"found must be what certify.radius returned, got {type(found).__name__}")
    if len(found.lower) != len(question.labels):
        raise ValueError(f"found must hold {len(question.labels)} radii, one per image, got {len(found.lower)}")
    flat = question.images.reshape(len(question.labels), reference.size)
    moves = 255 * (found.adversarial.reshape(flat.shape).astype(np.float64) - host_pixels(flat, np.float64))
    _check_radii(found, norm, moves / 255)
    adversarial, upper = flat.copy(), np.where(found.correct, np.inf, 0.0)
    is_open = found.correct & np.isfinite(found.upper)
    for number, growth in enumerate(_GROWTH):
        rows = np.flatnonzero(is_open)
        if not len(rows):
            break
        most = np.abs(moves[rows]).max(axis=1)
        # To whole levels in linf; elsewhere at least so far that one pixel changes.
        scale = (np.ceil(most - 1e-3) + number) / most if norm == "linf" else np.maximum(1, 0.5 / most) * (1 + growth)
        candidates = np.clip(np.rint(flat[rows] + scale[:, None] * moves[rows]), 0, 255).astype(np.uint8)
        is_broken = _labels(reference, candidates, question.leave_out[rows]) != question.labels[rows]
        adversarial[rows[is_broken]] = candidates[is_broken]
        is_open[rows[is_broken]] = False
    if is_open.any():
        points = host_points(reference)
        adversarial[is_open] = points.stored[points.positions[found.opponent[is_open]]]
    is_moved = found.correct & np.isfinite(found.upper)
    upper[is_moved] = _distances(_levels(norm, adversarial[is_moved], flat[is_moved]), norm)
    proved = _proved_levels(reference, flat, question, found, norm)
    lower = np.where(found.correct, _raised(proved, norm), 0.0)
    return EightBitRadius(lower, upper, adversarial.reshape(question.images.shape))


def _check_radii(found: Radius, norm: str, moves: np.ndarray) -> None:
    """Raise ValueError where moves ``[B, d]`` to the witnesses show that the radii are of another norm."""
    sizes = float64_sizes(norm, moves)
    is_other = found.correct & np.isfinite(found.upper) & ~np.isclose(sizes, found.upper, rtol=1e-6, atol=0)
    if is_other.any():
        b = int(np.argmax(is_other))
        raise ValueError(
            f"norm must be that of the radii, got {norm!r}, in which the witness of image {b} is {sizes[b]:.6g} away "
            f"in place of {found.upper[b]:.6g}"
        )


def _labels(reference: neighbors.Reference, images: np.ndarray, leave_out: np.ndarray) -> np.ndarray:
    """Predict as many images as there are, few sizes being compiled."""
    filled = np.resize(np.arange(len(images)), power_of_two(len(images)))
    return np.asarray(neighbors.predict(reference, images[filled], leave_out=leave_out[filled]))[: len(images)]


def _levels(norm: str, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Measure distances ``[B]`` in whole numbers: of levels in l1 and linf, of their squares in l2."""
    apart = np.abs(images.astype(np.int64) - others)
    return apart.max(axis=1, initial=0) if norm == "linf" else (apart ** (2 if norm == "l2" else 1)).sum(axis=1)


def _distances(levels: np.ndarray, norm: str) -> np.ndarray:
    return (np.sqrt(levels) if norm == "l2" else levels) / 255


def _proved_levels(reference, images: np.ndarray, question: Question, found: Radius, norm: str) -> np.ndarray:
    """Return lower bounds ``[B]`` in levels that hold for the metric in which 8-bit images are classified.

    That of whole numbers. The radii are of pixels rounded to float32: where the border runs almost along a perturbation
    that moves it far, so the certificate is checked again among whole numbers.
    """
    if reference.linear_map is not None:  # measures from rounded pixels, whose distances alone are not whole numbers
        slack = norm_ratio(norm, "linf", images.shape[1]) * _ROUNDING
        return 255 * np.maximum(0.0, found.lower * (1 - 1e-12) - slack)
    points = host_points(reference)
    levels, own = points.stored[points.positions].astype(np.float32), images.astype(np.float32)
    checked = recheck(
        levels, np.asarray(reference.labels)[: len(levels)], own, question.labels, found.certificate, own,
        norm=norm, bounds=(0.0, 255.0), leave_out=question.leave_out,
    )  # fmt: skip
    if (is_other := checked.correct != found.correct).any():
        b = int(np.argmax(is_other))
        got = f"image {b} is classified {'correctly' if found.correct[b] else 'wrongly'} in them, but not here"
        raise ValueError(f"found must be the radii of these images, labels, points and left-out points: {got}")
    return checked.lower


def _raised(levels: np.ndarray, norm: str) -> np.ndarray:
    """Raise bounds in levels to the next distance that different 8-bit images can have."""
    levels = np.ceil((levels**2 if norm == "l2" else levels) * (1 - 1e-12))
    return _distances(np.maximum(1.0, levels), norm)
