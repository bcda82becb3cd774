"""Finds images that carry little information, are very dark, very blurred, or very narrow.

The kinds of flaws, the definition of darkness and its threshold are those of cleanvision
(https://github.com/cleanlab/cleanvision). The other measures and thresholds differ. On 1,765 photographs, most of them
cut out of larger ones, cleanvision 0.3.7 reports 22 as blurred, most of which are small or dark but not blurred, and
363 as of odd shape. Of 120 drawn placeholders saved as JPEG it finds 70, this module 95; of 40 GIFs both find all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.duplicates import SMALL
from dataset.examining import Examined

BLANK, DARK, BLURRED, NARROW = "little information", "very dark", "very blurred", "very narrow"

# Entropy in bits of the grey values, in bins of `STEP` values, which hide JPEG noise around the text of a placeholder.
# Photographs of tools on a white background have at least 1.14 bits. Images of at most `SMALL` pixels are exempt: a
# symbol of a thin line may have less.
LEAST_ENTROPY, STEP = 1.0, 8
LEAST_DEVIATION = 4  # standard deviation of the grey values; below it, an image is noise on one colour
LEAST_BRIGHT = 0.32 * 255  # the 99th percentile of the grey values; threshold of cleanvision
# Of `Examined.sharpness`. Chosen by eye on 1,765 photographs: the nine below it are all out of focus.
LEAST_SHARPNESS = 0.7
LEAST_ASPECT_RATIO = 1 / 16  # shorter side divided by longer; in a square of 224 pixels such an image is 14 pixels wide

RULE_SHARE, RULE_COUNT = 0.1, 5  # a flaw is the rule in a class if more images have it than both this share and number


class Rule(NamedTuple):
    """A flaw that so many images of a class have that it is usual there, as darkness is for symbols on black.

    Attributes:
        folder: of the class.
        flaw: the property.
        count: how many images have it.
        images: how many the class has.
    """

    folder: Path
    flaw: str
    count: int
    images: int


def find_flaws(image: Examined) -> list[str]:
    """Lists what is wrong with an image. One without information is not called dark or blurred as well."""
    narrow = [NARROW] if min(image.size) / max(image.size) < LEAST_ASPECT_RATIO else []
    shares = image.intensities.astype(np.float64)  # (256,)
    values = np.arange(256)
    deviation = math.sqrt(max(0.0, shares @ values**2 - (shares @ values) ** 2))
    plain = _entropy(shares) < LEAST_ENTROPY and image.size[0] * image.size[1] > SMALL
    if plain or deviation < LEAST_DEVIATION:
        return [BLANK, *narrow]
    dark = [DARK] if np.searchsorted(np.cumsum(shares), 0.99) < LEAST_BRIGHT else []
    blurred = [BLURRED] if image.sharpness < LEAST_SHARPNESS else []
    return [*dark, *blurred, *narrow]


def _entropy(shares: np.ndarray) -> float:
    """The entropy of shares (256,) in steps of grey values, the lower of two: a step may split a colour's noise."""
    found = []
    for shift in (0, STEP // 2):
        steps = np.pad(shares, (shift, -shift % STEP)).reshape(-1, STEP).sum(1)
        steps = steps[steps > 0]
        found.append(-(steps * np.log2(steps)).sum())
    return float(min(found))


def find_poor_images(images: Sequence[Examined]) -> tuple[dict[Path, list[str]], list[Rule]]:
    """Finds images with flaws, and flaws that are the rule in a class.

    Returns:
        The flaws of each image, sorted by path, without those that are the rule in its class; and the rules.
    """
    members: dict[Path, list[Examined]] = defaultdict(list)
    for image in images:
        members[image.path.parent].append(image)
    named: dict[Path, list[str]] = defaultdict(list)
    rules = []
    for folder, of_class in members.items():
        with_flaw: dict[str, list[Path]] = defaultdict(list)
        for image in of_class:
            for flaw in find_flaws(image):
                with_flaw[flaw].append(image.path)
        for flaw, paths in with_flaw.items():
            if len(paths) > max(RULE_COUNT, RULE_SHARE * len(of_class)):
                rules.append(Rule(folder, flaw, len(paths), len(of_class)))
            else:
                for path in paths:
                    named[path].append(flaw)
    return dict(sorted(named.items())), rules
