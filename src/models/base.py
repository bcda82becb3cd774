"""What the pipeline asks of an architecture."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common import UserError


class Classifier(nn.Module):
    """A network from normalised images to logits.

    A new architecture is one file: a subclass that sets what differs from here, and a line in `models.MODELS`.

    Attributes:
        group: the name under which runs are compared in tables and in wandb.
        cam_layer: name of the submodule whose output, (N, K, h, w), class activation maps are made from.
        input_size: (channels, height, width) of one image.
        mean, std: a value a channel, for images scaled to 0..1.
        freeze_points: names that `freeze_to` accepts, first layers first; empty for a network trained from scratch.
        default_freeze_point: the one used with pretrained weights where the user names none.
        any_size: whether it takes images of another size than `input_size`.
        trains_channels_first: whether it trains sooner so on a CPU in fp32; else all runs channels last in memory.
        frozen_to: the one that `freeze_to` was called with; None while all layers are trained.
        image_format: what `normalise` gives; by default, that of the images.
    """

    group: ClassVar[str]
    cam_layer: ClassVar[str]
    input_size: ClassVar[tuple[int, int, int]] = (3, 224, 224)
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)  # of ImageNet
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    freeze_points: ClassVar[tuple[str, ...]] = ()
    default_freeze_point: ClassVar[str] = "none"
    any_size: ClassVar[bool] = False
    trains_channels_first: ClassVar[bool] = False
    frozen_to: str | None = None
    image_format: torch.memory_format = torch.preserve_format

    def __init__(self) -> None:
        super().__init__()
        # One multiplication and one addition take uint8 0..255 to normalised floats.
        mean, std = torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.std).view(1, -1, 1, 1)
        self.register_buffer("_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 to (N, C, H, W) float32 on the same device, in memory as `image_format` says."""
        images = images.to(torch.float32, memory_format=self.image_format)
        return torch.addcmul(self._shift, images, self._scale)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        """The network in two, which share its layers: what `freeze_point` freezes, and what comes behind it.

        The second one's output for the first one's is the network's. Whoever has `freeze_points` says this.
        """
        raise NotImplementedError(f"{type(self).__name__} has freeze points, and must say where they split it")

    def freeze_to(self, freeze_point: str) -> None:
        """Takes the layers up to a freeze point out of training: no gradient, hence no update and no weight decay."""
        self.frozen_to = freeze_point
        self.split(freeze_point)[0].requires_grad_(False).eval()

    def set_image_size(self, side: int) -> None:
        """Take images of `side` x `side` pixels in place of the architecture's own size.

        Raises:
            UserError: the architecture takes no other size.
        """
        channels, height, width = self.input_size
        if not self.any_size and side != height:
            raise UserError(f"--image-size {side}: {type(self).__name__} takes images of {height}x{width} pixels only")
        self.input_size = (channels, side, side)

    def train(self, mode: bool = True) -> Classifier:
        """Frozen layers stay in evaluation mode: their batch normalisation does not drift, and they drop nothing."""
        super().train(mode)
        if self.frozen_to:
            self.split(self.frozen_to)[0].eval()
        return self

    @property
    def last_layer(self) -> str:
        """The name of the linear layer that gives the logits: what it is given, (N, K), describes the images."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Linear)][-1]

    def cam_maps(self, output: Tensor) -> Tensor:
        """The output of `cam_layer` as maps (N, K, h, w)."""
        return output

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer is given."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
