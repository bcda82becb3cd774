"""Temperature scaling: one number that logits are divided by, so that confidence is as high as accuracy.

Guo et al., "On Calibration of Modern Neural Networks", 2017.
"""

from __future__ import annotations

import numpy as np

from pipeline.measures import Calibration

_RANGE = (0.05, 20.0)  # in which the temperature is searched


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(N, C) probabilities of logits (N, C)."""
    from scipy.special import softmax

    return softmax(logits.astype(np.float64) / temperature, axis=1)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the lowest cross-entropy, averaged over classes, as checkpoints are selected.

    Without a mistake the loss would fall for ever as the temperature falls, so that it says nothing: it is 1 then.

    Args:
        logits: (N, C), of validation images.
        labels: (N,) int, their classes.
    """
    from scipy.optimize import minimize_scalar

    if (logits.argmax(axis=1) == labels).all():
        return 1.0
    weights = 1 / np.bincount(labels)[labels]

    def loss(logarithm: float) -> float:
        return float(np.average(_losses(logits, labels, np.exp(logarithm)), weights=weights))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded").x))


def score_calibration(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    """Return `loss`, in nats, and `calibration_error`, 0 to 1, of logits (N, C) at a temperature."""
    probabilities = calibrated(logits, temperature)
    return {
        "loss": float(_losses(logits, labels, temperature).mean()),
        "calibration_error": sort_by_confidence(probabilities, labels).error,
    }


def sort_by_confidence(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    """Sort N images into bins by the probability (N, C) of the predicted class."""
    return Calibration.of(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def _losses(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """(N,) in nats."""
    from scipy.special import log_softmax

    return -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(len(labels)), labels]
