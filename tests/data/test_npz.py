"""A user's own arrays: kept as they are, or refused in one line that says what to do."""

from __future__ import annotations

import numpy as np
import pytest

from nn_adv import data


def _arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (6, 4, 5, 3), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (3, 4, 5, 3), np.uint8),
        "test_labels": np.array([2, 1, 0]),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def _load(folder, **changes):
    path = folder / "mine.npz"
    np.savez(path, **_arrays(**changes))
    return data.load(f"npz:{path}")


def _floats(count, dtype=np.float32):
    return np.random.default_rng(1).random((count, 4, 5, 3)).astype(dtype)


def test_uint8_arrays_come_back_unchanged(tmp_path):
    dataset = _load(tmp_path)
    expected = _arrays()
    np.testing.assert_array_equal(dataset.train_images, expected["train_images"])
    np.testing.assert_array_equal(dataset.test_labels, expected["test_labels"])
    assert dataset.train_images.dtype == np.uint8
    assert dataset.test_labels.dtype == np.int32
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.title == "mine"
    assert len(data.tasks(dataset)) == 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_kept_as_float32(tmp_path, dtype):
    train, test = _floats(6, dtype), _floats(3, dtype)
    train[0, 0, 0, 0], train[0, 0, 0, 1] = 0, 1
    dataset = _load(tmp_path, train_images=train, test_images=test)
    assert dataset.train_images.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_images, train.astype(np.float32))


def test_class_names_are_taken_from_the_file(tmp_path):
    assert _load(tmp_path, class_names=np.array(["cat", "dog", "fox"])).class_names == ("cat", "dog", "fox")


@pytest.mark.parametrize("kind", ["S", "U", object])
def test_class_names_stored_as_bytes_are_texts(tmp_path, kind):
    names = ["cat", "été", "狐"]
    if kind is object:
        with pytest.raises(ValueError, match="without pickled objects"):
            _load(tmp_path, class_names=np.array(names, object))
        return
    stored = np.array([name.encode() if kind == "S" else name for name in names])
    assert stored.dtype.kind == kind
    assert _load(tmp_path, class_names=stored).class_names == tuple(names)


def _with_pixel(value, dtype=np.float32):
    images = _floats(6, dtype)
    images[2, 3, 4, 1] = value
    return {"train_images": images, "test_images": _floats(3)}


@pytest.mark.parametrize("value", [1.000000001, 1 + 2**-25, -1e-60])
def test_what_float32_rounds_into_the_range_is_in_it(tmp_path, value):
    dataset = _load(tmp_path, **_with_pixel(value, np.float64))
    assert dataset.train_images[2, 3, 4, 1] == np.float32(value) == round(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_with_pixel(np.nan), r"train_images must be finite and inside \(0.0, 1.0\), got nan at index 2"),
        (_with_pixel(np.inf), r"train_images must be finite and .*, got inf at index 2"),
        (_with_pixel(-0.01), r"train_images must be .* got -0.01 at index 2; give pixels as they are"),
        (_with_pixel(2.5), r"train_images .* got 2.5 at index 2; divide pixels of 0..255 by 255, or .* as uint8"),
        (
            _with_pixel(1.0000002, np.float64),
            r"got 1.0000002 at index 2; np.clip\(train_images, 0, 1\) undoes",
        ),
        (_with_pixel(1e300, np.float64), "train_images must be finite .* got inf at index 2"),
        (
            {"train_images": np.zeros((6, 3, 32, 32), np.uint8)},
            r"train_images must be \[N, H, W, C\], got \[6, 3, 32, 32\], .* like \[N, C, H, W\]: save np\.moveaxis",
        ),
        ({"train_images": np.zeros((6, 1, 28, 28), np.float32)}, r"like \[N, C, H, W\]: save np\.moveaxis"),
        ({"class_names": np.array([b"a", b"b", b"\xe9"])}, r"class_names must be texts, .* got b'\\xe9'"),
        (
            {"train_images": np.zeros((6, 4, 5), np.uint8)},
            r"must be \[N, H, W, C\], got shape \(6, 4, 5\): .* train_images\[\.\.\., None\]",
        ),
        ({"test_images": np.zeros((3, 4, 5, 0), np.uint8)}, r"test_images must be .* with at least one pixel"),
        ({"test_images": np.zeros((0, 4, 5, 3), np.uint8)}, "test_images must .* with at least one image"),
        ({"test_images": np.zeros((3, 4, 4, 3), np.uint8)}, r"test_images must be like .*got uint8 \[3, 4, 4, 3\]"),
        ({"test_images": _floats(3)}, "test_images must be like train_images, uint8"),
        ({"train_images": np.zeros((6, 4, 5, 3), np.int32)}, "train_images .* uint8 .*dtype int32; give .*uint8"),
        ({"train_labels": np.array([0, 1, 2])}, r"train_labels must be integers \[6\], got int64 of shape \(3,\)"),
        ({"train_labels": np.zeros(6)}, r"train_labels must be integers \[6\], got 0.0 at index 0 of dtype float64"),
        ({"train_labels": np.array([0, 1, 2, 0, -1, 2])}, r"train_labels must be in 0\.\..*, got -1 at index 4"),
        ({"test_labels": np.array([2, 1, 3])}, r"test_labels must be in 0\.\.2, got 3 at index 2"),
        ({"class_names": np.array(["a", "b"])}, r"train_labels must be in 0\.\.1, got 2 at index 2"),
        (
            {"train_labels": np.array([0, 1, 2, 0, 10**9, 2])},
            r"in 0\.\.5, got 1000000000 at index 4",
        ),
        ({"train_labels": np.array([0, 1, 3, 0, 1, 3])}, r"no image of class 2 \(2\): number the classes"),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(3, int)}, "two classes or more"),
        ({"class_names": np.array([], str)}, "two classes or more"),
        ({"test_labels": None, "train_images": None}, "it lacks train_images, test_labels"),
        ({"train_labels": np.array([None] * 6)}, "without pickled objects"),
    ],
)
def test_unfit_array_is_named_in_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        _load(tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut short"])
def test_unreadable_file_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "broken.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot load .*broken.npz .*: it must be an npz file") as error:
        data.load(f"npz:{path}")
    assert "\n" not in str(error.value)


def test_single_array_file_is_no_npz(tmp_path):
    path = tmp_path / "one.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match="cannot load"):
        data.load(f"npz:{path}")


def test_every_damaged_byte_is_one_line_or_changes_no_array(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, **_arrays())
    content, expected = path.read_bytes(), _arrays()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 9]) + content[place + 1 :])
        try:
            dataset = data.load(f"npz:{path}")
        except ValueError as error:
            assert "\n" not in str(error), place
        else:
            np.testing.assert_array_equal(dataset.train_images, expected["train_images"])
            np.testing.assert_array_equal(dataset.test_labels, expected["test_labels"])


def test_one_row_and_flat_features_are_images_too(tmp_path):
    for shape in ((1, 9, 1), (1, 1, 40), (3, 3, 3), (3, 4, 9)):
        images = np.zeros((6, *shape), np.uint8)
        assert _load(tmp_path, train_images=images, test_images=images[:3]).image_shape == shape


def test_the_home_is_expanded(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", **_arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("npz:~/mine.npz").title == "mine"
    with pytest.raises(ValueError, match="npz path ~no-such-user/mine.npz begins with a home that is not known"):
        data.load("npz:~no-such-user/mine.npz")


@pytest.mark.parametrize("name", ["npz:", "npz:\0"])
def test_what_is_no_path_is_told(name):
    with pytest.raises(ValueError, match="npz path must be a path, a text that is not empty"):
        data.load(name)


def test_a_name_that_is_no_text_gives_a_title_that_is(tmp_path):
    path = tmp_path / "caf\udce9.npz"  # a name in Latin 1
    np.savez(path, **_arrays())
    assert data.load(f"npz:{path}").title == "caf?"
