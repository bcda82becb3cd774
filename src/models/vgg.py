"""VGG19 with its classifier widened by batch normalisation."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from models.vgg19 import VGG19Classifier, load_features


class VGG(VGG19Classifier):
    """VGG19; classifier 25088-4096-4096-C with ReLU, batch normalisation and dropout."""

    group = "VGG"

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__()
        self.features = load_features(pretrained, weights)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(4096),
            nn.Dropout(0.1),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(4096),
            nn.Dropout(0.1),
            nn.Linear(4096, num_classes),
        )
