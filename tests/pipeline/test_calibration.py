"""Calibration errors; temperature scaling calibrates probabilities and keeps predictions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from pipeline.calibration import Calibration, fit_temperature, score_calibration
from pipeline.metrics import Scores


def draw(count, classes, scale, seed=0):
    """Returns logits (N, C) that are `scale` times too large, and labels (N,)."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, classes))
    labels = np.array([generator.choice(classes, p=row) for row in softmax(logits, axis=1)])
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_recovers_the_scale_of_logits(scale):
    logits, labels = draw(4000, 3, scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.1)
    others = draw(4000, 3, scale, seed=1)
    before, after = (score_calibration(*others, value) for value in (1.0, temperature))
    assert after["calibration_error"] < 0.03
    if scale != 1:
        assert after["loss"] < before["loss"]
        assert after["calibration_error"] < before["calibration_error"] / 2


@given(count=st.integers(2, 30), classes=st.integers(2, 4), seed=st.integers(0, 2**16))
def test_calibration_keeps_predictions_and_does_not_increase_the_loss(count, classes, seed):
    logits, labels = draw(count, classes, 5.0, seed)
    temperature = fit_temperature(logits, labels)
    assert np.array_equal(softmax(logits / temperature, axis=1).argmax(axis=1), logits.argmax(axis=1))
    before, after = (
        np.mean([
            score_calibration(logits[labels == label], labels[labels == label], value)["loss"]
            for label in np.unique(labels)
        ])
        for value in (1.0, temperature)
    )  # fmt: skip
    assert after <= before + 1e-6


def test_classes_have_equal_weight():
    logits, labels = draw(1000, 2, 3.0)
    small = np.flatnonzero(labels == 1)[:50]
    unequal = np.concatenate([np.flatnonzero(labels == 0), small])
    copies = np.concatenate([np.repeat(np.flatnonzero(labels == 0), 50), np.tile(small, np.sum(labels == 0))])
    expected = fit_temperature(logits[copies], labels[copies])
    assert fit_temperature(logits[unequal], labels[unequal]) == pytest.approx(expected, rel=1e-3)


def test_the_temperature_without_mistakes_is_1():
    assert fit_temperature(np.array([[3.0, 1.0], [0.0, 0.5]]), np.array([0, 1])) == 1.0


def test_the_loss_at_temperature_1_equals_that_of_scores():
    logits, labels = draw(50, 3, 1.0)
    scores = Scores.of(torch.from_numpy(logits), torch.from_numpy(labels))
    assert score_calibration(logits, labels, 1.0)["loss"] == pytest.approx(scores.loss)


@given(count=st.integers(1, 200), bins=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_calibration_error_equals_its_definition(count, bins, seed):
    generator = np.random.default_rng(seed)
    confidences, right = 1 - generator.random(count), generator.random(count) < 0.5
    expected = 0.0
    for number in range(bins):
        inside = (confidences > number / bins) & (confidences <= (number + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    calibration = Calibration.of(confidences, right, bins)
    assert calibration.error == pytest.approx(expected)
    assert calibration.counts.sum() == count


def test_certain_and_correct_predictions_are_calibrated():
    calibration = Calibration.of(np.ones(4, np.float32), np.ones(4, bool))
    assert calibration.error == 0
    assert calibration.counts.tolist() == [0] * 14 + [4]


def test_calibration_error_of_half_confident_correct_predictions():
    assert Calibration.of(np.full(4, 0.5), np.ones(4, bool)).error == pytest.approx(0.5)


def test_tendency():
    confidences = np.full(100, 0.9)
    for right, tendency in ((80, "overconfident"), (97, "underconfident"), (90, "well calibrated on average")):
        assert Calibration.of(confidences, np.arange(100) < right).tendency == tendency
