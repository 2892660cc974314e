"""Radii of 1NN in the metric ||M (x - z)|| against one LP or QP per opponent, and what a map leaves as it is."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.certify.verify import recheck
from nn_adv.certify.verify.linear import make_map
from nn_adv.certify.verify.multipliers import multiplier_bounds
from nn_adv.threat import Threat
from tests.certify.truths import mapped, nearest, predict, true_radius

_SIZE, _ROWS = 6, 4  # problems with fewer pixels, or rows, have zeros in place of the others: they share compilations
_NORMS = ("l2", "linf", "l1")  # the first compiles least
_SPHERE = {"l1": 1, "l2": 2, "linf": np.inf}

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@st.composite
def _maps(draw):
    """Return a map ``[_ROWS, _SIZE]``, at times onto fewer dimensions, with numbers that make ties, or scaled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["wide", "deficient", "square", "pooling", "coarse", "nothing"]))
    linear_map = rng.normal(size=(_ROWS, _SIZE))
    if kind == "deficient":
        linear_map = rng.normal(size=(_ROWS, 2)) @ rng.normal(size=(2, _SIZE))
    elif kind == "square":  # of the first pixels
        linear_map[:, _ROWS:] = 0
    elif kind == "pooling":
        linear_map = np.eye(_ROWS)[np.arange(_SIZE) // 2].T / 2
    elif kind == "coarse":
        linear_map = rng.integers(-1, 2, (_ROWS, _SIZE))
    return (linear_map * draw(st.sampled_from([1.0, 0.0 if kind == "nothing" else 1.0, 1e-3, 1e3]))).astype(np.float32)


@st.composite
def _tasks(draw):
    linear_map = draw(_maps())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_points, steps = draw(st.integers(3, 14)), draw(st.sampled_from([2, 1024, 255]))
    points, images = (rng.integers(0, steps + 1, (count, _SIZE)) for count in (num_points, 3))
    if steps == 255:
        points, images = points.astype(np.uint8), images.astype(np.uint8)
    else:
        points, images = (points / steps).astype(np.float32), (images / steps).astype(np.float32)
    labels = rng.permutation(np.concatenate([[0, 1], rng.integers(0, 2, num_points - 2)]))
    leave_out = np.full(3, -1)
    if draw(st.booleans()):
        images[0], leave_out[0] = points[0], 0
    return linear_map, points, labels, images, leave_out


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", _NORMS)
@hypothesis.settings(max_examples=16, deadline=None, derandomize=True)
@hypothesis.given(task=_tasks())
def test_brackets_the_brute_force_radius(norm, bounds, task):
    linear_map, points, labels, images, leave_out = task
    left_out = [None if one < 0 else int(one) for one in leave_out]
    image_labels = np.array(
        [predict(points, labels, image, left, linear_map) for image, left in zip(images, left_out, strict=True)]
    )
    reference = neighbors.fit(points, labels, 2, block_size=16, linear_map=linear_map)
    options = {"norm": norm, "bounds": bounds, "leave_out": leave_out}
    found = certify.radius(reference, images, image_labels, **options)
    trusting = certify.radius(reference, images, image_labels, recheck_all=False, **options)
    np.testing.assert_array_equal(trusting.upper, found.upper)
    for b, (image, label, left) in enumerate(zip(images, image_labels, left_out, strict=True)):
        options = {"norm": norm, "bounds": bounds, "leave_out": left, "linear_map": linear_map}
        truth = true_radius(points, labels, image, int(label), **options)
        assert found.lower[b] <= truth * (1 + 1e-9) + 1e-12, (b, truth)
        assert found.upper[b] >= truth * (1 - 1e-9) - 1e-12, (b, truth)
        assert trusting.lower[b] <= truth * (1 + 1e-9) + 1e-12, (b, truth)
        assert np.isfinite(found.upper[b]) == np.isfinite(truth), (b, truth)
        # Where an image is on a border, but for rounding, float32 may hold no witness beside it.
        assert found.is_exact[b] or truth < 1e-5, (b, truth)
        if np.isfinite(found.upper[b]) and found.correct[b]:
            assert labels[nearest(points, found.adversarial[b], left, linear_map)] != label
            if bounds is not None:
                assert found.adversarial[b].min() >= 0 and found.adversarial[b].max() <= 1


def _problem(seed=0, count=60, size=16, rows=5):
    rng = np.random.default_rng(seed)
    points, images = (rng.integers(0, 256, (n, 4, size // 4)).astype(np.uint8) for n in (count, 7))
    linear_map = rng.normal(size=(rows, size)).astype(np.float32)
    labels = rng.integers(0, 3, count)
    reference = neighbors.fit(points, labels, 3, linear_map=linear_map)
    return reference, images, np.asarray(neighbors.predict(reference, images)), points, labels, linear_map


@pytest.mark.slow
@pytest.mark.parametrize("norm", _NORMS)
def test_the_identity_gives_the_radius_of_pixels(norm):
    _, images, _, points, labels, _ = _problem()
    plain = neighbors.fit(points, labels, 3)
    predicted = np.asarray(neighbors.predict(plain, images))
    same = neighbors.fit(points, labels, 3, linear_map=np.eye(16))
    np.testing.assert_array_equal(neighbors.predict(same, images), predicted)
    expected = certify.radius(plain, images, predicted, norm=norm)
    found = certify.radius(same, images, predicted, norm=norm)
    np.testing.assert_array_equal(found.status, "exact")
    np.testing.assert_allclose(found.lower, expected.lower, rtol=2e-6)
    np.testing.assert_array_equal(found.opponent, expected.opponent)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", _NORMS)
def test_everything_is_exact_whatever_the_scale_and_every_witness_is_one(norm):
    reference, images, labels, points, point_labels, linear_map = _problem(count=200)
    found = certify.radius(reference, images, labels, norm=norm)
    np.testing.assert_array_equal(found.status, "exact")
    assert np.all(np.asarray(neighbors.predict(reference, found.adversarial)) != labels)
    sizes = np.linalg.norm((found.adversarial - images / np.float32(255)).reshape(7, -1), _SPHERE[norm], axis=1)
    np.testing.assert_allclose(sizes, found.upper, rtol=1e-5)
    for scale in (2.0**-12, 2.0**12):
        scaled = neighbors.fit(points, point_labels, 3, linear_map=linear_map * scale)
        np.testing.assert_array_equal(neighbors.predict(scaled, images), labels)
        np.testing.assert_allclose(certify.radius(scaled, images, labels, norm=norm).lower, found.lower, rtol=1e-9)
    for share, status in ((0.999, "robust"), (1.001, "broken")):
        threat = Threat(norm, (share * found.upper).astype(np.float32))
        np.testing.assert_array_equal(certify.decide(reference, images, labels, threat=threat).status, status)


def test_small_maps_of_large_pixels_keep_the_radii():
    """What undoes the map has a square that float32 does not hold."""
    _, images, labels, points, point_labels, linear_map = _problem(count=40)
    images, points = (values.astype(np.float32) / 255 for values in (images, points))

    def uppers(pixels, scale):
        reference = neighbors.fit(points * pixels, point_labels, 3, linear_map=linear_map * scale)
        return certify.radius(reference, images * pixels, labels, norm="l2", bounds=None).upper / float(pixels)

    np.testing.assert_allclose(
        uppers(np.float32(2.0**40), np.float32(2.0**-66)), uppers(np.float32(1), np.float32(1)), rtol=1e-6
    )


@pytest.mark.parametrize("matrix", [[[1, 0], [0, 1e-39]], [[1e10, 0], [0, 1e-30]]])
def test_numbers_that_are_lost_when_a_map_is_scaled_prove_nothing(matrix):
    points, image = np.array([[0.5, 0], [0.5, 1]], np.float32), np.array([[0.5, 0.2]], np.float32)
    reference = neighbors.fit(points, [0, 1], 2, linear_map=np.array(matrix, np.float32))
    assert int(neighbors.predict(reference, np.array([[0.5, 0.9]], np.float32))[0]) == 1
    found = certify.radius(reference, image, [0], norm="l2", bounds=(0, 1))
    assert found.lower[0] <= 0.3 * (1 + 1e-6) <= found.upper[0] * (1 + 1e-5)


@pytest.mark.parametrize("multiplier", [1, 1e-50, 1e-90, 1.1e-100])
def test_multipliers_prove_no_more_where_lengths_underflow(multiplier):
    matrix, points = np.float32(1e-37) * np.eye(2, dtype=np.float32), np.array([[0, 0], [0.6, 0.6]], np.float32)
    whom = (np.array([0]), np.array([1]), np.array([[0]]), np.array([[multiplier]]))
    options = {"norm": "l2", "bounds": None, "linear_map": make_map(matrix, "l2")}
    (found,) = multiplier_bounds((points @ matrix.T).astype(np.float32), points[:1], *whom, **options)
    assert 0 < found <= np.sqrt(0.18) * (1 + 1e-6)


def test_what_is_equal_after_the_map_is_one_point():
    # The map sees the sum of the pixels alone: points 1 and 2 are one to it, and so are 0 and 3.
    linear_map, labels = np.ones((1, 2), np.float32), np.array([0, 0, 1, 1])
    points = np.array([[0.25, 0.25], [0.5, 1.0], [1.0, 0.5], [0.5, 0.0]], np.float32)
    reference = neighbors.fit(points, labels, 2, linear_map=linear_map)
    found = certify.radius(reference, points[:1], labels[:1], norm="l2")
    assert found.correct[0] and np.isinf(found.lower[0]) and np.isinf(found.upper[0])
    # Left out, the first of a pair leaves its place to the other one.
    found = certify.radius(reference, points[:1], labels[:1], norm="l2", leave_out=[1])
    np.testing.assert_allclose([found.lower[0], found.upper[0]], 0.5 / np.sqrt(2), rtol=1e-5)
    everything = neighbors.fit(points, labels, 2, linear_map=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(neighbors.predict(everything, points), 0)
    found = certify.radius(everything, points[:2], labels[:2], norm="l2")
    np.testing.assert_array_equal(found.lower, np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("norm", _NORMS)
def test_the_lipschitz_bound_is_never_above(norm):
    _, images, _, points, labels, _ = _problem()
    for embed in (certify.pca(points, 5), certify.average_pool((4, 4, 1), 2)):
        reference = neighbors.fit(points, labels, 3, linear_map=embed.linear_map((4, 4, 1)))
        predicted = np.asarray(neighbors.predict(reference, images))
        exact = certify.radius(reference, images, predicted, norm=norm)
        shaped = [array.reshape(-1, 4, 4, 1) for array in (points, images)]
        embedded = neighbors.fit(embed(shaped[0]), labels, 3)
        bound = certify.embedded_radius(embedded, shaped[1], predicted, embed=embed, norm=norm)
        assert bound.correct.all() and np.all(bound.lower <= exact.upper)
        assert np.all(bound.lower > 0) and np.all(exact.lower > 0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", _NORMS)
def test_the_recheck_refuses_what_is_tampered_with(norm, bounds):
    reference, images, labels, points, point_labels, linear_map = _problem(count=30)
    found = certify.radius(reference, images, labels, norm=norm, bounds=bounds)
    stored = mapped(linear_map, points).astype(np.float32)
    flat = images.reshape(7, -1)
    witnesses = found.adversarial.reshape(7, -1)
    arguments = {"norm": norm, "bounds": bounds, "linear_map": linear_map}

    def check(certificate=found.certificate, adversarial=witnesses):
        return recheck(stored, point_labels, flat, labels, certificate, adversarial, **arguments)

    honest = check()
    np.testing.assert_allclose(honest.lower, found.lower, rtol=1e-6)
    np.testing.assert_allclose(honest.upper, found.upper, rtol=1e-6)
    truths = np.array(
        [
            true_radius(points, point_labels, *one, norm=norm, bounds=bounds, linear_map=linear_map)
            for one in zip(images, labels.tolist(), strict=True)
        ]
    )
    rng = np.random.default_rng(0)
    certificate = found.certificate
    for scale in (-1.0, 0.1, 3.0, 1e30, np.inf, np.nan):
        with np.errstate(invalid="ignore"):  # 0 times infinity
            multipliers = certificate.multipliers * rng.uniform(0.5, 1.5, certificate.multipliers.shape) * scale
        changed = check(certificate._replace(multipliers=multipliers))
        assert np.all(changed.lower <= truths * (1 + 1e-9))
    others = certificate._replace(constraints=rng.integers(-3, 40, certificate.constraints.shape))
    assert np.all(check(others).lower <= truths * (1 + 1e-9))
    # A little before the border is no witness, outside the box is none.
    values = flat / np.float32(255)
    short = (values + 0.999 * (witnesses - values)).astype(np.float32)
    assert np.isinf(check(adversarial=short).upper).all()
    if bounds is not None:
        witnesses = witnesses.copy()
        witnesses[:, 0] = 1.5
        assert np.isinf(check(adversarial=witnesses).upper).all()
    with pytest.raises(ValueError, match=r"linear_map must be \[5, 16\], from images to points, got shape \(5, 15\)"):
        recheck(
            stored,
            point_labels,
            flat,
            labels,
            certificate,
            witnesses,
            **arguments | {"linear_map": linear_map[:, 1:]},
        )


def test_near_ties_of_mapped_points_are_decided_exactly():
    # The sum of the pixels is nearer to 1 than to 0 by what float64 does not hold.
    linear_map, ends = np.ones((1, 2), np.float32), np.array([[0], [1]], np.float32)
    nothing = certify.Certificate(
        np.zeros((1, 0), int), *[np.zeros(0, int)] * 2, np.zeros((0, 1), int), np.zeros((0, 1))
    )
    for pixel, winner in ((0, 0), (2.0**-60, 1), (-(2.0**-60), 0)):
        image = np.array([[0.5, pixel]], np.float32)
        for label in (0, 1):
            options = {"norm": "l2", "bounds": None, "linear_map": linear_map}
            found = recheck(ends, np.array([0, 1]), image, np.array([label]), nothing, image, **options)
            assert found.correct[0] == (label == winner)


@pytest.mark.parametrize(
    ("linear_map", "message"),
    [
        (np.ones((2, 15)), r"linear_map must be \[k, 16\], a column for each pixel, got shape \(2, 15\)"),
        (np.ones(16), r"got shape \(16,\)"),
        (np.ones((0, 16)), r"got shape \(0, 16\)"),
        (np.ones((2, 16), int), "linear_map must be floating point, got dtype int64"),
        (np.full((2, 16), np.nan), "linear_map must be finite, got nan at row 0, column 0"),
        (np.full((2, 16), 1e300), "linear_map must be finite, got inf at row 0"),
        (np.full((2, 16), -3e38), "linear_map must map points to numbers that float32 holds, got -inf"),
        ("M", "linear_map must be"),
    ],
)
def test_what_is_no_map_is_refused(linear_map, message):
    points, labels = np.ones((3, 4, 4), np.float32), np.array([0, 1, 2])
    with pytest.raises(ValueError, match=message) as error:
        neighbors.fit(points, labels, 3, linear_map=linear_map)
    assert "\n" not in str(error.value)


def test_what_a_map_has_no_meaning_for_is_refused():
    reference, images, labels, *_ = _problem()
    with pytest.raises(ValueError, match="norm must be 'l2' for a reference with a linear_map, got 'l1'"):
        neighbors.nearest(reference, images, norm="l1")
    for refuse in (
        lambda: certify.margin_bound(reference, images, labels, distance_norm="l2", threat_norm="l2"),
        lambda: certify.vote_bounds(reference, images, labels, k=3, norm="l2"),
    ):
        with pytest.raises(ValueError, match="reference must be fitted without a linear_map"):
            refuse()
    tiny = neighbors.fit(np.ones((2, 16), np.float32), np.array([0, 1]), 2, linear_map=np.full((1, 16), 1e-30))
    with pytest.raises(ValueError, match="mapped by linear_map, must have .*; multiply linear_map by a power of two"):
        certify.radius(tiny, np.ones((1, 16), np.float32), np.array([0]), norm="l2")


def test_the_linear_map_of_an_embedding():
    points = np.random.default_rng(0).uniform(size=(20, 4, 4, 2)).astype(np.float32)
    for embed in (certify.pca(points, 3), certify.average_pool((4, 4, 2), 2), certify.low_pass((4, 4, 2), 2)):
        linear_map = embed.linear_map((4, 4, 2))
        difference = embed(points[:10]) - embed(points[10:])
        np.testing.assert_allclose((points[:10] - points[10:]).reshape(10, -1) @ linear_map.T, difference, atol=1e-6)
    wave = certify.Embedding(lambda images: np.sin(3 * np.asarray(images).reshape(len(images), -1)), 3.0, "wave")
    with pytest.raises(ValueError, match="fn of wave must be linear up to a constant"):
        wave.linear_map((4, 4, 2))
