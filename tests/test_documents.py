"""The Python of every page runs and prints what the page says, and every command line of a page is one that exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import main
from nn_adv import neighbors

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# CONTRIBUTING.md is run by test_contributing.py.
FILES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(FILES)}
BLOCKS = {
    page: [code for language, code in FENCE.findall(text) if language == "python"] for page, text in TEXTS.items()
}
COMMANDS = [
    (page, line)
    for page, text in TEXTS.items()
    for language, block in FENCE.findall(text)
    if not language
    for line in block.replace("\\\n", "").splitlines()
]
# The blocks that are not run: what they hold, and why.
NOT_RUN = {
    "docs/attacks.md": {"import robustbench\n": "downloads weights"},
    "docs/leaderboard.md": {"download=True": "downloads weights"},
}
OPTIONAL = ("art", "foolbox", "torch")  # a block that imports one of these is not run where it is not installed


def _classifier() -> dict:
    """A linear classifier of the reader's, images that it classifies correctly, and the names that pages give them."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(6, 32, 32, 3)).astype(np.float32)
    weights = rng.standard_normal((3072, 10)).astype(np.float32)

    def logits_fn(images):
        return images.reshape(len(images), -1) @ weights

    labels = np.argmax(logits_fn(images), axis=1)
    found = {"logits_fn": logits_fn, "images": images, "labels": labels, "ref": neighbors.fit(images, labels, 10)}
    return found | {"x_nchw": np.moveaxis(images, -1, 1), "y": labels}


# What the blocks of a page take as given.
GIVEN = {"docs/attacks.md": _classifier, "docs/other_libraries.md": _classifier}


def _run(code: str, names: dict) -> None:
    """Run a block; where a line ends with "# prints ...", so it must."""
    for statement in ast.parse(code).body:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([statement], []), "page", "exec"), names)
        _, says, expected = code.splitlines()[statement.end_lineno - 1].partition("# prints ")
        assert not says or printed.getvalue() == f"{expected}\n"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page == "README.md" else pytest.mark.slow)
        for page, blocks in BLOCKS.items()
        if blocks
    ],
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    names = GIVEN.get(page, dict)()
    for block in BLOCKS[page]:
        missing = [name for name in OPTIONAL if f"import {name}\n" in block and not importlib.util.find_spec(name)]
        if not missing and not any(text in block for text in NOT_RUN.get(page, ())):
            _run(block, names)
    if page == "README.md":
        assert names["found"].is_exact.all() and np.all(names["found"].lower[names["found"].correct] > 0)


def test_what_is_not_run_is_there():
    for page, reasons in NOT_RUN.items():
        for text in reasons:
            assert sum(text in block for block in BLOCKS[page]) == 1


def _accepts(arguments: list[str]) -> bool:
    """Tell whether ``python -m experiments.main`` understands its arguments; it runs nothing."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["main", *arguments])  # where configurations look for their flags
        return main.parse_flags(sys.argv) == ["main"]
    return False


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in COMMANDS if "experiments.main" in line])
def test_a_run_of_a_page_is_one_that_the_command_takes(page, line):
    words = shlex.split(line, comments=True)
    assert _accepts(words[words.index("experiments.main") + 1 :])


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page, text in TEXTS.items() for code in re.findall(r"`(--config[^`]*)`", FENCE.sub("", text))],
)
def test_a_flag_within_a_sentence_is_one_of_a_configuration(page, code):
    files = [] if "--config=" in code else ["binary_tasks", "leaderboard", "audit", "small_zoo", "neighbor_variants"]
    arguments = ["--workdir=runs/x", *shlex.split(code)]
    assert any(_accepts([f"--config=configs/{file}.py", *arguments]) for file in files) or _accepts(arguments)


def test_other_commands_of_the_pages_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    counts = dict.fromkeys(("make", "experiments", "benchmarks"), 0)
    for page, line in COMMANDS:
        for target in re.findall(r"^make ([\w-]+)", line):
            assert target in targets, f"{page}: {line}"
            counts["make"] += 1
        for module, package in re.findall(r"-m ((experiments|benchmarks)\.\w+)", line):
            assert importlib.util.find_spec(module), f"{page}: {line}"
            counts[package] += 1
    assert all(counts.values())
