"""ResNet-18, from scratch or with torchvision's ImageNet weights.

He et al., "Deep Residual Learning for Image Recognition", 2016. Layers have torchvision's names and order, so that
state dicts are interchangeable.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from models.base import Classifier
from models.pretrained import load_into, load_torchvision


class ResidualBlock(nn.Module):
    """y = ReLU(F(x) + x), where F is two 3x3 convolutions; a 1x1 convolution projects x if the shapes differ."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels_out, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet18(Classifier):
    """A 7x7 stem, four stages of two residual blocks (64, 128, 256, 512), global average pooling, one linear layer."""

    group = "ResNet"
    cam_layer = "layer4"  # (N, 512, 7, 7)
    any_size = True
    freeze_points = ("backbone",)

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(ResidualBlock(64, 64, 1), ResidualBlock(64, 64, 1))
        self.layer2 = nn.Sequential(ResidualBlock(64, 128, 2), ResidualBlock(128, 128, 1))
        self.layer3 = nn.Sequential(ResidualBlock(128, 256, 2), ResidualBlock(256, 256, 1))
        self.layer4 = nn.Sequential(ResidualBlock(256, 512, 2), ResidualBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            url = ResNet18_Weights.IMAGENET1K_V1.url
            state = load_torchvision("resnet18", url, weights)
            backbone = {name: value for name, value in state.items() if not name.startswith("fc.")}
            own_head = {f"fc.{name}": value for name, value in self.fc.state_dict().items()}
            load_into(self, backbone | own_head, "torchvision's resnet18", weights or url)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        *backbone, head = self.children()
        return nn.Sequential(*backbone, nn.Flatten(1)), head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 224, 224) float to logits (N, C)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (N, 64, 56, 56)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 512, 7, 7)
        return self.fc(self.avgpool(x).flatten(1))
