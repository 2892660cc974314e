"""Data sets by name: counts, pixels, and what is said when one is missing."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from nn_adv import data


def test_digits_are_split_within_each_class_without_overlap():
    digits = data.load("digits")
    assert digits.train_images.shape == (1198, 8, 8, 1)
    assert digits.test_images.shape == (599, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_labels.dtype == np.int32
    whole = np.bincount(sklearn_datasets.load_digits().target)
    np.testing.assert_array_equal(np.bincount(digits.train_labels), np.round(whole * 2 / 3))
    np.testing.assert_array_equal(np.bincount(digits.train_labels) + np.bincount(digits.test_labels), whole)


def test_digits_keep_every_pixel_to_the_promised_precision():
    digits = data.load("digits")
    source = sklearn_datasets.load_digits()
    for label in range(10):
        ours = np.concatenate(
            [digits.train_images[digits.train_labels == label], digits.test_images[digits.test_labels == label]]
        )
        theirs = source.images[source.target == label][..., None] / 16
        assert np.abs(ours / 255 - theirs).max() <= 1 / 510


def test_title_is_the_name_unless_given():
    images, labels = np.zeros((2, 1, 1, 1), np.uint8), np.arange(2, dtype=np.int32)
    dataset = data.Dataset("mine", images, labels, images, labels, ("a", "b"))
    assert dataset.title == "mine"
    assert dataset.image_shape == (1, 1, 1)
    assert data.load("digits").title == "digits (scikit-learn 8x8)"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="cifar10, digits, fashion_mnist, mnist or npz:PATH, got 'imagenet'"):
        data.load("imagenet")


def test_a_path_alone_is_no_name():
    with pytest.raises(ValueError, match="npz:PATH, got PosixPath"):
        data.load(pathlib.Path("mine.npz"))


@pytest.mark.slow
def test_prepared_mnist_is_read_whole(tfds_dir):
    mnist = data.load("mnist", data_dir=tfds_dir)
    assert mnist.train_images.shape == (60000, 28, 28, 1)
    assert mnist.test_images.shape == (10000, 28, 28, 1)
    assert mnist.title == "MNIST"
    assert not mnist.note
    # Published class counts, and the mean pixel everyone normalises with.
    assert np.bincount(mnist.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.slow
def test_prepared_cifar10_is_named_for_what_its_pixels_are(tfds_dir):
    cifar10 = data.load("cifar10", data_dir=tfds_dir)
    assert cifar10.train_images.shape == (50000, 32, 32, 3)
    assert cifar10.test_images.shape == (10000, 32, 32, 3)
    assert np.bincount(cifar10.train_labels).tolist() == [5000] * 10
    assert cifar10.class_names[3] == "cat"
    is_copy = "JPEG" in cifar10.note
    assert cifar10.title == ("CIFAR-10 (JPEG copy)" if is_copy else "CIFAR-10")
    # Compression to JPEG leaves the mean nearly where the original pixels have it.
    np.testing.assert_allclose(cifar10.train_images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)


def test_data_dir_comes_from_the_environment(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert data.prepare("mnist") == tfds_dir.absolute() / "mnist" / "3.0.1"
