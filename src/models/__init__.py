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
    "CNNBasic": "cnn_basic",
    "SmallVGG": "small_vgg",
    "SmallResNet": "small_resnet",
    "SmallEfficientNet": "small_efficientnet",
    "HybridVGGResNet": "hybrid_vgg_resnet",
}
ALIASES = {"ResNet": "ResNet18"}


def model_class(name: str) -> type[Classifier]:
    """The class that a name in `MODELS` stands for."""
    return getattr(import_module(f"models.{MODELS[name]}"), name)


def build_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: Path | None = None,
    freeze_point: str | None = None,
) -> Classifier:
    """A model with random or pretrained weights, frozen where it should be.

    Args:
        name: a key of `MODELS`.
        num_classes: the number of logits.
        pretrained: start from ImageNet weights.
        weights: a file to take these from; without one, torch.hub's cache or a download.
        freeze_point: the last block to freeze, "none", or None for the model's own choice.

    Raises:
        UserError: the model has no pretrained weights, or no such freeze point, or the weights are not to be had.
    """
    architecture = model_class(name)
    if not pretrained:
        return architecture(num_classes)
    if not architecture.freeze_points:
        raise UserError(f"{name} has no pretrained weights, it is trained from scratch: leave out -p/--pretrained")
    freeze_point = freeze_point or architecture.default_freeze_point
    if freeze_point not in (*architecture.freeze_points, "none"):
        choices = ", ".join(architecture.freeze_points)
        raise UserError(f"{name} cannot be frozen to {freeze_point}: choose --freeze-to {choices} or none")
    model = architecture(num_classes, pretrained=True, weights=weights)
    if freeze_point != "none":
        model.freeze_to(freeze_point)
    return model
