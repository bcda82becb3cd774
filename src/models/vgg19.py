"""The parts that the three VGG models share: torchvision's VGG19 convolutions and dense classifiers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, configuration E.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from torch import nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from models.base import Classifier
from models.pretrained import load_into, load_torchvision

# The end of each block in `features`, with its max pooling, which has no weights but makes the output smaller.
_END_OF_BLOCK = {"conv1": 5, "conv2": 10, "conv3": 19, "conv4": 28, "conv5": 37}


class VGG19Classifier(Classifier):
    """VGG19's convolutions in `features`, which can be frozen block by block, and the layers of a subclass."""

    cam_layer = "features.35"  # the last ReLU, (N, 512, 14, 14)
    freeze_points = tuple(_END_OF_BLOCK)
    default_freeze_point = "conv5"

    def __init__(self, pretrained: bool, weights: Path | None) -> None:
        super().__init__()
        self.features = load_features(pretrained, weights)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        end = _END_OF_BLOCK[freeze_point]
        features, *others = self.children()
        return features[:end], nn.Sequential(*features[end:], *others)


def load_features(pretrained: bool, weights: Path | None) -> nn.Sequential:
    """Return VGG19's 37 feature layers, (N, 3, 224, 224) to (N, 512, 7, 7).

    Their weights are torchvision's ImageNet weights, or random ones as torchvision initialises them.
    """
    features = make_layers(cfgs["E"])
    if pretrained:
        url, prefix = VGG19_Weights.IMAGENET1K_V1.url, "features."
        state = load_torchvision("vgg19", url, weights)
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        load_into(features, found, "torchvision's vgg19", weights or url)
        return features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


def dense_classifier(
    widths: Sequence[int],
    num_classes: int,
    activation: Callable[[], nn.Module] = nn.GELU,
    dropout: float | None = 0.1,
) -> nn.Sequential:
    """Return linear layers of these widths with activation, batch normalisation and dropout, then a linear layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), activation(), nn.BatchNorm1d(width_out)]
        layers += [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
