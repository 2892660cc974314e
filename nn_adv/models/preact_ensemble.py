"""The ensemble of pre-activation ResNet-50s of Chen et al. 2020, arXiv 2003.12862."""

from __future__ import annotations

import chex
import flax.linen as nn

from nn_adv.models import layers
from nn_adv.models.resnet import ResNet

_EXPANSION = 4


class PreActEnsemble(nn.Module):
    """The mean of the class probabilities of several networks.

    Attributes:
      num_classes: number of probabilities.
      num_members: number of networks.
      stage_sizes: blocks per stage of each; each stage after the first halves the side and doubles the channels.
      width: channels of the stem and of the first stage, within its blocks.
      mean, std, dtype: as in `MLP`.
    """

    num_classes: int
    num_members: int = 3
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    mean: tuple[float, ...] | None = (0.485, 0.456, 0.406)
    std: tuple[float, ...] | None = (0.229, 0.224, 0.225)
    dtype: str | None = None

    @nn.compact
    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to *probabilities* ``[B, num_classes]``."""
        x = layers.Normalize(self.mean, self.std, ("mu", "sigma"), name="")(images)
        members = [
            _Member(self.num_classes, self.stage_sizes, width=self.width, dtype=self.dtype, name=f"models.{index}")
            for index in range(self.num_members)
        ]
        return sum(nn.softmax(member(x, train)) for member in members) / self.num_members


class _Member(ResNet):
    """A ResNet with pre-activation after an activated stem, and without normalisation before the mean."""

    def _block(self, features: int, stride: int, name: str) -> nn.Module:
        return _PreActBottleneck(features, stride, self.dtype, name=name)


class _PreActBottleneck(nn.Module):
    """Normalisation and ReLU before each of a 1x1, a strided 3x3 and a 1x1 convolution.

    Where the shape changes, the shortcut is a normalised 1x1 convolution of the first activation.
    """

    features: int
    stride: int
    dtype: str | None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        active = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn0")(x))
        shortcut, outputs = x, _EXPANSION * self.features
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = layers.conv(outputs, 1, stride=self.stride, dtype=self.dtype, name="shortcut.0")(active)
            shortcut = layers.batch_norm(train, dtype=self.dtype, name="shortcut.1")(shortcut)
        y = layers.conv(self.features, 1, dtype=self.dtype, name="conv1")(active)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn1")(y))
        y = layers.conv(self.features, 3, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(layers.batch_norm(train, dtype=self.dtype, name="bn2")(y))
        return layers.conv(outputs, 1, dtype=self.dtype, name="conv3")(y) + shortcut
