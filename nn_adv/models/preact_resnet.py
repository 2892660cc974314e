"""Residual networks with pre-activation (He et al. 2016, arXiv 1603.05027) in their published forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax.numpy as jnp

from nn_adv.models import layers

_ACTIVATIONS: dict[str, Callable[[chex.Array], chex.Array]] = {"relu": nn.relu, "silu": nn.silu}


class Form(NamedTuple):
    """What networks of one topology differ in where they were published: the names of modules, and details.

    Attributes:
      stages: what the blocks of each stage are called, before their number.
      stem: the first convolution.
      norms: the two normalisations of a block.
      convs: its two convolutions.
      shortcut: the convolution that replaces the input of a block where its shape changes.
      last_norm: the normalisation, followed by an activation, before the mean; None for neither.
      head: the dense layer.
      constants: mean and standard deviation of the pixels; None where they are no part of the state dict.
      activation: "relu", "silu", or "pssilu", one `PSSiLU` for the whole network.
      activated_shortcut: whether ``shortcut`` reads the first activation of its block or the input as it is.
      shortcut_size: side of the kernel of ``shortcut``.
      pads_end: whether convolutions with stride 2 pad only below and on the right.
      cosine: whether logits are cosines between features and the columns of ``head``, which has no bias.
      gate: a module class for the output of each block before the addition, called "se"; None for none.
      sparsify: a module class for what follows each normalisation and addition, called "meansparse_0" to "_2" in
        blocks and "meansparse_end" after ``last_norm``; None for none.
    """

    stages: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
    stem: str = "conv1"
    norms: tuple[str, str] = ("bn1", "bn2")
    convs: tuple[str, str] = ("conv1", "conv2")
    shortcut: str = "shortcut.0"
    last_norm: str | None = "bn"
    head: str = "linear"
    constants: tuple[str, str] | None = ("mu", "sigma")
    activation: str = "relu"
    activated_shortcut: bool = True
    shortcut_size: int = 1
    pads_end: bool = False
    cosine: bool = False
    gate: Callable[..., nn.Module] | None = None
    sparsify: Callable[..., nn.Module] | None = None


# Without the last normalisation, and with shortcuts of the input as it is: networks published as PreActResNet-18.
PLAIN_FORM = Form(last_norm=None, activated_shortcut=False)
# What the networks with SiLU of Gowal and Rebuffi et al. have in common.
SILU_FORM = Form(
    norms=("batchnorm_0", "batchnorm_1"), shortcut="shortcut", last_norm="batchnorm", head="logits", constants=None,
    activation="silu", pads_end=True,
)  # fmt: skip
DM_PREACT_FORM = SILU_FORM._replace(
    stages=("layer_0", "layer_1", "layer_2", "layer_3"), stem="conv_2d", convs=("conv_2d_1", "conv_2d_2"),
    activated_shortcut=False, shortcut_size=3,
)  # fmt: skip


class PreActResNet(nn.Module):
    """A 3x3 convolution, stages of blocks, a last normalisation and activation, the mean over positions, a dense layer.

    Attributes:
      num_classes: number of logits; None to end with the mean over positions.
      stage_sizes: blocks per stage; each stage after the first halves the side.
      widths: channels of each stage.
      stem_features: channels of the first convolution.
      form: `Form`.
      standardise_images: whether to begin with `layers.standardise`.
      mean, std, dtype: as in `MLP`.

    Raises:
      ValueError: numbers of stages that differ between ``stage_sizes``, ``widths`` and ``form``.
    """

    num_classes: int | None
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_features: int = 64
    form: Form = Form()
    standardise_images: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if not len(self.stage_sizes) == len(self.widths) == len(self.form.stages):
            raise ValueError(
                f"stage_sizes and widths must have a number for each of the {len(self.form.stages)} stages, "
                f"got {self.stage_sizes} and {self.widths}"
            )
        super().__post_init__()

    def __call__(self, images: chex.Array, train: bool = False) -> chex.Array:
        """Map images ``[B, H, W, C]`` in [0, 1] to logits ``[B, num_classes]``."""
        return self.with_maps(images, train)[0]

    @nn.compact
    def with_maps(self, images: chex.Array, train: bool = False) -> tuple[chex.Array, list[chex.Array]]:
        """Map images to logits and the outputs of the stages, ``[B, H, W, F]`` each."""
        form = self.form
        activation = PSSiLU(name="activation") if form.activation == "pssilu" else _ACTIVATIONS[form.activation]
        x = layers.standardise(images) if self.standardise_images else images
        if form.constants is None:
            x = layers.normalize(x, self.mean, self.std)
        else:
            x = layers.Normalize(self.mean, self.std, form.constants, name="")(x)
        x = layers.conv(self.stem_features, 3, dtype=self.dtype, name=form.stem)(x)
        maps = []
        for stage, (num_blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"{form.stages[stage]}.{block}"
                x = PreActBlock(width, stride, form, activation, self.dtype, name=name)(x, train)
            maps.append(x)
        if form.last_norm is not None:
            x = layers.batch_norm(train, dtype=self.dtype, name=form.last_norm)(x)
            x = activation(_apply(form.sparsify, "meansparse_end", x))
        return self._head(jnp.mean(x, axis=(1, 2))), maps

    def _head(self, features):
        if self.num_classes is None:
            return features
        if self.form.cosine:
            return _Cosines(self.num_classes, name=self.form.head)(features)
        return layers.logits_head(features, self.num_classes, dtype=self.dtype, name=self.form.head)


class PreActBlock(nn.Module):
    """Batch normalisation and an activation before each of two 3x3 convolutions; the sum is left as it is.

    Where the shape changes, the shortcut is a convolution of the first activation, or of the input (`Form`).
    """

    features: int
    stride: int
    form: Form
    activation: Callable[[chex.Array], chex.Array]
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: chex.Array, train: bool) -> chex.Array:
        """Map features ``[B, H, W, F]`` to ``[B, H / stride, W / stride, features]``."""
        form = self.form
        strided: dict[str, Any] = {"stride": self.stride, "dtype": self.dtype}
        # One row and column of zeros, on the far sides alone, or a margin as wide as the kernel asks for.
        ends = (0, 1) if form.pads_end and self.stride == 2 else None
        active = self._normalised(0, x, train)
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.features:
            source = active if form.activated_shortcut else x
            padding = ends if form.shortcut_size == 3 else None
            conv = layers.conv(self.features, form.shortcut_size, padding=padding, name=form.shortcut, **strided)
            shortcut = conv(source)
        y = layers.conv(self.features, 3, padding=ends, name=form.convs[0], **strided)(active)
        y = self._normalised(1, y, train)
        y = layers.conv(self.features, 3, dtype=self.dtype, name=form.convs[1])(y)
        return _apply(form.sparsify, "meansparse_2", _apply(form.gate, "se", y) + shortcut)

    def _normalised(self, index, x, train):
        x = layers.batch_norm(train, dtype=self.dtype, name=self.form.norms[index])(x)
        return self.activation(_apply(self.form.sparsify, f"meansparse_{index}", x))


def _apply(module_class, name, x):
    return x if module_class is None else module_class(name=name)(x)


class PSSiLU(nn.Module):
    """The activation ``x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|)`` of Dai et al. 2021, arXiv 2110.05626."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Apply it to every entry."""
        alpha = jnp.abs(self.param("alpha", nn.initializers.ones, (1,))).astype(x.dtype)
        beta = jnp.abs(self.param("beta", nn.initializers.zeros, (1,))).astype(x.dtype)
        return x * (nn.sigmoid(alpha * x) - beta) / (1 - beta)


class _Cosines(nn.Module):
    """Cosines between features and one direction for each class (Pang et al. 2020, arXiv 2002.08619)."""

    num_classes: int

    @nn.compact
    def __call__(self, features: chex.Array) -> chex.Array:
        shape = features.shape[-1], self.num_classes
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        return layers.unit(features, -1) @ layers.unit(kernel, 0)


def preact_resnet18(
    num_classes: int, *, width: int = 64, stem_features: int = 64, full_preactivation: bool = False, **options: Any
) -> PreActResNet:
    """Build PreActResNet-18, whose first stage has ``width`` channels and each further one twice as many.

    With full preactivation, as in the paper, it has a last normalisation and ReLU, and shortcut convolutions of what
    was normalised. Networks robust in linf were published without either.
    """
    widths = tuple(width * 2**stage for stage in range(4))
    form = Form() if full_preactivation else PLAIN_FORM
    return PreActResNet(num_classes, (2, 2, 2, 2), widths, stem_features, form, **options)


def dm_preact_resnet18(num_classes: int, *, width: int = 64, **options: Any) -> PreActResNet:
    """Build the PreActResNet-18 with SiLU of Rebuffi et al. 2021, arXiv 2103.01946; the stem is as wide as a stage."""
    options = {"mean": layers.CIFAR10_MEAN, "std": layers.CIFAR10_STD} | options
    widths = tuple(width * 2**stage for stage in range(4))
    return PreActResNet(num_classes, (2, 2, 2, 2), widths, width, DM_PREACT_FORM, **options)
