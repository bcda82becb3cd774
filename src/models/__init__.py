"""The architectures, one file each, and the registry that names them. Knows nothing of files of data or of training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from common import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from models.base import Classifier

# Name on the command line -> module in this folder, which has a class of that name. Modules are imported when asked
# for, so that `--help` need not wait for torch.
MODELS = {
    "VGG": "vgg",
    "VGGAdapted": "vgg_adapted",
    "CustomVGG": "custom_vgg",
    "ResNet18": "resnet18",
    "EfficientNetLite0": "backbone",
    "EfficientNetLite2": "backbone",
    "CNNBasic": "cnn_basic",
    "SmallVGG": "small_vgg",
    "SmallResNet": "small_resnet",
    "SmallEfficientNet": "small_efficientnet",
    "HybridVGGResNet": "hybrid_vgg_resnet",
}
ALIASES = {"ResNet": "ResNet18"}
TIMM = "timm/"  # before the name of any model of timm


def model_class(name: str) -> type[Classifier]:
    """The class that a name in `MODELS` stands for."""
    return getattr(import_module(f"models.{MODELS[name]}"), name)


def is_model(name: str) -> bool:
    """Whether `build_model` knows a name; whether timm has what follows `timm/` is only known to it."""
    return name in MODELS or (name.startswith(TIMM) and name != TIMM)


def is_of_timm(name: str) -> bool:
    """Whether timm has the network."""
    return name.startswith(TIMM) or MODELS.get(name) == "backbone"


def has_backbone(name: str) -> bool:
    """Whether a model is a network with ImageNet weights up to its last, linear layer."""
    return name == "ResNet18" or is_of_timm(name)


def has_weights(name: str) -> bool:
    """Whether a model can start from ImageNet weights."""
    return name.startswith(TIMM) or bool(model_class(name).freeze_points)


def build_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: Path | None = None,
    freeze_point: str | None = None,
    image_size: int | None = None,
) -> Classifier:
    """A model with random or pretrained weights, frozen where it should be.

    Args:
        name: a key of `MODELS`, or "timm/" and the name of a model of timm.
        num_classes: the number of logits.
        pretrained: start from ImageNet weights.
        weights: a file to take these from; without one, a cache or a download.
        freeze_point: the last block to freeze, "none", or None for the model's own choice.
        image_size: side of the images in pixels; None for the model's own.

    Raises:
        UserError: the model has no pretrained weights, no such freeze point or takes no images of that size, or the
            weights are not available.
    """
    if name.startswith(TIMM):
        from models.backbone import Backbone as architecture

        made_of = {"name": name.removeprefix(TIMM)}
    else:
        architecture, made_of = model_class(name), {}
    if pretrained:
        if not architecture.freeze_points:
            raise UserError(f"{name} has no pretrained weights, it is trained from scratch: leave out -p/--pretrained")
        freeze_point = freeze_point or architecture.default_freeze_point
        if freeze_point not in (*architecture.freeze_points, "none"):
            choices = ", ".join(architecture.freeze_points)
            raise UserError(f"{name} cannot be frozen to {freeze_point}: choose --freeze-to {choices} or none")
        made_of |= {"pretrained": True, "weights": weights}
    model = architecture(num_classes=num_classes, **made_of)
    if image_size:
        model.set_image_size(image_size)
    if pretrained and freeze_point != "none":
        model.freeze_to(freeze_point)
    return model
