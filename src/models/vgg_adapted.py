"""VGG19 with a deeper and narrower classifier."""

from __future__ import annotations

from pathlib import Path

from models.vgg19 import VGG19Classifier, dense_classifier, load_features


class VGGAdapted(VGG19Classifier):
    """VGG19; classifier 25088-4096-1024-512-C with GELU, batch normalisation and dropout."""

    group = "VGGAdapted"

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__()
        self.features = load_features(pretrained, weights)
        self.classifier = dense_classifier((512 * 7 * 7, 4096, 1024, 512), num_classes)
