"""Does what CONTRIBUTING.md says, to a copy of the repository, and uses what was added."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
_PLACE = r"new file: (?P<new>\S+)|(?P<file>\S+), (?:after: (?P<anchor>[^\n]+)|at the end)"
_BLOCK = re.compile(rf"^```python\n# (?:{_PLACE})\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_USE = """
import jax, numpy as np
from nn_adv import attacks, data, models
from nn_adv.threat import Threat

stripes = data.load("stripes")
model = models.create("linear", 2)
images = stripes.test_images / np.float32(255)
variables = model.init(jax.random.key(0), images)
logits_fn = jax.tree_util.Partial(model.apply, variables)
labels = np.asarray(logits_fn(images).argmax(axis=1))
found = attacks.ensemble(logits_fn, images, labels, key=jax.random.key(0), threat=Threat("linf", 0.5),
                         attacks=[attacks.named_attack("coin", 2)])
assert found.success.any() and found.distance.max() <= 0.5 * (1 + 1e-5)
"""
_RUN = "--config=configs/nearest.py:stripes --workdir=runs/nearest"
_TRAIN = """--config=configs/binary_tasks.py:stripes --workdir=runs/stripes --workers=1 --config.methods=('standard',)
 --config.model.name=linear --config.training.num_epochs=1 --config.evaluation.attacks=('coin',) --config.curve=()"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with all that is described, and its blocks."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("nn_adv", "experiments", "configs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = list(_BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()))
    assert len(blocks) == (ROOT / "CONTRIBUTING.md").read_text().count("```python") > 10
    for block in blocks:
        path = folder / (block["new"] or block["file"])
        if block["new"]:
            path.write_text(block["code"])
            continue
        lines, code = path.read_text().splitlines(keepends=True), block["code"]
        places = [place for place, line in enumerate(lines) if block["anchor"] and block["anchor"] in line]
        assert len(places) == 1 or not block["anchor"], f"{block['anchor']!r} is in {path} {len(places)} times"
        lines.insert(places[0] + 1 if places else len(lines), code)
        path.write_text("".join(lines))
    return folder


def test_new_files_are_as_this_project_writes_them(copy):
    new = [block["new"] for block in _BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()) if block["new"]]
    command = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", *new]
    subprocess.run(command, check=True, cwd=copy)


def test_what_is_added_is_found_and_used(copy):
    subprocess.run([sys.executable, "-c", _USE], check=True, cwd=copy)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [_RUN, _TRAIN], ids=["a new experiment", "new data, model and attack"])
def test_experiments_run_with_what_is_added(copy, arguments):
    command = [sys.executable, "-m", "experiments.main", *arguments.split()]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0 and "Report: " in run.stdout, run.stderr
