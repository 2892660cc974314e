"""Search against brute force: every norm and dtype, ties, remainders, failed proofs, memory and re-traces."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import certify, neighbors
from nn_adv.neighbors import search
from tests.neighbors import truths

NORMS = ("l2", "linf", "l1")  # the first compile least
DTYPES = ("uint8", "float32")


def _random(seed: int, count: int, size: int, dtype: str, levels: int = 256) -> np.ndarray:
    """Return images [count, size]; few levels make ties."""
    values = np.random.default_rng(seed).integers(0, levels, (count, size))
    if dtype == "uint8":
        return values.astype(np.uint8)
    fine = np.random.default_rng(seed + 1).random((count, size))
    return (fine if levels == 256 else values / 256).astype(np.float32)


def _labels(count: int, num_classes: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, num_classes, count)


def _check(points: np.ndarray, labels: np.ndarray, queries: np.ndarray, num_classes: int, k: int, norm: str, **options):
    reference = neighbors.fit(points, labels, num_classes, **options)
    found = neighbors.nearest(reference, queries, k, norm=norm)
    expected_distances, expected_indices = truths.nearest(points, queries, k, norm)
    np.testing.assert_array_equal(found.indices, expected_indices)
    np.testing.assert_allclose(found.distances, expected_distances, rtol=2e-7)
    return reference


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("point_dtype", DTYPES)
@pytest.mark.parametrize("query_dtype", DTYPES)
def test_equals_brute_force(norm, point_dtype, query_dtype):
    points, labels = _random(0, 150, 60, point_dtype), _labels(150, 3)
    queries = _random(2, 13, 60, query_dtype)
    # 32 rows a block: three classes, several blocks each, all with a remainder.
    reference = _check(points, labels, queries, 3, 1, norm, block_size=32)
    expected = truths.class_distances(points, labels, queries, 3, norm)
    np.testing.assert_allclose(neighbors.class_distances(reference, queries, norm=norm), expected, rtol=3e-7)
    np.testing.assert_array_equal(neighbors.predict(reference, queries, norm=norm), expected.argmin(axis=1))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_k_nearest_in_order(dtype, k):
    _check(_random(0, 300, 6, dtype), _labels(300, 2), _random(2, 8, 6, dtype), 2, k, "l2", block_size=256)


# The next tests share shapes, and so their compilations.
@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lowest_index(norm, dtype):
    # Two levels in six pixels: 64 distinct images, each several times and in both classes.
    points, queries = _random(0, 300, 6, dtype, levels=2), _random(2, 8, 6, dtype, levels=2)
    _check(points, _labels(300, 2), queries, 2, 4, norm, block_size=256)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_duplicates_than_candidates(norm, dtype):
    # All points equal: no screen can choose, so floats take the path of the failed proof.
    points = np.full((400, 6), 3, dtype)
    _check(points, _labels(400, 2), points[:8] + np.asarray(1, dtype), 2, 4, norm, block_size=256)


@pytest.mark.parametrize("norm", NORMS)
def test_failed_proofs_are_searched_again(norm):
    # Points 1e-7 apart, far from the query: float32 scores cannot order them, float64 must.
    rng = np.random.default_rng(0)
    points = (0.5 + rng.integers(0, 8, (400, 6)) * 2.0**-24).astype(np.float32)
    _check(points, _labels(400, 2), np.ones((8, 6), np.float32), 2, 4, norm, block_size=256)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("norm", NORMS)
def test_large_uint8_images_have_the_ties_of_the_integers(norm):
    # 75 x 75 x 3: squares may not fit int32. Half of the points mirror the others at their query, which one pixel alone
    # decides in linf: rounding v / 255 would put either first.
    size, rng = 16_875, np.random.default_rng(0)
    queries = rng.integers(100, 156, (2, size))
    offsets = rng.integers(-90, 91, (8, size)) * (rng.random((8, size)) < 0.9)
    offsets[np.arange(8), np.arange(8)] = 91
    points = np.concatenate([queries[i] + sign * offsets[4 * i : 4 * i + 4] for sign in (1, -1) for i in (0, 1)])
    _check(points.astype(np.uint8), _labels(16, 2), queries.astype(np.uint8), 2, 4, norm, block_size=8)
    # 200 in every pixel is as far as 255 in half of them, in l2 and l1: more than an int32 holds, to the last digit.
    points = np.zeros((9, 36_000), np.uint8)
    points[:, :28_800] = 200
    points[8, :28_800] = 0
    points[8, :23_040] = 250
    points[3, 0] += 1
    points[5, 0] -= 1
    _check(points, _labels(9, 2), np.zeros((2, 36_000), np.uint8), 2, 9, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("power", [-62, -63, -65, -120, -126, -140, 62])
def test_pixels_of_any_size(norm, power):
    # Squares, and at last the pixels themselves, leave the normal numbers of float32.
    points, queries = (
        _random(seed, count, 6, "float32").astype(float) * 2.0**power for seed, count in ((0, 400), (2, 8))
    )
    points, queries = points.astype(np.float32), queries.astype(np.float32)
    reference = neighbors.fit(points, _labels(400, 2), 2, block_size=256)
    found = neighbors.nearest(reference, queries, 4, norm=norm)
    expected_distances, expected_indices = truths.nearest(points, queries, 4, norm)
    np.testing.assert_array_equal(found.indices, expected_indices)
    is_normal = expected_distances >= 2.0**-126
    np.testing.assert_allclose(found.distances, np.where(is_normal, expected_distances, 0), rtol=2e-7)


def test_one_far_point_does_not_take_the_center_away():
    points = _random(0, 400, 6, "float32")
    points[7] = 1e9
    reference = _check(points, _labels(400, 2), _random(2, 8, 6, "float32"), 2, 4, "l2", block_size=256)
    np.testing.assert_allclose(reference.center, np.delete(points, 7, axis=0).mean(axis=0, dtype=float), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "dtype"),
    [pytest.param(norm, dtype, marks=[pytest.mark.slow] * (norm != "l2")) for norm in NORMS for dtype in DTYPES],
)
def test_queries_that_are_not_finite(norm, dtype):
    reference = neighbors.fit(_random(0, 400, 6, dtype), _labels(400, 2), 2, block_size=256)
    queries = _random(2, 8, 6, "float32")
    expected = neighbors.nearest(reference, queries, 4, norm=norm)
    expected_classes = neighbors.predict(reference, queries, norm=norm)
    expected_table = neighbors.class_distances(reference, queries, norm=norm)
    queries[1, 2], queries[4, 0], queries[6, 5] = np.nan, np.inf, -np.inf
    for search_fn in (neighbors.nearest, neighbors.predict, neighbors.class_distances):
        with pytest.raises(ValueError, match="queries must be finite, got nan at index 1"):
            search_fn(reference, queries, norm=norm)
    is_bad = ~np.isfinite(queries).all(axis=1)
    found = jax.jit(functools.partial(neighbors.nearest, k=4, norm=norm))(reference, queries)
    assert np.isnan(found.distances[is_bad]).all() and (np.asarray(found.indices)[is_bad] == -1).all()
    np.testing.assert_array_equal(found.indices[~is_bad], expected.indices[~is_bad])
    np.testing.assert_array_equal(found.distances[~is_bad], expected.distances[~is_bad])
    classes = jax.jit(functools.partial(neighbors.predict, norm=norm))(reference, queries)
    np.testing.assert_array_equal(classes, np.where(is_bad, -1, expected_classes))
    table = jax.jit(functools.partial(neighbors.class_distances, norm=norm))(reference, queries)
    np.testing.assert_array_equal(table, np.where(is_bad[:, None], np.nan, expected_table))


@pytest.mark.slow
@pytest.mark.parametrize("point_dtype", DTYPES)
@pytest.mark.parametrize("query_dtype", DTYPES)
def test_no_queries_at_all(point_dtype, query_dtype):
    reference = neighbors.fit(_random(0, 40, 4, point_dtype).reshape(40, 2, 2), _labels(40, 3), 3)
    queries = np.zeros((0, 2, 2), query_dtype)
    for norm in NORMS:
        found = neighbors.nearest(reference, queries, 3, norm=norm)
        assert found.distances.shape == found.indices.shape == (0, 3)
        assert neighbors.predict(reference, queries, norm=norm).shape == (0,)
        assert neighbors.class_distances(reference, queries, norm=norm).shape == (0, 3)
    assert neighbors.nearest_in_class(reference, queries, 1, 2).indices.shape == (0, 2)
    assert neighbors.soft_logits(reference, queries, 0.1).shape == (0, 3)


@pytest.mark.slow
def test_units_that_cannot_belong_together():
    pixels, floats = _random(0, 20, 4, "uint8"), _random(0, 20, 4, "uint8").astype(np.float32)
    by_floats, by_pixels = (neighbors.fit(points, np.zeros(20, int), 1) for points in (floats, pixels))
    for call in (neighbors.nearest, neighbors.predict, lambda *pair: neighbors.soft_logits(*pair, 1.0)):
        with pytest.raises(ValueError, match="queries must be in the units .* points lie between .* and 25") as error:
            call(by_floats, pixels)
        assert "\n" not in str(error.value)
        with pytest.warns(UserWarning, match="queries must be in the units of the points: .* divide pixels of 0..255"):
            call(by_pixels, floats)
    unit = neighbors.fit(floats / 255, np.zeros(20, int), 1)
    np.testing.assert_array_equal(neighbors.nearest(unit, pixels).indices[:, 0], np.arange(20))
    with pytest.raises(ValueError, match="queries must be in the units .* points lie between -1"):
        neighbors.nearest(neighbors.fit(floats / 127.5 - 1, np.zeros(20, int), 1), pixels)
    # One pixel may be far out.
    few = floats / 255
    few[:, 0] += 4
    neighbors.nearest(by_pixels, few)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_scores_that_leave_float32(scale):
    # Squares under- or overflow float32: every proof fails, and float64 decides.
    points = (_random(0, 400, 6, "float32") * scale).astype(np.float32)
    queries = (_random(2, 8, 6, "float32") * scale).astype(np.float32)
    _check(points, _labels(400, 2), queries, 2, 4, "l2", block_size=256)


def test_float_queries_between_pixels():
    # Queries half way between integers suffer most from the bfloat16 screen.
    points = _random(0, 500, 30, "uint8")
    queries = ((_random(2, 20, 30, "uint8") + 0.5) / 255).astype(np.float32)
    _check(points, _labels(500, 2), queries, 2, 3, "l2")


def test_rounding_of_queries_is_part_of_the_proof():
    # Pixels at 228.24 are screened as 228. Decoys score 4 there and are at 3.33; the neighbour scores 5, is at 2.89.
    # A proof that forgot the rounding would accept a decoy, because 4 > 3.33 seems to rule out all others.
    rng = np.random.default_rng(0)
    points = np.repeat([[228] * 5 + [128] * 20], 401, axis=0).astype(np.uint8)
    for row in range(400):
        points[row, np.r_[rng.choice(5, 2, replace=False), 5 + rng.choice(20, 2, replace=False)]] += 1
    points[400, :5] += 1
    queries = (np.array([[228.24] * 5 + [128] * 20]) / 255).astype(np.float32)
    assert truths.nearest(points, queries, 1, "l2")[1] == 400
    _check(points, _labels(401, 2), queries, 2, 1, "l2")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("norm", NORMS)
def test_extreme_pixels_are_exact(norm):
    # The largest sums an accumulator meets, and sums that differ by one in 2 * 10^8.
    points = np.zeros((20, 3072), np.uint8)
    points[:10] = 255
    points[np.arange(20), np.arange(20)] ^= 1
    queries = np.concatenate([np.zeros((1, 3072)), np.full((1, 3072), 255), np.eye(1, 3072)]).astype(np.uint8)
    _check(points, _labels(20, 2), queries, 2, 5, norm)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pixel_one_class_one_point(dtype):
    reference = _check(np.array([[7]], dtype), np.array([0]), np.array([[3], [9]], dtype), 1, 1, "l2")
    np.testing.assert_array_equal(neighbors.predict(reference, np.array([[3]], dtype)), [0])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_without_points_is_infinitely_far(norm, dtype):
    points, labels = _random(0, 40, 6, dtype), np.full(40, 1)
    reference = neighbors.fit(points, labels, 3)
    found = np.asarray(neighbors.class_distances(reference, points[:2], norm=norm))
    assert np.isinf(found[:, [0, 2]]).all() and (found[:, 1] == 0).all()
    np.testing.assert_array_equal(neighbors.predict(reference, points[:2], norm=norm), [1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "dtype", "norm"),
    [(21, "uint8", "l2"), (1000, "uint8", "linf"), (1000, "float32", "l2"), (21, "float32", "l1")],
)
def test_beyond_the_points_there_is_no_neighbour(k, dtype, norm):
    points, queries = _random(0, 20, 4, dtype), _random(2, 5, 4, dtype)
    reference = neighbors.fit(points, _labels(20, 2), 2)
    expected = neighbors.nearest(reference, queries, 20, norm=norm)
    for search_fn in (neighbors.nearest, jax.jit(neighbors.nearest, static_argnames=("k", "norm"))):
        found = search_fn(reference, queries, k=k, norm=norm)
        np.testing.assert_array_equal(found.indices[:, :20], expected.indices)
        np.testing.assert_array_equal(found.distances[:, :20], expected.distances)
        assert found.indices.shape == found.distances.shape == (5, k)
        assert np.all(found.indices[:, 20:] == -1) and np.isposinf(found.distances[:, 20:]).all()
    of_class = neighbors.nearest_in_class(reference, queries, 1, k)
    count = int((_labels(20, 2) == 1).sum())
    assert np.all(of_class.indices[:, :count] >= 0) and np.all(of_class.indices[:, count:] == -1)
    assert np.isposinf(of_class.distances[:, count:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "norm"), [("uint8", "l2"), ("uint8", "linf"), ("float32", "l1")])
def test_a_point_left_out_is_not_seen(dtype, norm):
    points, leave_out = _random(0, 20, 4, dtype), np.where(np.arange(20) % 3, np.arange(20), -1)
    reference = neighbors.fit(points, _labels(20, 2), 2)
    everyone = neighbors.nearest(reference, points, 20, norm=norm)
    for k in (1, 25):
        found = neighbors.nearest(reference, points, k, norm=norm, leave_out=leave_out)
        for b, out in enumerate(leave_out):
            is_seen = everyone.indices[b] != out
            shown = min(k, is_seen.sum())
            np.testing.assert_array_equal(found.indices[b, :shown], everyone.indices[b][is_seen][:shown])
            np.testing.assert_array_equal(found.distances[b, :shown], everyone.distances[b][is_seen][:shown])
            assert np.all(found.indices[b, shown:] == -1) and np.isposinf(found.distances[b, shown:]).all()
    if dtype == "float32":
        points[[3, 4]] = np.nan  # one of them leaves a point out
        found = jax.jit(lambda x: neighbors.nearest(reference, x, 25, leave_out=leave_out))(points)
        assert np.all(found.indices[3:5] == -1) and np.isnan(found.distances[3:5]).all()


@pytest.mark.slow
def test_query_blocks_change_nothing(monkeypatch):
    points, labels = _random(0, 100, 12, "float32"), _labels(100, 2)
    monkeypatch.setattr(search, "_QUERY_BLOCK", 8)
    jax.clear_caches()
    _check(points, labels, _random(2, 21, 12, "float32"), 2, 2, "l2")
    jax.clear_caches()


def test_points_left_out_may_be_traced():
    points = _random(0, 20, 4, "uint8")
    reference = neighbors.fit(points, _labels(20, 3), 3)
    leave_out = np.arange(20)
    found = jax.jit(lambda out: neighbors.nearest(reference, points, 2, leave_out=out).indices)(leave_out)
    np.testing.assert_array_equal(found, neighbors.nearest(reference, points, 2, leave_out=leave_out).indices)


@pytest.mark.slow
def test_under_jit_and_vmap_and_without():
    points, labels = _random(0, 80, 9, "float32").reshape(80, 3, 3), _labels(80, 2)
    queries = _random(2, 6, 9, "float32").reshape(6, 3, 3)
    reference = neighbors.fit(points, labels, 2)
    expected = truths.nearest(points, queries, 2, "l2")[1]
    np.testing.assert_array_equal(
        jax.jit(functools.partial(neighbors.nearest, k=2))(reference, queries).indices, expected
    )
    with jax.disable_jit():
        np.testing.assert_array_equal(neighbors.nearest(reference, queries[:1], 2).indices, expected[:1])
    each = jax.vmap(lambda query: neighbors.nearest(reference, query[None], 2).indices[0])(queries)
    np.testing.assert_array_equal(each, expected)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_uint8_and_its_float_copy_agree(norm):
    points, queries = _random(0, 400, 50, "uint8"), _random(2, 40, 50, "uint8")
    reference = neighbors.fit(points, _labels(400, 2), 2)
    table = np.sort(truths.pairwise(points, queries, norm), axis=1)
    untied = table[:, 0] < table[:, 1]
    assert untied.sum() > 10
    from_integers = np.asarray(neighbors.nearest(reference, queries, norm=norm).indices)
    from_floats = neighbors.nearest(reference, queries.astype(np.float32) / np.float32(255), norm=norm).indices
    np.testing.assert_array_equal(from_integers[untied], np.asarray(from_floats)[untied])
    assert (np.asarray(neighbors.nearest(reference, truths.as_pixels(points).astype(np.float32)).distances) == 0).all()


def test_nothing_flows_back():
    reference = neighbors.fit(_random(0, 30, 4, "float32"), _labels(30, 2), 2)
    gradient = jax.grad(lambda q: neighbors.class_distances(reference, q).sum())(_random(2, 3, 4, "float32"))
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("norm", "query_dtype"), [("l2", "uint8"), ("l2", "float32"), ("l1", "float32")])
def test_memory_does_not_grow_with_the_points(norm, query_dtype):
    queries = _random(2, 64, 256, query_dtype)

    def temporary_bytes(count: int) -> int:
        reference = neighbors.fit(_random(0, count, 256, "uint8"), np.zeros(count, int), 1, block_size=128)
        compiled = search._nearest.lower(reference, queries, k=1, norm=norm).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(1_000), temporary_bytes(16_000)
    assert many <= few + 1024
    assert many < 16_000 * 64 * 4, "less than one [Q, n] table"


def test_tasks_of_one_shape_compile_once():
    start = search._nearest._cache_size()
    for seed, count in enumerate((97, 99, 104)):  # 100 +- a few points a class: the same number of blocks
        points = _random(seed, 2 * count, 33, "uint8")
        reference = neighbors.fit(points, np.repeat([0, 1], count), 2)
        neighbors.predict(reference, points[:5])
    assert search._nearest._cache_size() == start + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l3"}, "norm must be one of"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"leave_out": np.array([0, 20])}, r"leave_out must be in -1\.\.19, got 20 at index 1"),
        ({"leave_out": np.array([0])}, r"leave_out must be integers \[2\], got int64 of shape \(1,\)"),
        ({"queries": np.zeros((2, 5), np.uint8)}, r"queries must be \[N, ...\] with 4 pixels"),
        ({"queries": np.zeros(4, np.uint8)}, r"queries must be \[N, ...\]"),
        ({"queries": np.zeros((2, 4), np.int32)}, "queries must be uint8 or floating point, got dtype int32"),
    ],
)
def test_bad_search(change, message):
    reference = neighbors.fit(_random(0, 20, 4, "uint8"), np.zeros(20, int), 1)
    arguments = {"queries": np.zeros((2, 4), np.uint8), "k": 1, "norm": "l2"} | change
    with pytest.raises(ValueError, match=message):
        neighbors.nearest(reference, **arguments)


@pytest.mark.slow
def test_mnist_equals_integers(tfds_dir):
    from nn_adv import data

    mnist = data.load("mnist", data_dir=str(tfds_dir))
    reference = neighbors.fit(mnist.train_images, mnist.train_labels, 10)
    queries = mnist.test_images[:1000]
    found = neighbors.nearest(reference, queries, 3)
    expected = _integer_search(mnist.train_images, queries, 3)
    np.testing.assert_array_equal(found.indices, expected[1])
    np.testing.assert_allclose(found.distances, np.sqrt(expected[0]) / 255, rtol=1e-7)


def _integer_search(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return exact squared distances and indices by one product: float64 holds these integers exactly."""
    points, queries = (x.reshape(len(x), -1).astype(np.float64) for x in (points, queries))
    table = (points**2).sum(1) - 2 * queries @ points.T + (queries**2).sum(1)[:, None]
    keyed = table.astype(np.int64) * 2**17 + np.arange(len(points))
    best = np.sort(np.partition(keyed, k, axis=1)[:, :k], axis=1)
    return best // 2**17, best % 2**17


@pytest.mark.slow
def test_accuracy_on_cifar10_jpeg_copy(tfds_dir):
    from nn_adv import data

    cifar = data.load("cifar10", data_dir=str(tfds_dir))
    reference = neighbors.fit(cifar.train_images, cifar.train_labels, 10)
    predicted = np.asarray(neighbors.predict(reference, jnp.asarray(cifar.test_images)))
    # Searches in float32 answer 3529: they cannot tell apart the two nearest points of image 6785, one of either
    # class, at squared distances 4298844 and 4298878.
    assert (predicted == cifar.test_labels).sum() == 3530
    found = neighbors.nearest(reference, cifar.test_images[6785:6786], 2)
    difference = cifar.train_images[np.asarray(found.indices[0])].astype(int) - cifar.test_images[6785]
    np.testing.assert_array_equal((difference**2).sum(axis=(1, 2, 3)), [4298844, 4298878])


@pytest.mark.parametrize(
    "call",
    [
        lambda points, images: neighbors.nearest(points, images),
        lambda points, images: neighbors.nearest_in_class(points, images, 0),
        lambda points, images: neighbors.class_distances(points, images),
        lambda points, images: neighbors.predict(points, images),
        lambda points, images: neighbors.soft_logits(points, images, 1.0),
        lambda points, images: certify.vote(points, images, 1),
        lambda points, images: certify.vote_bounds(points, images, [0], k=1, norm="l2"),
        lambda points, images: certify.margin_bound(points, images, [0], distance_norm="l2", threat_norm="l2"),
        lambda points, images: certify.embedded_radius(points, images, [0], embed=None, norm="l2"),
        lambda points, images: certify.eight_bit_radius(points, images, [0], None, norm="l2"),
    ],
)
def test_points_that_were_not_fitted(call):
    points = np.eye(4, dtype=np.float32)
    for given, kind in ((points, "ndarray"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"^reference must be from neighbors.fit, shard or stream, got {kind}$"):
            call(given, points[:1])


def test_no_gradient_flows_through_distances():
    reference = neighbors.fit(np.eye(4, dtype=np.float32), [0, 0, 1, 1], 2)

    def distance(queries):
        return neighbors.nearest_in_class(reference, queries, 1).distances.sum() + queries.sum()

    assert np.array_equal(jax.grad(distance)(jnp.full((2, 4), 0.5)), np.ones((2, 4)))


def test_predictions_without_a_point():
    points = np.eye(3, dtype=np.float32)
    reference = neighbors.fit(points, [0, 1, 2], 3)
    assert neighbors.predict(reference, points, leave_out=[0, -1, 2]).tolist() == [1, 1, 0]
    assert neighbors.predict(neighbors.fit(points[:1], [0], 1), points[:1], leave_out=[0]).tolist() == [-1]
