"""A small VGG-like network for grey images of 28x28 pixels, trained from scratch."""

from __future__ import annotations

from models.small import SmallClassifier, two_layer_classifier, vgg_stage


class SmallVGG(SmallClassifier):
    """Two 3x3 convolutions (32, 64), each with max pooling, and two linear layers with dropout between them.

    421,126 parameters for six classes.
    """

    cam_layer = "features.4"  # the last ReLU, (N, 64, 14, 14)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = vgg_stage()
        self.classifier = two_layer_classifier(64, num_classes)
