"""How far apart the classes are: the command against brute force, and the kept figures against published ones."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from benchmarks import separation
from nn_adv import certify, data

ROOT = pathlib.Path(__file__).resolve().parents[1]
ORDERS = {"l1": 1, "l2": 2, "linf": np.inf}


def _kept(name: str) -> dict:
    return json.loads((ROOT / "docs" / "benchmarks" / f"separation_{name}.json").read_bytes())


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_distances_are_those_of_brute_force(norm):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 3, 3, 1), dtype=np.uint8), rng.integers(0, 3, 40)
    images[7] = images[30]
    labels[[7, 30]] = 0, 1
    distances, positions = separation.nearest_others(images[20:], labels[20:], images[:20], labels[:20], norm)
    flat = images.reshape(40, -1).astype(float) / 255
    table = np.linalg.norm(flat[:20, None] - flat[None, 20:], ORDERS[norm], axis=2)
    table[labels[:20, None] == labels[None, 20:]] = np.inf
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(table[np.arange(20), positions], table.min(axis=1))
    assert distances[7] == 0 and positions[7] == 10
    groups = separation.equal_images(images[:20], labels[:20], images[20:], labels[20:])
    assert groups == [["train 7 (class 0)", "test 10 (class 1)"]]


@pytest.mark.slow
def test_digits_are_as_far_apart_as_certify_says():
    digits, kept = data.load("digits"), _kept("digits")["norms"]["l2"]["train to train"]
    found = certify.separation(digits.train_images, digits.train_labels, norm="l2")
    assert kept["least"] == pytest.approx(found.distance) and sorted(kept["between"]) == sorted(found.pair)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "digits"])
def test_kept_figures_belong_together(name):
    kept = _kept(name)
    for of_sets in kept["norms"].values():
        for one in (one for what, one in of_sets.items() if what != "edges"):
            assert sum(one["histogram"]) == one["images"]
            ends = one["least"], *one["quantiles"].values()
            assert list(ends) == sorted(ends) and one["classes"][0] != one["classes"][1]
        assert of_sets["train to train"]["least"] > 0


def test_mnist_is_as_others_measured_it():
    kept = _kept("mnist")
    assert round(kept["norms"]["linf"]["train to train"]["least"] * 255, 3) == 188
    assert len(kept["published"]) == 4 and all(row["equal"] for row in kept["published"])
    assert kept["errors_of_1nn"]["count"] == 309  # which ones depends on the order of the files


def test_the_jpeg_copy_is_near_the_original_but_not_equal():
    kept = _kept("cifar10")
    assert "JPEG" in kept["data"] and not all(row["equal"] for row in kept["published"])
    for row in kept["published"]:
        if "images within" not in row["what"]:
            assert row["here"] == pytest.approx(row["published"], rel=0.15)
