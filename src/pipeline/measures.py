"""Scores, confidence intervals and tests of classifiers, computed from counts and proportions without torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np

SCORES = ("loss", "accuracy", "per_class_loss", "per_class_accuracy")
_MOST_IMBALANCE = 1.5  # ratio of the largest class to the smallest
_Z = NormalDist().inv_cdf(0.975)  # of a 95% interval


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% score interval of a proportion observed in `count` trials (Wilson, 1927).

    For a per-class accuracy it is exact only if all classes have the same number of test images.
    """
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale))


def percent(share: float | None) -> str:
    """Format a proportion; None is undefined."""
    return "-" if share is None else f"{share:.1%}"


def percent_with_interval(share: float | None, count: int) -> str:
    """Format a proportion observed in `count` trials, with its Wilson interval; None is undefined."""
    if share is None:
        return "-"
    low, high = wilson_interval(share, count)
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def are_imbalanced(counts: Collection[int]) -> bool:
    """Return whether classes with these numbers of images differ so much in size that balancing is recommended."""
    return max(counts) > _MOST_IMBALANCE * min(counts)


def mean_over_classes(sums: np.ndarray, counts: np.ndarray) -> float:
    """Average a value over the images of each class, then over the classes that have images.

    `sums` (C,) are the sums of the value over the images of each class, and `counts` (C,) the numbers of images.
    """
    present = counts > 0
    return float((sums[present] / counts[present]).mean())


def top_confusions(confusion: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Return at most `most` pairs (true, predicted) of a confusion matrix (C, C) with the largest counts, in order."""
    mistakes = confusion - np.diag(np.diag(confusion))
    cells = np.argsort(-mistakes, axis=None, kind="stable")[:most].tolist()
    return [divmod(cell, len(confusion)) for cell in cells if mistakes.flat[cell]]


def list_confusions(confusion: np.ndarray, classes: Sequence[str], most: int) -> list[str]:
    """Return the most frequent confusions in words, such as "4 of 13 Axe as Hammer"."""
    return [
        f"{confusion[true, predicted]} of {confusion[true].sum()} {classes[true]} as {classes[predicted]}"
        for true, predicted in top_confusions(confusion, most)
    ]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95% interval of the mean of at least two proportions, clipped to 0..1."""
    from scipy.stats import t  # takes a second to import

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return max(0.0, fmean(values) - half), min(1.0, fmean(values) + half)


def newcombe_interval(first: float, first_count: int, second: float, second_count: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two independent proportions, first minus second.

    Method 10 of Newcombe, "Interval estimation for the difference between independent proportions", 1998.
    """
    first_low, first_high = wilson_interval(first, first_count)
    second_low, second_high = wilson_interval(second, second_count)
    down = math.hypot(first - first_low, second_high - second)
    up = math.hypot(first_high - first, second - second_low)
    return first - second - down, first - second + up


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    The arguments count the images that only the first or only the second model classifies correctly.
    """
    from scipy.stats import binomtest

    discordant = first_only + second_only
    return float(binomtest(first_only, discordant).pvalue) if discordant else 1.0


def paired_interval(both: int, first_only: int, second_only: int, images: int) -> tuple[float, float]:
    """Return the 95% interval of the difference in accuracy of two models on the same images, first minus second.

    Method 10 of Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", 1998. The first three arguments count the images that both models or only one classify correctly.
    """
    neither = images - both - first_only - second_only
    first, second = (both + first_only) / images, (both + second_only) / images
    (first_low, first_high), (second_low, second_high) = (wilson_interval(share, images) for share in (first, second))
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    excess = both * neither - first_only * second_only
    if excess > 0:
        excess = max(excess - images / 2, 0)  # continuity correction
    correlation = excess / math.sqrt(margins) if margins else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    difference = first - second
    down = distance(first - first_low, second_high - second)
    return difference - down, difference + distance(first_high - first, second - second_low)


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the mean of a value per image.

    For a paired comparison, pass the difference for each image. Resampling is a multinomial draw over the distinct
    values, which takes little memory if there are few.
    """
    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(0).multinomial(total, counts / total, size=resamples)  # (resamples, distinct)
    low, high = np.percentile(draws @ distinct / total, (2.5, 97.5))
    return float(low), float(high)


def expected_best(accuracy: float, images: int, runs: int) -> float:
    """Return the expected highest accuracy of several independent runs with the same true accuracy.

    The expected maximum of binomial counts with distribution function F is the sum of 1 - F(k)^runs over
    k = 0 .. images - 1.
    """
    from scipy.stats import binom

    mean, deviation = accuracy * images, math.sqrt(images * accuracy * (1 - accuracy))
    # F is 0 below the first count and 1 above the last, to the precision of a float.
    first = max(0, math.floor(mean - 12 * deviation - 40))
    last = min(images, math.ceil(mean + 12 * deviation + 40))
    below = binom.cdf(np.arange(first, last), images, accuracy)
    return (first + float(np.sum(1 - below**runs))) / images


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, 0 to 1; None if undefined (0 / 0)."""

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


def score_classes(confusion: np.ndarray) -> list[ClassScores]:
    """Return the scores of each class of a confusion matrix (C, C) whose rows are true classes."""
    counts = np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)], axis=1).tolist()
    return [
        ClassScores(images, _share(right, taken), _share(right, images), _share(2 * right, taken + images))
        for right, images, taken in counts
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropies (N,) in nats of logits (N, C) and labels (N,) int."""
    from scipy.special import log_softmax

    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
