"""Ways to train: what the numbers of a run leave open, under the names that `--recipe` knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Jitter:
    """How far images are changed at random as they are trained on; each number is the most.

    Attributes:
        crop: the share of an image's area that is cut off, sides of any proportions; the rest fills the image.
        zoom: how much larger or smaller, as 0.1 for a tenth.
        degrees: rotation to either side.
        shear: degrees to either side.
        shift: along each side, as a share of it.
    """

    crop: float = 0.0
    zoom: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        amsgrad: the variant of AdamW. Without it, and without weight decay, AdamW is Adam.
        one_cycle: the learning rate rises to the run's and falls to nothing, batch by batch (Smith and Topin, "Super-
            Convergence", 2018); else it falls by the run's gamma after each epoch.
        label_smoothing: the share of each label that is spread over all classes.
        averaging: the decay, batch by batch, of a moving average of the weights, which is what is validated, tested and
            kept; 0 for none.
        jitter: of the images.
    """

    amsgrad: bool = True
    one_cycle: bool = False
    label_smoothing: float = 0.0
    averaging: float = 0.0
    jitter: Jitter | None = None


RECIPES = {
    "default": Recipe(),
    "adam": Recipe(amsgrad=False),
    "adam-crop": Recipe(amsgrad=False, jitter=Jitter(crop=0.15)),
    "one-cycle": Recipe(
        amsgrad=False,
        one_cycle=True,
        label_smoothing=0.1,
        averaging=0.99,
        jitter=Jitter(zoom=0.1, degrees=10, shear=10, shift=0.07),
    ),
}
