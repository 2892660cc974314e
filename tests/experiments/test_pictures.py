"""Pictures: which images are chosen, what is kept of them, and how the report lays them out."""

import io

import numpy as np
import PIL.Image
import pytest

from experiments import pictures
from experiments.evaluate import Images
from experiments.report import figures, gallery, page
from nn_adv.pixels import as_float
from tests.experiments.report_rows import row

EPSILONS = {"l2": 0.5, "linf": 0.1}


@pytest.fixture
def chosen():
    """Images of three classes, the last twelve of them test images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    split = np.repeat(["train", "test"], 12)
    return Images(images, np.tile([1, 0, 2], 8), split, np.arange(24) % 12, np.arange(24))


@pytest.fixture
def made(chosen):
    """Pictures whose first candidate of class 0 is not solved, and of which the second in linf was not found."""
    examples = pictures.candidates(chosen)
    is_solved = np.ones(24, bool)
    is_solved[examples[0]] = False
    images = np.asarray(as_float(chosen.images[examples]))
    is_zero = (chosen.labels[examples] == 0)[:, None, None, None]
    adversarial = {"l2": np.clip(images + 0.25, 0, 1), "linf": np.where(is_zero, 0.9 * images, images)}
    points = np.random.default_rng(1).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    return pictures.make(chosen, examples, is_solved, adversarial, points, np.arange(30) % 3), points


def test_candidates_are_the_first_test_images_of_the_first_two_classes(chosen):
    assert pictures.candidates(chosen).tolist() == [13, 16, 19, 22, 12, 15, 18, 21]
    of_train = Images(*(array[:12] for array in chosen))
    assert pictures.candidates(of_train).tolist() == [1, 4, 7, 10, 0, 3, 6, 9]


def test_the_first_solved_image_of_each_class_is_kept_with_its_nearest_points(chosen, made):
    found, points = made
    assert found.label.tolist() == [0, 1] and found.image.tolist() == [4, 0] and set(found.split) == {"test"}
    np.testing.assert_array_equal(found.clean, np.asarray(as_float(chosen.images[[16, 12]])))
    assert found.norms.tolist() == ["l2", "linf"]
    assert np.isfinite(found.distance).tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(found.distance[1, 0], 0.1 * found.clean[0].max(), rtol=1e-5)
    for place, label in enumerate((0, 1)):
        distances = np.linalg.norm((points / 255 - found.clean[place]).reshape(30, -1), axis=1)
        is_own = np.arange(30) % 3 == label
        np.testing.assert_allclose(found.own_distance[place], distances[is_own].min(), rtol=1e-6)
        np.testing.assert_allclose(found.other_distance[place], distances[~is_own].min(), rtol=1e-6)
        np.testing.assert_allclose(found.own[place], points[is_own][distances[is_own].argmin()] / 255, rtol=1e-6)


def test_nothing_that_is_solved_gives_pictures_of_nothing(chosen):
    examples = pictures.candidates(chosen)
    adversarial = dict.fromkeys(EPSILONS, np.asarray(as_float(chosen.images[examples])))
    points, labels = chosen.images, chosen.labels
    found = pictures.make(chosen, examples, np.zeros(24, bool), adversarial, points, labels)
    assert found.clean.shape == (0, 4, 4, 3) and found.distance.shape == (2, 0)
    assert gallery.picture_blocks([row("0v1", "1nn", [])], {"digits/0v1/1nn/0": found}) == []


def test_files_that_rows_name_are_read_and_a_damaged_one_is_told(tmp_path, made):
    rows = [row("0v1", method, [], files=["radii/0v1.npz", f"pictures/{method}.npz"]) for method in ("1nn", "a", "b")]
    pictures.save(tmp_path / "pictures" / "1nn.npz", made[0])
    (tmp_path / "pictures" / "a.npz").write_bytes(b"nothing")
    found, (problem,) = pictures.read(tmp_path, rows)
    assert list(found) == ["digits/0v1/1nn/0"] and "a.npz cannot be read" in problem
    for name, array in found["digits/0v1/1nn/0"]._asdict().items():
        np.testing.assert_array_equal(array, getattr(made[0], name))


def test_the_report_shows_an_image_once_and_every_method_below_it(made):
    rows = [row("0v1", method, [], classes=("cat", "dog")) for method in ("trades-l2", "1nn")]
    heading, part, table, note = gallery.picture_blocks(rows, {row["unit"]: made[0] for row in rows})
    assert part == page.Heading("0v1", 3) and "grey is nothing" in note.text
    assert table.groups == [("", 2), ("linf", 2), ("l2", 2), ("nearest training image", 2)]
    assert [line[0] for line in table.rows] == ["1NN", "TRADES-l2"] * 2
    first, second, third, _ = table.rows
    assert first[1].caption == "cat, test image 4" and third[1].caption == "dog, test image 0"
    assert all(isinstance(cell, page.Image) for cell in first[1:])
    assert [isinstance(cell, page.Image) for cell in second[1:]] == [False, True, True, True, True, False, False]
    assert third[2:4] == ["none found", ""] and third[4].caption == f"at {made[0].distance[0, 1]:.4g}"
    names = [image.name for image in page.images([table])]
    assert len(names) == len(set(names))


def test_the_first_and_the_last_task_are_shown_if_grey_or_coloured(made):
    rows = [row(task, "1nn", []) for task in ("0v3", "0v1", "0v2")]
    found = gallery.picture_blocks(rows, {row["unit"]: made[0] for row in rows})
    assert [block.text for block in found if isinstance(block, page.Heading)][1:] == ["0v1", "0v3"]
    (only,) = [row for row in rows if row["task"] == "0v2"]
    assert len(gallery.picture_blocks([only], {only["unit"]: made[0]})) == len(found) - 2  # one task is shown once
    five = made[0]._replace(clean=np.zeros((2, 4, 4, 5), np.float32))
    assert gallery.picture_blocks(rows, {row["unit"]: five for row in rows}) == []


@pytest.mark.parametrize(("most", "times"), [(1.0, 1), (0.5, 1), (0.25, 2), (0.1, 5), (8 / 255, 10), (0.001, 500)])
def test_a_difference_is_magnified_as_long_as_it_fits(most, times):
    assert gallery._magnification(np.array([0, -most])) == times


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_drawn_as_squares(channels):
    image = np.random.default_rng(0).random((2, 3, channels))
    image[0, 0, 0] = 1.2
    drawn = np.asarray(PIL.Image.open(io.BytesIO(figures.pixels(image).png))).reshape(64, 96, channels)
    levels = np.round(255 * np.clip(image, 0, 1))
    np.testing.assert_array_equal(drawn, levels.repeat(32, axis=0).repeat(32, axis=1))
