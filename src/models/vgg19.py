"""VGG19's convolutions, borrowed from torchvision: what the three VGG models share.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, configuration E.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from models.base import Classifier
from models.pretrained import load_into, load_torchvision

# The place in `features` behind each block's max pool, which has no weights to freeze, but makes the output smaller.
_END_OF_BLOCK = {"conv1": 5, "conv2": 10, "conv3": 19, "conv4": 28, "conv5": 37}


class VGG19Classifier(Classifier):
    """Borrowed layers in `features`, which are frozen block by block, then a subclass's own, up to a `classifier`.

    They are passed one after the other, in the order in which the subclass makes them.
    """

    cam_layer = "features.35"  # the last ReLU, (N, 512, 14, 14)
    freeze_points = tuple(_END_OF_BLOCK)
    default_freeze_point = "conv5"
    features: nn.Sequential
    classifier: nn.Sequential

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 224, 224) float to (N, C) logits."""
        x = images
        for layer in self.children():
            x = layer(x)
        return x

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        end = _END_OF_BLOCK[freeze_point]
        features, *others = self.children()
        return features[:end], nn.Sequential(*features[end:], *others)


def load_features(pretrained: bool, weights: Path | None) -> nn.Sequential:
    """VGG19's 37 feature layers, (N, 3, 224, 224) to (N, 512, 7, 7), without the 124 million weights behind them.

    Args:
        pretrained: with torchvision's ImageNet weights, else initialised at random as torchvision does.
        weights: a file of torchvision's vgg19 state dict to use in place of torch.hub's cache.

    Raises:
        UserError: the weights are not available, or are not those of vgg19.
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
