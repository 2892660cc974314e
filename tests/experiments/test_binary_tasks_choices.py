"""What a configuration of the experiment may choose, what that changes, and what is refused."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import binary_tasks, evaluate, files, parsing, radii, runner, store
from nn_adv import certify, data, evaluation, neighbors
from tests.experiments.tiny_runs import counted, tiny_config


def test_pictures_are_kept_of_the_first_and_the_last_task_and_the_first_seed():
    made = binary_tasks.make_plan(tiny_config(tasks={"names": ("3v8", "1v7", "0v1")}, seeds=(3, 1)))
    pictured = {unit.name for group in made.groups for unit in group if (unit.task.name, unit.seed) in made.pictured}
    assert pictured == {f"digits/{task}/{method}" for task in ("3v8", "0v1") for method in ("1nn/0", "trades-both/3")}


def test_a_variant_of_1nn_is_a_method_like_others(tmp_path):
    config = tiny_config(methods=("1nn", "1nn+mirror"))
    config.tasks.names = ("3v8",)
    report = runner.run(binary_tasks, config, tmp_path)
    known = radii.load(tmp_path / "radii" / "3v8-mirror.npz")
    task, dataset = parsing.with_holdout(binary_tasks.make_plan(config).groups[0][0].task), data.load("digits")
    images = dataset.train_images[task.train_index]
    points = np.concatenate([images, images[:, :, ::-1]])
    reference = neighbors.fit(points, np.tile(task.train_labels, 2), 2)
    is_test = known.split == "test"
    images, labels = (
        dataset.test_images[known.image[is_test]],
        (dataset.test_labels[known.image[is_test]] == 8).astype(int),
    )
    for row, norm in enumerate(known.norms.tolist()):
        exact = certify.radius(reference, images, labels, norm=norm)
        np.testing.assert_array_equal(known.lower[row, is_test], exact.lower)
    text = report.page.read_text()
    assert "1NN+mirror" in text and not re.search("1NN is .{1,10} 1NN", text)  # a variant is no rival


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("1nn+sharpen", "variants must be made of subset:int.* got 'sharpen' in '1nn\\+sharpen'"),
        (
            "1nn+prune:2|3",
            "variants of 1NN without alternatives that measure in l2, got .1nn.prune:2|3",
        ),
        ("1nn+metric:linf", "without alternatives that measure in l2, got '1nn.metric:linf'"),
        ("2nn", "methods must be some of 1nn, ceiling, standard.*got 2nn"),
        (5, "methods must be some of .*got 5"),
    ],
)
def test_methods_that_are_none_are_refused(method, message):
    with pytest.raises(ValueError, match=message):
        binary_tasks.check(tiny_config(methods=("1nn", method)))


def test_what_is_only_bounded_is_counted_from_both_sides():
    known = radii.Radii(
        norms=np.array(["linf", "l2"]),
        lower=np.array([[0.1, 0.3, 0.0, 0.1], [1.0, 3.0, 0.0, np.inf]]),
        upper=np.array([[0.1, 0.6, 0.0, 0.1], [1.0, 3.0, 0.0, np.inf]]),
        exact=np.array([[True, False, True, True], [True, True, True, True]]),
        correct=np.array([True, True, False, True]),
        split=np.array(["train", "test", "test", "test"]),
        image=np.arange(4),
    )
    config = tiny_config(curve=(0.5,), fine_curve=())
    config.epsilons.linf, config.epsilons.l2 = 0.4, 1.0
    found = {
        (record.split, record.norm, record.epsilon, record.kind): record.robust
        for record in evaluate.exact_records(parsing.Evaluation.read(config), known)
    }
    assert found["train", "linf", 0.4, "exact"] == 0 and found["test", "linf", 0.2, "exact"] == 1
    assert found["test", "linf", 0.4, "certified"] == 0 and found["test", "linf", 0.4, "attacked"] == 1
    assert found["test", "l2", 1.0, "exact"] == 2 and found["test", None, 0.0, "clean"] == 2
    assert found["test", "worst", None, "certified"] == 0 and found["test", "worst", None, "attacked"] == 1
    assert ("test", "linf", 0.4, "exact") not in found
    assert radii.num_bounded(known) == {"linf": 1, "l2": 0}


@pytest.mark.parametrize("content", [b"PK", b"PK\x03\x04" + b"0" * 99])
def test_a_damaged_file_of_radii_says_what_to_do(tmp_path, content):
    (tmp_path / "3v8.npz").write_bytes(content)
    with pytest.raises(ValueError, match="3v8.npz cannot be read .* remove it"):
        radii.load(tmp_path / "3v8.npz")


@pytest.mark.slow
def test_bounds_that_contradict_each_other_end_the_run_after_the_report(tmp_path, monkeypatch):
    config = tiny_config(methods=("1nn",))
    exact = evaluate.exact_records

    def wrong(*arguments):
        return [dataclasses.replace(one, robust=0) if one.kind == "clean" else one for one in exact(*arguments)]

    monkeypatch.setattr(evaluate, "exact_records", wrong)
    with pytest.raises(ValueError, match=r"certified <= exact <= attacked does not hold: .* exact .* > clean"):
        runner.run(binary_tasks, config, tmp_path)
    assert counted(tmp_path) and "trust nothing" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_adding_a_pair_continues_and_another_radius_refuses(tmp_path):
    config = tiny_config(methods=("1nn",))
    runner.run(binary_tasks, config, tmp_path)
    config.tasks.names = ("3v8", "1v7", "0v1")
    runner.run(binary_tasks, config, tmp_path)
    assert len(counted(tmp_path)) == 3
    config.epsilons.linf = 0.2
    with pytest.raises(files.ResultsError, match=r"epsilons\.linf: 0\.1 -> 0\.2.*--workdir"):
        runner.run(binary_tasks, config, tmp_path)


def test_more_seeds_train_more_networks_but_no_second_1nn():
    config = tiny_config(seeds=(0, 1))
    groups = binary_tasks.make_plan(config).groups
    names = [unit.name for group in groups for unit in group]
    assert len(names) == len(set(names)) == 6
    assert sum("1nn" in name for name in names) == 2


@pytest.mark.usefixtures("undrawn")
def test_the_ceiling_needs_the_images_alone(tmp_path):
    config = tiny_config(methods=("ceiling",), seeds=(0, 1))
    config.epsilons.l2 = 1.2
    runner.run(binary_tasks, config, tmp_path)
    found = counted(tmp_path)
    assert set(found) == {"digits/3v8/ceiling/0", "digits/1v7/ceiling/0"}
    made = binary_tasks.make_plan(config)
    chosen = evaluate.choose_images(made.dataset, made.groups[0][0].task, made.evaluation)
    test = chosen.split == "test"
    for norm, epsilons in {"linf": (0.025, 0.05, 0.1), "l2": (0.3, 0.6, 1.2)}.items():
        items = [item for item in found["digits/3v8/ceiling/0"] if (item["split"], item["norm"]) == ("test", norm)]
        shares = evaluation.ceiling(chosen.images[test], chosen.labels[test], epsilons, norm=norm)
        assert [(item["epsilon"], item["kind"], item["robust"]) for item in items] == [
            (epsilon, "ceiling", round(20 * share)) for epsilon, share in zip(epsilons, shares, strict=True)
        ]
    assert items[-1]["robust"] < 20


def test_evaluated_images_are_balanced_over_classes():
    labels = np.array([0] * 50 + [1] * 50)
    rows = evaluate.balanced(labels, 11)
    assert len(rows) == 11 and np.bincount(labels[rows]).tolist() == [6, 5]
    np.testing.assert_array_equal(evaluate.balanced(labels, 0), np.arange(100))


def test_a_network_that_cannot_take_the_images_is_refused_before_anything_starts():
    config = tiny_config()
    config.model.name = "small_cnn"  # its four convolutions need more than 8 x 8 pixels
    with pytest.raises(ValueError, match=r"model.name small_cnn does not take images of shape \(8, 8, 1\)"):
        binary_tasks.make_plan(config)


def _save_own_arrays(path):
    digits = data.load("digits")
    arrays = {}
    for split, images, labels in (
        ("train", digits.train_images, digits.train_labels),
        ("test", digits.test_images, digits.test_labels),
    ):
        kept = labels < 2
        arrays |= {f"{split}_images": images[kept] / np.float32(255), f"{split}_labels": labels[kept]}
    np.savez(path, **arrays)


@pytest.mark.slow
def test_own_float_arrays_run_end_to_end_wherever_their_file_lies(tmp_path, monkeypatch):
    _save_own_arrays(tmp_path / "mine.npz")
    config = tiny_config(dataset=f"npz:{tmp_path / 'mine.npz'}", methods=("trades-l2",))
    config.epsilons.linf = 0.0
    config.tasks.names = ()
    config.evaluation.attacks = ()  # the standard ensemble
    runner.run(binary_tasks, config, tmp_path / "run")
    (before,) = store.read_rows(tmp_path / "run")[0]
    (tmp_path / "mine.npz").rename(tmp_path / "a, b.npz")
    monkeypatch.chdir(tmp_path)
    config.dataset, config.methods = "npz:a, b.npz", ("1nn", "trades-l2")
    runner.run(binary_tasks, config, tmp_path / "run")
    rows, _ = store.read_rows(tmp_path / "run")
    assert before in rows and len(rows) == 2 and {row["dataset"] for row in rows} == {"mine"}
    found = counted(tmp_path / "run")
    clean = [e["robust"] for e in found["npz/0v1/1nn/0"] if e["norm"] is None]
    assert clean == [20, 20]


@pytest.mark.slow
def test_changed_pixels_refuse_to_mix(tmp_path, monkeypatch):
    config = tiny_config(methods=("1nn",))
    runner.run(binary_tasks, config, tmp_path)
    digits = data.load("digits")
    changed = dataclasses.replace(digits, train_images=digits.train_images // 2)
    monkeypatch.setattr(data, "load", lambda *_, **__: changed)
    with pytest.raises(files.ResultsError, match="data: .* -> "):
        runner.run(binary_tasks, config, tmp_path)


@pytest.mark.slow
def test_another_choice_of_pairs_trains_anew_beside_the_old(tmp_path):
    config = tiny_config(methods=("standard",))
    config.tasks.names = ("0v1", "8v9")
    runner.run(binary_tasks, config, tmp_path)
    config.tasks.names = ("0v1", "3v8", "8v9")
    runner.run(binary_tasks, config, tmp_path)
    assert len(counted(tmp_path)) == 3


def test_a_shard_without_work_makes_no_report(tmp_path):
    config = tiny_config(methods=("1nn",))
    assert runner.run(binary_tasks, config, tmp_path, shard=(5, 6)) is None
