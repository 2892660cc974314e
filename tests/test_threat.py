"""The perturbation sets: projections against their variational inequality, steps and starts against definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nn_adv import threat as threats
from nn_adv.threat import NORMS, Threat

SHAPE = (40, 3, 4, 2)
# A program each for a shape.
project, random_start, steepest_step, sparse_step = map(
    jax.jit, (threats.project, threats.random_start, threats.steepest_step, threats.sparse_step)
)


def _images(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=shape)
    images[rng.uniform(size=shape) < 0.2] = 0  # images have many pixels exactly at a bound
    images[rng.uniform(size=shape) < 0.1] = 1
    return images.astype(np.float32)


def _size(norm, flat):
    return np.linalg.norm(flat, ord={"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=-1)


def _allowed_points(rng, norm, epsilon, center, bounds, count):
    """Points of the set in float64: shrunk until they fit, corners of the ball among them."""
    offsets = rng.standard_normal((count, center.size))
    offsets[: count // 3] = np.sign(offsets[: count // 3])
    offsets[count // 3 : count // 2] *= np.eye(center.size)[rng.integers(center.size, size=count // 2 - count // 3)]
    if bounds is not None:
        offsets = np.clip(epsilon * offsets, bounds[0] - center, bounds[1] - center)
    sizes = _size(norm, offsets)
    return offsets * np.minimum(1, epsilon / np.maximum(sizes, 1e-300))[:, None]


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.9, 100.0])
def test_projection_is_the_nearest_allowed_point(norm, epsilon, bounds):
    rng = np.random.default_rng(3)
    center = _images(0)
    points = center + rng.standard_normal(SHAPE).astype(np.float32) * rng.choice([0.02, 0.3, 2.0], (SHAPE[0], 1, 1, 1))
    points = points.astype(np.float32)
    threat = Threat(norm, epsilon, bounds)
    projected = np.asarray(project(threat, points, center))
    offset = (projected - center).reshape(SHAPE[0], -1).astype(np.float64)
    assert np.all(_size(norm, offset) <= epsilon + 2e-6)
    if bounds is not None:
        assert projected.min() >= 0 and projected.max() <= 1
    for i in range(SHAPE[0]):
        flat_center = center[i].ravel().astype(np.float64)
        allowed = _allowed_points(rng, norm, epsilon, flat_center, bounds, 300)
        away = points[i].ravel().astype(np.float64) - flat_center - offset[i]
        # p is the projection of w onto a convex set iff (w - p).(z - p) <= 0 for every z of the set.
        slack = 1e-5 * (1 + np.linalg.norm(away)) * (1 + min(epsilon, 5))
        assert np.max((allowed - offset[i]) @ away) <= slack


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_in_l1_finds_the_threshold_that_spends_the_radius(dtype):
    rng = np.random.default_rng(4)
    center = (rng.integers(0, 3, (6, 32, 32, 3)) / 2).astype(dtype)  # many pixels at a bound
    points = (center + rng.standard_normal(center.shape) * rng.choice([0.01, 0.1, 1], (6, 1, 1, 1))).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        projected = np.asarray(threats.project(Threat("l1", 12.0), points, center), np.float64)
    assert projected.dtype == np.float64
    precision = np.finfo(dtype).eps
    for image, point, found in zip(center.astype(float), points.astype(float), projected, strict=True):
        offset = point - image

        def kept(threshold, offset=offset, image=image):
            return np.clip(image + np.sign(offset) * np.maximum(np.abs(offset) - threshold, 0), 0, 1) - image

        threshold = optimize.brentq(lambda t: np.abs(kept(t)).sum() - 12, 0, np.abs(offset).max(), xtol=1e-15)
        assert np.abs(found - image).sum() <= 12 * (1 + 100 * precision)
        np.testing.assert_allclose(found - image, kept(threshold), atol=50 * precision)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_keeps_what_is_allowed(norm):
    center = _images(1)
    nudge = np.clip(center + 1e-3, 0, 1).astype(np.float32)
    np.testing.assert_allclose(project(Threat(norm, 5.0), nudge, center), nudge, atol=1e-7)


def test_projection_takes_one_radius_per_image():
    center = _images(2)
    points = np.clip(center + 0.5, 0, 1).astype(np.float32)
    epsilon = np.linspace(0, 1, SHAPE[0]).astype(np.float32)
    together = project(Threat("l2", epsilon), points, center)
    for i in (0, 7, 39):
        alone = project(Threat("l2", float(epsilon[i])), points[i : i + 1], center[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball_and_stay_inside(norm):
    images = np.full((200, 30), 0.5, np.float32)
    keys = jax.random.split(jax.random.key(0), 200)
    offset = np.asarray(random_start(Threat(norm, 0.2), keys, images)) - images
    sizes = _size(norm, offset.astype(np.float64))
    assert sizes.max() <= 0.2 + 1e-6
    # Uniform in a ball of dimension 30: the size over epsilon has mean 30/31.
    assert abs(sizes.mean() / 0.2 - 30 / 31) < 0.02
    assert len(np.unique(offset[:, 0])) > 190


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_step_has_unit_size_and_gains_most(norm):
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal((5, 200)).astype(np.float32)
    images = np.full((5, 200), 0.5, np.float32)
    step = np.asarray(steepest_step(Threat(norm, 1.0), gradient, images), np.float64)
    np.testing.assert_allclose(_size(norm, step), 1, rtol=1e-5)
    gain = np.sum(step * gradient, axis=1)
    most = _size(threats.dual_norm(norm), gradient.astype(np.float64))
    if norm == "l1":  # spread over the ten largest of 200 components: less than the most, more than their least
        tenth = np.sort(np.abs(gradient), axis=1)[:, -10]
        assert np.all(gain <= most) and np.all(gain >= tenth - 1e-6)
        assert np.all(np.sum(step != 0, axis=1) == 10)
    else:
        np.testing.assert_allclose(gain, most, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_step_ignores_pixels_that_cannot_move(norm):
    images = np.array([[0.0, 1.0, 0.5, 0.0]], np.float32)
    gradient = np.array([[-9.0, 9.0, 1.0, 2.0]], np.float32)
    step = np.asarray(steepest_step(Threat(norm, 1.0), gradient, images))
    assert step[0, 0] == 0 and step[0, 1] == 0 and step[0, 3] > 0
    free = np.asarray(steepest_step(Threat(norm, 1.0, None), gradient, images))
    assert free[0, 0] < 0 and free[0, 1] > 0


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize(("dtype", "sizes"), [(np.float32, (1e-36, 1e-22, 1e20, 1e37)), (np.float16, (1e-3, 1, 6e4))])
def test_steepest_step_has_unit_size_however_steep(norm, dtype, sizes):
    gradient = np.random.default_rng(0).uniform(-1, 1, (1, 50))
    gradient = np.array([gradient[0] * size for size in sizes], dtype)
    step = steepest_step(Threat(norm, 1.0), gradient, np.full(gradient.shape, 0.5, dtype))
    np.testing.assert_allclose(_size(norm, np.asarray(step, np.float64)), 1, rtol=1e-5 if dtype == np.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sparse_steps_move_the_largest_components(dtype):
    gradient = np.random.default_rng(5).standard_normal((4, 10, 10)).astype(dtype)
    count = np.array([0, 1, 37, 100])
    step = np.asarray(sparse_step(gradient, count))
    for b, expected in enumerate([1, 1, 37, 100]):
        largest = np.argsort(-np.abs(gradient[b].ravel()))[:expected]
        np.testing.assert_array_equal(np.sort(np.flatnonzero(step[b])), np.sort(largest))
        np.testing.assert_allclose(
            step[b].ravel()[largest], np.sign(gradient[b].ravel()[largest]) / expected, rtol=1e-3
        )


def test_covering_thresholds_are_those_of_sorted_sizes():
    rng = np.random.default_rng(6)
    sizes = rng.integers(0, 9, (60, 40)).astype(np.float32)  # many are equal
    values = rng.integers(0, 3, (60, 40)).astype(np.float32)
    goal = rng.integers(1, 60, 60).astype(np.float32)
    found = np.asarray(threats.covering_threshold(sizes, values, goal))
    for row, reached in enumerate(found):
        covering = [size for size in np.unique(sizes[row]) if values[row][sizes[row] >= size].sum() >= goal[row]]
        assert reached == (max(covering) if covering else 0)
    assert 0 < np.sum(found == 0) < 30


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 1000, 3072])
def test_sums_do_not_depend_on_the_batch(size):
    values = np.random.default_rng(7).standard_normal((33, size)).astype(np.float32)
    add = jax.jit(threats.sum_per_image)
    together = np.asarray(add(values))
    alone = [float(add(row[None])[0]) for row in values]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_allclose(together, values.astype(np.float64).sum(axis=1), atol=1e-5 * size**0.5)
    counted = threats.sum_per_image((values > 0).astype(np.int32))
    np.testing.assert_array_equal(counted, (values > 0).sum(axis=1))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_zero_step(norm):
    zeros = jnp.zeros((2, 8))
    step = steepest_step(Threat(norm, 1.0), zeros, zeros + 0.5)
    np.testing.assert_array_equal(step, zeros)


def test_one_compilation_serves_all_radii():
    traces = []

    @jax.jit
    def projected(threat, points, center):
        traces.append(1)
        return threats.project(threat, points, center)

    center = _images(0)
    for epsilon in (0.1, 0.2, 0.3):
        projected(Threat("l2", epsilon), center, center)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l3", 0.1), "norm must be one of l1, l2, linf"),
        (("l2", -0.1), "epsilon must be a number >= 0, got -0.1"),
        (("l2", float("nan")), "epsilon must be a number >= 0, got nan"),
        (("l2", "0.1"), "epsilon must be a number >= 0, got '0.1'"),
        (("l2", 0.1, (1.0, 0.0)), "bounds must be"),
        (("l2", 0.1, ([0.0], 1.0)), "bounds must be"),
    ],
)
def test_wrong_threats_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Threat(*arguments)


@pytest.mark.parametrize("norm", NORMS)
def test_no_images_at_all(norm):
    nothing = jnp.zeros((0, 2, 3))
    assert threats.perturbation_size(norm, nothing).shape == (0,)
    for found in (
        threats.project(Threat(norm, 0.1), nothing, nothing),
        threats.steepest_step(Threat(norm, 0.1), nothing, nothing),
    ):
        assert found.shape == nothing.shape


@pytest.mark.parametrize("epsilon", [None, [0.1], jnp.float32(-1), jnp.array([0.1, jnp.nan])])
def test_threats_without_radii_are_refused_where_they_are_used(epsilon):
    """Tree transformations may build them."""
    with pytest.raises(ValueError, match=r"^epsilon must be a number >= 0, got [^\n]+$"):
        threats.check_threat(Threat("l2", epsilon))
