"""A training stopped at any moment continues to the same bits."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import models, training
from nn_adv.threat import Threat
from nn_adv.training import checkpoints
from nn_adv.training.checkpoints import Checkpoints

_MODEL = models.create("mlp", 2, hidden_sizes=(8,))
_GENERATOR = np.random.default_rng(0)
_LABELS = np.arange(40, dtype=np.int32) % 2
_IMAGES = (_GENERATOR.integers(0, 200, (40, 4, 4, 1)) + 40 * _LABELS[:, None, None, None]).astype(np.uint8)
_MEMBERS = [training.Member(np.arange(s, s + 25), _LABELS[s : s + 25], np.arange(30, 40), _LABELS[30:]) for s in (0, 5)]
_RECIPE = training.Recipe(
    threats=(Threat("linf", 0.05),),
    num_steps=2,
    num_epochs=6,
    batch_size=8,
    ema_decay=0.9,
    select_every=2,
    select_steps=2,
)


class _Stop(Exception):
    pass


def _train(folder=None, stop_after=None, members=_MEMBERS, recipe=_RECIPE, seeds=(3, 4), **options):
    epochs = []

    def on_epoch(epoch, history):
        epochs.append(epoch)
        if epoch == stop_after:
            raise _Stop

    trained = training.train(
        _MODEL, _IMAGES, members, recipe, seeds=seeds, checkpoint_dir=folder, on_epoch=on_epoch, **options
    )
    return trained, epochs


def _assert_identical(a, b):
    """Equal to the bit, but for the time it took."""
    a, b = (trained._replace(history=trained.history._replace(seconds=0)) for trained in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted():
    return _train()[0]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("count", [2, 1])
def test_resumed_training_is_identical(tmp_path, uninterrupted, count):
    options = {"members": _MEMBERS[:count], "seeds": (3, 4)[:count], "checkpoint_every": 2}
    with pytest.raises(_Stop):
        _train(tmp_path, stop_after=3, **options)
    trained, epochs = _train(tmp_path, **options)
    assert epochs == [4, 5]
    _assert_identical(trained, uninterrupted if count == 2 else _train(members=_MEMBERS[:1], seeds=(3,))[0])


def test_finished_training_is_only_loaded(tmp_path, uninterrupted):
    first, _ = _train(tmp_path)
    again, epochs = _train(tmp_path)
    assert epochs == []
    _assert_identical(first, uninterrupted)
    _assert_identical(again, uninterrupted)


def _train_in_a_process(folder, preparation=""):
    """Each run of a user is a process of its own, and so are those compared here."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_checkpoints
{preparation}
test_checkpoints._train({str(folder)!r})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    """A process is killed in the middle of its third save, after the data is written and before it is published."""
    kill_in_third_save = """
import os, signal
import orbax.checkpoint._src.path.atomicity as atomicity

saves = []
for name in ("AtomicRenameTemporaryPath", "ReadOnlyTemporaryPath", "CommitFileTemporaryPath"):
    kind = getattr(atomicity, name, None)
    if kind is not None:
        def finalize(self, *args, _original=kind.finalize, **kwargs):
            saves.append(1)
            if len(saves) > 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(self, *args, **kwargs)
        kind.finalize = finalize
"""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    ended = _train_in_a_process(killed, kill_in_third_save)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert any("tmp" in path.name for path in killed.rglob("*"))  # the half save lies there
    assert (killed / "2").exists() and not (killed / "6").exists()
    for folder in (killed, whole):
        ended = _train_in_a_process(folder)
        assert ended.returncode == 0, ended.stderr
    loaded = [_train(folder) for folder in (killed, whole)]
    assert [epochs for _, epochs in loaded] == [[], []]
    _assert_identical(loaded[0][0], loaded[1][0])


@pytest.mark.parametrize(
    ("changes", "topics"),
    [
        ({"recipe": dataclasses.replace(_RECIPE, beta=1.0)}, "recipe"),
        ({"members": _MEMBERS[::-1]}, "members"),
        ({"seeds": (3, 5)}, "seeds"),
        ({"steps_per_epoch": 9}, "steps_per_epoch"),
    ],
)
def test_another_training_is_refused(tmp_path, changes, topics):
    with pytest.raises(_Stop):
        _train(tmp_path, stop_after=0)
    with pytest.raises(ValueError, match=f"holds another training \\(different {topics}\\)"):
        _train(tmp_path, **changes)


class _Activated(nn.Module):
    activation: Callable

    @nn.compact
    def __call__(self, images, train=False):
        logits = nn.Dense(2)(images.reshape(len(images), -1))
        return self.activation(logits, train)


def _twice(model, other_model, tmp_path, other_images=_IMAGES):
    recipe = training.Recipe(objective="standard", num_epochs=1, batch_size=8)
    for some, images in ((model, _IMAGES), (other_model, other_images)):
        training.train(some, images, _MEMBERS[:1], recipe, seeds=(0,), checkpoint_dir=tmp_path)


def test_functions_in_a_network_are_told_apart_by_what_they_do(tmp_path):
    def scaled(weights, in_training=1.0):
        weights = jnp.asarray(weights)
        return _Activated(functools.partial(lambda x, train: x * weights * (in_training if train else 1.0)))

    one = scaled([1.0, 2.0])
    _twice(one, scaled([1.0, 2.0]), tmp_path / "same")  # two functions, at two addresses
    for number, other in enumerate((scaled([1.0, 2.5]), scaled([1.0, 2.0], in_training=2.0))):
        with pytest.raises(ValueError, match="holds another training \\(different model\\)"):
            _twice(one, other, tmp_path / str(number))


def test_images_of_another_shape_are_another_training(tmp_path):
    with pytest.raises(ValueError, match="holds another training \\(different images\\)"):
        _twice(_MODEL, _MODEL, tmp_path, _IMAGES.reshape(40, 2, 8, 1))


def test_a_full_disk_is_one_line_and_the_save_before_stays(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing "a"\n: No space left on device')

    with Checkpoints(tmp_path, {"what": "test"}) as saved:
        saved.save(1, {"a": np.arange(3)})
        monkeypatch.setattr(saved._manager, "save", full)
        with pytest.raises(OSError, match=r"^cannot save a checkpoint in .* \(no space left\): .*$"):
            saved.save(2, {"a": np.arange(3) + 1})
    with Checkpoints(tmp_path, {"what": "test"}) as saved:
        epochs, state = saved.restore({"a": np.zeros(3, int)})
    assert epochs == 1
    np.testing.assert_array_equal(state["a"], np.arange(3))


@pytest.mark.slow
def test_names_with_dots_and_constants_come_back(tmp_path):
    model = models.create("wide_resnet", 3, depth=10, widen_factor=1, mean=0.5, std=0.2)
    state = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    assert "block1.layer.0" in state["params"] and set(state["constants"][""]) == {"mu", "sigma"}
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
    with Checkpoints(tmp_path, {}) as checkpoints:
        epoch, restored = checkpoints.restore(jax.tree.map(np.zeros_like, state))
    assert epoch == 1 and jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def _stopped(folder):
    """A training stopped after its fourth epoch, with the states of two epochs."""
    with pytest.raises(_Stop):
        _train(folder, stop_after=3)
    assert {path.name for path in folder.iterdir()} == {"3", "4", "training.json"}


def _change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _largest_array(step):
    return max((step / "default" / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)


_DAMAGES = {
    "_METADATA": lambda step: _change_a_byte(step / "default" / "_METADATA"),
    "emptied _METADATA": lambda step: (step / "default" / "_METADATA").write_bytes(b""),
    "gone _METADATA": lambda step: (step / "default" / "_METADATA").unlink(),
    "manifest": lambda step: _change_a_byte(step / "default" / "manifest.ocdbt"),
    "array": lambda step: _change_a_byte(_largest_array(step)),  # nothing of the format's own would tell
    "emptied array": lambda step: _largest_array(step).write_bytes(b""),
    "digests": lambda step: _change_a_byte(step / "digests.json"),
    "everything": lambda step: shutil.rmtree(step) or step.mkdir(),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("damage", _DAMAGES.values(), ids=list(_DAMAGES))
def test_a_damaged_state_is_replaced_by_the_one_before(tmp_path, uninterrupted, damage):
    _stopped(tmp_path)
    damage(tmp_path / "4")
    with pytest.warns(UserWarning, match=r"checkpoint of epoch 4 \(.+\) in .* is damaged .* continues from epoch 3$"):
        trained, epochs = _train(tmp_path)
    assert epochs == [3, 4, 5]
    _assert_identical(trained, uninterrupted)


def _fail_to_read(path):
    raise OSError(errno.EIO, "Input/output error", str(path))


def test_a_state_that_cannot_be_read_now_is_not_removed(tmp_path, uninterrupted, monkeypatch):
    _stopped(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_digest", _fail_to_read)
        with pytest.raises(OSError, match=r"^cannot read a checkpoint in .*Input/output error.*run the same again$"):
            _train(tmp_path)
    trained, epochs = _train(tmp_path)
    assert epochs == [4, 5]
    _assert_identical(trained, uninterrupted)


def test_an_empty_folder_of_a_higher_number_is_no_state(tmp_path, uninterrupted):
    _stopped(tmp_path)
    (tmp_path / "99").mkdir()
    with pytest.warns(UserWarning, match=r"checkpoint of epoch 99 .* continues from epoch 4$"):
        trained, epochs = _train(tmp_path)
    assert epochs == [4, 5]
    _assert_identical(trained, uninterrupted)
    assert _train(tmp_path)[1] == []  # what was saved since is the newest


def test_where_every_state_is_damaged_the_folder_and_the_remedy_are_named(tmp_path):
    _stopped(tmp_path)
    for number in ("3", "4"):
        _change_a_byte(tmp_path / number / "default" / "_METADATA")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(epoch 4 .*, 3 .*\): delete the") as caught:
        _train(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "4").exists()


def test_states_without_digests_are_read(tmp_path, uninterrupted):
    """A process killed right after a save has not written them."""
    _stopped(tmp_path)
    (tmp_path / "4" / "digests.json").unlink()
    trained, epochs = _train(tmp_path)
    assert epochs == [4, 5]
    _assert_identical(trained, uninterrupted)


def test_states_of_nobody_knows_what_are_refused(tmp_path):
    _stopped(tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no training\.json, which says of what: put it back"):
        _train(tmp_path, recipe=dataclasses.replace(_RECIPE, batch_size=4))
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", "5", "{", '"a"'])
def test_a_damaged_identity_names_its_file_and_the_remedy(tmp_path, content):
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ValueError, match=r"training\.json is damaged .*: delete the folder"):
        Checkpoints(tmp_path, {"what": "test"})


def test_a_file_is_no_folder_of_checkpoints(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ValueError, match="checkpoint_dir must be a folder, .*file.* is or goes through a file"):
            Checkpoints(folder, {})


def test_the_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Checkpoints("~/here", {"what": "test"})
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
