"""How good predictions are, and how sure of it one can be: of counts and shares alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

SCORES = ("loss", "accuracy", "per_class_loss", "per_class_accuracy")  # of a set of images
CALIBRATION_BINS = 15  # as in Guo et al.
_Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share, 0 to 1, that was seen in `count` trials (Wilson, 1927).

    For a per-class accuracy it holds where the classes have equally many test images, else roughly.
    """
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))


def top_confusions(confusion: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The places, (true, predicted), of the largest numbers off the diagonal of a confusion matrix, largest first.

    Args:
        confusion: (C, C) counts; rows are true classes.
        most: how many places; fewer where fewer classes are confused.
    """
    mistakes = confusion - np.diag(np.diag(confusion))
    places = np.argsort(-mistakes, axis=None, kind="stable")[:most].tolist()
    return [divmod(place, len(confusion)) for place in places if mistakes.flat[place]]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of shares, 0 to 1, of which at least two are a sample, by Student's t."""
    from scipy.stats import t  # takes a second to import

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


def newcombe_interval(first: float, first_count: int, second: float, second_count: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two independent shares, first minus second, -1 to 1.

    Method 10 of Newcombe, "Interval estimation for the difference between independent proportions", 1998: combines
    the Wilson intervals of both.
    """
    first_low, first_high = wilson_interval(first, first_count)
    second_low, second_high = wilson_interval(second, second_count)
    down = math.hypot(first - first_low, second_high - second)
    up = math.hypot(first_high - first, second - second_low)
    return first - second - down, first - second + up


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        first_only, second_only: the discordant pairs: images that only the first or only the second model classifies
            correctly. If both models are equally good, each pair is a fair coin toss.
    """
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


def paired_interval(both: int, first_only: int, second_only: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference in accuracy of two models on the same images, first minus second.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", 1998: combines the Wilson intervals of both and the correlation between them.

    Args:
        both: images that both models classify correctly.
        first_only, second_only: images that only one of them classifies correctly.
        images: all of them.
    """
    neither = images - both - first_only - second_only
    first, second = (both + first_only) / images, (both + second_only) / images
    (first_low, first_high), (second_low, second_high) = (wilson_interval(share, images) for share in (first, second))
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    excess = both * neither - first_only * second_only
    if excess > 0:
        excess = max(excess - images / 2, 0)  # a continuity correction
    correlation = excess / math.sqrt(margins) if margins else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    difference = first - second
    down = distance(first - first_low, second_high - second)
    return difference - down, difference + distance(first_high - first, second - second_low)


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of a value per image.

    For a paired comparison, pass the difference of each image. Resampling N values that repeat is a multinomial draw
    over the distinct ones, which takes little memory: correctness has few distinct values.
    """
    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    total = int(counts.sum())
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(total, counts / total, size=resamples)  # (resamples, distinct)
    low, high = np.percentile(draws @ distinct / total, (2.5, 97.5))
    return float(low), float(high)


def expected_best(accuracy: float, images: int, runs: int) -> float:
    """Return the expected highest accuracy of some independent runs that are all equally good.

    The expected maximum of independent binomial counts, divided by the number of images. With F the distribution
    function, E[max] is the sum of 1 - F(k)^runs over all k from 0 to images - 1.
    """
    from scipy.stats import binom

    mean, deviation = accuracy * images, math.sqrt(images * accuracy * (1 - accuracy))
    # Below the first count F is 0, above the last it is 1, to the precision of a float.
    first = max(0, math.floor(mean - 12 * deviation - 40))
    last = min(images, math.ceil(mean + 12 * deviation + 40))
    below = binom.cdf(np.arange(first, last), images, accuracy)
    return (first + float(np.sum(1 - below**runs))) / images


@dataclass(frozen=True)
class ClassScores:
    """How well one class is told from the others; 0 to 1, None where it would be 0 of 0.

    Attributes:
        images: how many are of the class.
        precision: the share of these among those that were taken for it.
        recall: the share of these that were taken for it.
        f1: the harmonic mean of both.
    """

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


def score_classes(confusion: np.ndarray) -> list[ClassScores]:
    """The scores of each class, from a confusion matrix (C, C), whose rows are true classes."""
    rights, images, taken = (
        confusion.diagonal().tolist(),
        confusion.sum(axis=1).tolist(),
        confusion.sum(axis=0).tolist(),
    )
    return [
        ClassScores(count, _share(right, claims), _share(right, count), _share(2 * right, claims + count))
        for right, count, claims in zip(rights, images, taken, strict=True)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Calibration:
    """Images by how confident the model was, in equally wide bins, the lowest first.

    Attributes:
        counts: (M,) int, images in each bin.
        confidences: (M,) their mean confidence, 0 where there are none.
        accuracies: (M,) the share of them that were classified right, 0 where there are none.
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray

    @classmethod
    def of(cls, confidences: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> Calibration:
        """Sorts N images into bins, each of which has its upper bound in it.

        Args:
            confidences: (N,) the probability of the predicted class, 0 to 1.
            right: (N,) bool, whether that was the true one.
            bins: how many.
        """
        places = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(places, minlength=bins)
        confidence, accuracy = (
            np.bincount(places, weights=values, minlength=bins) / np.maximum(counts, 1)
            for values in (confidences, right)
        )
        return cls(counts, confidence, accuracy)

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: how far confidence and accuracy are apart, on an image's average.

        Guo et al., "On Calibration of Modern Neural Networks", 2017. Of a few images it comes out too high, since
        their accuracy is off by chance.
        """
        gaps = np.abs(self.confidences - self.accuracies)
        return float(self.counts @ gaps / self.counts.sum())

    @property
    def tendency(self) -> str:
        """Whether the mean confidence is above the accuracy, or below, by a point or more, in a word."""
        gap = self.counts @ (self.confidences - self.accuracies) / self.counts.sum()
        return "well calibrated on average" if abs(gap) < 0.01 else "overconfident" if gap > 0 else "underconfident"
