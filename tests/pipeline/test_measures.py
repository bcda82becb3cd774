"""Scores, intervals and tests agree with scikit-learn, SciPy, published values and simulations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from pipeline.measures import (
    bootstrap_interval,
    expected_best,
    mcnemar_test,
    mean_interval,
    paired_interval,
    score_classes,
    top_confusions,
)


@given(classes=st.integers(2, 5), count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_class_scores_equal_scikit_learns(classes, count, seed):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, classes, (2, count))
    every = list(range(classes))
    found = score_classes(reference.confusion_matrix(labels, predictions, labels=every))
    expected = reference.precision_recall_fscore_support(labels, predictions, labels=every, zero_division=np.nan)
    for scores, (precision, recall, f1, images) in zip(found, np.transpose(expected), strict=True):
        assert scores.images == images
        for share, other in ((scores.precision, precision), (scores.recall, recall), (scores.f1, f1)):
            assert (np.nan if share is None else share) == pytest.approx(other, nan_ok=True)


def test_undefined_class_scores_are_none():
    first, second, third = score_classes(np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0]]))
    assert (first.precision, first.recall, first.f1) == (0.75, 1, pytest.approx(6 / 7))
    assert (second.images, second.precision, second.recall, second.f1) == (1, None, 0, 0)
    assert (third.images, third.precision, third.recall, third.f1) == (0, None, None, None)


def test_mcnemar_equals_published_values():
    """Agresti, "Categorical Data Analysis", approval ratings of a prime minister."""
    assert mcnemar_test(150, 86) == pytest.approx(3.716e-5, rel=1e-3)
    assert mcnemar_test(0, 0) == 1
    assert mcnemar_test(4, 4) == 1
    assert mcnemar_test(0, 5) == mcnemar_test(5, 0) == pytest.approx(2 / 32)


@pytest.mark.parametrize(("accuracies", "images"), [((0.9, 0.85), 105), ((0.8, 0.6), 105), ((0.99, 0.98), 105)])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_coverage_of_the_paired_interval(accuracies, images, shared):
    """`shared` is the fraction of images on which both models depend on the same random number."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        first = generator.random(images)
        second = np.where(generator.random(images) < shared, first, generator.random(images))
        right, other = first < accuracies[0], second < accuracies[1]
        counts = (right & other).sum(), (right & ~other).sum(), (~right & other).sum()
        low, high = paired_interval(*map(int, counts), images)
        covered += low <= accuracies[0] - accuracies[1] <= high
    assert covered / 2000 > 0.93


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_the_paired_interval_is_symmetric_and_contains_the_difference(both, first, second, neither):
    images = both + first + second + neither
    low, high = paired_interval(both, first, second, images)
    assert low <= (first - second) / images <= high
    assert paired_interval(both, second, first, images) == pytest.approx((-high, -low))


def test_bootstrap_equals_resampling_of_images():
    values = np.random.default_rng(1).integers(-1, 2, 80)
    picks = np.random.default_rng(2).integers(0, 80, (10_000, 80))
    expected = np.percentile(values[picks].mean(axis=1), (2.5, 97.5))
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.015)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval([0.0] * 50) == (0, 0)


def test_coverage_of_the_bootstrap_interval():
    generator = np.random.default_rng(3)
    draws = generator.binomial(1, 0.7, (300, 100))
    intervals = [bootstrap_interval(values, resamples=500) for values in draws]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.9 < covered < 0.98


@pytest.mark.parametrize(("accuracy", "images", "runs"), [(0.7, 105, 240), (0.5, 36, 2), (0.98, 105, 30), (0.01, 9, 5)])
def test_expected_best_equals_a_simulation(accuracy, images, runs):
    best = np.random.default_rng(4).binomial(images, accuracy, (20_000, runs)).max(axis=1) / images
    assert expected_best(accuracy, images, runs) == pytest.approx(best.mean(), abs=4 * best.std() / 20_000**0.5)


def test_expected_best_of_one_run_is_its_accuracy():
    for accuracy, images in ((0.0, 7), (0.3, 105), (1.0, 7), (0.25, 10**9)):
        assert expected_best(accuracy, images, 1) == pytest.approx(accuracy)
    assert expected_best(1.0, 7, 100) == 1


def test_mean_interval_equals_scipys_clipped_to_0_and_1():
    values = [0.5, 0.6, 0.55]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.02, 0.98]) == (0, 1)


def test_top_confusions():
    confusion = np.array([[9, 1, 0], [5, 9, 2], [0, 5, 9]])
    assert top_confusions(confusion, 3) == [(1, 0), (2, 1), (1, 2)]
    assert top_confusions(confusion, 10) == [(1, 0), (2, 1), (1, 2), (0, 1)]
    assert top_confusions(np.diag([3, 4]), 10) == []
