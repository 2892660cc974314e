"""The audit of attacks against exact radii, end to end on a few digits."""

import csv
import re
import shutil

import numpy as np
import pytest

from configs import audit as config_file
from experiments import audit, failures, files, main, named_attacks, parsing, radii, report, runner, store
from experiments.report import audit as audit_report
from experiments.report.records import Run
from nn_adv import data

TINY = {
    "num_images": 20,
    "num_inside": 3,
    "batch_size": 16,
    "temperatures": (0.03, 0.3),
    "variants": ((3, 1, "margin"), (3, 2, "cross-entropy")),
    "every_variant_at_every_temperature": False,
    "tasks": {"kind": "pairs", "names": ("3v8",), "train_per_class": 20},
    "epsilons": {"linf": (0.1, 0.2), "l2": (), "l1": ()},
}


def tiny_config(**changes):
    config = config_file.get_config("digits")
    config.update(TINY)
    config.temperature = 0.3
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("audit")
    return workdir, runner.run(audit, tiny_config(), workdir).page


def _rows(workdir):
    rows, problems = store.read_rows(workdir)
    assert not problems
    return {row["unit"]: row for row in rows}


def test_one_thing_is_changed_at_a_time_or_everything():
    config = tiny_config()
    assert [attack.name for attack in audit.make_subjects(config, "linf")] == [
        "T0.03-3x1-margin",
        "T0.3-3x1-margin",
        "T0.3-3x2-cross-entropy",
    ]
    config.every_variant_at_every_temperature = True
    assert len(audit.make_subjects(config, "linf")) == 4


def test_rows_count_what_the_radii_say(finished):
    workdir, _ = finished
    rows = _rows(workdir)
    assert len(rows) == 3
    for name, row in rows.items():
        known = radii.load(workdir / row["files"][0])
        assert name == f"digits/3v8/{row['norm']}/" + name.rpartition("/")[2]
        assert row["count"] == 20 == len(known.correct) and row["correct"] == known.correct.sum()
        for item in row["audited"]:
            robust = known.correct & (known.lower[0] >= item["epsilon"])
            assert item["certified"] == item["at_most"] == robust.sum()
            assert item["attacked"] == known.correct.sum() - robust.sum()
            assert item["attacked_inside"] == min(3, robust.sum())
            assert item["certified"] <= item["unbroken"] <= row["correct"]
    weak = rows["digits/3v8/linf/T0.3-3x1-margin"]["audited"][1]
    assert weak["unbroken"] < weak["certified"] + weak["attacked"], "an attack that breaks nothing tests nothing"


@pytest.mark.usefixtures("undrawn")
def test_a_finished_audit_runs_nothing_again_and_a_longer_one_adds(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "shorter"
    shutil.copytree(finished[0], workdir)
    (file,) = workdir.glob("rows-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if "/T0.03-" not in line))
    config = tiny_config(temperatures=(0.3,))
    monkeypatch.setattr(radii, "measure", lambda *_, **__: pytest.fail("radii were computed twice"))
    with monkeypatch.context() as patch:
        patch.setattr(audit.Plan, "_nearest", lambda *_: pytest.fail("an attack was run twice"))
        runner.run(audit, config, workdir)
    before = _rows(workdir)
    config.temperatures = (0.3, 0.03)
    runner.run(audit, config, workdir)
    after = _rows(workdir)
    assert len(before) == 2 and len(after) == 3 and before.items() <= after.items()
    for name, row in after.items():
        assert row["audited"] == _rows(finished[0])[name]["audited"]
    monkeypatch.setattr(audit.Plan, "_nearest", lambda *_: pytest.fail("an attack was run twice"))
    runner.run(audit, config, workdir)
    config.step_share = 1.0
    with pytest.raises(files.ResultsError, match="step_share"):
        runner.run(audit, config, workdir)


def test_an_image_that_breaks_inside_its_radius_is_named(finished, tmp_path):
    config = tiny_config(temperatures=(0.3,))
    known = radii.load(finished[0] / "radii" / "3v8-linf.npz")
    wrong = np.where(known.correct, known.upper + 0.1, 0)
    radii.save(tmp_path / "wrong" / "radii" / "3v8-linf.npz", known._replace(lower=wrong, upper=wrong))
    config.num_inside = 20
    with pytest.raises(failures.SomeFailed):
        runner.run(audit, config, tmp_path / "wrong")
    reasons = {failure["reason"] for failure in failures.read(tmp_path / "wrong").values()}  # of each attack its own
    wrong = r"test image \d+ of digits, task 3v8, breaks at linf distance .* proven radius"
    assert len(reasons) == 2 and all(re.match(wrong, reason) for reason in reasons) and not _rows(tmp_path / "wrong")


def test_the_report_shows_points_beside_the_exact_answer(finished):
    workdir, page = finished
    text = (page.parent / "report.md").read_text()
    assert re.search(r"\| attack \| linf 0\.1 \(= \d+\.\d\) \| linf 0\.2 \(= \d+\.\d\) \|", text)
    assert "none broke at a smaller distance" in text
    assert len(list((page.parent / "figures").glob("*.png"))) == 2
    with open(page.parent / "audit.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    for line in lines:
        points = (int(line["unbroken"]) - int(line["certified"])) / int(line["count"])
        assert float(line["overstated_most"]) == pytest.approx(points, abs=1e-6)
        assert float(line["low95"]) - 1e-6 <= points <= float(line["high95"]) + 1e-6
    assert max(map(len, report.write(workdir).summary.splitlines())) <= 100


def _table(*rows):
    """Of (temperature, certified, at most, unbroken) of 200 images."""
    made = [
        {
            "unit": f"digits/all/linf/{number}",
            "dataset": "digits",
            "task": "all",
            "norm": "linf",
            "count": 200,
            "correct": 190,
            "attack": {"temperature": temperature, "num_steps": 40, "num_restarts": 1, "loss": "margin"},
            "audited": [
                {"epsilon": 0.1, "certified": certified, "at_most": at_most, "unbroken": unbroken}
                | {"attacked": 9, "attacked_inside": 2}
            ],
        }
        for number, (temperature, certified, at_most, unbroken) in enumerate(rows)
    ]
    return audit_report.table(Run(made))


def test_findings_name_the_best_and_the_worst_attack():
    sentence, _ = audit_report.findings(_table((10.0, 100, 100, 120), (0.1, 100, 100, 101)))
    assert "= 50.0 % of the images are robust" in sentence
    assert "leaves 50.5 % (T 0.1, 40 steps), the worst 60.0 % (T 10, 40 steps)" in sentence


def test_points_beside_bounds_are_a_range():
    found = _table((1.0, 90, 110, 112), (1.0, 90, 90, 90))
    shares = found[["overstated_least", "overstated_most"]].to_numpy()
    np.testing.assert_array_equal(100 * shares, [[1.0, 11.0], [0.0, 0.0]])
    assert [audit_report.points(item) for _, item in found.iterrows()] == ["+1.0 to +11.0", "0"]


@pytest.mark.parametrize(
    "argument",
    [*config_file.DATASETS, "npz:/some/where.npz", "digits,named", "cifar10,named", "npz:/some,where.npz,named"],
)
def test_every_configuration_passes_the_checks(argument):
    config = config_file.get_config(argument)
    audit.check(config)
    assert audit.make_subjects(config, "linf")


def test_every_sweep_item_passes_the_checks():
    items = main.sweep_items("configs/audit.py", {"num_images": 3})
    assert len({name for name, _ in items}) == len(items) == 3
    for _, config in items:
        audit.check(config)
        assert set(config.dataset.split()) <= set(data.DATASETS) and config.num_images == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilons": {"linf": (), "l2": (), "l1": ()}}, "epsilons must give"),
        ({"epsilons": {"linf": (-0.1,)}}, "epsilon must be a number"),
        ({"temperatures": (0.0,)}, "temperatures must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperatures": ("hot",)}, "temperatures must be above 0 and finite, got .'hot'"),
        ({"seed": -1}, "seed must be in 0..4294967295, got -1"),
        ({"best_of_temperatures": ()}, "best_of_temperatures must be above 0"),
        ({"attacks": ("pgd", "cleverhans-pgd")}, "attacks must be some of .*cleverhans-pgd"),
        ({"attacks": ("pgd", "pgd")}, "attacks must not hold anything twice"),
        ({"tasks": {"names": ("3v8", "3v8")}}, "tasks.names must not hold anything twice"),
        ({"variants": ()}, "variants must hold"),
        ({"variants": ((3, 1, "hinge"),)}, "variants must be .*hinge"),
        ({"variants": ((3, 0, "margin"),)}, "variants must be"),
        ({"variants": ((1.5, 1, "margin"),)}, "variants must be"),
        ({"variants": (5,)}, "variants must be .* got 5"),
        ({"variants": ((3, 1, ["margin"]),)}, "variants must be"),
        ({"attacks": (["pgd"],)}, r"attacks must be some of .*got \['pgd'\]"),
        ({"num_inside": -1}, "num_inside"),
        ({"batch_size": 0}, "batch_size"),
        ({"step_share": 0.0}, "step_share"),
        ({"tasks": {"names": ("3v3",)}}, "tasks.names must be some of"),
    ],
)
def test_wrong_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        audit.make_plan(tiny_config(**changes))


@pytest.mark.parametrize("argument", ["imagenet", "", "mnist,cpu"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(ValueError, match="config argument"):
        config_file.get_config(argument)


def test_only_what_a_row_says_belongs_to_its_identity():
    config, other = tiny_config(), tiny_config(temperatures=(5.0,), batch_size=3, variants=((1, 1, "margin"),))
    dataset = data.load("digits")
    assert parsing.make_identity(config, dataset, audit.NOT_IN_A_ROW) == parsing.make_identity(
        other, dataset, audit.NOT_IN_A_ROW
    )
    other.num_images = 21
    assert parsing.make_identity(config, dataset, audit.NOT_IN_A_ROW) != parsing.make_identity(
        other, dataset, audit.NOT_IN_A_ROW
    )
    assert "experiment" in parsing.make_identity(config, dataset, ())


@pytest.mark.usefixtures("undrawn")
def test_the_command_line_runs_it_and_ends_mistakes_in_one_line(finished, tmp_path, run_here):
    shutil.copytree(finished[0], tmp_path / "run")
    flags = [f"--config.{key}={TINY[key]!r}" for key in ("num_images", "num_inside", "temperatures", "variants")]
    flags += ["--config.tasks.kind=pairs", "--config.tasks.names=('3v8',)", "--config.tasks.train_per_class=20"]
    flags += [f"--config.epsilons.{key}={value!r}" for key, value in TINY["epsilons"].items()]
    flags += ["--config.temperature=0.3", "--config.every_variant_at_every_temperature=False"]
    command = ["experiments.main", "--config=configs/audit.py:digits", *flags, f"--workdir={tmp_path / 'run'}"]
    done = run_here(command)
    assert done.status == 0 and "Report: " in done.stdout and "% of the images are robust" in done.stdout
    done = run_here([*command, "--config.batch_size=0"])
    assert done.status == 2 and done.stderr.splitlines()[-1].startswith("error: batch_size must be at least 1")


NAMED = {"variants": (), "best_of_temperatures": (0.3,), "epsilons": {"linf": (), "l2": (0.4, 0.8), "l1": ()}}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The workdir of a named attack of each library, one of which finds distances, and one by labels alone."""
    pytest.importorskip("foolbox")
    pytest.importorskip("art")
    workdir = tmp_path_factory.mktemp("named")
    config = tiny_config(**NAMED, attacks=("foolbox-pgd", "foolbox-ddn", "art-hopskipjump"))
    return workdir, runner.run(audit, config, workdir).page


@pytest.mark.slow
def test_attacks_of_other_libraries_are_held_against_the_radii(named):
    workdir, page = named
    rows = _rows(workdir)
    known = radii.load(workdir / "radii" / "3v8-l2.npz")
    assert {name.rpartition("/")[2] for name in rows} == {"foolbox-pgd", "foolbox-ddn", "art-hopskipjump"}
    for row in rows.values():
        for item in row["audited"]:
            assert item["certified"] <= item["unbroken"] <= row["correct"] == known.correct.sum()
        assert row["audited"][1]["unbroken"] < row["correct"], "an attack that breaks nothing tests nothing"
        is_by_labels = row["attack"]["sees"] == "labels"
        assert row["spent"]["queries"] > 40 and (row["spent"]["gradients"] == 0) == is_by_labels
        assert ("distances" in row) == (row["attack"]["finds"] == "distance")
    pgd, ddn = (rows[f"digits/3v8/l2/foolbox-{name}"] for name in ("pgd", "ddn"))
    # Their own number of steps: at each radius, and one query more to end with.
    assert pgd["spent"] == {"queries": 51.0, "gradients": 50.0} and ddn["spent"]["gradients"] == 100
    assert 1 <= ddn["distances"]["median_ratio"] < 1.2 and ddn["distances"]["not_found"] == 0
    text = (page.parent / "report.md").read_text()
    assert re.search(r"\| foolbox-ddn \(foolbox 3\.3\.4\) \| gradients \|.*\| 1\.\d{3} \|", text)


@pytest.mark.usefixtures("undrawn")
def test_what_our_attacks_ask_for_is_counted(tmp_path):
    runner.run(audit, tiny_config(**NAMED, attacks=("fmn",)), tmp_path)
    (row,) = _rows(tmp_path).values()
    known = radii.load(tmp_path / "radii" / "3v8-l2.npz")
    assert row["spent"]["gradients"] == 100  # steps; the soft 1NN and 1NN are asked at each, at the start and the end
    assert row["spent"]["queries"] == pytest.approx(2 * 101, abs=6)
    assert 1 <= row["distances"]["median_ratio"] < 1.1
    # A distance below the radius would have ended the run.
    assert all(item["certified"] <= item["unbroken"] <= known.correct.sum() for item in row["audited"])


@pytest.mark.usefixtures("undrawn")
def test_attacks_without_their_library_are_left_out_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(named_attacks, "is_installed", lambda package: package != "art")
    monkeypatch.setattr(audit.Plan, "_nearest", lambda *_: (np.full(20, np.inf), {"queries": 1.0, "gradients": 0.0}))
    config = tiny_config(**NAMED, attacks=("square", "art-zoo", "art-square"))
    page = runner.run(audit, config, tmp_path).page
    line = "left out, for want of their library: art-zoo, art-square; pip install adversarial-robustness-toolbox"
    assert line in capsys.readouterr().err and len(_rows(tmp_path)) == 1
    assert line in (page.parent / "report.md").read_text().replace("\n", " ")
