"""Baselines that a network should beat: chance, the largest class, and logistic regression on simple features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad, unfold

from pipeline.cache import Cache, Metadata, make_key
from pipeline.data import ImageDataset, TestSet, TrainingData, sample
from pipeline.head import fit_head
from pipeline.measures import mcnemar_test, mean_over_classes
from pipeline.settings import first_checkpoint

_SIDE = 32  # pixels
_CELL = 8  # pixels
_ORIENTATIONS = 9  # bins of gradient histograms
_LEVELS = 4  # bins per channel of the colour histogram
_MOST_IMAGES = 5000  # training images
_CACHE_VERSION = 1  # part of the cache key; raise it when the same images get other predictions
_BATCH = 256
_SIGNIFICANT = 0.05  # p-value
_GAP = 0.2  # between training and validation accuracy; more is reported as overfitting


@torch.inference_mode()
def simple_features(images: Tensor) -> Tensor:
    """Compute colour and gradient features of images (N, C, H, W) uint8, after resizing to 32x32 pixels.

    Returns:
        (N, K) float32: mean and standard deviation of each channel in cells of 8x8 pixels, a colour histogram, and a
        histogram of gradient orientations per cell (Dalal and Triggs, "Histograms of Oriented Gradients for Human
        Detection", 2005).
    """
    pixels = adaptive_avg_pool2d(images.float() / 255, _SIDE)  # (N, C, 32, 32)
    return torch.cat([_cell_statistics(pixels), _colour_histogram(pixels), _gradient_histograms(pixels)], 1)


def _cell_statistics(pixels: Tensor) -> Tensor:
    cells = unfold(pixels, _CELL, stride=_CELL).unflatten(1, (pixels.shape[1], -1))  # (N, C, 64, 16)
    return torch.cat([cells.mean(2).flatten(1), cells.std(2).flatten(1)], 1)


def _colour_histogram(pixels: Tensor) -> Tensor:
    count, channels = pixels.shape[:2]
    levels = (pixels * _LEVELS).long().clamp(max=_LEVELS - 1).flatten(2)
    weights = _LEVELS ** torch.arange(channels, device=pixels.device)
    bins = (levels * weights.view(-1, 1)).sum(1)  # (N, 1024)
    colours = torch.zeros(count, _LEVELS**channels, device=pixels.device)
    colours.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32))
    return colours / _SIDE**2


def _gradient_histograms(pixels: Tensor) -> Tensor:
    grey = pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    orientations = (torch.atan2(down, across) % torch.pi * (_ORIENTATIONS / torch.pi)).long() % _ORIENTATIONS
    strength = torch.hypot(down, across)
    by_orientation = torch.zeros(len(pixels), _ORIENTATIONS, _SIDE, _SIDE, device=pixels.device)
    by_orientation.scatter_(1, orientations, strength)
    gradients = adaptive_avg_pool2d(by_orientation, _SIDE // _CELL).flatten(1)
    return gradients / gradients.norm(dim=1, keepdim=True).clamp(min=1e-6)


def predict_simply(data: TrainingData, test_set: TestSet, cache: Cache) -> np.ndarray:
    """Return the classes (N,) int64 that logistic regression on `simple_features` predicts, possibly from the cache.

    It is fitted to at most 5,000 training images, none of them augmented.
    """
    train, labels = data.train.select(sample(data.originals, _MOST_IMAGES)), data.folder.labels
    validation, test = data.validation, test_set.images
    parts: list[str | bytes] = [f"{_CACHE_VERSION} {train.decoded.key} {test.decoded.key}"]
    for images in (train, validation, test):
        parts += ["\0", images.indices.tobytes()]

    def fill(predictions: np.memmap) -> Metadata:
        head = fit_head(
            _compute_features(train), labels[train.indices],
            _compute_features(validation), labels[validation.indices],
        )  # fmt: skip
        predictions[:] = head.logits(_compute_features(test)).argmax(axis=1)
        return {}

    return np.array(cache.get_or_unnamed(f"baseline/{make_key(parts)}", (len(test),), np.int64, fill).array)


def _compute_features(images: ImageDataset) -> np.ndarray:
    starts = range(0, len(images), _BATCH)
    parts = [simple_features(images.read(images.indices[start : start + _BATCH])).numpy() for start in starts]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def score_baseline(data: TrainingData, test_set: TestSet, predictions: np.ndarray, cache: Cache) -> dict[str, float]:
    """Return baseline accuracies on a test set.

    They are of a random class (`chance`), of always the largest training class (`largest_class`), and of logistic
    regression on `simple_features` (`accuracy`, `per_class_accuracy`). `p` is the p-value of McNemar's exact test
    between this regression and the network's predictions (N,) int.
    """
    simple, labels = predict_simply(data, test_set, cache), test_set.labels
    largest = np.bincount(data.folder.labels[data.originals]).argmax()
    network_right, simple_right = predictions == labels, simple == labels
    return {
        "chance": 1 / len(data.classes),
        "largest_class": float(np.mean(labels == largest)),
        "accuracy": float(simple_right.mean()),
        "per_class_accuracy": mean_over_classes(np.bincount(labels, simple_right), np.bincount(labels)),
        "p": mcnemar_test(int(np.sum(network_right & ~simple_right)), int(np.sum(simple_right & ~network_right))),
    }


def describe_baselines(metrics: dict[str, Any]) -> Iterator[str]:
    """Yield lines that compare the contents of `metrics.json` with the baselines and suggest what to try next."""
    checkpoint, results = first_checkpoint(metrics)
    remedies = _remedies(metrics["settings"])
    for test_set, simple in metrics.get("baseline", {}).items():  # missing in runs of earlier versions
        yield (
            f"baseline on {test_set}: chance {simple['chance']:.1%}, largest class {simple['largest_class']:.1%}, "
            f"logistic regression on colours and gradients {simple['accuracy']:.1%}"
        )
        accuracy = results["test"][test_set]["accuracy"]
        if accuracy <= simple["accuracy"] or simple["p"] >= _SIGNIFICANT:
            yield (
                f"{checkpoint} ({accuracy:.1%}) is not significantly better than logistic regression on colours and "
                f"gradients ({simple['accuracy']:.1%}, p = {simple['p']:.2g}): try {remedies}"
            )
    if "val" in results:
        train, validation = (results[side]["per_class_accuracy"] for side in ("train", "val"))
        if train - validation > _GAP:
            yield (
                f"balanced accuracy is {train:.1%} in training but {validation:.1%} in validation: the network "
                f"overfits; try {remedies}"
            )


def _remedies(settings: dict[str, Any]) -> str:
    """Return what to try next, most promising first."""
    if settings.get("pretrained"):
        return "more images"
    scratch = "" if settings.get("recipe") == "scratch" else "--recipe scratch or "
    return f"-m EfficientNetLite0 -p or {scratch}more images"
