"""Calibration error and temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.measures import cross_entropies

if TYPE_CHECKING:
    from torch import Tensor

_RANGE = (0.05, 20.0)  # of the temperature
_BINS = 15  # as in Guo et al.


@dataclass(frozen=True)
class Calibration:
    """Images in M confidence bins of equal width, in increasing order."""

    counts: np.ndarray  # (M,) int, the number of images
    confidences: np.ndarray  # (M,) the mean confidence, 0 in empty bins
    accuracies: np.ndarray  # (M,) the accuracy, 0 in empty bins

    @classmethod
    def of(cls, confidences: np.ndarray, right: np.ndarray, bins: int = _BINS) -> Calibration:
        """Sort predictions with confidence (N,) and correctness (N,) bool into bins that include their upper bounds."""
        indices = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(indices, minlength=bins)
        sums = (np.bincount(indices, weights=values, minlength=bins) for values in (confidences, right))
        return cls(counts, *(each / np.maximum(counts, 1) for each in sums))

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: the mean gap between confidence and accuracy over images.

        It is biased upwards for small samples.
        """
        gaps = np.abs(self.confidences - self.accuracies)
        return float(self.counts @ gaps / self.counts.sum())

    @property
    def tendency(self) -> str:
        """Whether the mean confidence differs from the accuracy by a percentage point or more, in words."""
        gap = self.counts @ (self.confidences - self.accuracies) / self.counts.sum()
        return "well calibrated on average" if abs(gap) < 0.01 else "overconfident" if gap > 0 else "underconfident"


def calibrate(logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities (N, C) of logits (N, C) at a temperature."""
    return (logits / temperature).softmax(dim=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest cross-entropy, averaged over classes, of validation logits (N, C).

    If every prediction is correct, the loss decreases without limit as the temperature falls; the result is then 1.
    """
    from scipy.optimize import minimize_scalar

    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    weights = 1 / np.bincount(labels)[labels]

    def loss(logarithm: float) -> float:
        return float(
            np.average(cross_entropies(logits.astype(np.float64) / np.exp(logarithm), labels), weights=weights)
        )

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded").x))


def score_calibration(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    """Return `loss`, in nats, and `calibration_error`, 0 to 1, of logits (N, C) at a temperature."""
    from scipy.special import softmax

    scaled = logits.astype(np.float64) / temperature
    probabilities = softmax(scaled, axis=1)
    calibration = Calibration.of(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    return {"loss": float(cross_entropies(scaled, labels).mean()), "calibration_error": calibration.error}
