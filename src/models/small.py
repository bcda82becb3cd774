"""The parts that the networks for grey images of 28x28 pixels share."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock

from models.base import Classifier


class SmallClassifier(Classifier):
    """A network for grey images (N, 1, 28, 28), trained from scratch."""

    input_size = (1, 28, 28)
    mean = (0.5,)
    std = (0.5,)


def vgg_stage() -> nn.Sequential:
    """Return two 3x3 convolutions, each with max pooling: (N, 1, 28, 28) to (N, 64, 7, 7)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def residual_block(channels_in: int, channels_out: int) -> BasicBlock:
    """Return y = ReLU(F(x) + x), where F is two 3x3 convolutions; a 1x1 convolution projects x to other channels."""
    block = BasicBlock(channels_in, channels_out)
    if channels_in != channels_out:  # added to the block, since seeds give other weights if it is passed to it
        block.downsample = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        )
    return block


def two_layer_classifier(channels: int, num_classes: int) -> nn.Sequential:
    """Return two linear layers with dropout between them: (N, channels, 7, 7) to logits (N, C)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * 7 * 7, 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )
