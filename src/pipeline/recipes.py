"""Ways to train: what the numbers of a run leave open, under the names that `--recipe` knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed at random as they are trained on; each number is the most.

    Attributes:
        crop: the share of an image's area that is cut off; what is left, of an aspect ratio of 3:4 to 4:3, is resized.
        flip: the probability of a mirror image, left to right.
        colour: change of brightness, contrast and saturation, as 0.1 for a tenth.
        erase: the probability that a rectangle is erased (Zhong et al., "Random Erasing Data Augmentation", 2020).
        zoom: how much larger or smaller, as 0.1 for a tenth.
        degrees: rotation to either side.
        shear: degrees to either side.
        shift: along each side, as a share of it.
    """

    crop: float = 0.0
    flip: float = 0.0
    colour: float = 0.0
    erase: float = 0.0
    zoom: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        amsgrad: the variant of AdamW. Without it, and without weight decay, AdamW is Adam.
        fit_head: first the last layer is fitted to features of the frozen layers, by logistic regression
            (`pipeline.head`); where all other layers are frozen, that is all.
        trained: the share of the layers that is trained, the last ones; earlier ones keep their weights.
        first_rate: the learning rate of the first of them, as a share of that of the last; between them it grows by
            equal factors.
        keep_statistics: batch normalisation keeps the means and variances that it was pretrained with.
        one_cycle: the learning rate rises to the run's and falls to nothing, batch by batch (Smith and Topin, "Super-
            Convergence", 2018); else it falls by the run's gamma after each epoch.
        label_smoothing: the share of each label that is spread over all classes.
        averaging: the decay, batch by batch, of a moving average of the weights, which is what is validated, tested and
            kept; 0 for none.
        first_share: the share that the weights before the first batch have in that average after the last batch, which
            then sets the decay. Weights between pretrained and fine-tuned ones lose less on images unlike the training
            images (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
        balance: every class is drawn equally often, as by `--balance`.
        augmentation: of the images.
        sizes: of the images, as shares of the side that the model takes, for equal parts of the epochs.
        defaults: settings of a run that the user leaves open.
    """

    amsgrad: bool = False
    fit_head: bool = False
    trained: float = 1.0
    first_rate: float = 1.0
    keep_statistics: bool = False
    one_cycle: bool = False
    label_smoothing: float = 0.0
    averaging: float = 0.0
    first_share: float = 0.0
    balance: bool = False
    augmentation: Augmentation | None = None
    sizes: tuple[float, ...] = (1.0,)
    defaults: Mapping[str, Any] = field(default_factory=dict)


DEFAULTS = {"num_epochs": 30, "learning_rate": 1e-4, "weight_decay": 1e-4}  # where a recipe has none
_ON_PHOTOGRAPHS = {"one_cycle": True, "label_smoothing": 0.1, "balance": True}
RECIPES = {
    "default": Recipe(amsgrad=True),
    "finetune": Recipe(
        fit_head=True,
        trained=0.6,
        first_rate=0.1,
        keep_statistics=True,
        first_share=1 / 3,
        augmentation=Augmentation(crop=0.5, flip=0.5, colour=0.2),
        defaults={"num_epochs": 5, "learning_rate": 3e-4},
        **_ON_PHOTOGRAPHS,
    ),
    "scratch": Recipe(
        averaging=0.99,
        augmentation=Augmentation(crop=0.7, flip=0.5, colour=0.3, erase=0.25),
        sizes=(3 / 7, 5 / 7, 1),  # 96, 160 and 224 pixels
        defaults={"num_epochs": 60, "learning_rate": 1e-3, "weight_decay": 0.05},
        **_ON_PHOTOGRAPHS,
    ),
    "adam": Recipe(),
    "adam-crop": Recipe(augmentation=Augmentation(crop=0.15)),
    "one-cycle": Recipe(
        one_cycle=True,
        label_smoothing=0.1,
        averaging=0.99,
        augmentation=Augmentation(zoom=0.1, degrees=10, shear=10, shift=0.07),
    ),
}
