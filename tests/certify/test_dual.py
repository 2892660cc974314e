"""The dual solver against linear programs left to a library and, in l2, against a quadratic program."""

import jax
import numpy as np
import pytest

from nn_adv.certify import dual
from nn_adv.certify.problems import Problems, lower_bound, solve_linear
from tests.certify.truths import opponent_radius

SIZE = 24


def _problem(seed, bounds):
    """One opponent between three own points: rows [3, d], heights [3], room below and above [d]."""
    rng = np.random.default_rng(seed)
    points = rng.random((4, SIZE)).astype(np.float32).astype(np.float64)
    image = (points[:3].mean(axis=0) * 0.8 + 0.1 * rng.random(SIZE)).astype(np.float32).astype(np.float64)
    image[:4] = [0, 1, 0, 1]  # pixels at a bound
    gaps = points[3] - points[:3]
    heights = (gaps * ((points[3] + points[:3]) / 2 - image)).sum(axis=1)
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    truth = {
        norm: opponent_radius(points, np.array([0, 0, 0, 1]), image, 0, 3, norm=norm, bounds=bounds)[0]
        for norm in ("l1", "l2", "linf")
    }
    return gaps, heights, low - image, high - image, truth


def _problems(seeds, bounds):
    """The problems of seeds as one batch, with an unused row each, and their radii per norm."""
    gaps, heights, low, high, truths = zip(*(_problem(seed, bounds) for seed in seeds), strict=True)
    gaps = np.pad(np.stack(gaps), ((0, 0), (0, 1), (0, 0)))
    heights = np.pad(np.stack(heights), ((0, 0), (0, 1)))
    is_constraint = np.arange(4) < 3
    problems = Problems(gaps, heights, np.tile(is_constraint, (len(gaps), 1)), np.stack(low), np.stack(high))
    return problems, {norm: np.array([truth[norm] for truth in truths]) for norm in truths[0]}


def test_systems_are_solved_as_a_library_does():
    rng = np.random.default_rng(0)
    for size in (1, 8, 33):
        roots = rng.normal(size=(5, size, 1 + size // 2))  # singular but for what is added
        systems = roots @ roots.transpose(0, 2, 1) + 1e-6 * np.eye(size)
        right = rng.normal(size=(5, size))
        with jax.enable_x64(True):
            found = np.asarray(dual._solve_positive(systems, right))
        expected = np.linalg.solve(systems, right[..., None])[..., 0]
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def _solve(norm, problems, **options):
    multipliers = np.zeros_like(problems.heights)
    with jax.enable_x64(True):
        if norm != "l2":
            multipliers = dual.start(norm, problems)
        size, rounds = np.ones(len(multipliers)), np.zeros(len(multipliers), np.int32)
        solution = dual.solve(
            norm, problems, multipliers, size, center=np.zeros_like(problems.low), rounds=rounds, **options
        )
        return jax.tree.map(np.asarray, solution)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_problem_is_left_at_a_bound_that_its_multipliers_prove(norm):
    problems, truth = _problems(range(4), (0.0, 1.0))
    found = _solve(norm, problems, enough=truth[norm] / 2)
    assert np.all((found.lower >= truth[norm] / 2) & (found.lower <= truth[norm] * (1 + 1e-9)))
    with jax.enable_x64(True):
        np.testing.assert_allclose(lower_bound(norm, problems, found.multipliers), found.lower, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_reaches_the_radius_of_the_opponent(norm, bounds):
    problems, truth = _problems(range(40), bounds)
    found = _solve(norm, problems)
    is_reachable = np.isfinite(truth[norm])
    assert is_reachable.sum() > 30
    assert np.all(found.lower <= truth[norm] * (1 + 1e-9))
    np.testing.assert_allclose(found.lower[is_reachable], truth[norm][is_reachable], rtol=1e-6)
    assert found.is_converged[is_reachable].mean() > 0.9
    v, solved = found.perturbation, found.is_converged & is_reachable
    assert np.all((v >= problems.low - 1e-12) & (v <= problems.high + 1e-12))
    missed = problems.heights - np.einsum("smd,sd->sm", problems.gaps, v)
    assert missed[solved].max() <= 1e-7
    sizes = np.linalg.norm(v, {"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1)
    np.testing.assert_allclose(sizes[solved], truth[norm][solved], rtol=1e-6)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_the_library_program_gives_the_same_radius_and_multipliers_that_prove_it(norm, bounds):
    order = {"l1": 1, "linf": np.inf}[norm]
    num_solved = 0
    for seed in range(8):
        gaps, heights, low, high, truth = _problem(seed, bounds)
        solved = solve_linear(norm, gaps, heights, low, high)
        assert (solved is None) == np.isinf(truth[norm])
        if solved is None:
            continue
        multipliers, v = solved
        np.testing.assert_allclose(np.linalg.norm(v, order), truth[norm], rtol=1e-6)
        assert np.min(gaps @ v - heights) >= -1e-6 and np.all((v >= low - 1e-9) & (v <= high + 1e-9))
        with jax.enable_x64(True):
            problems = Problems(gaps[None], heights[None], np.ones((1, 3), bool), low[None], high[None])
            proved = float(lower_bound(norm, problems, multipliers[None])[0])
        np.testing.assert_allclose(proved, truth[norm], rtol=1e-6)
        num_solved += 1
    assert num_solved >= 6


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_any_multipliers_prove_no_more_than_the_radius(norm, bounds):
    problems, truth = _problems(range(40), bounds)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e3):
        with jax.enable_x64(True):
            proved = lower_bound(norm, problems, scale * rng.exponential(size=problems.heights.shape))
        assert np.all(np.asarray(proved) <= truth[norm] * (1 + 1e-12))


def test_a_step_off_the_border_in_l1_gains_the_margin_at_the_price_of_the_multipliers():
    problems, truth = _problems(range(40), (0.0, 1.0))
    found = _solve("l1", problems)
    margin = np.full(len(truth["l1"]), 1e-4)
    with jax.enable_x64(True):
        step = np.asarray(dual.off_border(problems, found.multipliers, found.perturbation, margin))
    v = found.perturbation
    assert np.all(step[(v == 0) | (v <= problems.low) | (v >= problems.high)] == 0)
    active = (found.multipliers > 0) & found.is_converged[:, None]
    gained = np.einsum("smd,sd->sm", problems.gaps, step)
    has_free = (step != 0).any(axis=1)
    assert has_free.mean() > 0.8
    np.testing.assert_allclose(gained[active & has_free[:, None]], 1e-4, rtol=1e-3)
    price = np.abs(v + step).sum(axis=1) - np.abs(v).sum(axis=1)
    expected = 1e-4 * found.multipliers.sum(axis=1)
    np.testing.assert_allclose(price[has_free], expected[has_free], rtol=1e-2)
