"""The fitted head equals scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.head import fit_head


def draw(classes, count, seed=0, noise=1.0):
    """Returns features (N, 10) of different scales, and imbalanced labels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, count, p=[0.7, *[0.3 / (classes - 1)] * (classes - 1)])
    centres = np.random.default_rng(7).normal(size=(classes, 10))
    features = (centres[labels] + noise * generator.normal(size=(count, 10))) * np.logspace(-2, 3, 10) + 5
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_equals_scikit_learns_logistic_regression(classes):
    features, labels = draw(classes, 300)
    validation, validation_labels = draw(classes, 100, seed=1)
    head = fit_head(features, labels, validation, validation_labels)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=head.strength, class_weight="balanced", max_iter=5000, tol=1e-8)
    model.fit(scaler.transform(features), labels)
    logits = head.logits(validation)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert head.weight.shape == (classes, 10)
    assert head.weight.dtype == head.bias.dtype == np.float32
    np.testing.assert_allclose(probabilities, model.predict_proba(scaler.transform(validation)), atol=0.01)


def test_the_validation_loss_selects_the_strength():
    """Few images with many useless features need strong regularisation; many images with little noise do not."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    noisy = np.column_stack([labels + generator.normal(size=40), generator.normal(size=(40, 200))]).astype(np.float32)
    other_labels = np.arange(400) % 2
    others = np.column_stack([other_labels + generator.normal(size=400), generator.normal(size=(400, 200))])
    strong = fit_head(noisy, labels, others.astype(np.float32), other_labels).strength
    weak = fit_head(*draw(3, 2000, noise=0.2), *draw(3, 500, seed=1, noise=0.2)).strength
    assert strong <= 1e-2 < weak


def test_the_strength_without_validation_images():
    features, labels = draw(3, 200)
    assert fit_head(features, labels, features[:0], labels[:0]).strength == 1e-2


def test_a_constant_feature_is_harmless():
    features, labels = draw(2, 100)
    features[:, 3] = 1.5
    head = fit_head(features, labels, features, labels)
    assert np.isfinite(head.weight).all()
    assert (head.logits(features).argmax(axis=1) == labels).mean() > 0.9
