"""The linear programs of l1 and linf, left to HiGHS: slow, for what the dual method leaves open."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse

_OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def solve_linear(
    norm: str, gaps: np.ndarray, heights: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Minimise ``||v||`` subject to ``gaps v >= heights`` and ``low <= v <= high``.

    Args:
      norm: "l1" or "linf".
      gaps: ``[M, d]`` float64.
      heights: ``[M]``.
      low: ``[d]``, may be -inf.
      high: ``[d]``, may be inf.

    Returns:
      The multipliers ``[M]`` and the perturbation ``[d]``, or None if HiGHS finds none.
    """
    size = gaps.shape[1]
    if norm == "l1":  # v = up - down
        result = scipy.optimize.linprog(
            np.ones(2 * size),
            A_ub=np.concatenate([-gaps, gaps], axis=1),
            b_ub=-heights,
            bounds=np.stack([np.zeros(2 * size), np.concatenate([high, -low])], axis=1),
            method="highs-ds",
            options=_OPTIONS,
        )
    else:  # |v_k| <= t
        identity, ones = scipy.sparse.identity(size, format="csr"), np.ones((size, 1))
        within = [[scipy.sparse.csr_matrix(-gaps), None], [identity, -ones], [-identity, -ones]]
        result = scipy.optimize.linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=scipy.sparse.bmat(within, format="csr"),
            b_ub=np.append(-heights, np.zeros(2 * size)),
            bounds=np.stack([np.append(low, 0), np.append(high, np.inf)], axis=1),
            method="highs-ds",
            options=_OPTIONS,
        )
    if result.x is None or result.status != 0:
        return None
    multipliers = np.maximum(-result.ineqlin.marginals[: len(heights)], 0)
    return multipliers, result.x[:size] - result.x[size:] if norm == "l1" else result.x[:size]
