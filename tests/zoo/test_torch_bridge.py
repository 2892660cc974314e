"""PyTorch modules as classifiers: the same logits, gradients and attacks as a port, and nothing waits for itself."""

import functools
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nn_adv import attacks, models
from nn_adv.threat import Threat
from nn_adv.zoo import convert, from_torch, torch_bridge

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("benchmarks.torch_models")

pytestmark = pytest.mark.usefixtures("quickly_compiled")

KEY = jax.random.key(0)
SHAPE = (16, 16, 3)


@functools.cache
def _resnet():
    """A narrow ResNet-18 in PyTorch and its port."""
    torch.manual_seed(0)
    module = torch_models.draw_statistics(torch_models.ResNet18(10, width=4))
    with torch.no_grad():  # without this all images are of one class, and no attack changes that
        module.linear.bias -= module(torch.tensor(_images()).permute(0, 3, 1, 2)).mean(dim=0)
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    model = models.create("resnet18", 10, width=4)
    variables = convert.from_state_dict(model, state, image_shape=SHAPE)
    return module, jax.tree_util.Partial(model.apply, variables)


def _images(count=6):
    return np.random.default_rng(0).random((count, *SHAPE)).astype(np.float32)


def _both():
    module, port = _resnet()
    images = _images()
    return from_torch(module, 10), port, images, np.argmax(np.asarray(jax.jit(port)(images)), axis=1)


class _Counting(torch.nn.Module):
    """A small smooth network that counts its forwards and can be told to return something else."""

    def __init__(self, num_classes=4, answer=lambda images, logits: logits):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(27, num_classes)
        self.answer, self.count = answer, 0

    def forward(self, images):
        self.count += 1
        return self.answer(images, torch.sin(self.linear(images.flatten(1))))


POINTS = np.random.default_rng(1).random((5, 3, 3, 3)).astype(np.float32)


def _by_hand(module, points):
    """Logits, and the gradient of the sum of their squares, in PyTorch alone."""
    inputs = torch.tensor(points).permute(0, 3, 1, 2).requires_grad_()
    logits = module(inputs)
    (gradient,) = torch.autograd.grad((logits.float() ** 2).sum(), inputs)
    return logits.detach().numpy(), gradient.permute(0, 2, 3, 1).numpy()


def _squares(logits_fn):
    return lambda points: jnp.sum(logits_fn(points) ** 2)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["plain", "jit"])
def test_logits_and_gradients_are_those_of_the_port(wrap):
    bridge, port, images, labels = _both()
    logits, expected = wrap(bridge)(images), jax.jit(port)(images)
    assert logits.shape == (6, 10) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))
    loss = lambda images, fn: jnp.sum(attacks.cross_entropy(fn(images), labels))  # noqa: E731
    gradient, expected = wrap(jax.grad(loss))(images, bridge), jax.jit(jax.grad(loss))(images, port)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.slow
def test_apgd_finds_what_it_finds_through_the_port():
    bridge, port, images, labels = _both()
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(number, logits_fn, epsilon):
        traces.append(number)
        threat = Threat("linf", epsilon)
        return attacks.apgd(
            logits_fn, images, labels, key=KEY, threat=threat, num_steps=10, loss_fn=attacks.cross_entropy
        )

    for epsilon in (0.0, 0.003, 0.012):
        ours, theirs = run(0, bridge, epsilon), run(1, port, epsilon)
        np.testing.assert_array_equal(ours.success, theirs.success)
    assert traces == [0, 1]
    assert np.any(ours.success)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_ensemble_finds_what_it_finds_through_the_port(norm):
    bridge, port, images, labels = _both()
    short = [
        attacks.named_attack("apgd-ce", 10, num_steps=5),
        attacks.named_attack("fab-t", 10, num_steps=2),
        attacks.named_attack("square", 10, num_queries=10),
    ]
    threat = Threat(norm, {"linf": 0.005, "l2": 0.1}[norm])
    ours, theirs = (
        attacks.ensemble(fn, images, labels, key=KEY, threat=threat, attacks=short, batch_size=4)  # 4 images, then 2
        for fn in (bridge, port)
    )
    np.testing.assert_array_equal(ours.success, theirs.success)
    np.testing.assert_array_equal(ours.broken_by, theirs.broken_by)
    assert 0 < ours.success.sum() < len(images)


def test_one_network_is_traced_once():
    traces = []

    @jax.jit
    def logits(fn, images):
        traces.append(images.shape)
        return fn(images)

    bridge = from_torch(_Counting(), 4)
    for _ in range(3):
        logits(bridge, POINTS)
    assert traces == [POINTS.shape]


def test_a_gradient_costs_one_forward_wherever_it_is_taken():
    module = _Counting()
    bridge = from_torch(module, 4)
    logits, gradient = _by_hand(module, POINTS)
    jax.eval_shape(jax.grad(_squares(bridge)), POINTS)  # checks the module on this shape
    module.count = 0
    value, found = jax.jit(jax.value_and_grad(_squares(bridge)))(POINTS)
    assert module.count == 1
    np.testing.assert_allclose(value, (logits**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_gradients_are_right_in_whatever_order_they_are_taken():
    module = _Counting()
    bridge = from_torch(module, 4)
    others = POINTS[::-1].copy()
    first, pull_first = jax.vjp(bridge, POINTS)
    second, pull_second = jax.vjp(bridge, others)
    bridge(POINTS)
    for points, logits, pull in ((POINTS, first, pull_first), (others, second, pull_second)):
        np.testing.assert_allclose(pull(2 * logits)[0], _by_hand(module, points)[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_runs_inside_loops_and_under_vmap():
    module = _Counting()
    bridge = from_torch(module, 4)

    @jax.jit
    def ascend(points):
        step = lambda points, _: (points + 0.1 * jax.grad(_squares(bridge))(points), None)  # noqa: E731
        return jax.lax.scan(step, points, length=3)[0]

    expected = POINTS
    for _ in range(3):
        expected = expected + np.float32(0.1) * _by_hand(module, expected)[1]
    np.testing.assert_allclose(ascend(POINTS), expected, rtol=1e-5, atol=1e-6)

    batches = np.stack([POINTS, POINTS[::-1]])
    found = jax.vmap(jax.grad(_squares(bridge)))(batches)
    np.testing.assert_allclose(found, [_by_hand(module, batch)[1] for batch in batches], rtol=1e-4, atol=1e-6)
    # All classes' gradients at the same points, as the untargeted FAB asks for them.
    jacobian = jax.jacrev(lambda points: jnp.sum(bridge(points), axis=0))(POINTS)
    each = [jax.grad(lambda points, c=c: jnp.sum(bridge(points)[:, c]))(POINTS) for c in range(4)]
    np.testing.assert_allclose(jacobian, each, rtol=1e-4, atol=1e-6)
    found = attacks.fab(bridge, POINTS, jnp.argmax(bridge(POINTS), axis=1), key=KEY, threat=Threat("l2", 5.0))
    assert np.any(found.success)


def test_nothing_is_kept_after_a_plain_forward():
    network = torch_bridge._Network(_Counting(), 4)
    points = torch.tensor(POINTS)
    network.logits_to_differentiate(points)
    assert network.kept is not None
    network.logits(points)
    assert network.kept is None


def test_modules_of_other_precision_and_without_parameters():
    module = _Counting().double()
    logits, gradient = (values.astype(np.float32) for values in _by_hand(module, POINTS.astype(np.float64)))
    bridge = from_torch(module, 4)
    assert bridge(POINTS).dtype == jnp.float32
    np.testing.assert_allclose(bridge(POINTS), logits, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(_squares(bridge))(POINTS), gradient, rtol=1e-5, atol=1e-7)
    half = from_torch(_Counting().bfloat16(), 4)
    np.testing.assert_allclose(half(POINTS), logits, atol=0.05)
    assert np.all(np.isfinite(jax.grad(_squares(half))(POINTS)))
    np.testing.assert_array_equal(from_torch(torch.nn.Flatten(), 27)(POINTS), np.moveaxis(POINTS, 3, 1).reshape(5, 27))


def test_the_module_is_frozen_and_in_eval_mode():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(27, 4))
    bridge = from_torch(module, 4)
    np.testing.assert_array_equal(bridge(POINTS), bridge(POINTS))
    assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_other_devices_are_called_through_host_memory(monkeypatch):
    module = _Counting()
    logits, gradient = _by_hand(module, POINTS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    bridge = from_torch(module, 4)
    np.testing.assert_allclose(jax.jit(bridge)(POINTS), logits, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.grad(_squares(bridge)))(POINTS), gradient, rtol=1e-4, atol=1e-6)


_ON_ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, torch
from nn_adv.zoo import from_torch
bridge = from_torch(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2)), 2)
step = lambda _, x: x + 1e-3 * jax.grad(lambda x: bridge(x).sum())(x)
run = jax.jit(lambda x: jax.lax.fori_loop(0, 5, step, x))
x = jax.random.uniform(jax.random.key(0), (128, 32, 32, 3))
jax.block_until_ready([run(x + i) for i in range(5)])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose a core here")
def test_large_batches_do_not_wait_for_themselves_on_one_core():
    """`jax.pure_callback` hangs here, always."""
    subprocess.run([sys.executable, "-c", _ON_ONE_CORE], check=True, timeout=120)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda images, logits: logits[:, :3],
            r"_Counting must return logits .* for two images, got shape \(2, 3\)",
        ),
        (lambda images, logits: (logits, logits), r"must return logits \(2, 4\) for two images, got tuple"),
        (lambda images, logits: logits[0, 0], r"must return logits \(2, 4\) for two images, got Tensor"),
        (lambda images, logits: logits.long(), "must return floating-point logits, got torch.int64"),
        (lambda images, logits: logits + 0j, "must return floating-point logits, got torch.complex64"),
    ],
)
def test_wrong_outputs_are_refused_before_anything_runs(answer, message):
    bridge = from_torch(_Counting(answer=answer), 4)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(bridge, POINTS)


def test_wrong_images_are_refused_before_anything_runs():
    bridge = from_torch(_Counting(), 4)
    with pytest.raises(ValueError, match=r"_Counting does not take images \[H, W, C\] = \(4, 4, 3\): mat1 and mat2"):
        jax.jit(bridge)(np.zeros((5, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"must be \[B, H, W, C\], got shape \(5, 27\)"):
        bridge(POINTS.reshape(5, 27))


def test_without_a_gradient_a_module_is_refused_only_where_one_is_taken():
    bridge = from_torch(_Counting(answer=lambda images, logits: logits.detach()), 4)
    assert bridge(POINTS).shape == (5, 4)
    with pytest.raises(ValueError, match="_Counting has no gradient with respect to images: element 0 of tensors does"):
        jax.eval_shape(jax.grad(_squares(bridge)), POINTS)


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (5, 3, 9, 1), (5, 1, 1, 27)])
def test_modules_may_write_into_their_images(shape):
    """In some shapes the axes are exchanged without a copy, and the memory is that of the caller."""

    class InPlace(_Counting):
        def forward(self, images):
            return super().forward(torch.nn.functional.relu(images.sub_(0.5).div_(0.25), inplace=True))

    points = jnp.asarray(POINTS.reshape(shape))
    bridge = from_torch(InPlace(), 4)
    ours, gradient = bridge(points), jax.grad(_squares(bridge))(points)
    np.testing.assert_array_equal(points, POINTS.reshape(shape))
    moved = np.maximum((POINTS.reshape(shape) - 0.5) / 0.25, 0)
    logits, expected = _by_hand(_Counting(), moved)
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, 4 * expected * (moved > 0), rtol=1e-4, atol=1e-5)


def test_scripted_modules_and_those_of_buffers_only_are_modules_like_others():
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 4))
    scripted = torch.jit.trace(module, torch.zeros(1, 3, 3, 3))
    np.testing.assert_allclose(from_torch(scripted, 4)(POINTS), from_torch(module, 4)(POINTS), rtol=1e-6)

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("matrix", torch.ones(27, 4, dtype=torch.float64))

        def forward(self, images):
            return images.flatten(1) @ self.matrix

    np.testing.assert_allclose(from_torch(Fixed(), 4)(POINTS)[:, 0], POINTS.sum(axis=(1, 2, 3)), rtol=1e-6)


def test_nan_is_refused_but_for_images_that_have_it():
    above = lambda images, logits: torch.where(images[:, :1, 0, 0] > 2, torch.nan, logits)  # noqa: E731
    bridge = jax.jit(from_torch(_Counting(answer=above), 4))
    marked = POINTS.copy()
    marked[3, 0, 0, 0] = 3
    with pytest.raises(jax.errors.JaxRuntimeError, match="_Counting returned NaN for a finite image, number 3 here"):
        jax.block_until_ready(bridge(marked))
    marked[3, 0, 0, 0] = np.nan
    logits = np.asarray(bridge(marked))
    np.testing.assert_array_equal(np.isnan(logits).any(axis=1), np.arange(5) == 3)


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="module must be a torch.nn.Module, got function"):
        from_torch(lambda images: images, 4)
    assert from_torch(_Counting(), np.int64(4))(POINTS).shape == (5, 4)
    for number in (1, 4.0, "4"):
        with pytest.raises(ValueError, match=f"num_classes must be a whole number of at least 2, got {number!r}"):
            from_torch(_Counting(), number)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"needs PyTorch: pip install 'nn_adv\[zoo\]'"):
        from_torch(object(), 4)


def test_a_network_of_the_robustbench_package_is_a_module_like_others(monkeypatch):
    """The package is not needed here: this stands in for what its `load_model` returns, a module that takes NCHW."""
    stand_in = types.ModuleType("robustbench.utils")
    stand_in.load_model = lambda model_name, dataset, threat_model: _Counting()
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", stand_in)
    from robustbench.utils import load_model

    bridge = from_torch(load_model("Standard", dataset="cifar10", threat_model="Linf"), 4)
    np.testing.assert_allclose(bridge(POINTS), _by_hand(_Counting(), POINTS)[0], rtol=1e-5)
