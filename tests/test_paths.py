"""Paths as users write them: the home is expanded, what is no path is told in one line."""

from __future__ import annotations

import pathlib

import pytest

from nn_adv.paths import expand


def test_the_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/a") == expand(pathlib.Path("~/a")) == pathlib.Path("/home/me/a")
    assert expand("~") == pathlib.Path("/home/me")
    for path in ("a/b", "/a/~", "./~", "a~"):
        assert expand(path) == pathlib.Path(path)


@pytest.mark.parametrize("path", ["", 5, None, b"a", "a\0b", ["a"]])
def test_what_is_no_path_is_told(path):
    with pytest.raises(ValueError, match="^weights must be a path, a text that is not empty or a pathlib.Path, got"):
        expand(path, "weights")


def test_the_home_of_nobody_is_told():
    with pytest.raises(ValueError, match="^path ~no-such-user/a begins with a home that is not known: write the whole"):
        expand("~no-such-user/a")
