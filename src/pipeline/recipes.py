"""Training recipes for `--recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Augmentation:
    """Random data augmentation of training images. Every number is a maximum."""

    crop: float = 0.0  # share of the area that is cut off; the rest, with an aspect ratio of 3:4 to 4:3, is resized
    flip: float = 0.0  # probability of a horizontal flip
    colour: float = 0.0  # relative change of brightness, contrast and saturation
    erase: float = 0.0  # probability of an erased rectangle (Zhong et al., "Random Erasing Data Augmentation", 2020)
    zoom: float = 0.0  # relative change of the size
    degrees: float = 0.0  # rotation
    shear: float = 0.0  # in degrees
    shift: float = 0.0  # translation relative to the size of the image


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    amsgrad: bool = False  # the AMSGrad variant of AdamW; without it and without weight decay, AdamW is Adam
    # First fit the last layer to frozen features by logistic regression (`pipeline.head`). If all other layers are
    # frozen, training ends there.
    fit_head: bool = False
    trained_share: float = 1.0  # share of the layers that are trained, the last ones
    first_layer_rate: float = 1.0  # learning rate of the first trained layer relative to the last; geometric in between
    freeze_batch_norm: bool = False  # batch normalisation keeps its pretrained means and variances
    # One-cycle learning-rate schedule (Smith and Topin, "Super-Convergence", 2018); otherwise the learning rate is
    # multiplied by the run's gamma after each epoch.
    one_cycle: bool = False
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    # Decay per batch of an exponential moving average (EMA) of the weights, which is validated, tested and saved.
    ema_decay: float = 0.0
    # Share of the initial weights in that average after the last batch; sets the decay. Weights between pretrained and
    # fine-tuned ones are more robust to distribution shift (Wortsman et al., "Robust fine-tuning of zero-shot models",
    # 2022).
    initial_weight_share: float = 0.0
    balance: bool = False  # draw every class equally often, as `--balance` does
    augmentation: Augmentation | None = None
    image_scales: tuple[float, ...] = (1.0,)  # relative to the model's input size, for equal parts of the epochs
    defaults: Mapping[str, Any] = field(default_factory=dict)  # default settings


DEFAULTS = {"num_epochs": 30, "learning_rate": 1e-4, "weight_decay": 1e-4}  # of recipes without their own
_ON_PHOTOGRAPHS = {"one_cycle": True, "label_smoothing": 0.1, "balance": True}
RECIPES = {
    "default": Recipe(amsgrad=True),
    "finetune": Recipe(
        fit_head=True,
        trained_share=0.6,
        first_layer_rate=0.1,
        freeze_batch_norm=True,
        initial_weight_share=1 / 3,
        augmentation=Augmentation(crop=0.5, flip=0.5, colour=0.2),
        defaults={"num_epochs": 5, "learning_rate": 3e-4},
        **_ON_PHOTOGRAPHS,
    ),
    "scratch": Recipe(
        ema_decay=0.99,
        augmentation=Augmentation(crop=0.7, flip=0.5, colour=0.3, erase=0.25),
        image_scales=(3 / 7, 5 / 7, 1),  # 96, 160 and 224 pixels
        defaults={"num_epochs": 60, "learning_rate": 1e-3, "weight_decay": 0.05},
        **_ON_PHOTOGRAPHS,
    ),
    "adam": Recipe(),
    "adam-crop": Recipe(augmentation=Augmentation(crop=0.15)),
    "one-cycle": Recipe(
        one_cycle=True,
        label_smoothing=0.1,
        ema_decay=0.99,
        augmentation=Augmentation(zoom=0.1, degrees=10, shear=10, shift=0.07),
    ),
}
