"""Plain PyTorch networks under the published names of their weights, for comparisons with ours."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False)


def _mean_over_positions(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=(2, 3))


class _BasicBlock(nn.Module):
    """Convolution, normalisation, ReLU, convolution, normalisation, sum, ReLU (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, 3, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv(after, after, 3), nn.BatchNorm2d(after)
        resize = stride != 1 or before != after
        self.shortcut = nn.Sequential(*([_conv(before, after, 1, stride), nn.BatchNorm2d(after)] if resize else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _PreActBlock(nn.Module):
    """Normalisation and ReLU before each convolution; the shortcut reads the raw input (arXiv 1603.05027)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _conv(before, after, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _conv(after, after, 3)
        resize = stride != 1 or before != after
        self.shortcut = nn.Sequential(*([_conv(before, after, 1, stride)] if resize else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.bn1(x)))
        return self.conv2(functional.relu(self.bn2(y))) + self.shortcut(x)


class _WideBlock(nn.Module):
    """As above, but where the channels change the activated input takes the place of the input."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _conv(before, after, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _conv(after, after, 3)
        self.convShortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = functional.relu(self.bn1(x))
        y = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class _WideStage(nn.Module):
    def __init__(self, before: int, after: int, count: int, stride: int):
        super().__init__()
        blocks = [_WideBlock(after if i else before, after, 1 if i else stride) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _stages(block: type[nn.Module], before: int, width: int) -> list[nn.Sequential]:
    """Build four stages of two blocks."""
    widths = [before, width, 2 * width, 4 * width, 8 * width]
    return [
        nn.Sequential(block(before, after, 2 if stage else 1), block(after, after, 1))
        for stage, (before, after) in enumerate(zip(widths, widths[1:], strict=False))
    ]


class ResNet18(nn.Module):
    """The network of `nn_adv.models.ResNet`."""

    def __init__(self, num_classes: int = 10, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, width, 3), nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_BasicBlock, width, width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(_mean_over_positions(x))


class PreActResNet18(nn.Module):
    """The network of `nn_adv.models.PreActResNet`."""

    def __init__(self, num_classes: int = 10, width: int = 64, stem_features: int = 64):
        super().__init__()
        self.conv1 = _conv(3, stem_features, 3)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(_PreActBlock, stem_features, width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(_mean_over_positions(x))


class WideResNet(nn.Module):
    """The network of `nn_adv.models.wide_resnet` (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

    def __init__(self, num_classes: int = 10, depth: int = 28, widen_factor: int = 10):
        super().__init__()
        count, width = (depth - 4) // 6, 16 * widen_factor
        self.conv1 = _conv(3, 16, 3)
        self.block1 = _WideStage(16, width, count, 1)
        self.block2 = _WideStage(width, 2 * width, count, 2)
        self.block3 = _WideStage(2 * width, 4 * width, count, 2)
        self.bn1, self.fc = nn.BatchNorm2d(4 * width), nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(_mean_over_positions(functional.relu(self.bn1(x))))


def draw_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give the normalisations of a new network scales, offsets and statistics that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_(0, 0.1, generator=generator)
    return network.eval()
