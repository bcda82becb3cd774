"""What chance and simple features tell about the classes: results that a network has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad, unfold

from pipeline.cache import Cache, NoRoom, Notes
from pipeline.data import ImageBatches, TestSet, TrainingData, rows_to_maps
from pipeline.head import fit_head
from pipeline.measures import mcnemar_test

_SIDE = 32  # pixels that images are reduced to
_CELL = 8  # pixels, side of the squares that gradients and colours are summed up in
_ORIENTATIONS = 9
_LEVELS = 4  # of each channel, in the colour histogram
_MOST_IMAGES = 5000  # that it is fitted to
_FORM = 1  # to be raised when the same images come to have other predictions
_BATCH = 256
_CHANCE = 0.05  # a smaller p-value is beyond chance
_GAP = 0.2  # between training and validation accuracy, above which it is pointed out


@torch.inference_mode()
def simple_features(images: Tensor) -> Tensor:
    """Colours and gradients of images, at 32x32 pixels.

    Args:
        images: (N, C, H, W) uint8.

    Returns:
        (N, K) float32: the mean and the standard deviation of each channel in squares of 8x8 pixels, a histogram of
        colours, and histograms of gradient orientations in the squares (Dalal and Triggs, "Histograms of Oriented
        Gradients for Human Detection", 2005).
    """
    pixels = adaptive_avg_pool2d(images.float() / 255, _SIDE)  # (N, C, 32, 32)
    count, channels = pixels.shape[:2]
    cells = unfold(pixels, _CELL, stride=_CELL).unflatten(1, (channels, -1))  # (N, C, 64, 16)
    levels = (pixels * _LEVELS).long().clamp(max=_LEVELS - 1).flatten(2)
    weights = _LEVELS ** torch.arange(channels, device=images.device)
    colours = _count((levels * weights.view(-1, 1)).sum(1), _LEVELS**channels)
    grey = pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    orientations = (torch.atan2(down, across) % torch.pi * (_ORIENTATIONS / torch.pi)).long() % _ORIENTATIONS
    strength = torch.hypot(down, across)
    by_orientation = torch.zeros(count, _ORIENTATIONS, _SIDE, _SIDE, device=images.device)
    by_orientation.scatter_(1, orientations, strength)
    gradients = adaptive_avg_pool2d(by_orientation, _SIDE // _CELL).flatten(1)
    gradients = gradients / gradients.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat([cells.mean(2).flatten(1), cells.std(2).flatten(1), colours / _SIDE**2, gradients], 1)


def _count(values: Tensor, kinds: int) -> Tensor:
    """(N, M) int to (N, kinds) float32: how often each value occurs in a row."""
    counts = torch.zeros(len(values), kinds, device=values.device)
    return counts.scatter_add_(1, values, torch.ones_like(values, dtype=torch.float32))


def predict_simply(data: TrainingData, test_set: TestSet, cache: Cache) -> np.ndarray:
    """Classify a test set by logistic regression on `simple_features` of the training images, or find this done.

    It is fitted to at most 5,000 training images that are not augmented.

    Returns:
        (N,) int64, the predicted class of each test image.
    """
    train = data.train.places[~data.folder.augmented[data.train.places]]
    if len(train) > _MOST_IMAGES:
        train = np.sort(np.random.default_rng(0).choice(train, _MOST_IMAGES, replace=False))
    digest = hashlib.sha256(f"{_FORM} {data.train.decoded.key} {test_set.images.decoded.key}".encode())
    for places in (train, data.validation.places, test_set.images.places):
        digest.update(b"\0" + places.tobytes())

    def fill(predictions: np.memmap) -> Notes:
        training, validation = (_describe(data.train, places) for places in (train, data.validation.places))
        labels = data.folder.labels
        head = fit_head(training, labels[train], validation, labels[data.validation.places])
        predictions[:] = head.logits(_describe(test_set.images, test_set.images.places)).argmax(axis=1)
        return {}

    name, shape = f"baseline/{digest.hexdigest()[:32]}", (len(test_set.labels),)
    try:
        return np.array(cache.get(name, shape, np.int64, fill).array)
    except NoRoom:
        return np.array(Cache(directory=None).get(name, shape, np.int64, fill).array)


def _describe(images: ImageBatches, places: np.ndarray) -> np.ndarray:
    parts = [
        simple_features(rows_to_maps(torch.from_numpy(images.decoded[places[start : start + _BATCH]]))).numpy()
        for start in range(0, len(places), _BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def score_baseline(data: TrainingData, test_set: TestSet, predictions: np.ndarray, cache: Cache) -> dict[str, float]:
    """What a network has to beat on a test set, in JSON's types.

    Args:
        data: what the network was trained on.
        test_set: the test set, N images.
        predictions: (N,) int, the network's.
        cache: keeps the simple predictions.

    Returns:
        Accuracies, 0 to 1: `chance`, of a random class; `largest_class`, of the largest class in training; `accuracy`
        and `per_class_accuracy`, of logistic regression on colours and gradients; and `p`, of McNemar's exact test
        between that and the network.
    """
    simple, labels = predict_simply(data, test_set, cache), test_set.labels
    originals = data.train.places[~data.folder.augmented[data.train.places]]
    largest = np.bincount(data.folder.labels[originals]).argmax()
    network_right, simple_right = predictions == labels, simple == labels
    return {
        "chance": 1 / len(data.classes),
        "largest_class": float(np.mean(labels == largest)),
        "accuracy": float(simple_right.mean()),
        "per_class_accuracy": float(np.mean([simple_right[labels == label].mean() for label in np.unique(labels)])),
        "p": mcnemar_test(int(np.sum(network_right & ~simple_right)), int(np.sum(simple_right & ~network_right))),
    }


def describe_baselines(metrics: dict[str, Any]) -> Iterator[str]:
    """Baselines and what they suggest to try next, one line each, from the contents of `metrics.json`."""
    checkpoint, results = next(iter(metrics["checkpoints"].items()))
    settings = metrics["settings"]
    remedies = _remedies(settings)
    for test_set, simple in metrics.get("baseline", {}).items():  # which runs of earlier versions lack
        yield (
            f"baseline on {test_set}: chance {simple['chance']:.1%}, largest class {simple['largest_class']:.1%}, "
            f"logistic regression on colours and gradients {simple['accuracy']:.1%}"
        )
        accuracy = results["test"][test_set]["accuracy"]
        if accuracy <= simple["accuracy"] or simple["p"] >= _CHANCE:
            yield (
                f"{checkpoint} does not beat that beyond chance ({accuracy:.1%}, p = {simple['p']:.2g}): try {remedies}"
            )
    if "val" in results:
        train, validation = (results[side]["per_class_accuracy"] for side in ("train", "val"))
        if train - validation > _GAP:
            yield (
                f"accuracy per class is {train:.1%} in training but {validation:.1%} in validation: the network "
                f"overfits; try {remedies}"
            )


def _remedies(settings: dict[str, Any]) -> str:
    """What to try next, most promising first."""
    pretrained, recipe = settings.get("pretrained"), settings.get("recipe")
    remedies = ["more images"]
    if not pretrained:
        remedies = ["-m EfficientNetLite0 -p", *(["--recipe scratch"] if recipe != "scratch" else []), *remedies]
    return " or ".join(remedies)
