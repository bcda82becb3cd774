"""A small residual network for grey images of 28x28 pixels, trained from scratch."""

from __future__ import annotations

from torch import nn

from models.small import SmallClassifier, residual_block


class SmallResNet(SmallClassifier):
    """Residual blocks (64) at 28x28 and (128) at 14x14, each followed by max pooling; one linear layer.

    305,670 parameters for six classes.
    """

    cam_layer = "features.2"  # the last block, (N, 128, 14, 14)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(residual_block(1, 64), nn.MaxPool2d(2), residual_block(64, 128), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128 * 7 * 7, num_classes))
