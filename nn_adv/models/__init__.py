"""Flax (Linen) networks. They take images ``[B, H, W, C]`` in [0, 1]; normalisation happens inside."""

from nn_adv.models.mlp import MLP
from nn_adv.models.preact_ensemble import PreActEnsemble
from nn_adv.models.preact_resnet import Form, PreActResNet
from nn_adv.models.registry import NAMES, PUBLISHED_NAMES, create
from nn_adv.models.resnet import ResNet
from nn_adv.models.small_cnn import SmallCNN
from nn_adv.models.strided_cnn import StridedCNN
from nn_adv.models.wide_resnet import wide_resnet

__all__ = [
    "Form",
    "MLP",
    "NAMES",
    "PUBLISHED_NAMES",
    "PreActEnsemble",
    "PreActResNet",
    "ResNet",
    "SmallCNN",
    "StridedCNN",
    "create",
    "wide_resnet",
]
