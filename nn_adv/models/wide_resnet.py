"""Wide residual networks WRN-d-w (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from nn_adv.models.preact_resnet import PreActResNet


def wide_resnet(num_classes: int, *, depth: int = 28, widen_factor: int = 10, **options) -> PreActResNet:
    """Build WRN-``depth``-``widen_factor``: pre-activation stages of 16, 32 and 64 ``widen_factor`` channels.

    Args:
      num_classes: number of logits.
      depth: number of 3x3 convolutions plus 3: 6 n + 4 for n blocks per stage.
      widen_factor: how many times wider than the thin network.
      **options: ``mean``, ``std`` and ``dtype`` of `PreActResNet`.

    Raises:
      ValueError: a depth that is not 6 n + 4, or a widening below 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth}")
    if widen_factor < 1:
        raise ValueError(f"widen_factor must be at least 1, got {widen_factor}")
    blocks = (depth - 4) // 6
    return PreActResNet(num_classes, (blocks,) * 3, stem_features=16, width=16 * widen_factor, **options)
