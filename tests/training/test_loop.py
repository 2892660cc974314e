"""Training: what it learns, what it keeps, and that members do not disturb each other."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks, models, training
from nn_adv.pixels import as_float
from nn_adv.threat import Threat
from nn_adv.training import loop, steps

_LINF = (Threat("linf", 0.1),)
_MODEL = models.create("mlp", 2, hidden_sizes=(16,))


def _data(count=90):
    """Two classes of 6x6 images: one pixel tells nine in ten images, faint shifts of all others tell every image."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, count)
    sign = (2 * labels - 1)[:, None, None, None]
    images = 0.5 + 0.05 * sign + generator.uniform(-0.05, 0.05, (count, 6, 6, 1))
    images[:, 0, 0, 0] = np.where(generator.uniform(size=count) < 0.9, labels, 1 - labels)
    return np.round(images * 255).astype(np.uint8), labels.astype(np.int32)


_IMAGES, _LABELS = _data()


def _member(start, stop, holdout=20):
    index = np.arange(start, stop)
    kept = np.arange(90 - holdout, 90)
    return training.Member(index, _LABELS[index], kept, _LABELS[kept])


def _recipe(**changes):
    options = {"threats": _LINF, "num_steps": 3, "num_epochs": 4, "batch_size": 16, "learning_rate": 0.05}
    return training.Recipe(**(options | changes))


def _robust_accuracy(variables):
    def logits_fn(images):
        return _MODEL.apply(variables, images)

    images, labels = jnp.asarray(_IMAGES[70:] / 255.0, jnp.float32), jnp.asarray(_LABELS[70:])
    found = attacks.pgd(
        logits_fn, images, labels, key=jax.random.key(3), threat=_LINF[0], num_steps=10, step_size=0.025
    )
    return 1 - float(jnp.mean(found.success))


def _assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("robust", ["trades", "adversarial"])
def test_training_for_it_is_more_robust_than_standard_training(robust):
    member = _member(0, 70)
    accuracy = {}
    for objective, threats in (("standard", ()), (robust, _LINF)):
        recipe = _recipe(objective=objective, threats=threats, num_epochs=40)
        trained = training.train(_MODEL, _IMAGES, [member], recipe, seeds=[0])
        assert trained.history.loss[0, -1] < trained.history.loss[0, 0]
        accuracy[objective] = _robust_accuracy(trained.variables[0])
    assert accuracy[robust] >= accuracy["standard"] + 0.3


@pytest.mark.slow
def test_member_of_a_group_equals_single_training():
    members = [_member(0, 60, 20), _member(10, 33, 7)]
    recipe = _recipe(num_epochs=2, select_every=1, select_steps=2, ema_decay=0.9)
    together = training.train(_MODEL, _IMAGES, members, recipe, seeds=[5, 6])
    for i, member in enumerate(members):
        alone = training.train(_MODEL, _IMAGES, [member], recipe, seeds=[5 + i], steps_per_epoch=4)
        _assert_same(alone.variables[0], together.variables[i], rtol=1e-3, atol=1e-4)
        _assert_same(alone.history.loss[0], together.history.loss[i], rtol=1e-4)
        assert alone.selected_epoch[0] == together.selected_epoch[i]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [models.ResNet(2, (1,), width=2), pytest.param(models.SmallCNN(2, (2, 2, 4, 4), 8), marks=pytest.mark.slow)],
)
def test_grouped_convolutions_equal_single_training(model):
    # Plain training: an inner maximisation would amplify rounding.
    images = np.pad(_IMAGES, ((0, 0), (5, 5), (5, 5), (0, 0)))
    members = [_member(0, 30), _member(30, 60)]
    recipe = _recipe(objective="standard", threats=(), num_epochs=2, learning_rate=0.01)
    together = training.train(model, images, members, recipe, seeds=[5, 6])
    for i, member in enumerate(members):
        alone = training.train(model, images, [member], recipe, seeds=[5 + i])
        _assert_same(alone.variables[0], together.variables[i], rtol=1e-3, atol=1e-4)


def test_epoch_shows_every_image_and_wraps_around():
    member = training.Member(np.array([7, 3, 11, 5, 2]), np.array([0, 1, 0, 1, 1]))
    indices, labels = loop._order(member, 0, 1, 3, 4)
    assert indices.shape == labels.shape == (3, 4)
    flat = indices.ravel()
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [2, 3, 5, 7, 11]
    np.testing.assert_array_equal(flat[5:], flat[:7])
    truth = dict(zip(member.train_index, member.train_labels, strict=True))
    assert [truth[i] for i in flat] == labels.ravel().tolist()
    assert np.any(loop._order(member, 0, 2, 3, 4)[0] != indices)


@pytest.mark.slow
def test_another_task_does_not_compile_again():
    recipe = _recipe(select_every=2, num_epochs=2, beta=3.125)
    training.train(_MODEL, _IMAGES, [_member(0, 60)], recipe, seeds=[0], steps_per_epoch=4)
    compiled = [function._cache_size() for function in (steps._first_variables, steps.advance, steps.count_correct)]
    training.train(_MODEL, _IMAGES, [_member(20, 50, 9)], _recipe(select_every=2, num_epochs=2, beta=3.125),
                   seeds=[1], steps_per_epoch=4)  # fmt: skip
    assert [f._cache_size() for f in (steps._first_variables, steps.advance, steps.count_correct)] == compiled


@pytest.mark.slow
def test_best_epoch_is_kept():
    seen = []

    def on_epoch(epoch, history):
        seen.append((epoch, history.robust[0, epoch]))

    recipe = _recipe(num_epochs=5, select_every=2, select_steps=3)
    trained = training.train(_MODEL, _IMAGES, [_member(0, 60)], recipe, seeds=[0], on_epoch=on_epoch)
    robust = trained.history.robust[0]
    assert np.isfinite(robust).tolist() == [False, True, False, True, True]
    assert trained.selected_epoch[0] == max(np.flatnonzero(robust == np.nanmax(robust)))
    np.testing.assert_array_equal([value for _, value in seen], robust)
    assert np.all(trained.history.clean[0][np.isfinite(robust)] >= robust[np.isfinite(robust)])


def test_selected_variables_are_those_of_their_epoch():
    # At this learning rate the robust accuracy jumps up and down: its peak is neither the first nor the last epoch.
    settings = {"schedule": "constant", "learning_rate": 0.3, "momentum": 0.0}
    recipe = _recipe(num_epochs=8, select_every=1, **settings)
    trained = training.train(_MODEL, _IMAGES, [_member(0, 60)], recipe, seeds=[3])
    chosen, robust = int(trained.selected_epoch[0]), trained.history.robust[0]
    assert 0 < chosen < 7 and robust[chosen] == robust.max() > robust[-1]
    again = training.train(_MODEL, _IMAGES, [_member(0, 60)], _recipe(num_epochs=chosen + 1, **settings), seeds=[3])
    _assert_same(trained.variables, again.variables, rtol=1e-6)


def test_the_latest_of_equal_epochs_is_kept():
    recipe = _recipe(num_epochs=3, select_every=1, schedule="constant", learning_rate=0.0)
    trained = training.train(_MODEL, _IMAGES, [_member(0, 60)], recipe, seeds=[0])
    assert len(set(trained.history.robust[0])) == 1 and trained.selected_epoch[0] == 2


@pytest.mark.slow
def test_moving_average_is_returned():
    decay = 0.5
    plain = [
        training.train(_MODEL, _IMAGES, [_member(0, 16)], _recipe(num_epochs=n, schedule="constant"), seeds=[0])
        for n in (1, 2, 3)
    ]
    recipe = _recipe(num_epochs=3, ema_decay=decay, schedule="constant")
    trained = training.train(_MODEL, _IMAGES, [_member(0, 16)], recipe, seeds=[0])
    init_key = loop._keys([0], False)[0]
    average = _MODEL.init(init_key, jnp.zeros((1, 6, 6, 1)))
    for step, now in enumerate(plain):
        keep = min(decay, (step + 1) / (step + 10))
        average = jax.tree.map(lambda a, b, keep=keep: keep * a + (1 - keep) * b, average, now.variables[0])
    _assert_same(trained.variables[0], average, rtol=1e-4, atol=1e-5)


def test_crop_flip_moves_each_image_by_itself():
    image = np.arange(1, 37, dtype=np.float32).reshape(6, 6, 1)
    images = np.repeat(image[None], 64, axis=0)
    changed = np.asarray(steps.crop_flip(jax.random.key(0), jnp.asarray(images)))
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    allowed = [padded[i : i + 6, j : j + 6][:, ::side] for i in range(9) for j in range(9) for side in (1, -1)]
    found = [[np.array_equal(one, other) for other in allowed].index(True) for one in changed]
    assert len(set(found)) > 30


@pytest.mark.slow
def test_an_epoch_in_one_program_equals_its_steps(monkeypatch):
    steps_apart = training.train(_MODEL, _IMAGES, [_member(0, 40)], _recipe(num_epochs=2), seeds=[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "accelerator")
    one_program = training.train(_MODEL, _IMAGES, [_member(0, 40)], _recipe(num_epochs=2), seeds=[0])
    _assert_same(one_program.variables, steps_apart.variables, rtol=1e-4, atol=1e-6)


class _Asking(nn.Module):
    """A network that must be told whether it trains."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(images.reshape(len(images), -1)))


class _Assuming(_Asking):
    """The same, which need not be told."""

    def __call__(self, images, train=False):
        return super().__call__(images, train)


def test_a_module_need_not_say_whether_it_trains_by_default():
    recipe = _recipe(objective="standard", threats=(), num_epochs=1, select_every=1)
    one, other = (
        training.train(model, _IMAGES, [_member(0, 40)], recipe, seeds=[0]) for model in (_Asking(), _Assuming())
    )
    _assert_same(one.variables, other.variables, rtol=0)
    np.testing.assert_array_equal(one.history.clean, other.history.clean)


def test_float_images_train_as_their_uint8_ones():
    runs = [
        training.train(_MODEL, images, [_member(0, 40)], _recipe(num_epochs=2), seeds=[0])
        for images in (_IMAGES, as_float(_IMAGES))
    ]
    _assert_same(runs[0].variables, runs[1].variables, rtol=1e-6)


@pytest.mark.slow
def test_both_threats_and_augmentation_run():
    threats = (Threat("linf", 0.1), Threat("l2", 0.5))
    recipe = _recipe(threats=threats, augment="crop_flip", num_epochs=1, step_sizes=(0.05, None), nesterov=True)
    trained = training.train(_MODEL, _IMAGES, [_member(0, 40)], recipe, seeds=[0])
    assert np.isfinite(trained.history.loss).all() and trained.selected_epoch.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": []}, "members must hold at least one Member"),
        ({"seeds": [0, 1]}, r"seeds must be integers \[1\], got int64 of shape \(2,\)"),
        ({"seeds": 0}, r"seeds must be integers \[1\], got int64 of shape \(\)"),
        ({"seeds": [0.5]}, "seeds must be .*0.5 at index 0"),
        ({"seeds": ["0"]}, "seeds must be .*'0' at index 0"),
        ({"seeds": [-1]}, "seeds must be in 0.* got -1 at index 0"),
        ({"images": _IMAGES[..., 0]}, "images must be \\[N, H, W, C\\], got shape .*: add the channel axis"),
        ({"images": _IMAGES[:50]}, "members\\[0\\].train_index must be in 0..49, got .* at index"),
        ({"steps_per_epoch": 1}, "steps_per_epoch must be at least 4, to show every image, got 1"),
        ({"steps_per_epoch": 4.5}, "steps_per_epoch must be a whole number, .* got 4.5"),
        ({"checkpoint_every": 1.5}, "checkpoint_every must be a whole number, .* got 1.5"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"members": _member(0, 60)}, r"members\[0\] must be a Member, got ndarray"),
        ({"recipe": None}, "recipe must be a Recipe, got None"),
        ({"members": [_member(0, 0)]}, "members\\[0\\] has no training images"),
        (
            {"members": [_member(0, 60)._replace(train_labels=_LABELS[:9])]},
            "train_labels must be integers \\[60\\], got .*9,",
        ),
        ({"members": [_member(0, 60, 0)], "recipe": _recipe(select_every=2)}, "has no held-out images"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"images": _IMAGES, "members": [_member(0, 60)], "recipe": _recipe(), "seeds": [0]} | changes
    with pytest.raises(ValueError, match=message):
        training.train(_MODEL, arguments.pop("images"), arguments.pop("members"), arguments.pop("recipe"), **arguments)
