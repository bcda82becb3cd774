"""A small, cheap network for grey images of 28x28 pixels, inspired by EfficientNet, trained from scratch."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from models.small import SmallClassifier


class SmallEfficientNet(SmallClassifier):
    """Three 3x3 convolutions (32, 64, 128) with batch normalisation and max pooling; dropout; one linear layer.

    99,814 parameters for six classes.
    """

    cam_layer = "features.10"  # the last ReLU, (N, 128, 7, 7)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for channels_in, channels_out in pairwise((1, 32, 64, 128)):
            self.features.extend([
                nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ])  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(128 * 3 * 3, num_classes))
