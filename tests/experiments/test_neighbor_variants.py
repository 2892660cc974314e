"""Variants of 1NN: what they are made of, and a run of each question end to end on a few images."""

import csv
import itertools

import numpy as np
import pytest

from configs import neighbor_variants as config_file
from experiments import neighbor_variants, runner, store, variants
from experiments.report import labels, page, rates
from experiments.report import neighbor_variants as variants_report
from experiments.report.records import Run
from nn_adv import data
from tests.experiments import report_rows

EPSILONS = {"linf": 0.1, "l2": 0.8}


@pytest.fixture(scope="module")
def task():
    return data.tasks(data.load("digits"), "pairs")[0]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 3, 4, 1), np.uint8)


def test_subsets_are_nested_balanced_and_drawn_anew_by_each_seed(task):
    small, large = (variants.of_task(f"1nn+subset:{size}", task, 3) for size in (10, 20))
    assert set(small.train_index) < set(large.train_index) and len(large.train_index) == 20
    assert np.bincount(small.train_labels).tolist() == [5, 5]
    other = variants.of_task("1nn+subset:10", task, 4)
    assert set(small.train_index) != set(other.train_index)
    labels = dict(zip(task.train_index, task.train_labels, strict=True))
    assert [labels[index] for index in small.train_index] == small.train_labels.tolist()


def test_swapped_labels_are_nested_and_another_class(task):
    few, many = (variants.of_task(f"1nn+swap:{share}", task, 0).train_labels for share in (0.1, 0.3))
    count = len(task.train_labels)
    assert np.sum(few != task.train_labels) == round(0.1 * count)
    assert np.sum(many != task.train_labels) == round(0.3 * count)
    assert np.all((many != task.train_labels)[few != task.train_labels])


def test_copies_are_mirrored_and_moved(images):
    labels = np.arange(6) % 2
    made = variants.make("1nn+mirror", images, labels, seed=0, epsilons=EPSILONS)
    assert np.array_equal(made.points[6:, :, ::-1], images) and made.labels.tolist() == [*labels, *labels]
    made = variants.make("1nn+shift:1", images, labels, seed=0, epsilons=EPSILONS)
    assert np.array_equal(made.points[:6], images) and len(made.points) == len(made.labels) == 30
    assert np.array_equal(made.points[6:12, 1:], images[:, :-1])  # down, the first row repeated
    assert np.array_equal(made.points[6:12, 0], images[:, 0])
    assert np.array_equal(made.points[24:, :, :-1], images[:, :, 1:])  # to the left


def test_steps_are_done_one_after_the_other(images):
    labels = np.array([0, 0, 0, 1, 1, 1])
    made = variants.make("1nn+mirror+centres:2", images, labels, seed=0, epsilons=EPSILONS)
    assert made.labels.tolist() == [0, 0, 1, 1] and made.metric == "l2"
    assert variants.make("1nn+metric:linf", images, labels, seed=0, epsilons=EPSILONS).metric == "linf"


def test_distances_are_measured_after_a_linear_map(images):
    labels = np.arange(6) % 2
    pixels = images.reshape(6, 12) / 255
    low = variants.make("1nn+low-pass:1", images, labels, seed=0, epsilons=EPSILONS).linear_map
    np.testing.assert_allclose(low @ pixels.T, [pixels.sum(axis=1) / np.sqrt(12)], atol=1e-5)  # the mean of the image
    pca = variants.make("1nn+pca:2", images, labels, seed=0, epsilons=EPSILONS).linear_map
    top = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)[2][:2]
    np.testing.assert_allclose(np.abs(np.sum(pca * top, axis=1)), 1, atol=1e-4)


def test_alternatives_are_every_choice():
    found = variants.alternatives("1nn+mirror+prune:2|3+centres:4|8")
    assert found[:2] == ["1nn+mirror+prune:2+centres:4", "1nn+mirror+prune:2+centres:8"] and len(found) == 4
    assert variants.is_random("1nn+swap:0.1") and not variants.is_random("1nn+mirror+prune:2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2nn", "variants must begin with 1nn"),
        ("1nn+magic", "variants must be made of .* got 'magic'"),
        ("1nn+subset", "got 'subset'"),
        ("1nn+subset:ten", "got 'subset:ten'"),
        ("1nn+mirror:3", "got 'mirror:3'"),
        ("1nn+swap:1.5", "variants must have finite numbers above 0"),
        ("1nn+prune:inf", "variants must have finite numbers above 0"),
        (5, "variants must begin with 1nn, got 5"),
        ("1nn+metric:l3", "norm must be one of"),
        ("1nn+mirror+subset:5", "variants must begin with subset and swap"),
        ("1nn+subset:10+subset:20", "variants must have each step once"),
        ("1nn+pca:3+low-pass:3", "and one of pca and low-pass"),
    ],
)
def test_unknown_variants_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        variants.alternatives(name)


@pytest.mark.parametrize("question", ["separated", "growing", "robust"])
@pytest.mark.parametrize("dataset", [*config_file.DATASETS, "npz:/some/where.npz"])
def test_every_configuration_passes_the_checks(question, dataset):
    neighbor_variants.check(config_file.get_config(f"{question},{dataset}"))


@pytest.mark.parametrize("argument", ["digits", "separated", "separated,imagenet", "shrinking,digits"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(ValueError, match="config argument"):
        config_file.get_config(argument)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ()}, "variants must name at least one"),
        ({"variants": ("1nn+centres:1|2",)}, "tasks.holdout and num_choosing must be above 0"),
        ({"seeds": (-1,)}, "seeds must be in 0..4294967295, got -1"),
        ({"seeds": ()}, r"seeds must be in .*got \(\)"),
        ({"seeds": (2**32,)}, "seeds must be in 0..4294967295, got 4294967296"),
        ({"separation": ("l3",)}, "norm must be one of"),
        (
            {"separation": ("linf", "l1"), "epsilons": {"l1": 0.0}},
            "separation must hold norms that have epsilons, got l1",
        ),
        ({"variants": ("1nn", "1nn")}, "variants must not hold anything twice"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    config = config_file.get_config("growing,digits")
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        neighbor_variants.check(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1nn+subset:1199", "more than subset:1198 on all"),
        ("1nn+subset:16+low-pass:9", "more than low-pass:8"),
        ("1nn+shift:8", "more than shift:7"),
        ("1nn+pca:65", "more than pca:64"),
    ],
)
def test_more_than_the_data_have_is_refused_before_any_run(name, message):
    config = config_file.get_config("growing,digits")
    config.variants = ("1nn", name)
    with pytest.raises(ValueError, match=message):
        neighbor_variants.make_plan(config)


def test_held_out_images_join_in_unless_they_choose():
    config = config_file.get_config("growing,digits")
    config.tasks.holdout = 0.1
    config.variants = ("1nn+subset:1198",)
    assert neighbor_variants.make_plan(config).groups
    config.variants = ("1nn+subset:1198|16",)
    with pytest.raises(ValueError, match="more than subset:107. on all"):
        neighbor_variants.make_plan(config)


def _num_train():
    (task,) = (task for task in data.tasks(data.load("digits"), "pairs") if task.name == "3v8")
    return len(task.train_index)


def _run(workdir, argument, **changes):
    config = config_file.get_config(argument)
    config.epsilons.l1 = 0.0
    config.evaluation.images_per_split = 20
    config.tasks.update(kind="pairs", names=("3v8",))
    config.update(changes)
    report = runner.run(neighbor_variants, config, workdir)
    rows, problems = store.read_rows(workdir)
    assert not problems
    return rows, report, report.page.with_suffix(".md").read_text()


@pytest.mark.slow
def test_training_images_keep_their_label_up_to_half_the_distance_of_the_classes(tmp_path):
    names = ("1nn", "1nn+swap:0.1", "1nn+metric:l2")
    rows, report, text = _run(tmp_path, "separated,digits", variants=names, separation=("l2",))
    plain, swapped, margins = ({row["method"]: row for row in rows}[name] for name in names)
    assert 0 < plain["separation"]["l2"] / 2 <= plain["least_radius"]["train"]["l2"]
    assert swapped["separation"]["l2"] < plain["separation"]["l2"]
    # The margin's bound in the norm of the distance is at least d0 / 2 too, and never above the exact radius.
    assert margins["separation"]["l2"] / 2 - 1e-6 <= margins["least_radius"]["train"]["l2"]
    assert margins["least_radius"]["train"]["l2"] <= plain["least_radius"]["train"]["l2"]
    assert {item["kind"] for item in margins["evaluations"] if item["norm"]} <= {"certified", "exact"}
    assert "Training images against half the distance" in text
    assert {path.name for path in (report.page.parent / "figures").iterdir()} == {
        f"{name}.{form}" for name in ("train-l2", "curve-test-l2", "curve-test-linf") for form in ("png", "svg")
    }
    lines = list(csv.DictReader(report.table.open()))
    assert {line["num_points"] for line in lines} == {str(_num_train())}


@pytest.mark.slow
def test_held_out_images_choose_and_join_in(tmp_path):
    rows, _, text = _run(
        tmp_path, "robust,digits", variants=("1nn+centres:1|4", "1nn+prune:0.5|1.5"), num_choosing=10,
        epsilons={"linf": 0.0},
    )  # fmt: skip
    for row in rows:
        assert row["chosen"]["variant"] in row["chosen"]["held_out"] and len(row["chosen"]["held_out"]) == 2
        best = max(row["chosen"]["held_out"].values())
        assert row["chosen"]["held_out"][row["chosen"]["variant"]] == best
        assert row["num_train"] == _num_train()
    assert "What held-out images chose" in text


def _growth(b=0.5, draws=5):
    sizes = 2.0 ** np.arange(4, 10)
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal((draws, len(sizes)))
    return rates.Growth(sizes, 1 - 2 * sizes**-b * noise)


def test_a_power_law_is_found_again_with_its_interval():
    one = _growth()
    a, b = one.power()
    low, high = one.power_interval()
    assert a == pytest.approx(2, rel=0.05) and b == pytest.approx(0.5, abs=0.02) and low < 0.5 < high < low + 0.1
    by_power, by_line = one.needed(0.99)
    assert by_power == pytest.approx((2 / 0.01) ** 2, rel=0.2) and by_line > one.sizes[-1]


def test_what_does_not_grow_never_reaches_a_target():
    flat = rates.Growth(np.array([16.0, 32, 64]), np.full((3, 3), 0.5))
    assert flat.needed(0.6) == (np.inf, np.inf)
    assert labels.number(flat.power()[1], 3) == labels.number(-flat.power()[1], 3) == "0.000"


def test_what_is_reached_needs_no_more_images_whichever_way_it_grows():
    for one in (_growth(), rates.Growth(np.array([16.0, 32, 64]), np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]]))):
        assert one.needed(one.mean[-1] - 0.1) == (one.sizes[-1], one.sizes[-1])


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (-0.0, 2, "", "0.00"),
        (-0.004, 2, "", "0.00"),
        (-0.26, 1, "+", "−0.3"),
        (0.26, 1, "+", "+0.3"),
        (2.0, 0, "", "2"),
    ],
)
def test_numbers_have_a_true_minus_and_zero_none(value, digits, sign, text):
    assert labels.number(value, digits, sign) == text


def _row(task, method, robust, *, seed=0, kind="exact", **fields):
    items = [report_rows.evaluation("test", None, 0.0, "clean", 100, 100)]
    items.append(report_rows.evaluation("test", "linf", 0.1, kind, 100, robust))
    own = {"num_points": 10, "separation": {}, "least_radius": {}, "chosen": None}
    return report_rows.row(task, method, items, seed=seed, radii={"linf": 0.1}) | own | fields


def test_variants_are_compared_on_the_tasks_that_all_have():
    rows = [_row("0v1", "1nn", 50), _row("0v2", "1nn", 90), _row("0v1", "1nn+mirror", 60)]
    run = Run(rows, num_missing=1)
    text = page.to_markdown(variants_report.blocks(run), way="figures/")
    assert "Not complete: 1 of 4 units are missing." in text
    assert "= 50.0" in variants_report.summary(run) and "70.0" not in text


def test_training_images_that_were_not_asked_for_promise_nothing():
    run = Run([_row("0v1", "1nn", 50, separation={"linf": 0.3})])
    assert "Training images against half" in page.to_markdown(variants_report.blocks(run), way="figures/")


def test_growth_tells_of_each_radius_how_many_draws_it_has():
    sizes, rows = (16, 32, 64), []
    for seed, size in itertools.product(range(3), sizes):
        kind = "attacked" if (seed, size) == (0, 32) else "exact"  # this draw is only bounded at one size
        rows.append(_row("0v1", f"1nn+subset:{size}", size, seed=seed, kind=kind, num_train=size))
    rows.append(_row("0v1", "1nn+subset:16+mirror", 50, num_train=16))
    grown = rates.growth(rows)
    assert {condition.norm: len(one.shares) for (_, condition), one in grown.items()} == {None: 3, "linf": 2}
    text = page.to_markdown(variants_report.blocks(Run(rows)), way="figures/")
    assert "over 2 draws" in text and "over 3 draws" not in text
    few = [row for row in rows if row["seed"] == 0]
    few += [_row("0v1", f"1nn+subset:{size}", size, seed=1, kind="attacked", num_train=size) for size in sizes]
    assert "draws. Right" not in page.to_markdown(variants_report.blocks(Run(few)), way="figures/")


def test_growth_is_read_from_rows_of_subsets(tmp_path):
    rows, report, text = _run(
        tmp_path, "growing,digits", variants=tuple(f"1nn+subset:{size}" for size in (16, 18, 20)), seeds=(0, 1),
        epsilons={"linf": 0.0},
    )  # fmt: skip
    assert len(rows) == 6
    grown = rates.growth(rows)
    ((task, _),) = {(task, None) for task, _ in grown}
    assert task == "3v8" and all(one.shares.shape == (2, 3) for one in grown.values())
    assert "Robust accuracy against the number of training images" in text
    assert "worst" not in text  # of one norm
    names = {path.name for path in (report.page.parent / "figures").iterdir()}
    assert names == {f"{kind}-l2.{form}" for kind in ("growth", "missing") for form in ("png", "svg")}
