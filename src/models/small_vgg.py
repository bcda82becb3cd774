"""A small network after VGG for grey images of 28x28, trained from scratch."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from models.base import Classifier


class SmallVGG(Classifier):
    """Two 3x3 convolutions (32, 64), each with a max pool, and two fully connected layers with dropout between.

    421,126 parameters for six classes.
    """

    group: ClassVar[str] = "SmallVGG"
    cam_layer: ClassVar[str] = "features.4"  # the last ReLU, (N, 64, 14, 14)
    input_size: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    mean: ClassVar[tuple[float, ...]] = (0.5,)
    std: ClassVar[tuple[float, ...]] = (0.5,)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = vgg_stage()
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) float to (N, C) logits."""
        return self.classifier(self.features(images))


def vgg_stage() -> nn.Sequential:
    """(N, 1, 28, 28) to (N, 64, 7, 7)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
