"""1NN as a scikit-learn classifier that knows how robust it is: on images as rows, and on tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from nn_adv import certify, neighbors
from nn_adv.border import as_count
from nn_adv.threat import Threat

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    raise ImportError(f"nn_adv.estimator needs {error.name}: pip install 'nn_adv[data]'") from error

# Other dtypes become the first of these; uint8 too, whose values so mean what they say, as everywhere in scikit-learn.
_DTYPES = (np.float32, np.float64)


class NearestNeighbor(ClassifierMixin, BaseEstimator):
    """The 1-nearest-neighbour classifier in l2, exact, with the exact size of the perturbations that it withstands.

    A row of ``X`` is an image or a line of a table. Numbers are rounded to float32.

    Parameters:
      bounds: lowest and highest value of a perturbed feature, which all data must keep to when radii are asked for; or
        None: any value. Predictions do not depend on it.

    Attributes:
      classes_: the labels seen by `fit`, sorted.
      points_: ``[N, D]`` those given to `fit`.
      reference_: `nn_adv.neighbors.Reference` of them.
      n_features_in_: number of features.
    """

    def __init__(self, bounds: tuple[float, float] | None = (0.0, 1.0)):
        self.bounds = bounds

    def fit(self, X: Any, y: Any) -> NearestNeighbor:
        """Keep labelled points: ``X [N, D]``, ``y [N]`` of any labels.

        Raises:
          ValueError: as scikit-learn's own classifiers do.
        """
        X, y = validate_data(self, X, y, dtype=_DTYPES)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.points_ = X
        self.reference_ = neighbors.fit(X, labels, len(self.classes_))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row's nearest point ``[N]``; of equally near ones the first point's."""
        reference, X = self._checked(X)
        return self.classes_[np.asarray(neighbors.predict(reference, X))]

    def kneighbors(self, X: Any = None, n_neighbors: int = 1, return_distance: bool = True) -> Any:
        """Return distances and indices ``[N, n_neighbors]`` of the nearest points, or the indices alone.

        Without ``X``, those of the points themselves, each left out of its own.

        Raises:
          ValueError: no whole number of neighbours, or more than points.
        """
        check_is_fitted(self)
        others = len(self.points_) - (X is None)
        n_neighbors = as_count(n_neighbors, "n_neighbors", high=others, what="the points there are")
        leave_out = np.arange(len(self.points_)) if X is None else None
        X = self.points_ if X is None else self._checked(X)[1]
        found = neighbors.nearest(self.reference_, X, n_neighbors, leave_out=leave_out)
        distances, indices = np.asarray(found.distances), np.asarray(found.indices)
        return (distances, indices) if return_distance else indices

    def radius(self, X: Any, y: Any, norm: str = "l2") -> certify.Radius:
        """Compute the exact robust radius of each row, with certificate and witness; see `nn_adv.certify.radius`.

        Args:
          X: ``[N, D]`` inside the bounds.
          y: ``[N]`` their labels; a row that is not given its label has radius 0.
          norm: "l1", "l2" or "linf".

        Raises:
          ValueError: labels that `fit` has not seen, or as `nn_adv.certify.radius` does.
        """
        reference, X = self._checked(X)
        return certify.radius(reference, X, self._encoded(y), norm=norm, bounds=self.bounds)

    def robust_score(self, X: Any, y: Any, norm: str = "l2", epsilon: float = 0.0) -> float:
        """Return the share of rows proven to get their label under every perturbation smaller than ``epsilon``.

        ``epsilon`` is in the unit of ``X``; the other arguments and the errors are those of `radius`.
        """
        reference, X = self._checked(X)
        decided = certify.decide(reference, X, self._encoded(y), threat=Threat(norm, epsilon, self.bounds))
        return float(np.mean(decided.robust))

    def _checked(self, X: Any) -> tuple[neighbors.Reference, np.ndarray]:
        check_is_fitted(self)
        return self.reference_, validate_data(self, X, dtype=_DTYPES, reset=False)

    def _encoded(self, y: Any) -> np.ndarray:
        y = np.asarray(y)
        seen = self.classes_.tolist()  # what may not be compared with them cannot be searched for
        if unseen := [label for label in y.ravel().tolist() if label not in seen]:
            raise ValueError(f"y must hold labels that fit has seen ({seen}), got {unseen[0]!r}")
        return np.searchsorted(self.classes_, y)
