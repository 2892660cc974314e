"""Preparation without TensorFlow, from a mirror on this disk that holds a few made-up images."""

from __future__ import annotations

import gzip
import hashlib
import io
import pathlib
import struct
import tarfile
import types
import urllib.request

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from nn_adv import data

NUM_IMAGES = {"train": 23, "test": 11}


def _images(shape):
    rng = np.random.default_rng(0)
    return {
        split: (rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, 10, count).astype(np.uint8))
        for split, count in NUM_IMAGES.items()
    }


def _write_idx(folder, splits):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split]
        header = struct.pack(">iiii", 2051, *images.shape)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">ii", 2049, len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def _write_cifar(folder, splits):
    images, labels = splits["train"]
    parts = np.array_split(np.arange(len(labels)), 5)
    members = {f"data_batch_{i + 1}.bin": (images[part], labels[part]) for i, part in enumerate(parts)}
    members["test_batch.bin"] = splits["test"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, (images, labels) in members.items():
            planes = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
            content = np.concatenate([labels[:, None], planes], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Returns a function that makes the official data set of a name point to made-up files."""

    def make(name):
        folder = tmp_path / "mirror"
        folder.mkdir()
        splits = _images((32, 32, 3) if name == "cifar10" else (28, 28))
        (_write_cifar if name == "cifar10" else _write_idx)(folder, splits)
        infos = {
            path.as_uri(): types.SimpleNamespace(
                size=path.stat().st_size, checksum=hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in folder.iterdir()
        }
        monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)
        return splits

    return make


def _sorted_rows(images, labels):
    rows = np.concatenate([np.reshape(images, (len(labels), -1)), np.reshape(labels, (-1, 1))], axis=1)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "mnist"])
def test_originals_come_back_pixel_by_pixel(name, mirror, tmp_path):
    splits = mirror(name)
    dataset = data.load(name, data_dir=tmp_path / "prepared")
    assert "JPEG" not in dataset.title + dataset.note
    assert dataset.num_classes == 10
    loaded = {
        "train": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }
    for split, arrays in splits.items():
        assert len(loaded[split][1]) == NUM_IMAGES[split]
        # The order on disk is the official one, shuffled by key; the images and their labels are the same.
        np.testing.assert_array_equal(_sorted_rows(*loaded[split]), _sorted_rows(*arrays))
    read_by_tfds = tfds.data_source(name, split="test", data_dir=tmp_path / "prepared")
    np.testing.assert_array_equal(read_by_tfds[0]["image"], dataset.test_images[0])


def test_second_load_needs_no_mirror(mirror, tmp_path):
    mirror("mnist")
    folder = data.prepare("mnist", tmp_path / "prepared")
    for path in (tmp_path / "mirror").iterdir():
        path.unlink()
    assert data.prepare("mnist", tmp_path / "prepared") == folder
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["mnist"]


def test_wrong_checksum_leaves_no_folder(mirror, tmp_path):
    mirror("mnist")
    damaged = tmp_path / "mirror" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte.gz is not the known file"):
        data.load("mnist", data_dir=tmp_path / "prepared")
    assert not list((tmp_path / "prepared").iterdir())


def test_interrupted_preparation_leaves_no_folder(mirror, tmp_path, monkeypatch):
    mirror("mnist")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.Image.Image.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.load("mnist", data_dir=tmp_path / "prepared")
    monkeypatch.undo()
    assert not (tmp_path / "prepared" / "mnist" / "3.0.1").exists()


def test_missing_data_set_offline_names_the_folder_and_the_remedy(mirror, tmp_path):
    mirror("cifar10")
    (tmp_path / "mirror" / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(ValueError, match="TFDS_DATA_DIR") as error:
        data.load("cifar10", data_dir=tmp_path / "prepared")
    message = str(error.value)
    assert str(tmp_path / "prepared" / "cifar10" / "3.0.2") in message
    assert "\n" not in message


def test_folder_of_another_format_is_named(mirror, tmp_path):
    mirror("mnist")
    info = data.prepare("mnist", tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="cannot read train images from .*3.0.1.*name another data_dir") as error:
        data.load("mnist", data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{}", "{", ""])
def test_damaged_folder_is_named(tmp_path, content):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(content)
    with pytest.raises(ValueError, match="cannot read train images from .*3.0.1") as error:
        data.load("mnist", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_only_known_names_are_prepared(tmp_path):
    with pytest.raises(ValueError, match="cifar10, fashion_mnist, mnist, got 'digits'"):
        data.prepare("digits", tmp_path)


def test_jpeg_images_are_announced(mirror, tmp_path, monkeypatch):
    mirror("mnist")
    save = PIL.Image.Image.save
    monkeypatch.setattr(PIL.Image.Image, "save", lambda image, file, kind: save(image, file, "jpeg"))
    dataset = data.load("mnist", data_dir=pathlib.Path(tmp_path / "prepared"))
    assert dataset.title == "MNIST (JPEG copy)"
    assert dataset.note == "JPEG copy: re-encoded, not the original pixels"


def test_folder_made_meanwhile_by_another_process_is_used(mirror, tmp_path, monkeypatch):
    mirror("mnist")
    download = urllib.request.urlopen

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(urllib.request, "urlopen", download)
        data.prepare("mnist", tmp_path / "prepared")
        raise OSError("the other process was faster")

    monkeypatch.setattr(urllib.request, "urlopen", overtaken)
    assert data.prepare("mnist", tmp_path / "prepared") == tmp_path / "prepared" / "mnist" / "3.0.1"


def _resized(image, file, save):
    save(image.resize((5, 4)), file, "png")


def _with_alpha(image, file, save):
    save(image.convert("RGBA"), file, "png")


def _grey(image, file, save):
    save(image.convert("L"), file, "png")


def _seen_through(image, file, save):
    save(image, file, "png", transparency=(0, 0, 0))


def _cut_off(image, file, save):
    content = io.BytesIO()
    save(image, content, "png")
    file.write(content.getvalue()[:60])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_resized, "it has 4 x 5 pixels of mode RGB in place of 32 x 32 of mode RGB"),
        (_with_alpha, "it has 32 x 32 pixels of mode RGBA in place of"),
        (_grey, "it has 32 x 32 pixels of mode L in place of"),
        (_seen_through, "it has transparency, or 16 bits a channel"),
        (_cut_off, "it cannot be decoded"),
        (lambda image, file, save: file.write(b"text"), "it cannot be decoded"),
    ],
)
def test_another_kind_of_picture_is_refused_with_its_number_and_folder(mirror, tmp_path, monkeypatch, change, message):
    mirror("cifar10")
    save = PIL.Image.Image.save
    monkeypatch.setattr(PIL.Image.Image, "save", lambda image, file, kind, **_: change(image, file, save))
    with pytest.raises(
        ValueError, match=rf"train image 0 in .*3\.0\.2 is none of this dataset's: {message}.*; name another data_dir"
    ) as error:
        data.load("cifar10", data_dir=tmp_path / "prepared")
    assert "\n" not in str(error.value)
