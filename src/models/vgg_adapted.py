"""VGG19 with a deeper and narrower classifier."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from torch import nn

from models.vgg19 import VGG19Classifier, load_features


class VGGAdapted(VGG19Classifier):
    """VGG19; classifier 25088-4096-1024-512-C with GELU, batch normalisation and dropout."""

    group = "VGGAdapted"

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__()
        self.features = load_features(pretrained, weights)
        widths = (512 * 7 * 7, 4096, 1024, 512)
        self.classifier = nn.Sequential(nn.Flatten())
        for width_in, width_out in pairwise(widths):
            self.classifier.extend(
                [nn.Linear(width_in, width_out), nn.GELU(), nn.BatchNorm1d(width_out), nn.Dropout(0.1)]
            )
        self.classifier.append(nn.Linear(widths[-1], num_classes))
