"""Grad-CAM: shows where a model looks (Selvaraju et al., "Grad-CAM", 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from models.base import Classifier
from pipeline.data import to_nhwc
from pipeline.figures import HeatmapFigure
from pipeline.inference import BATCH

_PER_CLASS = 3  # images to explain
_MOST_CLASSES = 20  # classes to explain


def choose_examples(labels: np.ndarray, predictions: np.ndarray, per_class: int = _PER_CLASS) -> list[int]:
    """Return the indices of images to explain.

    Per class: its first image, its first misclassified image, then further images. If there are more than 20 classes,
    those with the lowest recall are chosen. Labels and predictions are (N,) int.
    """
    chosen: list[int] = []
    classes, members = np.unique(labels, return_inverse=True)
    recalls = np.bincount(members, predictions == labels) / np.bincount(members)
    for label in classes[np.sort(np.argsort(recalls, kind="stable")[:_MOST_CLASSES])].tolist():
        images = np.flatnonzero(labels == label).tolist()
        mistakes = [image for image in images if predictions[image] != label]
        wanted = dict.fromkeys([images[0], *mistakes[:1], *images])  # keeps the order and drops repetitions
        chosen += list(wanted)[:per_class]
    return chosen


def class_activation_maps(model: Classifier, images: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Compute Grad-CAM heatmaps (N, H, W) float, 0 to 1, of images (N, C, H, W) uint8 for N target classes.

    The model may be frozen. It is left in `eval` mode.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = model.get_submodule(model.cam_layer)
    model.eval()
    images = images.to(next(model.parameters()).device)
    explained = [ClassifierOutputTarget(int(target)) for target in targets]
    with _stop_gradients_at(model, layer), GradCAM(model, [layer], model.cam_maps) as grad_cam:
        return np.concatenate([
            grad_cam(model.normalise(images[start : start + BATCH]), explained[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ])  # fmt: skip


@contextmanager
def _stop_gradients_at(model: nn.Module, layer: nn.Module) -> Iterator[None]:
    """Let gradients flow back to a layer's output and no further, whether or not the model is frozen."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hook = layer.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


def draw_heatmaps(
    model: Classifier, images: Tensor, targets: Sequence[int], titles: Sequence[str], paths: Sequence[Path]
) -> None:
    """Write one heatmap figure for each of N images (N, C, H, W) uint8."""
    figure = HeatmapFigure(*images.shape[2:])
    heatmaps = class_activation_maps(model, images, targets)
    for image, heatmap, title, path in zip(to_nhwc(images).numpy(), heatmaps, titles, paths, strict=True):
        figure.save(image, heatmap, title, path)
