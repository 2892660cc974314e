"""Training over simulated devices beside the same training on one."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from nn_adv import models, training
from nn_adv.threat import Threat
from nn_adv.training import steps

pytestmark = pytest.mark.usefixtures("eight_devices")
_RNG = np.random.default_rng(0)
_LABELS = np.arange(64, dtype=np.int32) % 2
_IMAGES = (_RNG.integers(0, 200, (64, 8, 8, 1)) + 40 * _LABELS[:, None, None, None]).astype(np.uint8)
_OPTIONS = {"batch_size": 16, "augment": "crop_flip", "learning_rate": 0.05}
_TRADES = training.Recipe(threats=(Threat("l2", 0.5),), num_steps=2, num_epochs=1, **_OPTIONS)
# Without an inner maximisation, in which a rounding can turn a step over and then grows.
_STANDARD = training.Recipe(objective="standard", num_epochs=2, **_OPTIONS)
_DENSE = models.create("mlp", 2, hidden_sizes=(8,))


class _Normalised(nn.Module):
    """A convolution, a normalisation by the statistics of the batch, a dense layer."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(images))
        return nn.Dense(2)(nn.relu(features).mean(axis=(1, 2)))


class _Stop(Exception):
    pass


def _mesh(count: int) -> jax.sharding.Mesh:
    return jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])


def _train(model, recipe, mesh, *, num_members=1, folder=None, stop_after=None):
    members = [training.Member(np.arange(64 - i), _LABELS[: 64 - i]) for i in range(num_members)]

    def on_epoch(epoch, _):
        if epoch == stop_after:
            raise _Stop

    return training.train(
        model, _IMAGES, members, recipe, seeds=range(num_members), steps_per_epoch=4, mesh=mesh, checkpoint_dir=folder,
        on_epoch=on_epoch,
    )  # fmt: skip


def test_batches_over_devices_have_the_losses_of_one_and_its_statistics(tmp_path):
    expected = _train(_Normalised(), _TRADES, None)
    found = _train(_Normalised(), _TRADES, _mesh(4))
    np.testing.assert_allclose(found.history.loss, expected.history.loss, rtol=1e-5, atol=1e-5)
    for name in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            found.variables[0][name], expected.variables[0][name],
        )  # fmt: skip


def test_groups_of_a_batch_have_statistics_of_their_own_on_any_mesh():
    recipe = dataclasses.replace(_STANDARD, num_epochs=1, batch_norm_groups=4)
    expected, found = (_train(_Normalised(), recipe, mesh) for mesh in (None, _mesh(4)))
    np.testing.assert_allclose(found.history.loss, expected.history.loss, rtol=1e-5, atol=1e-5)
    whole = _train(_Normalised(), dataclasses.replace(recipe, batch_norm_groups=1), None)
    assert np.all(np.abs(whole.history.loss - expected.history.loss) > 1e-4)


def test_a_group_is_normalised_as_a_batch_of_its_size():
    """Without an inner maximisation one step of two groups is the mean of one step of each."""
    recipe = training.Recipe(objective="standard", batch_size=8, batch_norm_groups=2, num_epochs=1, weight_decay=0.0)
    alone = dataclasses.replace(recipe, batch_size=4, batch_norm_groups=1)

    def after_a_step(recipe, index):
        state = steps.init(_Normalised(), recipe, jax.random.key(0), (8, 8, 1), grouped=False)
        labels = _LABELS[None, index]
        state, loss = steps.advance(
            _Normalised(), recipe, state, _IMAGES, index[None], labels, jax.random.key(1), steps_per_epoch=1,
            grouped=False,
        )  # fmt: skip
        return state.variables, loss

    index = np.arange(8)
    found = after_a_step(recipe, index)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(after_a_step(alone, part) for part in np.split(index, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_a_checkpoint_continues_on_another_mesh(tmp_path):
    expected = _train(_DENSE, _STANDARD, None)
    with pytest.raises(_Stop):
        _train(_DENSE, _STANDARD, _mesh(4), folder=tmp_path, stop_after=0)
    continued = _train(_DENSE, _STANDARD, _mesh(2), folder=tmp_path)
    np.testing.assert_allclose(continued.history.loss, expected.history.loss, rtol=1e-5, atol=1e-5)


def test_members_over_devices():
    expected, found = (_train(_DENSE, _STANDARD, mesh, num_members=4) for mesh in (None, _mesh(4)))
    np.testing.assert_allclose(found.history.loss, expected.history.loss, rtol=1e-5, atol=1e-5)


def test_meshes_that_do_not_fit():
    for mesh, members, message in (
        (jax.make_mesh((8,), ("x",)), 1, r"mesh must be a Mesh of the axis \('data',\), got \('x',\)"),
        (_mesh(3), 1, "batch_size must be a multiple of the 3 devices of the mesh, got 16"),
        (_mesh(4), 2, "members must be a multiple of the 4 devices of the mesh, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            _train(_DENSE, _STANDARD, mesh, num_members=members)
