"""The architectures, one file each, and their registry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from common import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from models.base import Classifier


class Entry(NamedTuple):
    """Where an architecture is, and what must be known of it without importing it, which takes seconds."""

    module: str  # in this folder, with a class of the architecture's name
    backbone: bool = False  # whether all layers but the last, linear one can have ImageNet weights
    timm: bool = False  # whether timm builds it


# By the name on the command line.
MODELS = {
    "VGG": Entry("vgg"),
    "VGGAdapted": Entry("vgg_adapted"),
    "CustomVGG": Entry("custom_vgg"),
    "ResNet18": Entry("resnet18", backbone=True),
    "EfficientNetLite0": Entry("backbone", backbone=True, timm=True),
    "EfficientNetLite2": Entry("backbone", backbone=True, timm=True),
    "CNNBasic": Entry("cnn_basic"),
    "SmallVGG": Entry("small_vgg"),
    "SmallResNet": Entry("small_resnet"),
    "SmallEfficientNet": Entry("small_efficientnet"),
    "HybridVGGResNet": Entry("hybrid_vgg_resnet"),
}
ALIASES = {"ResNet": "ResNet18"}
TIMM = "timm/"  # prefix of names of timm models


def model_class(name: str) -> type[Classifier]:
    """Return the class of a name in `MODELS`."""
    return getattr(import_module(f"models.{MODELS[name].module}"), name)


def is_model(name: str) -> bool:
    """Return whether `build_model` accepts a name. Names of timm models are not checked."""
    return name in MODELS or (name.startswith(TIMM) and name != TIMM)


def is_of_timm(name: str) -> bool:
    """Return whether a model is built by timm."""
    return name.startswith(TIMM) or (name in MODELS and MODELS[name].timm)


def has_backbone(name: str) -> bool:
    """Return whether all layers but the last, linear one can have ImageNet weights."""
    return name.startswith(TIMM) or (name in MODELS and MODELS[name].backbone)


def has_weights(name: str) -> bool:
    """Return whether a model can start from ImageNet weights."""
    return name.startswith(TIMM) or bool(model_class(name).freeze_points)


def build_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: Path | None = None,
    freeze_point: str | None = None,
    image_size: int | None = None,
) -> Classifier:
    """Build a model with random or pretrained weights.

    Args:
        name: a key of `MODELS`, or "timm/" and the name of a timm model.
        num_classes: the number of logits.
        pretrained: start from ImageNet weights.
        weights: a file with these weights; by default they come from a cache or a download.
        freeze_point: the last block to freeze, "none", or None for the model's default.
        image_size: height and width of the images in pixels; None for the model's default.
    """
    if name.startswith(TIMM):
        from models.backbone import Backbone as architecture

        options = {"name": name.removeprefix(TIMM)}
    else:
        architecture, options = model_class(name), {}
    if pretrained:
        if not architecture.freeze_points:
            raise UserError(f"{name} has no pretrained weights, it is trained from scratch: omit -p/--pretrained")
        freeze_point = freeze_point or architecture.default_freeze_point
        if freeze_point not in (*architecture.freeze_points, "none"):
            choices = ", ".join(architecture.freeze_points)
            raise UserError(f"{name} cannot be frozen to {freeze_point}: choose --freeze-to {choices} or none")
        options |= {"pretrained": True, "weights": weights}
    model = architecture(num_classes=num_classes, **options)
    if image_size:
        model.set_image_size(image_size)
    if pretrained and freeze_point != "none":
        model.freeze_to(freeze_point)
    return model
