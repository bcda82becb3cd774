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


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of what at least two numbers are a sample of, by Student's t."""
    from scipy.stats import t  # takes a second to import

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


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
