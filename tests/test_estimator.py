"""The scikit-learn classifier against scikit-learn's own, against its checks, and against certify."""

import numpy as np
import pytest
from sklearn import datasets, model_selection, neighbors, pipeline, preprocessing
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from nn_adv import certify
from nn_adv.estimator import NearestNeighbor


@pytest.fixture(scope="module")
def wine():
    """A table of 13 columns scaled to [0, 1], with names as labels; three quarters to learn from."""
    found = datasets.load_wine()
    X = preprocessing.MinMaxScaler().fit_transform(found.data).astype(np.float32)
    return model_selection.train_test_split(X, found.target_names[found.target], random_state=0)


@pytest.fixture(scope="module")
def fitted(wine):
    return NearestNeighbor().fit(wine[0], wine[2])


def test_predicts_and_finds_as_scikit_learn(wine, fitted):
    X, X_test, y, y_test = wine
    theirs = neighbors.KNeighborsClassifier(1, algorithm="brute").fit(X, y)
    np.testing.assert_array_equal(fitted.predict(X_test), theirs.predict(X_test))
    assert fitted.score(X_test, y_test) == theirs.score(X_test, y_test) > 0.9
    for own in (False, True):
        distances, indices = fitted.kneighbors(None if own else X_test, n_neighbors=3)
        expected, same = theirs.kneighbors(None if own else X_test, n_neighbors=3)
        np.testing.assert_allclose(distances, expected, atol=1e-5)
        assert np.mean(indices == same) > 0.98  # equally near ones may be told in another order
    np.testing.assert_array_equal(fitted.kneighbors(X_test, return_distance=False), fitted.kneighbors(X_test)[1])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["l2", pytest.param("l1", marks=pytest.mark.slow), "linf"])
def test_radii_are_those_of_certify_and_the_score_follows_them(wine, fitted, norm):
    _, X_test, _, y_test = wine
    found = fitted.radius(X_test, y_test, norm)
    labels = np.searchsorted(fitted.classes_, y_test)
    expected = certify.radius(fitted.reference_, X_test, labels, norm=norm)
    np.testing.assert_array_equal(found.lower, expected.lower)
    assert found.is_exact.all()
    assert np.all(fitted.predict(found.adversarial)[found.correct] != y_test[found.correct])
    middle = float(np.median(found.lower[found.correct]))
    assert fitted.robust_score(X_test, y_test, norm, middle) == np.mean(found.lower >= middle) > 0.3


def test_without_bounds_features_are_what_they_are():
    found = datasets.load_wine()
    X, X_test, y, y_test = model_selection.train_test_split(found.data, found.target, random_state=0)
    fitted = NearestNeighbor(bounds=None).fit(X, y)
    radius = fitted.radius(X_test, y_test)
    assert radius.is_exact.all() and radius.lower.max() > 1
    with pytest.raises(ValueError, match="inside"):
        NearestNeighbor().fit(X, y).radius(X_test, y_test)


@pytest.mark.parametrize(
    ("count", "message"), [(134, "in 1..133, the points there are, got 134"), ("1", "a whole number, .*, got '1'")]
)
def test_more_neighbours_than_points_are_refused(wine, fitted, count, message):
    with pytest.raises(ValueError, match=f"^n_neighbors must be {message}$"):
        fitted.kneighbors(wine[1], count)


@pytest.mark.parametrize(
    ("y", "unseen"), [(np.array(["beer", "class_0"]), "'beer'"), ([None, "class_0"], "None"), (["class_0", 1.5], "1.5")]
)
def test_labels_that_were_not_seen_are_refused(wine, fitted, y, unseen):
    with pytest.raises(ValueError, match=rf"^y must hold labels that fit has seen \(.*\), got '?{unseen}'?$"):
        fitted.radius(wine[1][:2], y)
    whole = NearestNeighbor().fit(wine[0], np.arange(len(wine[0])) % 2)
    with pytest.raises(ValueError, match=r"^y must hold labels that fit has seen \(\[0, 1\]\), got None$"):
        whole.radius(wine[1][:2], [None, 1])


@pytest.mark.slow
def test_stands_in_pipelines_and_searches(wine):
    X, _, y, _ = wine
    steps = pipeline.make_pipeline(preprocessing.MinMaxScaler(), NearestNeighbor())
    assert model_selection.cross_val_score(steps, X, y, cv=2).min() > 0.8
    assert clone(NearestNeighbor(bounds=None)).get_params() == {"bounds": None}


@pytest.mark.slow
def test_passes_the_checks_of_scikit_learn():
    check_estimator(NearestNeighbor())
