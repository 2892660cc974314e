"""The exact robust radius of 1NN: the size of the smallest perturbation that changes its prediction.

  r(x) = min over opponents j of
           min { ||v||_p : g_ij . v >= h_ij for all own-class points i, x + v inside the bounds }

Opponents are points of other classes. They are ruled out in the order of cost: by their distance, by one constraint
(`bounds`), by the dual of a few constraints (`dual`); those left are solved, best first, and every solution is judged
by a nearest-neighbour search that adds the own points it missed (`tasks`; `search` keeps the books). At the end
`recheck`, which shares no code with all this, computes the bounds again.

Host code that keeps the books; the heavy parts are jitted and work on many images at once.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from nn_adv.border import as_count
from nn_adv.certify.embedded import embedded_radius
from nn_adv.certify.embeddings import Embedding
from nn_adv.certify.queries import Queries, check_bounds, check_queries, check_scale
from nn_adv.certify.recheck import Screened, recheck
from nn_adv.certify.rows import earlier_copies, host_rows, pixel_values
from nn_adv.certify.search import Found, RowCertificate, search
from nn_adv.neighbors import Reference
from nn_adv.neighbors.search import flatten_queries
from nn_adv.threat import Threat, check_norm, check_threat

# Below this, times the scale of the pixels, a float32 image cannot come closer to a border.
_ABSOLUTE_TOLERANCE = 1e-7


class Certificate(NamedTuple):
    """What proves `Radius.lower`; indices are positions in the points given to `neighbors.fit`, -1 is padding.

    Attributes:
      anchors: own-class points near each image ``[B, m]``. They bound every opponent that is not listed below.
      image: the image of each of S solved opponents ``[S]``.
      opponent: the opponent ``[S]``.
      rows: own-class points of its constraints ``[S, M]``.
      multipliers: one per constraint, not negative ``[S, M]`` float64.
    """

    anchors: np.ndarray
    image: np.ndarray
    opponent: np.ndarray
    rows: np.ndarray
    multipliers: np.ndarray


class Radius(NamedTuple):
    """Radii of B images, in pixel units; the true ones lie in ``[lower, upper]``.

    Attributes:
      lower: proven: no smaller perturbation changes the prediction ``[B]`` float64; inf if none does at all.
      upper: size of the witness ``[B]`` float64; inf where there is none.
      adversarial: float32 witness ``[B, ...]``, which 1NN gives another label; the image itself where there is none, or
        where it has another label already.
      status: "exact" where lower and upper agree to the tolerance, else "bounded" ``[B]``.
      correct: whether 1NN gives the clean image its label ``[B]``; where not, lower and upper are 0.
      opponent: index of the point the witness is nearest to, the lowest of several ``[B]``; -1 without a witness.
      certificate: see `Certificate`.
    """

    lower: np.ndarray
    upper: np.ndarray
    adversarial: np.ndarray
    status: np.ndarray
    correct: np.ndarray
    opponent: np.ndarray
    certificate: Certificate


class Decision(NamedTuple):
    """robust ``[B]``: proven; adversarial ``[B, ...]``; status ``[B]``: "robust", "broken" or "undecided"."""

    robust: np.ndarray
    adversarial: np.ndarray
    status: np.ndarray


def radius(
    reference: Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    norm: str,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    leave_out: chex.Array | None = None,
    embed: Embedding | None = None,
    points: chex.Array | None = None,
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
      reference: points from `neighbors.fit`, inside the bounds.
      images: ``[B, ...]``, uint8 or float, inside the bounds; float64 is rounded to float32. B may be 0.
      labels: ``[B]``; an image that 1NN does not give its label has radius 0.
      norm: "l1", "l2" or "linf".
      bounds: lowest and highest pixel value of a perturbed image, rounded to float32 as pixels are; or None.
      leave_out: index of a point to leave out for each image ``[B]``, -1 for none; None: no point is left out, and a
        training image is its own nearest neighbour.
      embed: classify embedded images, with a reference fitted on ``embed(points)``; the radius is then only bounded,
        and pixel bounds are not used (see `embedded_radius`).
      points: with embed, the images ``[N, ...]`` behind the reference, in the order of `fit`; without them the radius
        is bounded from below only.
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
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be a share, 0 or more and below 1, got {tolerance}")
    batch_size = as_count(batch_size, "batch_size")
    if embed is not None:
        check_bounds(bounds)
        options = {"recheck_all": recheck_all, "batch_size": batch_size, "tolerance": tolerance}
        return embedded_radius(
            radius, reference, images, labels, embed=embed, norm=norm, leave_out=leave_out, points=points, **options
        )
    if points is not None:
        raise ValueError("points must be None without embed: the reference holds them")
    queries = check_queries(reference, images, labels, bounds=bounds, leave_out=leave_out)
    return _radius(reference, queries, np.full(len(queries.labels), np.inf), norm, recheck_all, batch_size, tolerance)


def decide(
    reference: Reference,
    images: chex.Array,
    labels: chex.Array,
    *,
    threat: Threat,
    leave_out: chex.Array | None = None,
    recheck_all: bool = True,
    batch_size: int = 512,
) -> Decision:
    """Decide whether 1NN is robust around each image within a threat; cheaper than the radius.

    Args:
      reference: as in `radius`.
      images: as in `radius`.
      labels: as in `radius`.
      threat: norm, bounds and epsilon, a scalar or one per image ``[B]``.
      leave_out: as in `radius`.
      recheck_all: as in `radius`.
      batch_size: as in `radius`.

    Raises:
      ValueError: as in `radius`.
    """
    check_threat(threat)
    batch_size = as_count(batch_size, "batch_size")
    queries = check_queries(reference, images, labels, bounds=threat.bounds, leave_out=leave_out)
    epsilon = np.asarray(threat.epsilon, np.float64)
    if epsilon.shape not in ((), queries.labels.shape) or not np.all(epsilon >= 0):
        raise ValueError(f"epsilon must be a radius >= 0, or one per image [{len(queries.labels)}], got {epsilon}")
    epsilon = np.broadcast_to(epsilon, queries.labels.shape)
    found = _radius(reference, queries, epsilon, threat.norm, recheck_all, batch_size, 1e-6)
    robust = found.correct & (found.lower >= epsilon)
    broken = ~found.correct | (found.upper < epsilon)
    status = np.where(robust, "robust", np.where(broken, "broken", "undecided"))
    return Decision(robust, found.adversarial, status)


def _radius(reference, checked_queries: Queries, cutoff, norm, recheck_all, batch_size, tolerance) -> Radius:
    """Search batch by batch, then check everything."""
    check_scale(reference, checked_queries.images)
    images, labels, bounds, leave_out = checked_queries
    rows = host_rows(reference)
    copies = earlier_copies(rows)
    left_out = np.where(leave_out >= 0, rows.row_of[leave_out], -1)
    queries = np.asarray(flatten_queries(reference, images))
    values = pixel_values(queries, np.float32)

    parts = [
        search(
            reference, rows, copies, jnp.asarray(queries[part]), labels[part], left_out[part], cutoff[part],
            norm=norm, bounds=bounds, tolerance=tolerance,
        )
        for part in (slice(start, start + batch_size) for start in range(0, max(len(labels), 1), batch_size))
    ]  # fmt: skip
    found = _join(parts)
    checked = recheck(
        rows.points, rows.labels, queries, labels, found.certificate, found.adversarial,
        norm=norm, bounds=bounds, index=rows.origins.astype(np.int64), leave_out=left_out,
        screened=None if recheck_all else Screened(found.screened, found.near),
    )  # fmt: skip
    is_close = checked.upper * (1 - tolerance) - _ABSOLUTE_TOLERANCE * found.scale <= checked.lower
    is_exact = is_close & (np.isfinite(checked.upper) | np.isinf(checked.lower))
    has_witness = checked.correct & np.isfinite(checked.upper)

    def original(found_rows):
        return np.where(found_rows >= 0, rows.origins[np.maximum(found_rows, 0)], -1).astype(np.int32)

    certificate = found.certificate
    return Radius(
        lower=checked.lower,
        upper=checked.upper,
        adversarial=np.where(has_witness[:, None], found.adversarial, values).reshape(images.shape),
        status=np.where(is_exact, "exact", "bounded"),
        correct=checked.correct,
        opponent=np.where(has_witness, original(found.opponent), -1).astype(np.int32),
        certificate=Certificate(
            original(certificate.anchors),
            certificate.image,
            original(certificate.opponent),
            original(certificate.rows),
            certificate.multipliers,
        ),
    )


def _join(parts: list[Found]) -> Found:
    """Join the findings of batches; certificates are padded to the widest."""
    start, certificates = 0, []
    width = max(part.certificate.rows.shape[1] for part in parts)
    for part in parts:
        extra = ((0, 0), (0, width - part.certificate.rows.shape[1]))
        certificates.append(
            part.certificate._replace(
                image=part.certificate.image + start,
                rows=np.pad(part.certificate.rows, extra, constant_values=-1),
                multipliers=np.pad(part.certificate.multipliers, extra),
            )
        )
        start += len(part.adversarial)
    joined = [np.concatenate(field) for field in list(zip(*parts, strict=True))[1:]]
    return Found(RowCertificate(*map(np.concatenate, zip(*certificates, strict=True))), *joined)
