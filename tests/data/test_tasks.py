"""Tasks: which images, which labels, what is held out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nn_adv import data


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def _toy(train_labels, test_labels, class_names=("a", "b", "c")):
    def images(labels):
        return np.zeros((len(labels), 1, 1, 1), np.uint8)

    return data.Dataset(
        "toy",
        images(train_labels),
        np.array(train_labels, np.int32),
        images(test_labels),
        np.array(test_labels, np.int32),
        class_names,
    )


def test_pairs_are_all_pairs_in_order(digits):
    pairs = data.tasks(digits)
    assert [task.name for task in pairs] == [f"{a}v{b}" for a, b in itertools.combinations(range(10), 2)]
    assert pairs[0].class_names == ("0", "1")
    assert {task.num_classes for task in pairs} == {2}


@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.5])
def test_pair_holds_every_image_of_its_classes_once(digits, holdout):
    for task in data.tasks(digits, "pairs", holdout=holdout):
        a, b = (int(label) for label in task.name.split("v"))
        used = np.concatenate([task.train_index, task.holdout_index])
        expected = np.flatnonzero((digits.train_labels == a) | (digits.train_labels == b))
        np.testing.assert_array_equal(np.sort(used), expected)
        originals = np.array([a, b])
        np.testing.assert_array_equal(originals[task.train_labels], digits.train_labels[task.train_index])
        np.testing.assert_array_equal(originals[task.holdout_labels], digits.train_labels[task.holdout_index])
        np.testing.assert_array_equal(originals[task.test_labels], digits.test_labels[task.test_index])
        np.testing.assert_array_equal(task.test_index, np.flatnonzero(np.isin(digits.test_labels, originals)))
        for array in (task.train_index, task.train_labels, task.holdout_index, task.test_index, task.test_labels):
            assert array.dtype == np.int32
        assert (np.diff(task.train_index) > 0).all()


def test_one_vs_rest_marks_the_one(digits):
    every = data.tasks(digits, "one_vs_rest")
    assert [task.name for task in every] == [f"{label}vrest" for label in range(10)]
    assert every[3].class_names == ("rest", "3")
    assert len(every[3].train_index) == len(digits.train_labels)
    np.testing.assert_array_equal(every[3].train_labels, digits.train_labels == 3)


def test_all_keeps_the_labels(digits):
    (task,) = data.tasks(digits, "all")
    assert task.name == "all"
    assert task.num_classes == 10
    np.testing.assert_array_equal(task.train_labels, digits.train_labels)
    np.testing.assert_array_equal(task.test_labels, digits.test_labels)


def test_train_per_class_takes_the_first_ones_before_the_holdout(digits):
    (task,) = data.tasks(digits, "all", train_per_class=20, holdout=0.1)
    used = np.sort(np.concatenate([task.train_index, task.holdout_index]))
    expected = np.sort(np.concatenate([np.flatnonzero(digits.train_labels == label)[:20] for label in range(10)]))
    np.testing.assert_array_equal(used, expected)
    assert np.bincount(task.train_labels).tolist() == [18] * 10
    assert np.bincount(task.holdout_labels).tolist() == [2] * 10
    (whole,) = data.tasks(digits, "all", train_per_class=10**6)
    assert len(whole.train_index) == len(digits.train_labels)


def test_holdout_of_a_class_is_the_same_in_every_task_and_run(digits):
    first, again = data.tasks(digits, holdout=0.2), data.tasks(digits, holdout=0.2)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.holdout_index, other.holdout_index)
    with_0 = [task.holdout_index[task.holdout_labels == 0] for task in first[:9]]
    for index in with_0[1:]:
        np.testing.assert_array_equal(index, with_0[0])


def test_small_holdout_keeps_one_image_of_each_class():
    (task, *_) = data.tasks(_toy([0, 0, 1, 1, 2, 2], [0, 1, 2]), holdout=0.01)
    assert np.bincount(task.holdout_labels).tolist() == [1, 1]
    assert np.bincount(task.train_labels).tolist() == [1, 1]


def test_tasks_hold_indices_only(digits):
    bytes_of_indices = sum(
        value.nbytes for task in data.tasks(digits) for value in vars(task).values() if isinstance(value, np.ndarray)
    )
    per_image = 2 * np.dtype(np.int32).itemsize
    assert bytes_of_indices == 9 * per_image * (len(digits.train_labels) + len(digits.test_labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "triples"}, "kind must be one of all, one_vs_rest, pairs, got 'triples'"),
        ({"train_per_class": 0}, "train_per_class must be at least 1, got 0"),
        ({"holdout": 1.0}, "holdout must be one number >= 0 and < 1, got 1.0"),
        ({"holdout": -0.1}, "holdout must be a number >= 0, got -0.1"),
        ({"holdout": "0.1"}, "holdout must be a number >= 0, got '0.1'"),
        ({"train_per_class": 2.0}, "train_per_class must be a whole number, at least 1, got 2.0"),
        ({"holdout": 0.9, "train_per_class": 2}, "beside a holdout of 0.9"),
    ],
)
def test_bad_option_is_named(digits, options, message):
    with pytest.raises(ValueError, match=message):
        data.tasks(digits, **options)
    with pytest.raises(ValueError, match="dataset must be a data.Dataset, as data.load returns, got str"):
        data.tasks("digits")


def test_empty_class_is_named():
    with pytest.raises(ValueError, match=r"got 0 and 1 of class 2 \(c\)"):
        data.tasks(_toy([0, 1], [0, 1, 2]))
    with pytest.raises(ValueError, match=r"got 1 and 0 of class 1 \(b\)"):
        data.tasks(_toy([0, 1, 2], [0, 2]))


def test_single_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        data.tasks(_toy([0, 0], [0], ("a",)))
