"""The recheck against brute force: nothing it returns is ever on the wrong side, whatever it is given."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_adv import neighbors
from nn_adv.certify.verify import Certificate, Screened, recheck
from nn_adv.certify.verify.multipliers import multiplier_bounds
from nn_adv.certify.verify.recheck import _rough_bounds
from nn_adv.certify.verify.rounding import pixel_values
from nn_adv.certify.verify.views import make_base, measure, views
from tests.certify import truths
from tests.neighbors.truths import as_pixels

NORMS = ("l1", "l2", "linf")
BOXES = ((0.0, 1.0), None)
_SIZES = {"l1": lambda v: np.abs(v).sum(), "l2": np.linalg.norm, "linf": lambda v: np.abs(v).max()}


class Problem(NamedTuple):
    points: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    label: int


def _problem(seed: int) -> Problem:
    """A small problem: uint8 or float32, on a coarse grid (ties, copies) or not, its image a point of it or not."""
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(2, 16)), int(rng.integers(1, 7))
    levels = rng.choice([3, 256])
    draw = [
        lambda n: (rng.integers(0, levels, (n, size)) * (255 // (levels - 1))).astype(np.uint8),
        lambda n: (rng.integers(0, levels, (n, size)) / (levels - 1)).astype(np.float32),
        lambda n: rng.random((n, size), dtype=np.float32),
    ][rng.integers(3)]
    points, labels = draw(count), rng.integers(0, 3, count)
    image = points[rng.integers(count)] if rng.random() < 0.3 else draw(1)[0]
    if rng.random() < 0.3:
        image = as_pixels(image[None])[0].astype(np.float32)
    return Problem(points, labels, image, truths.predict(points, labels, image))


def _opponents(problem: Problem, norm: str, box):
    """Return what the programs say: opponents that can win, their radii and multipliers, own rows."""
    others = np.flatnonzero(problem.labels != problem.label)
    solved = [truths.opponent_radius(*problem, j, norm=norm, bounds=box) for j in others]
    can_win = np.array([np.isfinite(radius) for radius, _, _ in solved], bool)
    own = np.flatnonzero(problem.labels == problem.label)
    multipliers = np.array([weights for _, weights, _ in solved]).reshape(len(others), len(own))
    return others[can_win], np.array([radius for radius, _, _ in solved])[can_win], multipliers[can_win], own


def _certificate(problem: Problem, opponents, multipliers, own) -> Certificate:
    count = len(opponents)
    return Certificate(own[None, :3], np.zeros(count, int), opponents, np.tile(own, (count, 1)), multipliers)


def _nothing(anchors=()) -> Certificate:
    empty = np.zeros(0, int)
    return Certificate(np.array([anchors], int).reshape(1, -1), empty, empty, np.zeros((0, 1), int), np.zeros((0, 1)))


def _recheck(problem: Problem, certificate, norm, box, adversarial=None, **options):
    adversarial = as_pixels(problem.image[None]).astype(np.float32) if adversarial is None else adversarial
    labels = np.array([problem.label])
    arguments = (problem.points, problem.labels, problem.image[None], labels, certificate, adversarial)
    return recheck(*arguments, norm=norm, bounds=box, **options)


def _at_most(lower: float, truth: float) -> bool:
    return lower <= truth * (1 + 1e-12) + 1e-15


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS), st.sampled_from(BOXES))
def test_optimal_multipliers_prove_the_radius_and_others_no_more(seed, norm, box):
    problem = _problem(seed)
    opponents, radii, multipliers, own = _opponents(problem, norm, box)
    truth = radii.min(initial=np.inf)
    best = _recheck(problem, _certificate(problem, opponents, multipliers, own), norm, box)
    assert best.correct[0] and _at_most(best.lower[0], truth)
    assert best.lower[0] >= truth * (1 - 1e-9) - 1e-12
    assert best.upper[0] == np.inf

    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 4, (len(opponents), 1))
    drawn = rng.exponential(size=multipliers.shape) * scale * (rng.random(multipliers.shape) < 0.5)
    assert _at_most(_recheck(problem, _certificate(problem, opponents, drawn, own), norm, box).lower[0], truth)
    assert _at_most(_recheck(problem, _nothing(), norm, box).lower[0], truth)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS), st.sampled_from(BOXES))
def test_each_bound_is_below_the_radius_of_its_opponent(seed, norm, box):
    problem = _problem(seed)
    opponents, radii, multipliers, own = _opponents(problem, norm, box)
    rng = np.random.default_rng(seed)
    near_best = multipliers * rng.choice([0, 0.9, 1, 1, 1, 1.1], multipliers.shape)
    for weights in (multipliers, near_best, rng.random(multipliers.shape)):
        rows = np.tile(own, (len(opponents), 1))
        entries = (problem.points, problem.image[None], np.zeros(len(opponents), int), opponents, rows, weights)
        found = multiplier_bounds(*entries, norm=norm, bounds=box)
        assert all(_at_most(lower, radius) for lower, radius in zip(found, radii, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("unit", [1e-22, 1e-3, 1.0, 1e18, np.uint8])
def test_bounds_in_single_precision_are_no_better_than_those_in_double(norm, unit):
    rng = np.random.default_rng(0)
    points, images = rng.integers(0, 256, (200, 40)).astype(np.uint8), rng.integers(0, 256, (3, 40)).astype(np.uint8)
    points[-1] = points[-2]  # a step away from an anchor, where what single precision loses counts most
    points[-1, 0] ^= 1
    if unit is not np.uint8:
        points, images = ((values * (unit / 255)).astype(np.float32) for values in (points, images))
    labels, opponents, anchors = (np.arange(200) >= 150).astype(int), np.append(np.arange(150), 199), [150, 170, 198]
    labels[199] = 0
    base = make_base(points, labels, np.arange(200), norm, None, None)
    others, owns = pixel_values(points[opponents])[:, None], pixel_values(points[anchors])
    gaps = others - owns
    sizes = {"l1": np.abs(gaps).max(axis=2), "l2": np.linalg.norm(gaps, axis=2), "linf": np.abs(gaps).sum(axis=2)}[norm]
    for view in views(base, measure(base, images, all_points=True), np.ones(3, int), np.full(3, -1)):
        truth = np.maximum(np.sum(gaps * ((others + owns) / 2 - view.values), axis=2) / sizes, 0)
        found = _rough_bounds(base, view._replace(anchors=np.array(anchors)), opponents)
        assert np.all(found <= truth * (1 + 1e-9))
        if norm == "l2" and unit not in (1e-22, 1e18):  # whose squares float32 does not hold
            assert np.all(found[:-1] >= truth[:-1] * 0.99)


@pytest.mark.parametrize(("width", "least", "most"), [(0.5, 10, 40), (0.075, 260, 390)])
def test_in_l1_one_constraint_proves_its_radius_whether_few_pixels_move_or_many(width, least, most):
    rng = np.random.default_rng(0)
    image = np.full(400, 0.5)
    points = np.stack([image + rng.uniform(-0.1, 0.1, 400), rng.uniform(0.2, 0.7, 400)]).astype(np.float32)
    bounds = (0.5 - width, 0.5 + width)
    gap, distances = points[1].astype(float) - points[0], np.sum((points - image) ** 2, axis=1)
    sizes = -np.sort(-np.abs(gap))
    gained = np.cumsum(width * sizes)  # by moving the pixels of largest gap to the border, one after the other
    needed = (distances[1] - distances[0]) / 2
    moved = int(np.searchsorted(gained, needed))
    radius = moved * width + (needed - gained[moved - 1]) / sizes[moved]
    assert least < moved < most
    whom = np.zeros(1, int), np.ones(1, int), np.zeros((1, 1), int), np.ones((1, 1))
    (found,) = multiplier_bounds(points, image[None].astype(np.float32), *whom, norm="l1", bounds=bounds)
    assert radius * (1 - 1e-6) <= found <= radius * (1 + 1e-12)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS), st.sampled_from(BOXES))
def test_garbage_never_proves_too_much(seed, norm, box):
    problem = _problem(seed)
    rng = np.random.default_rng(seed)
    count, num_points = 6, len(problem.points)
    strange = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e-320, 1e-30, 1.0, 1e30, 1e300]
    certificate = Certificate(
        anchors=rng.integers(-3, num_points + 3, (1, 4)),
        image=rng.integers(-1, 2, count),
        opponent=rng.integers(-2, num_points + 2, count),
        constraints=rng.integers(-2, num_points + 2, (count, 4)),
        multipliers=rng.choice(strange, (count, 4)),
    )
    adversarial = (rng.random((1, problem.points.shape[1])) * 1.2 - 0.1).astype(np.float32)
    truth = truths.true_radius(*problem, norm=norm, bounds=box)
    result = _recheck(problem, certificate, norm, box, adversarial)
    assert result.correct[0] and _at_most(result.lower[0], truth)
    assert result.upper[0] >= truth * (1 - 1e-12)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS))
def test_witness_counts_if_it_is_true(seed, norm):
    problem = _problem(seed)
    moved = np.random.default_rng(seed).random((20, problem.points.shape[1]), dtype=np.float32)
    for witness in moved:
        upper = _recheck(problem, _nothing(), norm, (0.0, 1.0), witness[None]).upper[0]
        size = _SIZES[norm](witness.astype(float) - as_pixels(problem.image[None])[0])
        if truths.predict(problem.points, problem.labels, witness) == problem.label:
            assert upper == np.inf
        else:
            assert size <= upper <= size * (1 + 1e-12)
        # With all rows to look at, the same is found without the distances of the image to all points.
        given = Screened(np.zeros(1), np.arange(len(problem.points))[None])
        partial = _recheck(problem, _nothing(), norm, (0.0, 1.0), witness[None], screened=given)
        assert partial.upper[0] == upper and partial.correct[0]


@pytest.mark.parametrize("norm", NORMS)
def test_witness_on_the_border_in_float32(norm):
    points = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.1]], np.float32)
    problem = Problem(points, np.array([0, 1]), points[0], 0)
    values = points.astype(np.float64)
    # D_1 = D_0 at the middle; one part in a million beyond it is enough, one before it is not.
    beyond, before = (values[0] + (values[1] - values[0]) * (0.5 + step) for step in (1e-6, -1e-6))
    truth = truths.true_radius(*problem, norm=norm, bounds=(0, 1))
    assert _recheck(problem, _nothing(), norm, (0, 1), before[None].astype(np.float32)).upper == np.inf
    upper = _recheck(problem, _nothing(), norm, (0, 1), beyond[None].astype(np.float32)).upper[0]
    assert upper >= truth
    if norm == "l2":
        assert upper == pytest.approx(truth, rel=1e-5)
    # Exactly on the border the lower index wins.
    corners, middle = np.array([[0, 0, 0], [1, 1, 0]], np.float32), np.array([[0.5, 0.5, 0]], np.float32)
    for labels, expected in (([0, 1], np.inf), ([1, 0], {"l1": 1, "l2": 0.5**0.5, "linf": 0.5}[norm])):
        tied = Problem(corners, np.array(labels), corners[labels.index(0)], 0)
        assert _recheck(tied, _nothing(), norm, (0, 1), middle).upper == pytest.approx(expected, rel=1e-12)


def test_false_witnesses_are_refused():
    points = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    problem = Problem(points, np.array([0, 1]), points[0], 0)
    for witness in ([0.2, 0.2], [np.nan, 1], [1, np.inf], [1.0000001, 1], [-1e-30, 2], [0, 0]):
        for screened in (None, Screened(np.zeros(1), np.array([[0, 1]]))):
            adversarial = np.array([witness], np.float32)
            assert _recheck(problem, _nothing(), "l2", (0, 1), adversarial, screened=screened).upper == np.inf
    outside = np.array([[1.5, 1]], np.float32)
    assert _recheck(problem, _nothing(), "l1", (0, 1), outside).upper == np.inf
    assert _recheck(problem, _nothing(), "l1", None, outside).upper == pytest.approx(2.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS))
def test_order_of_the_rows_and_padding_change_nothing(seed, norm):
    problem = _problem(seed)
    opponents, _, multipliers, own = _opponents(problem, norm, (0.0, 1.0))
    expected = _recheck(problem, _certificate(problem, opponents, multipliers, own), norm, (0.0, 1.0))
    order = np.random.default_rng(seed).permutation(len(problem.points) + 2) % len(problem.points)
    # Two rows come twice: the second time as padding.
    first = np.unique(order, return_index=True)[1]
    labels, index = np.full(len(order), -1), np.full(len(order), 2**31 - 1)
    labels[first], index[first] = problem.labels[order[first]], order[first]
    row_of = np.empty(len(problem.points), int)
    row_of[order[first]] = first
    shuffled = Problem(problem.points[order], labels, problem.image, problem.label)
    certificate = _certificate(shuffled, row_of[opponents], multipliers, row_of[own])
    found = _recheck(shuffled, certificate, norm, (0.0, 1.0), index=index)
    assert found.correct[0]
    assert found.lower[0] == pytest.approx(expected.lower[0], rel=1e-12, abs=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NORMS))
def test_left_out_point_is_neither_opponent_nor_constraint(seed, norm):
    problem = _problem(seed)
    left = int(np.random.default_rng(seed).integers(len(problem.points)))
    rest = np.delete(np.arange(len(problem.points)), left)
    if len(np.unique(problem.labels[rest])) < 2:
        return
    without = Problem(problem.points[rest], problem.labels[rest], problem.image, problem.label)
    truth = truths.true_radius(*without, norm=norm, bounds=(0.0, 1.0))
    own = np.flatnonzero(problem.labels == problem.label)
    opponents = np.flatnonzero(problem.labels != problem.label)
    weights = np.random.default_rng(seed).random((len(opponents), len(own)))
    certificate = _certificate(problem, opponents, weights, own)
    found = _recheck(problem, certificate, norm, (0.0, 1.0), leave_out=np.array([left]))
    assert found.correct[0] == (truths.predict(without.points, without.labels, problem.image) == problem.label)
    assert _at_most(found.lower[0], truth)


def test_copies_across_classes():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    early = Problem(points, np.array([0, 1, 1]), points[0], 0)
    assert _recheck(early, _nothing(), "l2", (0, 1)).lower[0] == pytest.approx(0.5, rel=1e-12)
    # The copy of the lower index wins every tie: the image is not of class 0, and left out it is again.
    late = Problem(points, np.array([1, 0, 1]), points[0], 0)
    found = _recheck(late, _nothing(), "l2", (0, 1))
    assert not found.correct[0] and found.lower[0] == found.upper[0] == 0
    found = _recheck(late, _nothing(), "l2", (0, 1), leave_out=np.array([0]))
    assert found.correct[0] and found.lower[0] == pytest.approx(0.5, rel=1e-12)
    # Without the own-class copy of lower index its twin can win.
    points = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    threefold = Problem(points, np.array([0, 1, 0]), points[0], 0)
    assert _recheck(threefold, _nothing(), "l2", (0, 1)).lower[0] == np.inf
    assert not _recheck(threefold, _nothing(), "l2", (0, 1), leave_out=np.array([0])).correct[0]


@pytest.mark.parametrize("norm", NORMS)
def test_copies_of_an_opponent_need_no_certificate_of_their_own(norm):
    rng = np.random.default_rng(1)
    own, other = rng.random((6, 5), dtype=np.float32), np.full((1, 5), 0.9, np.float32)
    for first_label, left in ((1, -1), (2, 6)):  # with the first copy left out, the second wins
        problem = Problem(
            np.concatenate([own, *[other] * 4]), np.array([0] * 6 + [first_label, 1, 2, 1]), own.mean(axis=0), 0
        )
        rows = np.arange(6)
        opponent = 6 if left < 0 else 7
        arguments = {"norm": norm, "bounds": (0.0, 1.0), "leave_out": left if left >= 0 else None}
        truth, multipliers, _ = truths.opponent_radius(*problem, opponent, **arguments)
        certificate = _certificate(problem, np.array([opponent]), multipliers[None], rows)
        found = _recheck(problem, certificate, norm, (0.0, 1.0), leave_out=np.array([left]))
        assert found.lower[0] == pytest.approx(truth, rel=1e-9) and _at_most(found.lower[0], truth)
        # The second copy wins nothing while the first is there.
        behind = _certificate(problem, np.array([opponent + 1]), multipliers[None], rows)
        assert _recheck(problem, behind, norm, (0.0, 1.0), leave_out=np.array([left])).lower[0] < truth * (1 - 1e-6)


def test_bounds_are_rounded_to_float32():
    points = np.array([[0, 10], [51, 51]], np.uint8)
    problem = Problem(points, np.array([0, 1]), np.array([20, 51], np.uint8), 1)
    edge = np.float32(0.2)
    for pixel, is_inside in ((edge, True), (np.nextafter(edge, np.float32(1)), False)):
        witness = np.array([[0, pixel]], np.float32)
        assert np.isfinite(_recheck(problem, _nothing(), "l2", (0.0, 0.2), witness).upper[0]) == is_inside


def test_near_ties_are_decided_exactly():
    # 0.1 and 0.3 in float32 are not symmetric about 0.2: no rounded distance shows which one is nearer.
    for size in (1, 3, 40):
        low, high, image = (np.full(size, value, np.float32) for value in (0.1, 0.3, 0.2))
        exact = [size * (float(z) - float(image[0])) ** 2 for z in (low[0], high[0])]
        for points in (np.stack([low, high]), np.stack([high, low])):
            problem = Problem(points, np.array([0, 1]), image, 0)
            first_is_low = float(points[0, 0]) < 0.2
            expected = (exact[0] < exact[1]) == first_is_low
            assert _recheck(problem, _nothing(), "l2", None).correct[0] == expected
    # Integers tie exactly, although 100 / 255 rounded to float32 is not midway.
    pixels = np.array([[90], [110]], np.uint8)
    for label in (0, 1):
        tied = Problem(pixels, np.array([0, 1]), np.array([100], np.uint8), label)
        assert _recheck(tied, _nothing(), "l2", (0, 1)).correct[0] == (label == 0)


def test_no_opponent_no_own_point_and_given_bounds():
    points = np.array([[0.0], [1.0]], np.float32)
    alone = Problem(points, np.array([0, 0]), points[0], 0)
    assert _recheck(alone, _nothing(), "l1", (0, 1)).lower[0] == np.inf
    absent = _recheck(alone._replace(label=1), _nothing(), "l1", (0, 1))
    assert not absent.correct[0] and absent.lower[0] == absent.upper[0] == 0
    both = alone._replace(labels=np.array([0, 1]))
    for value, expected in ((0.25, 0.25), (np.nan, 0), (-1, 0), (np.inf, np.inf)):
        screened = Screened(np.array([value]), np.array([[0, 1]]))
        assert _recheck(both, _nothing(), "l1", (0, 1), screened=screened).lower[0] == expected


def test_bad_arguments():
    problem = _problem(0)
    with pytest.raises(ValueError, match="norm must be"):
        _recheck(problem, _nothing(), "l3", None)
    with pytest.raises(ValueError, match="images must be inside"):
        _recheck(problem._replace(image=problem.image + np.float32(2)), _nothing(), "l2", (0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((3, 2, 2))}, r"points must be \[n, d\] with labels \[n\], got shapes \(3, 2, 2\)"),
        ({"labels": [0, 1]}, r"points must be \[n, d\] with labels \[n\], got shapes \(3, 2\) and \(2,\)"),
        ({"images": np.zeros((1, 1, 2), np.float32)}, r"images must be \[B, d\] with image_labels \[B\]"),
        ({"image_labels": [0, 0]}, r"images must be \[B, d\] with image_labels \[B\].*, got shapes \(1, 2\), \(2,\)"),
        ({"images": np.zeros((1, 3)), "adversarial": np.zeros((1, 3))}, r"linear_map must be \[2, 3\].*, got none"),
        ({"linear_map": np.eye(3)}, r"linear_map must be \[2, 2\], from images to points, got shape \(3, 3\)"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    images = np.zeros((1, 2), np.float32)
    given = {"points": np.eye(3, 2, dtype=np.float32), "labels": [0, 1, 1], "images": images, "image_labels": [0]}
    given |= {"certificate": _nothing(), "adversarial": images, "norm": "l2", "bounds": None}
    with pytest.raises(ValueError, match=message):
        recheck(**given | change)


@pytest.mark.parametrize("norm", NORMS)
def test_arrays_of_jax_and_lists_are_checked_in_float64_too(norm):
    rng = np.random.default_rng(0)
    points, images = (rng.random((count, 256), dtype=np.float32) for count in (60, 8))
    labels, moved = np.arange(60) % 3, np.clip(images + np.float32(0.2), 0, 1)
    image_labels = np.array([truths.predict(points, labels, image) for image in images])
    certificate = Certificate(np.zeros((8, 1), int), *(np.zeros(shape, int) for shape in (0, 0, (0, 1), (0, 1))))
    arrays = (points, labels, images, image_labels)
    expected = recheck(*arrays, certificate, moved, norm=norm, bounds=(0.0, 1.0))
    for convert in (jnp.asarray, lambda values: np.asarray(values, np.float64).tolist()):
        found = recheck(*map(convert, arrays), certificate, convert(moved), norm=norm, bounds=(0.0, 1.0))
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("bounds", BOXES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_point_to_be_ignored_may_be_no_number(norm, bounds):
    points = np.array([[0, 0], [1, 1], [np.nan, 0.5]], np.float32)
    image = np.full((1, 2), 0.2, np.float32)
    kept, all_of_them = (
        recheck(points[:count], np.array([0, 1, -1])[:count], image, [0], _nothing(), image, norm=norm, bounds=bounds)
        for count in (2, 3)
    )
    assert all_of_them.correct.all() and 0 <= all_of_them.lower[0] <= kept.lower[0] < np.inf


def test_a_witness_in_integers_is_one_of_pixels():
    points = np.array([[1], [3]], np.uint8)
    found = recheck(points, [0, 1], points[:1], [0], _nothing(), np.array([[2]], np.uint8), norm="l2", bounds=(0, 1))
    predicted = neighbors.predict(neighbors.fit(points, [0, 1], 2), np.full((1, 1), np.float32(2) / np.float32(255)))
    assert np.isfinite(found.upper[0]) == (int(predicted[0]) == 1)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("norm", NORMS)
def test_screen_agrees_with_dense_bounds(norm):
    rng = np.random.default_rng(3)
    styles = rng.random((5, 784))
    labels = rng.integers(0, 5, 2000)
    points = np.clip(200 * styles[labels] + 60 * rng.random((2000, 784)), 0, 255).astype(np.uint8)
    images = np.clip(points[:6] + rng.integers(-40, 40, (6, 784)), 0, 255).astype(np.uint8)
    values, centers = as_pixels(points), as_pixels(images)
    adversarial = centers.astype(np.float32)
    certificate = _nothing()._replace(anchors=np.empty((6, 3), int))
    expected = []
    for b, x in enumerate(centers):
        distances = ((values - x) ** 2).sum(axis=1)
        own, other = np.flatnonzero(labels == labels[b]), np.flatnonzero(labels != labels[b])
        certificate.anchors[b] = own[np.argsort(distances[own])[:3]]
        best = np.zeros(len(other))
        for i in certificate.anchors[b]:
            gaps = np.abs(values[other] - values[i])
            dual = {"l1": gaps.max(axis=1), "l2": np.sqrt((gaps**2).sum(axis=1)), "linf": gaps.sum(axis=1)}[norm]
            best = np.maximum(best, (distances[other] - distances[i]) / 2 / dual)
        expected.append(best.min())
    found = recheck(points, labels, images, labels[:6], certificate, adversarial, norm=norm, bounds=None)
    assert found.correct.all()
    np.testing.assert_allclose(found.lower, expected, rtol=1e-9)
    assert (found.lower <= np.array(expected) * (1 + 1e-13)).all()
