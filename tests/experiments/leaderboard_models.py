"""Models of a user's own for the tests of the leaderboard, on digits."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Linear(nn.Module):
    """One dense layer."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.reshape(len(images), -1)) * self.scale


def flax_model():
    """Return a module and variables."""
    model = Linear()
    return model, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def function():
    """Return a plain function, the pixels in the middle as logits."""
    return lambda images: images.reshape(len(images), -1)[:, 20:30]


def probabilities():
    """Return a function whose outputs sum to one."""
    return lambda images: jax.nn.softmax(images.reshape(len(images), -1)[:, 20:30])


def too_few_classes():
    """Return a function of nine logits."""
    return lambda images: images.reshape(len(images), -1)[:, :9]


def broken():
    """Raise."""
    raise RuntimeError("no such luck")


def torch_module():
    """Return a torch module."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def constants():
    """Return a plain function with its weights inside."""
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    return lambda images: images.reshape(len(images), -1) @ weights


def integers():
    """Return a function of integers."""
    return lambda images: jnp.round(images.reshape(len(images), -1)[:, :10]).astype(int)


def leaves():
    """End the program."""
    sys.exit(3)


def uses_numpy():
    """Return a function that no program can hold."""
    return lambda images: np.asarray(images).reshape(len(images), -1)[:, :10]


def some_nan():
    """Return a function of which every image has one logit that is no number."""
    return lambda images: images.reshape(len(images), -1)[:, :10].at[:, 3].set(jnp.nan)


def torch_fails():
    """Return a torch module that takes small batches only."""
    import torch

    class Fails(torch.nn.Linear):
        def forward(self, images):
            if len(images) > 2:
                raise RuntimeError("in the middle")
            return super().forward(images.flatten(1))

    return Fails(64, 10)
