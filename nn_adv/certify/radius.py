"""The exact robust radius of 1NN: the size of the smallest perturbation that changes its prediction.

  r(x) = min over opponents j of
           min { ||v||_p : g_ij . v >= h_ij for all own-class points i, x + v inside the bounds }

with ``g_ij = M' (M z_j - M z_i)`` and ``h_ij`` half the difference of squared distances (M is the identity without a
linear map). In l2 these are the quadratic programs of Wang et al. 2019 (arXiv 1906.03972), whose duals bound the radius
too. Opponents are points of other classes. They are ruled out in the order of cost: by their distance, by one
constraint (`screening`), by the dual of a few constraints (`dual`); those left are solved, best first, and every
solution is judged by a nearest-neighbour search that adds the own points it missed (`subproblems`; `search` keeps the
books). At the end `verify`, which shares no code with all this, computes the bounds again.

Host code that keeps the books; the heavy parts are jitted and work on many images at once.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import numpy as np

from nn_adv.border import as_count, as_number, check_sizes
from nn_adv.certify import search
from nn_adv.certify.inputs import Question, check_question, check_scale, host_pixels, host_points, of_unit_length
from nn_adv.certify.verify import Certificate, Screened, recheck
from nn_adv.neighbors import Reference, Streamed
from nn_adv.threat import Threat, check_norm, check_threat

# Below this, times the scale of the pixels, a float32 image cannot come closer to a border.
_ABSOLUTE_TOLERANCE = 1e-7


class Radius(NamedTuple):
    """Radii of B images, in pixel units; the true ones lie in ``[lower, upper]``.

    Attributes:
      lower: proven: no smaller perturbation changes the prediction ``[B]`` float64; inf if none does at all.
      upper: size of the witness ``[B]`` float64; inf where there is none.
      adversarial: float32 witness ``[B, ...]``, which 1NN gives another label; the image itself where there is none, or
        where it has another label already.
      status: "exact" where lower and upper agree to the tolerance, else "bounded" ``[B]``.
      correct: whether 1NN gives the clean image its label ``[B]``, in exact arithmetic (`neighbors.predict` decides in
        float64); where not, lower and upper are 0.
      opponent: index of the point the witness is nearest to, the lowest of several ``[B]``; -1 without a witness.
      certificate: what proves ``lower``; its points are those given to `neighbors.fit`.
    """

    lower: np.ndarray
    upper: np.ndarray
    adversarial: np.ndarray
    status: np.ndarray
    correct: np.ndarray
    opponent: np.ndarray
    certificate: Certificate

    @property
    def is_exact(self) -> np.ndarray:
        """Whether lower and upper agree to the tolerance ``[B]``, as the status says."""
        return self.status == "exact"


class Decision(NamedTuple):
    """robust ``[B]``: proven; adversarial ``[B, ...]``; status ``[B]``: "robust", "broken" or "undecided"."""

    robust: np.ndarray
    adversarial: np.ndarray
    status: np.ndarray


def radius(
    reference: Reference | Streamed,
    images: chex.Array,
    labels: chex.Array,
    *,
    norm: str,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    leave_out: chex.Array | None = None,
    recheck_all: bool = True,
    batch_size: int = 512,
    tolerance: float = 1e-6,
) -> Radius:
    """Compute the exact radius of 1NN around each image, with a certificate and a witness.

    The radius is an infimum: 1NN is robust at epsilon if and only if no perturbation smaller than epsilon changes its
    prediction, that is, if ``radius >= epsilon``. Pixels are what the library works with: uint8 v means ``v / 255``
    rounded to float32, between uint8 images and points ties are those of the integers, and a changed image is one of
    floats: on such a tie the radius is 0, or a few roundings, of a correct image. Not jittable.

    Args:
      reference: points from `neighbors.fit`, `shard` or `stream`, inside the bounds; with a linear map M, 1NN measures
        ``||M (x - z)||``, ties between uint8 images are none of integers, and perturbations are those of pixels all the
        same. In a cluster every process calls this with the same arguments, keeps the same books, and holds all points
        in its memory.
      images: ``[B, ...]``, uint8 or float, inside the bounds; float64 is rounded to float32. B may be 0.
      labels: ``[B]``; an image that 1NN does not give its label has radius 0.
      norm: "l1", "l2" or "linf".
      bounds: lowest and highest pixel value of a perturbed image, rounded to float32 as pixels are; or None.
      leave_out: index of a point to leave out for each image ``[B]``, -1 for none; None: no point is left out, and a
        training image is its own nearest neighbour.
      recheck_all: also check the opponents that were screened out, in float64, for which the distances to all points
        are computed again; without it, their bound is the search's. Witnesses and solved opponents are always checked.
      batch_size: images at a time; memory grows with it times the number of points.
      tolerance: relative gap below which a radius is exact, 0 or more and below 1. A gap of 1e-7, about the spacing of
        float32 pixels, is allowed besides, times the least power of two that no pixel of image or points exceeds (of
        the image moved by its distance to an opponent, where that is less).

    Raises:
      ValueError: unknown norm, shapes or dtypes that do not fit, labels out of range, images or points that are not
        finite, outside the bounds, in units that cannot belong together, or so small or large that float32 cannot hold
        squared distances; leave_out out of range, batch_size below 1, tolerance not in [0, 1).
    """
    check_norm(norm)
    tolerance = as_number(tolerance, "tolerance", below=1)
    batch_size = as_count(batch_size, "batch_size")
    question = check_question(reference, images, labels, bounds=bounds, leave_out=leave_out)
    return _radius(reference, question, np.full(len(question.labels), np.inf), norm, recheck_all, batch_size, tolerance)


def decide(
    reference: Reference | Streamed,
    images: chex.Array,
    labels: chex.Array,
    *,
    threat: Threat,
    leave_out: chex.Array | None = None,
    recheck_all: bool = True,
    batch_size: int = 512,
) -> Decision:
    """Decide whether 1NN is robust around each image within a threat; cheaper than the radius.

    The threat has one epsilon or one per image ``[B]``; the other arguments and the errors are those of `radius`.
    """
    check_threat(threat)
    batch_size = as_count(batch_size, "batch_size")
    question = check_question(reference, images, labels, bounds=threat.bounds, leave_out=leave_out)
    check_sizes(threat.epsilon, "epsilon", len(question.labels))
    epsilon = np.broadcast_to(np.asarray(threat.epsilon, np.float64), question.labels.shape)
    found = _radius(reference, question, epsilon, threat.norm, recheck_all, batch_size, 1e-6)
    robust = found.correct & (found.lower >= epsilon)
    broken = ~found.correct | (found.upper < epsilon)
    status = np.where(robust, "robust", np.where(broken, "broken", "undecided"))
    return Decision(robust, found.adversarial, status)


def _radius(reference, question: Question, cutoff, norm, recheck_all, batch_size, tolerance) -> Radius:
    """Search batch by batch, then check everything."""
    check_scale(reference, question.images)
    given = host_points(reference)
    reference, unit = of_unit_length(reference)
    points = given if reference.linear_map is None else host_points(reference)
    images = question.images.reshape(len(question.labels), points.stored.shape[1])
    left_out = np.where(question.leave_out >= 0, points.positions[question.leave_out], -1)
    asked = question._replace(images=images, leave_out=left_out)
    parts, solved = [], []
    for start in range(0, max(len(images), 1), batch_size):
        part = slice(start, start + batch_size)
        found, of_part = search.find(reference, points, asked.part(part), cutoff[part], norm=norm, tolerance=tolerance)
        parts.append(found)
        solved += [one._replace(image=start + one.image) for one in of_part]
    found = search.Found(*map(np.concatenate, zip(*parts, strict=True)))
    certificate = _certificate(found.anchors, solved)
    certificate = certificate._replace(multipliers=certificate.multipliers * unit**2)
    checked = recheck(
        given.measured, points.labels, images, question.labels, certificate, found.adversarial, norm=norm,
        bounds=question.bounds, index=points.indices.astype(np.int64), leave_out=left_out, linear_map=given.linear_map,
        screened=None if recheck_all else Screened(found.screened, found.near),
    )  # fmt: skip
    is_exact = checked.upper * (1 - tolerance) - _ABSOLUTE_TOLERANCE * found.scale <= checked.lower
    has_witness = checked.correct & np.isfinite(checked.upper)
    adversarial = np.where(has_witness[:, None], found.adversarial, host_pixels(images, np.float32))
    return Radius(
        lower=checked.lower,
        upper=checked.upper,
        adversarial=adversarial.reshape(question.images.shape),
        status=np.where(is_exact, "exact", "bounded"),
        correct=checked.correct,
        opponent=points.original(np.where(has_witness, found.opponent, -1)),
        certificate=certificate._replace(
            anchors=points.original(certificate.anchors),
            opponent=points.original(certificate.opponent),
            constraints=points.original(certificate.constraints),
        ),
    )


def _certificate(anchors: np.ndarray, solved: list[search.Solved]) -> Certificate:
    width = max((len(one.constraints) for one in solved), default=1)
    constraints = np.full((len(solved), width), -1, np.int64)
    multipliers = np.zeros((len(solved), width))
    for i, one in enumerate(solved):
        constraints[i, : len(one.constraints)] = one.constraints
        multipliers[i, : len(one.constraints)] = one.multipliers
    image, opponent = (np.array([one[field] for one in solved], np.int64) for field in (0, 1))
    return Certificate(anchors, image.astype(np.int32), opponent, constraints, multipliers)
