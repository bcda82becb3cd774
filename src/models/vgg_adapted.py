"""VGG19 with a deeper and narrower classifier."""

from __future__ import annotations

from pathlib import Path

from models.vgg19 import VGG19Classifier, dense_classifier


class VGGAdapted(VGG19Classifier):
    """VGG19; classifier 25088-4096-1024-512-C with GELU, batch normalisation and dropout."""

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__(pretrained, weights)
        self.classifier = dense_classifier((512 * 7 * 7, 4096, 1024, 512), num_classes)
