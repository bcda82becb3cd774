"""VGG19 up to conv4_4, followed by further convolutions and a dense classifier."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from models.vgg19 import VGG19Classifier, dense_classifier

_CONV4_4 = 27  # end of conv4_4 and its ReLU in VGG19's features
_CONVOLUTIONS = ((512, 128, 1), (128, 128, 3), (128, 512, 1), (512, 1024, 1), (1024, 1024, 3))  # in, out, kernel


class CustomVGG(VGG19Classifier):
    """VGG19's first twelve convolutions, five further convolutions at the same resolution, global max pooling.

    The published runs froze all of VGG19's layers (`freeze_to("conv4")`).
    """

    cam_layer = "convolutions.9"  # the last GELU, (N, 1024, 28, 28)
    freeze_points = ("conv1", "conv2", "conv3", "conv4")
    default_freeze_point = "conv3"
    any_size = True

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__(pretrained, weights)
        self.features = self.features[:_CONV4_4]
        self.convolutions = nn.Sequential()
        for channels_in, channels_out, kernel in _CONVOLUTIONS:
            self.convolutions.extend([nn.Conv2d(channels_in, channels_out, kernel, padding="same"), nn.GELU()])
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = dense_classifier((1024, 1024, 512, 256), num_classes, dropout=None)
