"""Scores equal scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from pipeline.metrics import RunningScores, Scores


@given(classes=st.integers(2, 6), count=st.integers(1, 60), seed=st.integers(0, 2**16))
def test_scores_equal_scikit_learns(classes, count, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    scores = Scores.of(logits, labels)
    predictions, every = logits.argmax(dim=1), list(range(classes))
    assert scores.images == count
    assert np.array_equal(scores.confusion, reference.confusion_matrix(labels, predictions, labels=every))
    assert scores.accuracy == pytest.approx(reference.accuracy_score(labels, predictions))
    present = sorted(set(labels.tolist()))
    recall = reference.recall_score(labels, predictions, labels=present, average="macro")
    assert scores.per_class_accuracy == pytest.approx(recall)
    probabilities = logits.double().softmax(1)
    assert scores.loss == pytest.approx(reference.log_loss(labels, probabilities, labels=every), rel=1e-5)
    weights = 1 / np.bincount(labels)[np.asarray(labels)]  # classes have equal weight
    balanced = reference.log_loss(labels, probabilities, labels=every, sample_weight=weights)
    assert scores.per_class_loss == pytest.approx(balanced, rel=1e-5)


def test_scores_of_batches_equal_those_of_the_whole():
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    running = RunningScores(3, torch.device("cpu"))
    assert running.glance() is None
    for start in range(0, 50, 8):
        part = slice(start, start + 8)
        losses = torch.nn.functional.cross_entropy(logits[part], labels[part], reduction="none")
        running.add(logits[part], labels[part], losses)
    whole, added = Scores.of(logits, labels), running.read()
    assert np.array_equal(added.confusion, whole.confusion)
    assert added.loss == pytest.approx(whole.loss)
    assert added.per_class_loss == pytest.approx(whole.per_class_loss)
