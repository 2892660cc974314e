"""Tests of embeddings, their constants, and the radius they carry to pixels."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.certify.bounds import embeddings
from nn_adv.threat import NORMS

SHAPE = (4, 4, 2)
SIZE = 32
ORDER = {"l1": 1, "l2": 2, "linf": np.inf}


class _Radius(NamedTuple):
    lower: np.ndarray
    upper: np.ndarray
    adversarial: np.ndarray
    status: np.ndarray
    correct: np.ndarray
    opponent: np.ndarray
    certificate: None


@pytest.fixture
def free_radius(monkeypatch):
    """Let the bounds rest on single constraints in place of the solver."""
    monkeypatch.setattr(embeddings, "radius", _free_radius)


def _free_radius(reference, queries, labels, *, norm, bounds, leave_out):
    """Stand in for the solver by single constraints, in float64: exact for one point per class."""
    assert norm == "l2" and bounds is None
    rows = np.asarray(reference.index).reshape(-1)
    points = np.asarray(reference.blocks, np.float64).reshape(len(rows), -1)[np.argsort(rows)]
    point_labels = np.asarray(reference.labels)
    lower, correct, opponents = [], [], []
    for row, (query, label) in enumerate(zip(queries.astype(np.float64), labels, strict=True)):
        usable = np.arange(reference.num_points) != (-1 if leave_out is None else leave_out[row])
        own, others = (
            np.flatnonzero(usable & (point_labels[: len(usable)] == label) == flag) for flag in (True, False)
        )
        others = others[usable[others]]
        sq = np.square(points - query).sum(axis=1)
        gaps = np.linalg.norm(points[others][None] - points[own][:, None], axis=-1)
        bound = ((sq[others] - sq[own][:, None]) / 2 / gaps).max(axis=0)
        correct.append(sq[own].min() < sq[others].min())
        lower.append(max(0, bound.min()))
        opponents.append(others[bound.argmin()])
    lower, correct = np.array(lower), np.array(correct)
    return _Radius(lower, lower, queries, np.full(len(lower), "exact"), correct, np.array(opponents), None)


def _images(seed, count, dtype=np.uint8):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return pixels if dtype == np.uint8 else pixels.astype(np.float32) / np.float32(255)


def _all_embeddings():
    return {
        "pca": embeddings.pca(_images(0, 50), 7),
        "pca-all": embeddings.pca(_images(0, 50), SIZE),
        "pool": embeddings.average_pool(SHAPE, 2),
        "pool-1": embeddings.average_pool(SHAPE, 1),
        "low": embeddings.low_pass(SHAPE, 2),
        "low-all": embeddings.low_pass(SHAPE, 4),
    }


@pytest.mark.parametrize("name", _all_embeddings())
def test_constants_are_spectral_norms(name):
    embed = _all_embeddings()[name]
    basis = np.concatenate([np.zeros((1, SIZE)), np.eye(SIZE)]).reshape(-1, *SHAPE).astype(np.float32)
    vectors = embed(basis)
    matrix = (vectors[1:] - vectors[0]).T
    assert matrix.shape[0] == {"pca": 7, "pool": 8, "low": 8}.get(name, SIZE)
    spectral = np.linalg.norm(matrix, 2)
    assert spectral <= embed.lipschitz * (1 + 1e-12)
    assert embed.lipschitz == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-6)
    assert embed.rounding < 1e-9


def test_pca_keeps_the_directions_of_most_variance():
    points = _images(1, 60)
    flat = (points.astype(np.float32) / np.float32(255)).reshape(60, -1).astype(np.float64)
    singular = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    spread = np.square(embeddings.pca(points, 5)(points)).sum(axis=0)
    np.testing.assert_allclose(spread, singular[:5] ** 2, rtol=1e-9)


def test_pooling_and_low_pass_are_what_they_say():
    image = np.zeros((1, *SHAPE), np.float32)
    image[0, :2, 2:, 1] = [[0.1, 0.2], [0.3, 0.4]]
    pooled = embeddings.average_pool(SHAPE, 2)(image).reshape(2, 2, 2)
    assert pooled[0, 1, 1] == pytest.approx(0.25 * 2)
    assert np.abs(pooled).sum() == pytest.approx(0.5)
    constant = embeddings.low_pass(SHAPE, 1)(np.full((1, *SHAPE), 0.5, np.float32))
    np.testing.assert_allclose(constant, [[0.5 * 4, 0.5 * 4]])


def test_uint8_images_and_their_float_copies_embed_alike():
    for embed in _all_embeddings().values():
        assert np.array_equal(embed(_images(2, 1030)), embed(_images(2, 1030, np.float32)))


@pytest.mark.usefixtures("free_radius")
@pytest.mark.parametrize("name", ["pca-all", "pool-1", "low-all"])
def test_an_embedding_that_keeps_distances_keeps_the_radius(name):
    embed = _all_embeddings()[name]
    points, images = _images(3, 20, np.float32), _images(4, 15)
    labels = np.arange(20) % 3
    image_labels = np.asarray(neighbors.predict(neighbors.fit(points, labels, 3), images))
    reference = neighbors.fit(embed(points), labels, 3)
    flat = neighbors.fit(points.reshape(20, -1), labels, 3)
    queries = _images(4, 15, np.float32).reshape(15, -1)
    truth = _free_radius(flat, queries, image_labels, norm="l2", bounds=None, leave_out=None).lower
    result = embeddings.embedded_radius(reference, images, image_labels, embed=embed, norm="l2")
    assert result.correct.all()
    assert np.all(result.lower <= truth)
    np.testing.assert_allclose(result.lower, truth, atol=1e-5)
    in_linf = embeddings.embedded_radius(reference, images, image_labels, embed=embed, norm="linf")
    np.testing.assert_allclose(in_linf.lower, result.lower / np.sqrt(SIZE), rtol=1e-9)
    in_l1 = embeddings.embedded_radius(reference, images, image_labels, embed=embed, norm="l1")
    np.testing.assert_allclose(in_l1.lower, result.lower, rtol=1e-9)


def _wave(images):
    """A map that is 2-Lipschitz and not linear."""
    return 2 * np.sin(np.asarray(images).reshape(len(images), -1))


@pytest.mark.quick_cases(3)
@pytest.mark.usefixtures("free_radius")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["pca", "pool", "low", "own"])
def test_nothing_within_the_bound_changes_the_prediction(name, norm):
    embed = embeddings.Embedding(_wave, 2.0, "wave") if name == "own" else _all_embeddings()[name]
    points, images = _images(5, 24), _images(6, 20)
    labels = np.arange(24) % 3
    reference = neighbors.fit(embed(points), labels, 3)
    image_labels = np.asarray(neighbors.predict(reference, embed(images)))
    result = embeddings.embedded_radius(reference, images, image_labels, embed=embed, norm=norm, points=points)
    assert np.all(result.status == "bounded")
    assert np.all(result.lower[result.correct] > 0)
    assert np.all(result.lower <= result.upper) and np.all(np.isfinite(result.upper))
    pixels = (images.astype(np.float32) / np.float32(255)).astype(np.float64)
    vectors = np.asarray(embed(points), np.float32).astype(np.float64)
    rng = np.random.default_rng(0)
    for row, (image, label) in enumerate(zip(pixels, image_labels, strict=True)):
        gaps = (points.astype(np.float64) / 255 - image).reshape(24, -1)
        moves = np.concatenate([rng.normal(size=(50, SIZE)), rng.choice([-1, 1], (20, SIZE)), np.eye(SIZE), gaps])
        moves *= 0.999 * result.lower[row] / np.linalg.norm(moves, ORDER[norm], axis=1, keepdims=True)
        moved = embed((image.reshape(-1) + moves).reshape(-1, *SHAPE))
        nearest = np.square(moved[:, None] - vectors).sum(axis=2).argmin(axis=1)
        assert np.all(labels[nearest] == label)
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    assert np.all(np.asarray(neighbors.predict(reference, embed(result.adversarial))) != image_labels)
    sizes = np.linalg.norm((result.adversarial.astype(np.float64) - pixels).reshape(20, -1), ORDER[norm], axis=1)
    np.testing.assert_allclose(sizes, result.upper, rtol=1e-6)
    assert np.array_equal(labels[result.opponent] != image_labels, np.ones(20, bool))


@pytest.mark.slow
@pytest.mark.usefixtures("free_radius")
def test_wrong_images_and_left_out_points():
    embed = embeddings.average_pool(SHAPE, 2)
    points = _images(7, 24, np.float32)
    labels = np.arange(24) % 2
    reference = neighbors.fit(embed(points), labels, 2)
    result = embeddings.embedded_radius(
        reference, points, labels, embed=embed, norm="l2", leave_out=np.arange(24), points=points
    )
    own = embeddings.embedded_radius(reference, points, labels, embed=embed, norm="l2", points=points)
    assert own.correct.all() and not result.correct.all() and result.correct.any()
    wrong = ~result.correct
    assert np.all(result.lower[wrong] == 0) and np.all(result.upper[wrong] == 0)
    assert np.array_equal(result.adversarial[wrong], points[wrong])
    assert np.all(result.opponent[wrong] == -1)
    assert np.all(result.lower <= own.lower)
    without = embeddings.embedded_radius(reference, points, labels, embed=embed, norm="l2")
    assert np.all(np.isinf(without.upper)) and np.array_equal(without.lower, own.lower)


@pytest.mark.usefixtures("free_radius")
def test_stated_rounding_is_subtracted():
    points = _images(8, 12)
    labels = np.arange(12) % 2
    exact = embeddings.average_pool(SHAPE, 2)
    reference = neighbors.fit(exact(points), labels, 2)
    images = _images(9, 10)
    image_labels = np.asarray(neighbors.predict(reference, exact(images)))
    coarse = embeddings.Embedding(exact.fn, 1.0, "coarse", rounding=0.01)
    fine, less = (
        embeddings.embedded_radius(reference, images, image_labels, embed=embed, norm="l2").lower
        for embed in (exact, coarse)
    )
    np.testing.assert_allclose(less, np.maximum(fine - 0.01, 0), atol=1e-6)


def test_the_rounding_of_principal_components_grows_with_the_points():
    """Of one pixel the map is x - 1000.5, up to its sign; a small x is lost in it."""
    embed = embeddings.pca(np.array([[1000], [1001]], np.float32), 1)
    image = np.array([[3e-14]], np.float32)
    truth = abs(Fraction(float(image[0, 0])) - Fraction(1000.5))
    off = abs(Fraction(abs(float(embed(image)[0, 0]))) - truth)
    assert 0 < off <= embed.rounding < 1e-9


@pytest.mark.usefixtures("free_radius")
def test_constants_that_the_images_contradict_are_refused():
    points = _images(10, 12)
    labels = np.arange(12) % 2

    def radius(fn, lipschitz):
        embed = embeddings.Embedding(fn, lipschitz, "mine")
        reference = neighbors.fit(embed(points), labels, 2)
        return embeddings.embedded_radius(reference, points, labels, embed=embed, norm="l2")

    def flat(images):
        return np.asarray(images).reshape(len(images), -1)

    radius(lambda images: 3 * flat(images), 3.0)
    with pytest.raises(ValueError, match="mine enlarges that between two images 2.99"):
        radius(lambda images: 3 * flat(images), 2.5)
    # Steep on a small scale only: far images stay within the constant.
    with pytest.raises(ValueError, match="at most its lipschitz"):
        radius(lambda images: np.sin(20 * flat(images)), 1.0)
    # A single image has no other to compare with.
    with pytest.raises(ValueError, match="mine enlarges that between two images 2.99"):
        embeddings.check_lipschitz(
            embeddings.Embedding(lambda images: 3 * flat(images), 2.5, "mine"), _images(1, 1) / 255
        )
    with pytest.raises(ValueError, match="window"):
        embeddings.average_pool(SHAPE, 3)
    with pytest.raises(ValueError, match="window must be a whole number, at least 1, got 2.0"):
        embeddings.average_pool(SHAPE, 2.0)
    with pytest.raises(ValueError, match="cutoff must be in 1..4, got 5"):
        embeddings.low_pass(SHAPE, 5)
    with pytest.raises(ValueError, match="cutoff must be a whole number, in 1..4, got 2.0"):
        embeddings.low_pass(SHAPE, 2.0)
    for make in (embeddings.average_pool, embeddings.low_pass):
        with pytest.raises(ValueError, match=r"image_shape must be \(H, W, C\), got \(4, 4\)"):
            make(SHAPE[:2], 2)
    for count in (0, SIZE + 1):
        with pytest.raises(ValueError, match="num_components"):
            embeddings.pca(points, count)
    for constant in (0, -1, np.nan, np.inf, "1", None):
        with pytest.raises(ValueError, match="lipschitz must be"):
            embeddings.Embedding(flat, constant, "mine")
    assert embeddings.Embedding(flat, 1.0, "mine")(points[:0]).shape == (0, SIZE)
    with pytest.raises(ValueError, match=r"points must be .* with at least one image, got shape \(0, 4, 4, 2\)"):
        embeddings.pca(points[:0], 2)
    with pytest.raises(ValueError, match="points must be the 12 images behind the reference, got 11"):
        embed = embeddings.average_pool(SHAPE, 2)
        reference = neighbors.fit(embed(points), labels, 2)
        options = {"embed": embed, "norm": "l2", "points": points[1:]}
        embeddings.embedded_radius(reference, points, labels, **options)
    with pytest.raises(ValueError, match="embed must be an Embedding, got function"):
        embeddings.embedded_radius(reference, points, labels, **options | {"embed": flat})
    with pytest.raises(ValueError, match="bounds must be left out: those of pixels"):
        embeddings.embedded_radius(reference, points, labels, **options | {"points": points, "bounds": (0, 1)})
    with pytest.raises(ValueError, match="rounding must be"):
        embeddings.Embedding(flat, 1.0, "mine", rounding=-1)
    with pytest.raises(ValueError, match="fn of mine must give finite"):
        embeddings.Embedding(lambda images: flat(images) * np.nan, 1.0, "mine")(points)
    with pytest.raises(ValueError, match="fn of mine must give finite"):
        embeddings.Embedding(lambda images: images, 1.0, "mine")(points)
    with pytest.raises(ValueError, match="norm must be one of"):
        embed = embeddings.average_pool(SHAPE, 2)
        reference = neighbors.fit(embed(points), labels, 2)
        embeddings.embedded_radius(reference, points, labels, embed=embed, norm="l3")


@pytest.mark.slow
def test_all_principal_components_give_the_radius_on_pixels():
    """All of them together keep every distance: the bound is the free l2 radius."""
    rng = np.random.default_rng(0)
    points, labels = rng.uniform(size=(40, 9)).astype(np.float32), rng.integers(0, 2, 40)
    images = rng.uniform(size=(5, 9)).astype(np.float32)
    reference = neighbors.fit(points, labels, 2)
    predicted = np.asarray(neighbors.predict(reference, images))
    embed = certify.pca(points, 9)
    embedded = neighbors.fit(embed(points), labels, 2)
    found = certify.embedded_radius(embedded, images, predicted, norm="l2", embed=embed)
    expected = certify.radius(reference, images, predicted, norm="l2", bounds=None)
    np.testing.assert_array_equal(found.status, "bounded")
    np.testing.assert_allclose(found.lower, expected.lower, rtol=1e-4)
    assert np.all(found.lower <= expected.upper) and np.isinf(found.upper).all()
    both = certify.embedded_radius(embedded, images, predicted, norm="l2", embed=embed, points=points)
    np.testing.assert_array_equal(both.lower, found.lower)
    assert np.all(expected.upper * (1 - 1e-6) <= both.upper) and np.isfinite(both.upper).all()
    moved = neighbors.predict(embedded, np.asarray(embed(both.adversarial), np.float32))
    assert np.all(np.asarray(moved) != predicted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.full((2, 4, 4), np.nan, np.float32)}, "images must be finite"),
        ({"images": np.zeros(2, np.float32)}, r"images must be \[N, ...\], got shape \(2,\)"),
        ({"labels": np.array([0, 3])}, "labels must be"),
        ({"leave_out": np.array([0, -5])}, "leave_out must be"),
    ],
)
def test_bad_images_to_embed_are_refused_before_they_are_embedded(change, message):
    def never(_):
        raise AssertionError("embedded")

    reference = neighbors.fit(_images(0, 20), np.arange(20) % 3, 3)
    arguments = {"images": _images(1, 2), "labels": np.array([0, 1]), "norm": "l2"} | change
    embed = certify.Embedding(never, 1.0, "never")
    with pytest.raises(ValueError, match=message):
        certify.embedded_radius(reference, arguments.pop("images"), arguments.pop("labels"), embed=embed, **arguments)
