"""Any PyTorch classifier as a JAX function with gradients: slower than a port, for architectures that have none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental.buffer_callback import buffer_callback

from nn_adv.zoo.files import import_torch

_WHY = "a torch module needs PyTorch"


def from_torch(module: Any, num_classes: int) -> jax.tree_util.Partial:
    """Wrap a PyTorch classifier as a ``logits_fn``: **slower than a port**, for architectures without one.

    Each call leaves the compiled program for Python, and nothing is fused across that border. Otherwise this is a
    classifier like others: it runs under jit and inside loops, in every attack, and has a gradient with respect to the
    images (once, in reverse mode). Under ``jax.vmap`` its calls go one after the other.

    The module stays on the device of its parameters and computes in their dtype. It is put into eval mode and its
    parameters are frozen, in place: leave both so. It must be deterministic and treat each image by itself. To jit the
    module is a constant: each is compiled for, and kept alive until ``jax.clear_caches()``.

    Args:
      module: a ``torch.nn.Module``, images ``[B, C, H, W]`` in [0, 1] to logits ``[B, num_classes]``. A module of the
        RobustBench package is one: ``robustbench.utils.load_model(NAME, dataset="cifar10", threat_model="Linf")``.
      num_classes: number of logits.

    Returns:
      A function, images ``[B, H, W, C]`` to float32 logits ``[B, num_classes]``. Where it is traced it raises
      ValueError for images of another rank, and if the module fails on their shape or returns anything but such
      logits; where it is differentiated, also if the module gives no gradient. Where it runs it raises
      ``jax.errors.JaxRuntimeError`` if the module fails or returns NaN for a finite image.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: ``module`` is no module, or ``num_classes`` below 2.
    """
    network = _Network(module, num_classes)

    def logits_like(images):
        return jax.ShapeDtypeStruct((images.shape[0], num_classes), jnp.float32)

    @jax.custom_vjp
    def logits_of(images):
        return _call(network.logits, logits_like(images), images)

    def forward(images):
        network.check_gradient(images.shape[1:])
        return _call(network.logits_to_differentiate, logits_like(images), images), images

    def backward(images, cotangent):
        return (_call(network.gradient, images, images, cotangent),)

    logits_of.defvjp(forward, backward)

    def logits_fn(images):
        if images.ndim != 4:
            raise ValueError(f"images for a torch module must be [B, H, W, C], got shape {images.shape}")
        network.check(images.shape[1:])
        return logits_of(images.astype(jnp.float32))

    return jax.tree_util.Partial(logits_fn)


class _Network:
    """The side of PyTorch: float32 tensors ``[B, H, W, C]`` on the CPU in, tensors out.

    JAX has no place for a graph of autograd between a forward and its backward, so the last graph is kept here beside
    its images. It saves a gradient one of two forwards and changes no result: at other images the forward runs again.
    """

    def __init__(self, module: Any, num_classes: int):
        self.torch = torch = import_torch(_WHY)
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not hasattr(num_classes, "__index__") or num_classes < 2:
            raise ValueError(f"num_classes must be a whole number of at least 2, got {num_classes!r}")
        self.module = module.eval()
        for parameter in module.parameters():  # scripted modules have no requires_grad_ of their own
            parameter.requires_grad_(False)
        self.name = type(module).__name__
        self.num_classes = int(num_classes)
        # What images are made like: its device and its dtype.
        tensors = itertools.chain(module.parameters(), module.buffers())
        self.like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(()))
        self.checked: set[tuple[int, ...]] = set()
        self.differentiated: set[tuple[int, ...]] = set()
        self.kept: tuple | None = None  # images, the same as inputs of the module, logits

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the module gives two grey images ``[H, W, C]`` logits, one per class."""
        if image_shape in self.checked:
            return
        try:
            with self.torch.no_grad():
                logits = self.module(self._inputs(self._grey(image_shape)))
        except Exception as error:
            raise ValueError(
                f"{self.name} does not take images [H, W, C] = {image_shape}: {_first_line(error)}"
            ) from error
        shape = tuple(getattr(logits, "shape", ()))
        if not isinstance(logits, self.torch.Tensor) or shape != (2, self.num_classes):
            got = f"shape {shape}" if shape else type(logits).__name__
            raise ValueError(f"{self.name} must return logits (2, {self.num_classes}) for two images, got {got}")
        if not logits.is_floating_point():
            raise ValueError(f"{self.name} must return floating-point logits, got {logits.dtype}")
        self.checked.add(image_shape)

    def check_gradient(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the logits of two grey images ``[H, W, C]`` can be differentiated."""
        if image_shape in self.differentiated:
            return
        try:
            inputs, logits = self._graph(self._grey(image_shape))
            self.torch.autograd.grad(logits.sum(), inputs)
        except Exception as error:
            raise ValueError(f"{self.name} has no gradient with respect to images: {_first_line(error)}") from error
        self.differentiated.add(image_shape)

    def _grey(self, image_shape):
        return self.torch.full((2, *image_shape), 0.5)

    def logits(self, images):
        self.kept = None
        with self.torch.no_grad():
            return self._checked(self.module(self._inputs(images)), images)

    def logits_to_differentiate(self, images):
        self.kept = None  # so that there are never two graphs
        own = images.clone()  # the memory of the argument is JAX's
        inputs, logits = self._graph(own)
        self.kept = own, inputs, logits
        return self._checked(logits.detach(), images)

    def gradient(self, images, cotangent):
        kept = self.kept
        if kept is not None and self.torch.equal(kept[0], images):
            _, inputs, logits = kept
        else:
            inputs, logits = self._graph(images)
        # Retained: an untargeted attack asks for the gradients of all classes at the same images.
        (gradient,) = self.torch.autograd.grad(logits, inputs, cotangent.to(logits), retain_graph=True)
        return gradient.permute(0, 2, 3, 1)

    def _graph(self, images):
        with self.torch.enable_grad():
            inputs = self._inputs(images).requires_grad_()
            return inputs, self.module(inputs.clone())  # autograd forbids modules to write into a leaf

    def _inputs(self, images):
        # A copy, as the memory is JAX's and modules may write into theirs; contiguous, as those that call `view` need.
        return images.permute(0, 3, 1, 2).to(self.like, copy=True, memory_format=self.torch.contiguous_format)

    def _checked(self, logits, images):
        """Return the logits; raise ValueError if those of a finite image have NaN."""
        broken = self.torch.isnan(logits).any(dim=1).cpu()
        if broken.any():
            broken &= self.torch.isfinite(images).flatten(1).all(dim=1)
        if broken.any():
            raise ValueError(f"{self.name} returned NaN for a finite image, number {int(broken.int().argmax())} here")
        return logits


def _call(function: Callable, result: Any, *arrays: chex.Array) -> chex.Array:
    """Call ``function``, tensors on the CPU to a tensor, on arrays; ``result`` has the shape and dtype of its result.

    On CPUs it reads and writes JAX's own memory, which saves two copies and a deadlock. `jax.pure_callback` copies its
    arguments first, those above 100 KB in a task for the very threads that run programs: where all of these wait inside
    callbacks, with one core always, the copy waits for the callback and the callback for the copy (JAX issue 24255).
    A program on a GPU does not occupy those threads.
    """
    if jax.default_backend() != "cpu":
        return jax.pure_callback(
            lambda *given: function(*map(_tensor, given)).float().cpu().numpy(),
            jax.ShapeDtypeStruct(result.shape, result.dtype),
            *arrays,
            vmap_method="sequential",
        )

    def in_place(_, out, *given):
        _tensor(out).copy_(function(*map(_tensor, given)))

    return buffer_callback(in_place, result, vmap_method="sequential")(*arrays)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tensor(array):
    """Look at an array of JAX as a tensor in the same memory."""
    return import_torch(_WHY).from_dlpack(array)
