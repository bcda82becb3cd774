"""Find images that contain little information, or are very dark, very blurred or very narrow.

The kinds of flaws, and the measure and threshold of darkness, are those of cleanvision
(https://github.com/cleanlab/cleanvision). The other measures and thresholds differ: on photographs that are crops of
larger ones, those of cleanvision 0.3.7 report small or dark images as blurred, and every fifth image as odd-sized.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
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
LEAST_DEVIATION = 4  # standard deviation of the grey values; below it, an image is noise on a uniform colour
LEAST_BRIGHT = 0.32 * 255  # the 99th percentile of the grey values
# Of `Examined.sharpness`. Chosen by eye on 1,765 photographs: the nine below it are all out of focus.
LEAST_SHARPNESS = 0.7
LEAST_ASPECT_RATIO = 1 / 16  # shorter side divided by longer; 14 of 224 pixels once padded to a square

USUAL_SHARE, USUAL_COUNT = 0.1, 5  # a flaw is usual in a class if more images than either have it


class UsualFlaw(NamedTuple):
    """A flaw that is usual in a class, for example darkness for symbols on black."""

    folder: Path
    flaw: str
    count: int  # images with the flaw
    images: int  # of the class


def find_flaws(image: Examined) -> list[str]:
    """List the flaws of an image. An image with little information is not also called dark or blurred."""
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
    """Compute the entropy of shares (256,) in bins; the lower of two, since a bin edge may split a colour's noise."""
    found = []
    for shift in (0, STEP // 2):
        bins = np.pad(shares, (shift, -shift % STEP)).reshape(-1, STEP).sum(1)
        bins = bins[bins > 0]
        found.append(-(bins * np.log2(bins)).sum())
    return float(min(found))


def find_poor_images(images: Sequence[Examined]) -> tuple[dict[Path, list[str]], list[UsualFlaw]]:
    """Find images with flaws, and flaws that are usual in a class.

    Returns:
        The flaws of each image, sorted by path, except those that are usual in its class; and the usual ones.
    """
    sizes = Counter(image.path.parent for image in images)
    flawed: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for image in images:
        for flaw in find_flaws(image):
            flawed[image.path.parent, flaw].append(image.path)
    poor: dict[Path, list[str]] = defaultdict(list)
    usual = []
    for (folder, flaw), paths in flawed.items():
        if len(paths) > max(USUAL_COUNT, USUAL_SHARE * sizes[folder]):
            usual.append(UsualFlaw(folder, flaw, len(paths), sizes[folder]))
        else:
            for path in paths:
                poor[path].append(flaw)
    return dict(sorted(poor.items())), usual
