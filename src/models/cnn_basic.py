"""A plain convolutional network, trained from scratch, as a baseline."""

from __future__ import annotations

from torch import nn

from models.base import Classifier


class CNNBasic(Classifier):
    """Four blocks (64, 128, 256, 512 channels) of two 3x3 convolutions and max pooling; global max pooling."""

    cam_layer = "blocks.3.5"  # the last GELU, (N, 512, 28, 28)
    trains_channels_first = True
    any_size = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_block(*widths) for widths in ((3, 64), (64, 128), (128, 256), (256, 512))))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 128), nn.GELU(), nn.Dropout(0.5), nn.Linear(128, num_classes)
        )


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.GELU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.BatchNorm2d(channels_out),
        nn.GELU(),
        nn.MaxPool2d(2),
    )
