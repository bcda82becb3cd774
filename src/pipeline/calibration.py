"""Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""

from __future__ import annotations

import numpy as np

from pipeline.measures import Calibration, cross_entropies

_RANGE = (0.05, 20.0)  # of the temperature


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
