import numpy as np
import pytest

from configs import corruptions as config_file
from experiments import corruptions, report, runner, store
from experiments.report import corruptions as corruptions_report
from experiments.report import page
from experiments.report.records import Run
from nn_adv import data, neighbors
from tests.experiments import report_rows

NUMBERS = np.arange(6)


@pytest.fixture
def images():
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


@pytest.mark.parametrize(("name", "strength"), [("shift", 1), ("rotation", 30), ("brightness", 0.1), ("jpeg", 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images_and_change_more_the_stronger(images, name, strength, channels):
    images = images[..., :channels]
    sizes = []
    for share in (0.5, 1):
        changed = corruptions.corrupt(images, name, share * strength, NUMBERS)
        assert changed.shape == images.shape and changed.dtype == np.float32
        assert changed.min() >= 0 and changed.max() <= 1
        sizes.append(np.linalg.norm(changed - images))
    assert 0 < sizes[0] < sizes[1]


def test_a_shift_moves_every_pixel_to_the_right_and_repeats_the_edge(images):
    changed = corruptions.corrupt(images, "shift", 2, NUMBERS)
    np.testing.assert_allclose(changed[:, :, 2:], images[:, :, :-2], atol=1e-6)
    np.testing.assert_allclose(changed[:, :, :2], np.repeat(images[:, :, :1], 2, axis=2), atol=1e-6)


def test_a_quarter_turn_is_one(images):
    changed = corruptions.corrupt(images, "rotation", 90, NUMBERS)
    np.testing.assert_allclose(changed, np.rot90(images, axes=(1, 2)), atol=1e-5)


def test_brightness_adds_and_clips(images):
    changed = corruptions.corrupt(images, "brightness", 0.25, NUMBERS)
    np.testing.assert_allclose(changed, np.minimum(images + 0.25, 1), atol=1e-6)


def test_noise_has_its_deviation_and_is_the_image_s_own():
    grey = np.full((4, 64, 64, 1), 0.5, np.float32)
    changed = corruptions.corrupt(grey, "noise", 0.1, np.arange(4))
    assert np.std(changed - grey) == pytest.approx(0.1, rel=0.02)
    assert not np.allclose(changed[0], changed[1])
    np.testing.assert_array_equal(changed[2:3], corruptions.corrupt(grey[2:3], "noise", 0.1, np.arange(2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blur": (1.0,)}, "corruptions must be some of shift, rotation, brightness, noise, jpeg, got blur"),
        ({"jpeg": (100.0,)}, r"corruptions.jpeg must hold strengths above 0 and at most 99, got \(100.0,\)"),
        ({"noise": ()}, r"corruptions.noise must hold strengths above 0, got \(\)"),
        ({}, "corruptions must be some of .*, got none"),
    ],
)
def test_corruptions_that_are_none_are_refused(changes, message):
    config = config_file.get_config("digits")
    config.corruptions = changes
    with pytest.raises(ValueError, match=message):
        corruptions.make_plan(config)


def test_the_ceiling_is_of_threats_only():
    config = config_file.get_config("digits")
    assert "ceiling" not in config.methods
    config.methods = ("1nn", "ceiling")
    with pytest.raises(ValueError, match="methods must not hold ceiling"):
        corruptions.make_plan(config)


def test_a_report_of_some_units_says_so_and_any_number_of_methods_has_a_line():
    def row(method):
        counts = {"split": "test", "count": 10, "correct": 5, "mean_l2": 0.1}
        strengths = (("clean", 0.0), ("noise", 0.1))
        corrupted = [counts | {"corruption": name, "strength": strength} for name, strength in strengths]
        return report_rows.row("0v1", method, []) | {"corrupted": corrupted}

    run = Run([row(f"1nn+learned:{size}") for size in range(12)], num_missing=3)
    text = page.to_markdown(corruptions_report.blocks(run), way="figures/")
    assert "Not complete: 3 of 15 units are missing." in text


def test_a_run_counts_what_1nn_gets_right(tmp_path):
    config = config_file.get_config("digits")
    config.update({"methods": ("1nn",)})
    config.tasks.names = ("3v8",)
    config.corruptions = {"brightness": (0.1, 0.3)}
    found = runner.run(corruptions, config, tmp_path)
    (row,), _ = store.read_rows(tmp_path)
    dataset = data.load("digits")
    (task,) = (task for task in data.tasks(dataset, "pairs") if task.name == "3v8")
    reference = neighbors.fit(dataset.train_images[task.train_index], task.train_labels, 2)
    shown = dataset.test_images[task.test_index].astype(np.float32) / 255
    by_strength = {item["strength"]: item for item in row["corrupted"] if item["split"] == "test"}
    assert list(by_strength) == [0, 0.1, 0.3]
    for strength, item in by_strength.items():
        chosen = np.concatenate([np.flatnonzero(task.test_labels == label)[:30] for label in (0, 1)])
        changed = np.minimum(shown[chosen] + np.float32(strength), 1)
        predicted = np.asarray(neighbors.predict(reference, changed))
        assert (item["count"], item["correct"]) == (60, np.sum(predicted == task.test_labels[chosen]))
    assert by_strength[0]["mean_l2"] == 0 < by_strength[0.1]["mean_l2"] < by_strength[0.3]["mean_l2"]
    table = report.table(tmp_path)
    assert len(table) == len(row["corrupted"]) == 6 and "brighter" in found.page.read_text()
    assert "brightness" in found.summary
