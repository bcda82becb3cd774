"""The base class of all architectures."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common import UserError


class Classifier(nn.Module):
    """A network that maps normalised images to logits.

    A new architecture is one file with a subclass that overrides these attributes, and an entry in `models.MODELS`. By
    default its submodules run in the order in which it creates them.
    """

    group: str  # the name under which tables and wandb compare runs; by default that of the class
    cam_layer: str  # the submodule whose output, (N, K, h, w), is used for class activation maps
    input_size: tuple[int, int, int] = (3, 224, 224)  # channels, height, width
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, for images scaled to 0..1; of ImageNet
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    freeze_points: ClassVar[tuple[str, ...]] = ()  # first layers first; empty if there are no pretrained weights
    default_freeze_point: ClassVar[str] = "none"  # with pretrained weights
    any_size: ClassVar[bool] = False  # whether it accepts other image sizes
    trains_channels_first: ClassVar[bool] = False  # whether that memory format is faster on a CPU in fp32
    frozen_to: str | None = None  # the current freeze point
    image_format: torch.memory_format = torch.preserve_format  # of the output of `normalise`

    def __init_subclass__(cls) -> None:
        cls.group = vars(cls).get("group", cls.__name__)

    def __init__(self, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None) -> None:
        """Make the buffers of `normalise`, by default of the mean and standard deviation of the class."""
        super().__init__()
        self.mean, self.std = mean or self.mean, std or self.std
        # One multiplication and one addition map uint8 0..255 to normalised floats.
        mean, std = torch.tensor(self.mean).view(1, -1, 1, 1), torch.tensor(self.std).view(1, -1, 1, 1)
        self.register_buffer("_scale", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, *input_size) float to logits (N, C)."""
        for module in self.children():
            images = module(images)
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) uint8 to normalised float32 on the same device, in `image_format`."""
        images = images.to(torch.float32, memory_format=self.image_format)
        return torch.addcmul(self._shift, images, self._scale)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        """Split the network at a freeze point into two modules that share its layers and run one after the other.

        Networks with `freeze_points` must implement it.
        """
        raise NotImplementedError(f"{type(self).__name__} has freeze points but does not implement split")

    def freeze_to(self, freeze_point: str) -> None:
        """Freeze the layers up to a freeze point: they get no gradients, updates or weight decay."""
        self.frozen_to = freeze_point
        self.split(freeze_point)[0].requires_grad_(False).eval()

    def set_image_size(self, image_size: int) -> None:
        """Set height and width of the input in pixels.

        Raises:
            UserError: the architecture does not support other sizes.
        """
        channels, height, width = self.input_size
        if not self.any_size and image_size != height:
            raise UserError(
                f"--image-size {image_size}: {type(self).__name__} takes images of {height}x{width} pixels only"
            )
        self.input_size = (channels, image_size, image_size)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode. Frozen layers stay in `eval` mode, with fixed batch statistics and without dropout."""
        super().train(mode)
        if self.frozen_to:
            self.split(self.frozen_to)[0].eval()
        return self

    @property
    def last_layer(self) -> str:
        """The name of the linear layer that computes the logits; its input (N, K) are the image features."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Linear)][-1]

    def cam_maps(self, output: Tensor) -> Tensor:
        """Reshape the output of `cam_layer` to maps (N, K, h, w)."""
        return output

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
