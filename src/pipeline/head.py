"""Fits a linear layer to fixed features by logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pipeline import distributed
from pipeline.measures import cross_entropies, mean_over_classes

_STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)  # scikit-learn's C, for standardised features
_STRENGTH = 1e-2  # without validation images
_ITERATIONS = 1000


@dataclass(frozen=True)
class LinearHead:
    """A linear layer."""

    weight: np.ndarray  # (C, K) float32
    bias: np.ndarray  # (C,) float32
    strength: float  # scikit-learn's C; smaller values regularise more

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Map features (N, K) to logits (N, C)."""
        return features @ self.weight.T + self.bias

    @torch.no_grad()
    def copy_to(self, layer: nn.Linear) -> None:
        """Set the weights of a layer to those that the first process fitted."""
        for parameter, values in ((layer.weight, self.weight), (layer.bias, self.bias)):
            own = torch.from_numpy(values).to(parameter) * distributed.is_first()
            parameter.copy_(distributed.sum_over_processes(own))


def fit_head(
    features: np.ndarray, labels: np.ndarray, validation_features: np.ndarray, validation_labels: np.ndarray
) -> LinearHead:
    """Fit multinomial logistic regression with L2 regularisation and balanced class weights.

    The regularisation strength is the one with the lowest validation loss, averaged over classes. Features are
    standardised for the fit; the returned layer takes them unstandardised.

    Args:
        features: (N, K) float32.
        labels: (N,) int, 0 to C - 1; every class occurs.
        validation_features: (M, K); M may be 0.
        validation_labels: (M,) int.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    scaled = scaler.fit_transform(features)
    model = LogisticRegression(class_weight="balanced", max_iter=_ITERATIONS, warm_start=True)
    found = []
    for strength in _STRENGTHS if len(validation_labels) else (_STRENGTH,):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak regularisation; the validation loss decides
            model.set_params(C=strength).fit(scaled, labels)
        head = _fold(model.coef_, model.intercept_, scaler.mean_, scaler.scale_, strength)
        loss = 0.0
        if len(validation_labels):
            losses = cross_entropies(head.logits(validation_features), validation_labels)
            loss = mean_over_classes(np.bincount(validation_labels, losses), np.bincount(validation_labels))
        found.append((loss, strength, head))
    return min(found, key=lambda candidate: candidate[:2])[2]


def _fold(weight: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray, strength: float) -> LinearHead:
    """Fold the standardisation into the layer. For two classes scikit-learn gives only the second class's weights."""
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    return LinearHead(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), strength)
