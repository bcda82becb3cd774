"""SmallVGG's convolutions followed by residual blocks, for grey images of 28x28 pixels, trained from scratch."""

from __future__ import annotations

from torch import nn

from models.small import SmallClassifier, residual_block, two_layer_classifier, vgg_stage


class HybridVGGResNet(SmallClassifier):
    """SmallVGG's stage (32, 64), two residual blocks (128) at 7x7, two linear layers with dropout between them.

    1,348,102 parameters for six classes.
    """

    cam_layer = "blocks"  # (N, 128, 7, 7)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = vgg_stage()
        self.blocks = nn.Sequential(residual_block(64, 128), residual_block(128, 128))
        self.classifier = two_layer_classifier(128, num_classes)
