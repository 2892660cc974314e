"""Radii and decisions on small problems against one LP or QP per opponent with every constraint, and on bad input."""

import concurrent.futures
import functools
import os
import sys
import time

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.certify import search, state, subproblems
from nn_adv.threat import NORMS, Threat
from tests.certify.truths import nearest, predict, true_radius

# Grids of pixel values make ties, copies and shared borders likely; uint8 ones tie in integers only. The largest pixel
# and the number of steps to it.
_GRIDS = {"coarse": (1, 3), "fine": (1, 1000), "coarse uint8": (255, 3), "fine uint8": (255, 255), "dark uint8": (4, 4)}


# The first compiles least; l1 is tried by the quick tests of the oracles and of the dual.
_NORMS = ("l2", "linf", "l1")
# For what takes long; the other norms are tried by the slow tests.
ONE_NORM = ["l2", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l1", "linf"))]


@st.composite
def _tasks(draw, any_classes=False):
    seed = draw(st.integers(0, 2**32 - 1))
    num_points, size, num_images = draw(st.integers(2 if any_classes else 3, 14)), draw(st.sampled_from([1, 6])), 3
    grid = draw(st.sampled_from(sorted(_GRIDS)))
    largest, steps = _GRIDS[grid]
    rng = np.random.default_rng(seed)
    # Pixels beyond `size` are 0 everywhere, so that problems on a line share the compilation of those in space.
    points, images = (np.zeros((n, 6), np.uint8 if "uint8" in grid else np.float32) for n in (num_points, num_images))
    points[:, :size] = rng.integers(0, steps + 1, (num_points, size)) * largest / steps
    images[:, :size] = rng.integers(0, steps + 1, (num_images, size)) * largest / steps
    if any_classes:
        labels = rng.integers(0, 3, num_points)
    else:  # a block of points holds one class, and other numbers of blocks compile anew: of three, floats have two
        present = np.array([0, 1, 2] if "uint8" in grid else [0, 2])
        labels = rng.permutation(np.concatenate([present, rng.choice(present, num_points - len(present))]))
    leave_out = np.full(num_images, -1)
    if draw(st.booleans()):  # train images, the first left out
        images[:2] = points[rng.integers(0, num_points, 2)]
        leave_out[0] = int(np.flatnonzero((points == images[0]).all(axis=1))[0])
    predicted = np.array([predict(points, labels, *pair) for pair in zip(images, leave_out, strict=True)])
    image_labels = np.where(rng.random(num_images) < 0.8, predicted, rng.integers(0, 3, num_images))
    return points, labels, images, image_labels, leave_out


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", _NORMS)
@hypothesis.settings(max_examples=16, deadline=None, derandomize=True)
@hypothesis.given(task=_tasks())
def test_brackets_the_brute_force_radius(norm, bounds, task):
    _check_brackets(norm, bounds, task)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", NORMS)
@hypothesis.settings(max_examples=16, deadline=None, derandomize=True)
@hypothesis.given(task=_tasks(any_classes=True))
def test_brackets_the_brute_force_radius_whatever_classes_there_are(norm, bounds, task):
    _check_brackets(norm, bounds, task)


def _check_brackets(norm, bounds, task):
    points, labels, images, image_labels, leave_out = task
    reference = neighbors.fit(points, labels, 3, block_size=16)
    found = certify.radius(reference, images, image_labels, norm=norm, bounds=bounds, leave_out=leave_out)
    options = {"norm": norm, "bounds": bounds, "leave_out": leave_out, "recheck_all": False}
    trusting = certify.radius(reference, images, image_labels, **options)
    np.testing.assert_array_equal(trusting.correct, found.correct)
    np.testing.assert_array_equal(trusting.upper, found.upper)
    for b, (image, label) in enumerate(zip(images, image_labels, strict=True)):
        left_out = None if leave_out[b] < 0 else int(leave_out[b])
        truth = true_radius(points, labels, image, int(label), norm=norm, bounds=bounds, leave_out=left_out)
        assert found.lower[b] <= truth * (1 + 1e-9) + 1e-12, (b, truth)
        assert found.upper[b] >= truth * (1 - 1e-9) - 1e-12, (b, truth)
        assert trusting.lower[b] <= truth * (1 + 1e-9) + 1e-12, (b, truth)
        assert np.isfinite(found.upper[b]) == np.isfinite(truth), (b, truth)
        if found.status[b] == "exact" and np.isfinite(truth):
            assert abs(found.lower[b] - truth) <= 2e-6 * truth + 2e-7, (b, truth)
        has_witness = found.correct[b] and np.isfinite(truth)
        assert found.opponent[b] == (nearest(points, found.adversarial[b], left_out) if has_witness else -1), b


def _problem(seed=0, n=60, size=16, classes=3, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 256, (n, 4, size // 4)).astype(np.uint8)
    images = rng.integers(0, 256, (7, 4, size // 4)).astype(np.uint8)
    labels = rng.integers(0, classes, n)
    if dtype != np.uint8:
        points, images = ((x.astype(np.float32) / 255).astype(dtype) for x in (points, images))
    reference = neighbors.fit(points, labels, classes)
    return reference, images, np.asarray(neighbors.predict(reference, images)), points, labels


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", _NORMS)
def test_everything_is_exact_and_every_witness_is_one(norm):
    reference, images, labels, *_ = _problem(n=200)
    found = certify.radius(reference, images, labels, norm=norm, batch_size=3)
    np.testing.assert_array_equal(found.status, "exact")
    np.testing.assert_array_equal(found.is_exact, True)
    assert np.all(found.correct) and np.all(found.lower > 0)
    assert found.adversarial.shape == images.shape and found.adversarial.dtype == np.float32
    assert np.all(np.asarray(neighbors.predict(reference, found.adversarial)) != labels)
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    np.testing.assert_array_equal(reference.labels[found.opponent], neighbors.predict(reference, found.adversarial))


def test_does_not_depend_on_batch_size_or_on_the_screened_recheck():
    reference, images, labels, *_ = _problem(n=200)
    whole = certify.radius(reference, images, labels, norm="l2")
    parts = certify.radius(reference, images, labels, norm="l2", batch_size=2)
    trusting = certify.radius(reference, images, labels, norm="l2", recheck_all=False)
    np.testing.assert_allclose(parts.lower, whole.lower, rtol=1e-9)
    np.testing.assert_allclose(trusting.lower, whole.lower, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("kind", ["black and white", "grey"])
def test_what_rules_out_most_opponents_of_large_problems_changes_no_radius(kind, norm, monkeypatch):
    """In linf distances rule out little of black and white images, and the product with all points does."""
    called = set()

    def noted(module, name):
        fn = getattr(module, name)

        def call(*args, **options):
            called.add(f"{name} without a box" if options.get("bounds", 0) is None else name)
            return fn(*args, **options)

        monkeypatch.setattr(module, name, call)

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2, (420, 16)) * 255 if kind == "black and white" else rng.integers(0, 256, (420, 16))
    images, points = np.split(pixels.astype(np.uint8).reshape(-1, 4, 4), [20])
    reference = neighbors.fit(points, np.arange(400) % 4, 4)
    labels = np.asarray(neighbors.predict(reference, images))
    small = certify.radius(reference, images, labels, norm=norm)
    monkeypatch.setattr(search, "_MANY_NUMBERS", -1)
    noted(search.screening, "linf_reach")
    noted(search.screening, "in_tiles")
    noted(sys.modules["nn_adv.certify.verify.recheck"], "reached_within")  # the package has a function of that name
    large = certify.radius(reference, images, labels, norm=norm)
    np.testing.assert_allclose(large.lower, small.lower, rtol=1e-9)
    assert large.is_exact.all() and np.all(large.correct) and np.all(large.upper > 0)
    takes_product = norm == "linf" and kind == "black and white"
    products = {"linf_reach", "reached_within"} if takes_product else set()
    assert called == {"in_tiles", "in_tiles without a box"} | products


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", _NORMS)
def test_problems_solved_side_by_side_as_on_accelerators_give_the_same(monkeypatch, norm):
    reference, images, labels, *_ = _problem(n=200)
    one_by_one = certify.radius(reference, images, labels, norm=norm)
    monkeypatch.setattr(subproblems, "_is_on_cpu", lambda: False)
    together = certify.radius(reference, images, labels, norm=norm)
    np.testing.assert_array_equal(together.status, "exact")
    np.testing.assert_allclose(together.lower, one_by_one.lower, rtol=1e-6)
    np.testing.assert_allclose(together.upper, one_by_one.upper, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recheck_all", [True, False])
def test_without_a_witness_no_more_is_claimed_than_was_proved(monkeypatch, recheck_all):
    reference, images, labels, *_ = _problem(n=200)
    truth = certify.radius(reference, images, labels, norm="l2")
    monkeypatch.setattr(state, "float64_sizes", lambda *_: np.array([np.inf]))
    found = certify.radius(reference, images, labels, norm="l2", recheck_all=recheck_all)
    assert np.all(found.lower <= truth.upper) and np.all(np.isinf(found.upper))
    np.testing.assert_array_equal(found.status, "bounded")
    np.testing.assert_array_equal(found.is_exact, False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_give_the_radii_of_uint8_ones(dtype):
    reference, images, labels, *_ = _problem()
    expected = certify.radius(reference, images, labels, norm="l2").lower
    floats, pixels, *_ = _problem(dtype=dtype)
    found = certify.radius(floats, pixels, labels, norm="l2")
    np.testing.assert_allclose(found.lower, expected, rtol=1e-5 if dtype != np.float16 else 0.05, atol=1e-3)
    np.testing.assert_array_equal(found.status, "exact")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("norm", _NORMS)
def test_decides_as_the_radius_says(norm):
    reference, images, labels, *_ = _problem(n=200)
    radius = certify.radius(reference, images, labels, norm=norm)
    for share, status in ((0.999, "robust"), (1.001, "broken")):
        epsilon = (share * radius.upper).astype(np.float32)
        decision = certify.decide(reference, images, labels, threat=Threat(norm, epsilon))
        np.testing.assert_array_equal(decision.status, status)
        np.testing.assert_array_equal(decision.robust, status == "robust")
    size = np.abs(decision.adversarial - images / np.float32(255)).reshape(len(images), -1)
    size = {"l1": size.sum(axis=1), "l2": np.sqrt((size**2).sum(axis=1)), "linf": size.max(axis=1)}[norm]
    assert np.all(size < epsilon)


def test_misclassified_images_have_radius_zero():
    reference, images, labels, *_ = _problem()
    found = certify.radius(reference, images, (labels + 1) % 3, norm="linf")
    assert not found.correct.any()
    assert np.all(found.lower == 0) and np.all(found.upper == 0)
    decision = certify.decide(reference, images, (labels + 1) % 3, threat=Threat("linf", 0.0))
    np.testing.assert_array_equal(decision.status, "broken")


@pytest.mark.slow
def test_a_train_image_is_its_own_neighbour_unless_left_out():
    reference, _, _, points, labels = _problem(n=40)
    own = certify.radius(reference, points[:6], labels[:6], norm="l2")
    assert np.all(own.correct)
    without = certify.radius(reference, points[:6], labels[:6], norm="l2", leave_out=np.arange(6))
    rest = neighbors.fit(points[1:], labels[1:], 3)
    alone = certify.radius(rest, points[:1], labels[:1], norm="l2")
    np.testing.assert_allclose(without.lower[0], alone.lower[0], rtol=1e-7)
    assert np.all(without.lower <= own.lower)


@pytest.mark.slow
def test_constant_images_and_one_point_per_class():
    points = np.array([0.0, 0.25, 1.0], np.float32)[:, None] * np.ones((1, 9), np.float32)
    reference = neighbors.fit(points, np.arange(3), 3)
    for norm, expected in (("linf", 0.125), ("l2", 0.375), ("l1", 1.125)):
        found = certify.radius(reference, points[:1], np.array([0]), norm=norm)
        np.testing.assert_allclose([found.lower[0], found.upper[0]], expected, rtol=1e-6)


def test_a_class_without_points():
    reference = neighbors.fit(np.array([[0.2], [0.4]], np.float32), np.array([0, 0]), 3)
    found = certify.radius(reference, np.array([[0.1], [0.9]], np.float32), np.array([0, 2]), norm="l2")
    np.testing.assert_array_equal(found.correct, [True, False])
    np.testing.assert_array_equal(found.lower, [np.inf, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l3"}, "norm must be one of"),
        ({"images": np.zeros((2, 5), np.float32)}, "images must be"),
        ({"images": [[0.5], [0.5, 0.5]]}, "different shapes"),
        ({"images": np.float32(0.5)}, r"images must be \[N, ...\]"),
        ({"images": np.full((2, 4, 4), 1.5, np.float32)}, r"finite and inside \(0.0, 1.0\), got 1.5 at index 0"),
        ({"images": np.full((2, 4, 4), np.nan, np.float32)}, "finite"),
        ({"images": np.zeros((2, 4, 4), np.int32)}, "uint8 or floating point"),
        ({"labels": np.array([0, 3])}, "labels must be"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be integers"),
        ({"labels": np.array([0])}, "labels must be integers"),
        ({"leave_out": np.array([0, 60])}, "leave_out must be"),
        ({"leave_out": np.array([0.0, 1.0])}, "leave_out must be"),
        ({"leave_out": np.array([0, -5])}, "leave_out must be"),
        ({"tolerance": -1e-9}, "tolerance must be"),
        ({"tolerance": 1.0}, "tolerance must be"),
        ({"tolerance": np.nan}, "tolerance must be"),
        ({"tolerance": "x"}, "tolerance must be a number >= 0, got 'x'"),
        ({"tolerance": np.array([0.1, 0.2])}, r"tolerance must be one number >= 0 and < 1, got \[0.1, 0.2\]"),
        ({"reference": None}, "reference must be from neighbors.fit, shard or stream, got NoneType"),
        ({"bounds": (1.0, 0.0)}, "bounds must be"),
        ({"bounds": (0.4, 0.6)}, "points of the reference must be inside the bounds"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_input_gets_one_clear_line(change, message):
    reference, images, labels, *_ = _problem()
    arguments = {"reference": reference, "images": images[:2], "labels": labels[:2], "norm": "l2"} | change
    with pytest.raises(ValueError, match=message) as error:
        certify.radius(*[arguments.pop(name) for name in ("reference", "images", "labels")], **arguments)
    assert "\n" not in str(error.value)


def test_a_box_need_not_hold_what_fills_up_a_block():
    points, labels = np.array([[0.6, 0.6], [0.9, 0.9]], np.float32), np.array([0, 1])
    reference = neighbors.fit(points, labels, 2)
    found = certify.radius(reference, np.array([[0.61, 0.6]], np.float32), np.array([0]), norm="l2", bounds=(0.5, 1.0))
    truth = abs(0.61 + 0.6 - 1.5) / np.sqrt(2)
    assert found.status[0] == "exact"
    np.testing.assert_allclose(found.lower, truth, rtol=1e-6)


def test_minus_zero_is_zero():
    reference = neighbors.fit(np.array([[0, 0.5], [-0.0, 0.5], [1, 1]], np.float32), np.array([0, 1, 1]), 2)
    found = certify.radius(reference, np.array([[0.1, 0.4]], np.float32), np.array([0]), norm="l2")
    assert found.status[0] == "exact" and found.lower[0] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ONE_NORM)
@pytest.mark.parametrize("far", [3e5, 1e9])
def test_a_far_point_changes_nothing_nearby(norm, far):
    rng = np.random.default_rng(1)
    points, images = rng.random((200, 6)).astype(np.float32), rng.random((12, 6)).astype(np.float32)
    points[7] = far
    labels = rng.integers(0, 3, 200)
    reference = neighbors.fit(points, labels, 3)
    predicted = np.asarray(neighbors.predict(reference, images))
    found = certify.radius(reference, images, predicted, norm=norm, bounds=None)
    assert found.correct.all()
    np.testing.assert_array_equal(found.status, "exact")
    assert np.all(found.upper - found.lower <= 1e-6 * found.upper + 8e-7)
    for b in range(3):
        truth = true_radius(points, labels, images[b], predicted[b], norm=norm, bounds=None)
        np.testing.assert_allclose([found.lower[b], found.upper[b]], truth, rtol=1e-6, atol=8e-7)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ONE_NORM)
def test_tight_clusters_are_exact(norm):
    rng = np.random.default_rng(0)
    points, images = (0.5 + 1e-3 * rng.random((count, 8)).astype(np.float32) for count in (300, 30))
    labels = rng.integers(0, 3, 300)
    reference = neighbors.fit(points, labels, 3)
    predicted = np.asarray(neighbors.predict(reference, images))
    found = certify.radius(reference, images, predicted, norm=norm)
    np.testing.assert_array_equal(found.status, "exact")
    for b in range(3):
        truth = true_radius(points, labels, images[b], predicted[b], norm=norm, bounds=(0.0, 1.0))
        assert found.lower[b] <= truth * (1 + 1e-7) and truth * (1 - 1e-7) <= found.upper[b] <= truth + 1.1e-7


def test_bounds_with_one_end_are_used():
    points = np.array([[1, 0, 0], [0, 0.8, 0.8]], np.float32)
    reference = neighbors.fit(points, [0, 1], 2)
    image, norm = np.zeros((1, 3), np.float32), "l1"
    for bounds in ((0.0, 1.0), (0.0, np.inf)):
        found = certify.radius(reference, image, [0], norm=norm, bounds=bounds)
        truth = true_radius(points, np.array([0, 1]), image[0], 0, norm=norm, bounds=bounds)
        assert found.is_exact.all() and found.lower[0] == pytest.approx(truth, rel=1e-6)


def test_one_solver_is_compiled_for_all_threads(monkeypatch):
    made = []
    make = subproblems._solve_one_by_one.__wrapped__

    def slow():
        made.append(1)
        time.sleep(0.2)
        return make()

    monkeypatch.setattr(subproblems, "_solve_one_by_one", functools.cache(slow))
    monkeypatch.setattr(subproblems, "_PIECE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    reference, images, labels, *_ = _problem()
    certify.radius(reference, images, labels, norm="l2")
    assert len(made) == 1


def test_threads_are_as_many_as_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    used = []
    pool = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", lambda count: used.append(count) or pool(count))
    reference, images, labels, *_ = _problem()
    certify.radius(reference, images, labels, norm="l2")
    assert used and set(used) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bounds_are_rounded_to_float32_as_pixels_are(dtype):
    points, image = np.array([[0, 10], [51, 40]], np.uint8), np.array([[20, 51]], np.uint8)
    if dtype == np.float32:
        points, image = (x / np.float32(255) for x in (points, image))
    assert float(np.float32(51) / np.float32(255)) > 0.2
    reference = neighbors.fit(points, np.array([0, 1]), 2)
    label = np.asarray(neighbors.predict(reference, image))
    expected = certify.radius(reference, image, label, norm="l2", bounds=(0.0, float(np.float32(0.2))))
    found = certify.radius(reference, image, label, norm="l2", bounds=(0.0, 0.2))
    assert found.status[0] == "exact"
    np.testing.assert_array_equal(found.lower, expected.lower)
    with pytest.raises(ValueError, match=r"points .* bounds \(0.0, 0.19\), got pixels from 0.0 to 0.2$"):
        certify.radius(reference, image, label, norm="l2", bounds=(0.0, 0.19))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("l1", "linf"))])
def test_radii_are_in_the_unit_of_the_pixels(norm):
    reference, images, labels, points, point_labels = _problem(n=200, dtype=np.float32)
    expected = certify.radius(reference, images, labels, norm=norm)
    for scale in (2.0**8, 2.0**-20):
        scaled = neighbors.fit(points * np.float32(scale), point_labels, 3)
        bounds = (0.0, scale)
        found = certify.radius(scaled, images * np.float32(scale), labels, norm=norm, bounds=bounds)
        np.testing.assert_array_equal(found.status, expected.status)
        np.testing.assert_allclose(found.lower, scale * expected.lower, rtol=1e-12)
        np.testing.assert_allclose(found.upper, scale * expected.upper, rtol=1e-12)


def test_a_gap_that_is_wide_for_small_pixels_is_not_exact(monkeypatch):
    reference, images, labels, points, point_labels = _problem(n=200, dtype=np.float32)
    small = np.float32(2.0**-24)
    scaled = neighbors.fit(points * small, point_labels, 3)
    monkeypatch.setattr(subproblems, "_MAX_ROUNDS", 0)  # leaves gaps
    found = certify.radius(scaled, images * small, labels, norm="linf", bounds=None)
    is_wide = found.upper - found.lower > 1e-3 * found.upper
    assert is_wide.any() and not (found.status[is_wide] == "exact").any()


@pytest.mark.slow  # the table of tests/border tries them too
def test_images_may_be_lists():
    reference, images, labels, *_ = _problem(dtype=np.float32)
    expected = certify.radius(reference, images[:2], labels[:2], norm="l2")
    found = certify.radius(reference, images[:2].tolist(), labels[:2].tolist(), norm="l2")
    np.testing.assert_array_equal(found.lower, expected.lower)
    assert found.adversarial.shape == images[:2].shape


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("epsilon", [np.array([0.1, 0.2, 0.3]), -np.ones(())])
def test_a_bad_epsilon_gets_one_clear_line(epsilon):
    reference, images, labels, *_ = _problem()
    with pytest.raises(ValueError, match="epsilon must be"):
        certify.decide(reference, images[:2], labels[:2], threat=Threat("l2", jax.numpy.asarray(epsilon)))
