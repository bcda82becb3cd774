"""Measure distribution shift: how test images differ from training images, relative to random splits of the latter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dataset.examining import THUMBNAIL, Examined

_REPEATS = 100
_BLOCK = 4096  # images whose vectors are in memory at a time
_MARGIN = 1.5  # a shift is more than this many times the largest distance between random parts
_PER_DOUBLING = 64  # bins of sizes
_LIGHT = slice(128, 256)  # grey values of a light background
_LEVELS = np.arange(256)
_BORDER = np.pad(np.zeros((THUMBNAIL - 4, THUMBNAIL - 4), dtype=bool), 2, constant_values=True)


@dataclass(frozen=True)
class Aspect:
    """One aspect in which test images can differ from training images."""

    name: str
    unit: str  # of the two numbers
    distance: float  # between test and training images
    random_parts: float  # the largest of 100 distances between two random parts of the training images
    sentence: str  # describes the difference

    @property
    def shifted(self) -> bool:
        return round(self.distance, 3) > _MARGIN * self.random_parts


class _Measure(NamedTuple):
    """How an aspect is measured: by a vector (D,) of each image, averaged over a set."""

    name: str
    unit: str
    vector: Callable[[Examined], np.ndarray]
    distance: Callable[[np.ndarray, np.ndarray], float]
    describe: Callable[[np.ndarray, np.ndarray], str]


def summarise_shift(aspects: Sequence[Aspect]) -> str:
    """Return the most important difference, "none", or that nothing could be compared."""
    if not aspects:
        return "not measured, since no class has two training images and a test image"
    return next((aspect.sentence for aspect in aspects if aspect.shifted), "none")


def measure_shift(
    training: Sequence[Examined], training_labels: np.ndarray, testing: Sequence[Examined], testing_labels: np.ndarray
) -> list[Aspect]:
    """Compare two sets of images with labels (N,); all classes that both sets have are weighted equally.

    The training images are split at random 100 times: one part has as many images of each class as the test set, at
    most half of the class, and the other part has the rest.

    Returns:
        The aspects, most important first; none if no class has two training images and a test image.
    """
    training_members, testing_members = _members(training_labels), _members(testing_labels)
    shared = [label for label in testing_members if len(training_members.get(label, ())) >= 2]
    if not shared:
        return []
    all_training = _weights([training_members[label] for label in shared], len(training))
    all_testing = _weights([testing_members[label] for label in shared], len(testing))
    sizes = [len(testing_members[label]) for label in shared]
    parts, rests = _random_parts([training_members[label] for label in shared], sizes, len(training))

    aspects = []
    for measure in _measures(training, testing):
        means = _average([all_training, *parts, *rests], training, measure)
        [trained], part_means, rest_means = np.split(means, [1, 1 + len(parts)])
        [tested] = _average([all_testing], testing, measure)
        chance = max(map(measure.distance, part_means, rest_means))
        distance, sentence = measure.distance(trained, tested), measure.describe(trained, tested)
        aspects.append(Aspect(measure.name, measure.unit, float(distance), float(chance), sentence))
    return aspects


def _members(labels: np.ndarray) -> dict[Any, np.ndarray]:
    """Return the ascending indices of the images of each label, sorted by label."""
    return {label: np.flatnonzero(labels == label) for label in np.unique(labels).tolist()}


def _average(weights: Sequence[np.ndarray], images: Sequence[Examined], measure: _Measure) -> np.ndarray:
    """Sum the images' vectors (D,) with each of K weights (N,), (K, D) float32."""
    sums: np.ndarray | float = 0.0
    for start in range(0, len(images), _BLOCK):  # the vectors of all images may take gigabytes
        vectors = np.stack([measure.vector(image) for image in images[start : start + _BLOCK]]).astype(np.float32)
        sums = sums + np.stack([weight[start : start + _BLOCK] for weight in weights]) @ vectors
    return sums


def _weights(classes: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return weights (count,) float32 whose weighted sum is the mean of the means over the indices of each class."""
    weights = np.zeros(count, dtype=np.float32)
    for members in classes:
        weights[members] = 1 / (len(classes) * len(members))
    return weights


def _random_parts(
    classes: Sequence[np.ndarray], sizes: Sequence[int], count: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the weights (count,) of 100 random parts, and of the rest of each.

    A part has the given number of the indices of each class, but at most half of them.
    """
    generator = np.random.default_rng(0)
    sizes = [min(size, len(members) // 2) for members, size in zip(classes, sizes, strict=True)]
    parts, rests = [], []
    for _ in range(_REPEATS):
        divided = [np.split(generator.permutation(m), [size]) for m, size in zip(classes, sizes, strict=True)]
        parts.append(_weights([part for part, _ in divided], count))
        rests.append(_weights([rest for _, rest in divided], count))
    return parts, rests


def _measures(training: Sequence[Examined], testing: Sequence[Examined]) -> list[_Measure]:
    forms = sorted({image.form for image in (*training, *testing)})
    extremes = np.mean([image.intensities[:64].sum() + image.intensities[192:].sum() for image in training])
    two_toned = bool(extremes > 0.7)  # photographs have less than half of their pixels there
    levels, pixels, images = "grey levels", "share of pixels", "share of images"
    return [
        _Measure("background", levels, lambda image: _one_hot(np.median(image.thumbnail[_BORDER])), _transport,
                 lambda a, b: _describe_background(a, b, two_toned)),
        _Measure("brightness", levels, lambda image: _one_hot(image.intensities @ _LEVELS), _transport,
                 lambda a, b: _describe_level(a, b, "brighter", "darker")),
        _Measure("contrast", levels, _contrast, _transport,
                 lambda a, b: _describe_level(a, b, "higher in contrast", "lower in contrast")),
        _Measure("intensities", pixels, lambda image: image.intensities, _disjoint, _describe_intensities),
        _Measure("mean image", levels, lambda image: image.thumbnail.ravel(),
                 lambda a, b: np.sqrt(np.mean((a - b) ** 2)), _describe_mean_image),
        _Measure("size", "doublings", _size,
                 lambda a, b: _transport(a, b) / _PER_DOUBLING, _describe_size),
        _Measure("format", images, lambda image: _one_hot(forms.index(image.form), len(forms)), _disjoint,
                 lambda a, b: _describe_form(a, b, forms)),
    ]  # fmt: skip


def _one_hot(index: float, length: int = 256) -> np.ndarray:
    vector = np.zeros(length, dtype=np.float32)
    vector[min(round(index), length - 1)] = 1
    return vector


def _size(image: Examined) -> np.ndarray:
    return _one_hot(_PER_DOUBLING * np.log2(min(image.size)), 16 * _PER_DOUBLING)


def _contrast(image: Examined) -> np.ndarray:
    return _one_hot(np.sqrt(image.intensities @ (_LEVELS - image.intensities @ _LEVELS) ** 2))


def _transport(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Wasserstein-1 distance of two histograms with the same bins, in bins."""
    return np.abs(np.cumsum(a - b)).sum()


def _disjoint(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the total variation distance of two histograms, from 0 (identical) to 1 (disjoint)."""
    return np.abs(a - b).sum() / 2


def _describe_background(trained: np.ndarray, tested: np.ndarray, two_toned: bool) -> str:
    before, now = trained[_LIGHT].sum(), tested[_LIGHT].sum()
    if two_toned and before < 0.05 < now:
        return f"{_share(now)} of the test images are inverted: black on white, where training is white on black"
    if two_toned and before > 0.95 > now:
        return f"{_share(1 - now)} of the test images are inverted: white on black, where training is black on white"
    if abs(now - before) < 0.02:
        return _describe_level(trained, tested, "lighter at the border", "darker at the border")
    return f"{_share(now)} of the test images have a light background, and {_share(before)} of the training images"


def _describe_level(trained: np.ndarray, tested: np.ndarray, more: str, less: str) -> str:
    before, now = trained @ _LEVELS, tested @ _LEVELS
    if round(now) == round(before):
        return f"the test images are distributed differently around the same average of {now:.0f}"
    return f"the test images are {more if now > before else less}: {now:.0f} on average, {before:.0f} in training"


def _describe_intensities(trained: np.ndarray, tested: np.ndarray) -> str:
    names = ("black", "dark", "light", "white")
    change = (tested - trained).reshape(4, 64).sum(axis=1)
    return f"the test images have more {names[change.argmax()]} and fewer {names[change.argmin()]} pixels"


def _describe_mean_image(trained: np.ndarray, tested: np.ndarray) -> str:
    similarity = np.corrcoef(trained, tested)[0, 1] if trained.std() and tested.std() else 0.0
    return f"the mean test image looks different: its correlation with the mean training image is {similarity:.2f}"


def _describe_size(trained: np.ndarray, tested: np.ndarray) -> str:
    before, now = (2 ** (np.searchsorted(np.cumsum(sizes), 0.5) / _PER_DOUBLING) for sizes in (trained, tested))
    if now == before:
        return f"the test images are distributed differently around the same size of about {now:.0f} pixels"
    word = "larger" if now > before else "smaller"
    return f"the test images are {word}: the shorter side is about {now:.0f} pixels, {before:.0f} in training"


def _describe_form(trained: np.ndarray, tested: np.ndarray, forms: Sequence[str]) -> str:
    form = np.abs(tested - trained).round(3).argmax()  # the first of equal differences
    return f"{_share(tested[form])} of the test images are {forms[form]}, and {_share(trained[form])} of training"


def _share(share: float) -> str:
    if share > 0.98:
        return "all"
    if share < 0.005:
        return "none"
    return "half" if 0.47 < share < 0.53 else f"{share:.0%}"
