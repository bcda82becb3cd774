"""VGG19's convolutions, borrowed from torchvision: what the three VGG models share.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, configuration E.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import VGG19_Weights
from torchvision.models.vgg import cfgs, make_layers

from common import UserError
from models.base import Classifier

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
        UserError: the weights are not to be had, or are not those of vgg19.
    """
    features = make_layers(cfgs["E"])
    if pretrained:
        features.load_state_dict(_load_checked(features, weights))
        return features
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return features


def _load_checked(features: nn.Sequential, weights: Path | None) -> dict[str, Tensor]:
    """The state dict for `features` out of a file of vgg19's."""
    url = VGG19_Weights.IMAGENET1K_V1.url
    file = weights or Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    try:
        if weights:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            state = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        if weights:
            raise UserError(f"cannot read --weights {weights}: {error.strerror or error}") from error
        raise UserError(
            f"cannot download the pretrained weights ({error}): get {url} on a machine with internet, "
            f"then put it at {file} or name it with --weights FILE"
        ) from error
    except Exception as error:  # a damaged file raises whatever the unpickler stumbles over
        if not file.exists():  # torch.hub keeps no download whose checksum is wrong
            raise UserError(
                f"the download of {url} was cut off or altered: start again, or name a file of it with --weights FILE"
            ) from error
        raise UserError(f"{file} is not a file of weights, or a damaged one: replace it") from error
    prefix = "features."
    state = state if isinstance(state, dict) else {}
    found = {str(name).removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}
    expected = {name: tensor.shape for name, tensor in features.state_dict().items()}
    if {name: getattr(value, "shape", None) for name, value in found.items()} != expected:
        raise UserError(f"{file} does not hold the weights of torchvision's vgg19")
    return found
