"""VGG19 with batch normalisation in its classifier."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from models.vgg19 import VGG19Classifier, dense_classifier


class VGG(VGG19Classifier):
    """VGG19; classifier 25088-4096-4096-C with ReLU, batch normalisation and dropout."""

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__(pretrained, weights)
        self.classifier = dense_classifier((512 * 7 * 7, 4096, 4096), num_classes, lambda: nn.ReLU(inplace=True))
