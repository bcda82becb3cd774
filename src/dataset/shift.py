"""How test images differ from training images, held against how random parts of the training images differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dataset.examining import THUMBNAIL, Examined

_REPEATS = 100
_BLOCK = 4096  # images whose vectors are held at a time
_MARGIN = 1.5  # a shift is more than this many times what the random parts show at most
_PER_DOUBLING = 64  # bins of sizes
_LIGHT = slice(128, 256)  # grey values of a light background
_BORDER = np.pad(np.zeros((THUMBNAIL - 4, THUMBNAIL - 4), dtype=bool), 2, constant_values=True)


@dataclass(frozen=True)
class Aspect:
    """One way in which two sets of images can differ.

    Attributes:
        name: of what is compared.
        unit: what the two numbers count.
        distance: between test and training images.
        random_parts: the largest of 100 distances between two random parts of the training images.
        sentence: the difference in words, for a person.
    """

    name: str
    unit: str
    distance: float
    random_parts: float
    sentence: str

    @property
    def shifted(self) -> bool:
        return round(self.distance, 3) > _MARGIN * self.random_parts


class _Kind(NamedTuple):
    """How an aspect is measured: on the average over a set of a vector (D,) that each image has."""

    name: str
    unit: str
    vector: Callable[[Examined], np.ndarray]
    distance: Callable[[np.ndarray, np.ndarray], float]
    tell: Callable[[np.ndarray, np.ndarray], str]


def in_short(aspects: Sequence[Aspect]) -> str:
    """The first thing that a person should hear of, "none", or that there was nothing to compare."""
    if not aspects:
        return "not measured, since no class has two training images and a test image"
    return next((aspect.sentence for aspect in aspects if aspect.shifted), "none")


def measure_shift(
    training: Sequence[Examined], training_labels: np.ndarray, testing: Sequence[Examined], testing_labels: np.ndarray
) -> list[Aspect]:
    """Compares two sets of images; each class that both have counts as much as another, whatever its size.

    One of the random parts has as many images of each class as the test set, or half of the class where it has fewer;
    the other has the rest of the class.

    Args:
        training: N images.
        training_labels: (N,) of any type.
        testing: M images.
        testing_labels: (M,), likewise.

    Returns:
        The aspects, in the order in which a person should hear of them; none where no class has two training images
        and a test image.
    """
    known, of_testing = _members(training_labels), _members(testing_labels)
    shared = [label for label in of_testing if len(known.get(label, ())) >= 2]
    if not shared:
        return []
    all_training = _weights([known[label] for label in shared], len(training))
    all_testing = _weights([of_testing[label] for label in shared], len(testing))
    parts = _random_parts([(known[label], len(of_testing[label])) for label in shared], len(training))

    aspects = []
    for kind in _kinds(training, testing):
        trained, *of_parts = _average([all_training, *parts], training, kind)
        [tested] = _average([all_testing], testing, kind)
        chance = max(map(kind.distance, of_parts[:_REPEATS], of_parts[_REPEATS:]))
        distance = kind.distance(trained, tested)
        aspects.append(Aspect(kind.name, kind.unit, float(distance), float(chance), kind.tell(trained, tested)))
    return aspects


def _members(labels: np.ndarray) -> dict[Any, np.ndarray]:
    """The places of each label, ascending; the labels are sorted."""
    names, starts = np.unique(np.sort(labels), return_index=True)
    places = np.split(np.argsort(labels, kind="stable"), starts[1:])
    return dict(zip(names.tolist(), places, strict=False))  # without labels there is one part, which is empty


def _average(weights: Sequence[np.ndarray], images: Sequence[Examined], kind: _Kind) -> np.ndarray:
    """(K, D) float32, the sums of the images' vectors (D,) by each of K weights (N,)."""
    sums: np.ndarray | float = 0.0
    for start in range(0, len(images), _BLOCK):  # the vectors of all images may be gigabytes
        vectors = np.stack([kind.vector(image) for image in images[start : start + _BLOCK]]).astype(np.float32)
        sums = sums + np.stack([weight[start : start + _BLOCK] for weight in weights]) @ vectors
    return sums


def _weights(places: Sequence[np.ndarray], count: int) -> np.ndarray:
    """(count,) float32, with which a sum is the mean of the means over each of the sets of places."""
    weights = np.zeros(count, dtype=np.float32)
    for places_of_one in places:
        weights[places_of_one] = 1 / (len(places) * len(places_of_one))
    return weights


def _random_parts(classes: Sequence[tuple[np.ndarray, int]], count: int) -> list[np.ndarray]:
    """Weights (N,) of 100 random parts, and then of the rest of each.

    Args:
        classes: of each class its places, and how many of them a part has, if that is no more than half.
        count: of all images, N.
    """
    generator = np.random.default_rng(0)
    first, second = [], []
    for _ in range(_REPEATS):
        shuffled = [(generator.permutation(places), min(size, len(places) // 2)) for places, size in classes]
        first.append(_weights([places[:cut] for places, cut in shuffled], count))
        second.append(_weights([places[cut:] for places, cut in shuffled], count))
    return first + second


def _kinds(training: Sequence[Examined], testing: Sequence[Examined]) -> list[_Kind]:
    forms = sorted({image.form for image in (*training, *testing)})
    extremes = np.mean([image.intensities[:64].sum() + image.intensities[192:].sum() for image in training])
    two_toned = bool(extremes > 0.7)  # photographs have less than half of their pixels there
    levels, pixels, images = "grey levels", "share of pixels", "share of images"
    return [
        _Kind("background", levels, _background, _transport, lambda a, b: _tell_background(a, b, two_toned)),
        _Kind("brightness", levels, _brightness, _transport, lambda a, b: _tell_level(a, b, "brighter", "darker")),
        _Kind("contrast", levels, _contrast, _transport,
              lambda a, b: _tell_level(a, b, "richer in contrast", "poorer in contrast")),
        _Kind("intensities", pixels, lambda image: image.intensities, _disjoint, _tell_intensities),
        _Kind("mean image", levels, lambda image: image.thumbnail.ravel(), _root_mean_square, _tell_mean_image),
        _Kind("size", "doublings", _size, lambda a, b: _transport(a, b) / _PER_DOUBLING, _tell_size),
        _Kind("format", images, lambda image: _one_hot(forms.index(image.form), len(forms)), _disjoint,
              lambda a, b: _tell_form(a, b, forms)),
    ]  # fmt: skip


def _one_hot(place: float, length: int) -> np.ndarray:
    vector = np.zeros(length, dtype=np.float32)
    vector[min(round(place), length - 1)] = 1
    return vector


def _background(image: Examined) -> np.ndarray:
    return _one_hot(np.median(image.thumbnail[_BORDER]), 256)


def _brightness(image: Examined) -> np.ndarray:
    return _one_hot(image.intensities @ np.arange(256), 256)


def _contrast(image: Examined) -> np.ndarray:
    levels = np.arange(256)
    mean = image.intensities @ levels
    return _one_hot(np.sqrt(image.intensities @ (levels - mean) ** 2), 256)


def _size(image: Examined) -> np.ndarray:
    return _one_hot(_PER_DOUBLING * np.log2(min(image.size)), 16 * _PER_DOUBLING)


def _transport(a: np.ndarray, b: np.ndarray) -> float:
    """The Wasserstein-1 distance of two histograms over the same bins, in bins."""
    return np.abs(np.cumsum(a - b)).sum()


def _disjoint(a: np.ndarray, b: np.ndarray) -> float:
    """The total variation distance of two histograms: 0 where they are the same, 1 where they share nothing."""
    return np.abs(a - b).sum() / 2


def _root_mean_square(a: np.ndarray, b: np.ndarray) -> float:
    return np.sqrt(np.mean((a - b) ** 2))


def _tell_background(trained: np.ndarray, tested: np.ndarray, two_toned: bool) -> str:
    before, now = trained[_LIGHT].sum(), tested[_LIGHT].sum()
    if two_toned and before < 0.05 < now:
        return f"{_share(now)} of the test images are inverted: black on white, where training is white on black"
    if two_toned and before > 0.95 > now:
        return f"{_share(1 - now)} of the test images are inverted: white on black, where training is black on white"
    if abs(now - before) < 0.02:
        return _tell_level(trained, tested, "lighter at the border", "darker at the border")
    return f"{_share(now)} of the test images have a light background, and {_share(before)} of the training images"


def _tell_level(trained: np.ndarray, tested: np.ndarray, more: str, less: str) -> str:
    before, now = trained @ np.arange(256), tested @ np.arange(256)
    if round(now) == round(before):
        return f"the test images are spread otherwise around the same average of {now:.0f}"
    return (
        f"the test images are {more if now > before else less}: {now:.0f} on average, where training has {before:.0f}"
    )


def _tell_intensities(trained: np.ndarray, tested: np.ndarray) -> str:
    names = ("black", "dark", "light", "white")
    change = (tested - trained).reshape(4, 64).sum(axis=1)
    return f"the test images have more {names[change.argmax()]} and fewer {names[change.argmin()]} pixels"


def _tell_mean_image(trained: np.ndarray, tested: np.ndarray) -> str:
    similarity = np.corrcoef(trained, tested)[0, 1] if trained.std() and tested.std() else 0.0
    return f"the average of the test images looks different: its correlation with that of training is {similarity:.2f}"


def _tell_size(trained: np.ndarray, tested: np.ndarray) -> str:
    before, now = (2 ** (np.searchsorted(np.cumsum(sizes), 0.5) / _PER_DOUBLING) for sizes in (trained, tested))
    if now == before:
        return f"the test images are spread otherwise around the same size of about {now:.0f} pixels"
    word = "larger" if now > before else "smaller"
    return f"the test images are {word}: the shorter side is about {now:.0f} pixels, where training has {before:.0f}"


def _tell_form(trained: np.ndarray, tested: np.ndarray, forms: Sequence[str]) -> str:
    place = np.abs(tested - trained).round(3).argmax()  # of equal differences the first
    return f"{_share(tested[place])} of the test images are {forms[place]}, and {_share(trained[place])} of training"


def _share(share: float) -> str:
    if share > 0.98:
        return "all"
    if share < 0.005:
        return "none"
    return "half" if 0.47 < share < 0.53 else f"{share:.0%}"
