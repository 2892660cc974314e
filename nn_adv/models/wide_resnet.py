"""Wide residual networks WRN-d-w (Zagoruyko & Komodakis 2016, arXiv 1605.07146) in their published forms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nn_adv.models import layers
from nn_adv.models.preact_resnet import SILU_FORM, Form, PreActResNet

WIDE_FORM = Form(
    stages=("block1.layer", "block2.layer", "block3.layer"), shortcut="convShortcut", last_norm="bn1", head="fc"
)
BOOSTING_FORM = WIDE_FORM._replace(cosine=True)
PSSILU_FORM = WIDE_FORM._replace(activation="pssilu")
ROBUST_FORM = WIDE_FORM._replace(stages=("blocks.0.layer", "blocks.1.layer", "blocks.2.layer"), stem="stem_conv")
DM_FORM = SILU_FORM._replace(
    stages=("layer.0.block", "layer.1.block", "layer.2.block"), stem="init_conv", convs=("conv_0", "conv_1")
)


def wide_resnet(
    num_classes: int | None, *, depth: int = 28, widen_factor: int = 10, form: Form = WIDE_FORM, **options: Any
) -> PreActResNet:
    """Build WRN-``depth``-``widen_factor``: pre-activation stages of 16, 32 and 64 ``widen_factor`` channels.

    Args:
      num_classes: number of logits.
      depth: number of 3x3 convolutions plus 3: 6 n + 4 for n blocks per stage.
      widen_factor: how many times wider than the thin network.
      form: one of those above: `BOOSTING_FORM` is that of Pang et al. 2020 (arXiv 2002.08619), `PSSILU_FORM` of Dai et
        al. 2021 (arXiv 2110.05626).
      **options: ``standardise_images``, ``mean``, ``std`` and ``dtype`` of `PreActResNet`.

    Raises:
      ValueError: a depth that is not 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth}")
    blocks = (depth - 4) // 6
    widths = tuple(features * widen_factor for features in (16, 32, 64))
    return PreActResNet(num_classes, (blocks,) * 3, widths, 16, form, **options)


# With SiLU, of Gowal et al. 2020, arXiv 2010.03593; without a number of classes it ends with the features.
dm_wide_resnet: Callable[..., PreActResNet] = functools.partial(
    wide_resnet, form=DM_FORM, mean=layers.CIFAR10_MEAN, std=layers.CIFAR10_STD
)
# Of Huang et al. 2021, arXiv 2110.03825, whose last stage is narrow.
robust_wide_resnet: Callable[..., PreActResNet] = functools.partial(
    PreActResNet, stage_sizes=(5, 5, 5), widths=(320, 640, 512), stem_features=16, form=ROBUST_FORM
)
