"""torchvision's ResNet-18, from scratch or with its ImageNet weights.

He et al., "Deep Residual Learning for Image Recognition", 2016.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision.models import ResNet, ResNet18_Weights
from torchvision.models.resnet import BasicBlock

from models.base import Classifier
from models.pretrained import load_into, load_torchvision


class ResNet18(ResNet, Classifier):
    """A 7x7 stem, four stages of two residual blocks (64, 128, 256, 512), global average pooling, one linear layer."""

    group = "ResNet"
    cam_layer = "layer4"  # (N, 512, 7, 7)
    any_size = True
    freeze_points = ("backbone",)

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)
        if pretrained:
            url = ResNet18_Weights.IMAGENET1K_V1.url
            state = load_torchvision("resnet18", url, weights)
            backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
            own_head = {f"fc.{name}": value for name, value in self.fc.state_dict().items()}
            load_into(self, backbone | own_head, "torchvision's resnet18", weights or url)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        *backbone, head = self.children()
        return nn.Sequential(*backbone, nn.Flatten(1)), head
