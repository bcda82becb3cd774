"""Scores of classes are scikit-learn's; the calibration error is what its definition says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.measures import Calibration, score_classes


@given(classes=st.integers(2, 5), count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_scores_of_classes_are_scikit_learns(classes, count, seed):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, classes, (2, count))
    every = list(range(classes))
    found = score_classes(reference.confusion_matrix(labels, predictions, labels=every))
    expected = reference.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=np.nan)
    for scores, (precision, recall, f1, images) in zip(found, np.transpose(expected), strict=True):
        assert scores.images == images
        for share, other in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
            assert (np.nan if share is None else share) == pytest.approx(other, nan_ok=True)


def test_a_class_that_nothing_is_taken_for_has_no_precision():
    first, second, third = score_classes(np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert (first.precision, first.recall, first.f1) == (0.75, 1, pytest.approx(6 / 7))
    assert (second.images, second.precision, second.recall, second.f1) == (1, None, 0, 0)
    assert (third.images, third.precision, third.recall, third.f1) == (0, None, None, None)


@given(count=st.integers(1, 200), bins=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_calibration_error_by_its_definition(count, bins, seed):
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


def test_certain_and_right_is_calibrated():
    calibration = Calibration.of(np.ones(4, np.float32), np.ones(4, bool))
    assert calibration.error == 0
    assert calibration.counts.tolist() == [0] * 14 + [4]


def test_half_sure_and_always_right_is_off_by_a_half():
    assert Calibration.of(np.full(4, 0.5), np.ones(4, bool)).error == pytest.approx(0.5)
