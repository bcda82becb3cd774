"""Runs a model over images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.base import Classifier
from pipeline import distributed
from pipeline.hardware import Hardware
from pipeline.metrics import Scores

BATCH = 32  # images per batch, if no settings apply


def compute_logits(model: nn.Module, images: Tensor, hardware: Hardware) -> Tensor:
    """Compute the logits of one batch.

    Args:
        model: a `Classifier` (or another module with `normalise`) on the hardware's device.
        images: (B, C, H, W) uint8 or float, or features, on any device.
        hardware: the device and precision.

    Returns:
        (B, classes) float32, on the hardware's device.
    """
    images = images.to(hardware.device, non_blocking=True)
    with hardware.autocast():
        logits = model(model.normalise(images))
    return logits.float()


@contextmanager
def record_features(
    model: Classifier, measure: Callable[[Tensor], Tensor] = lambda features: features
) -> Iterator[list[Tensor]]:
    """Record `measure(features)` for every batch, where features (B, K) float32 are the input of the last layer."""
    measured: list[Tensor] = []
    layer = model.get_submodule(model.last_layer)
    hook = layer.register_forward_pre_hook(lambda _, inputs: measured.append(measure(inputs[0].float().cpu())))
    try:
        yield measured
    finally:
        hook.remove()


@torch.inference_mode()
def predict_logits(model: nn.Module, loader: DataLoader, hardware: Hardware, title: str) -> tuple[Tensor, Tensor]:
    """Return logits (N, classes) float32 and labels (N,) of all images of a loader, on the device."""
    model.eval()
    batches = []
    hidden = distributed.bar_hidden()
    with tqdm(desc=title, total=len(loader.dataset), unit="image", leave=False, disable=hidden) as bar:
        for size, (images, labels) in zip(loader.batch_sampler.batch_sizes, loader, strict=True):
            logits = compute_logits(model, images, hardware)
            batches.append((logits, labels.to(hardware.device, non_blocking=True)))
            bar.update(size)
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return logits, labels


def evaluate(model: nn.Module, loader: DataLoader, hardware: Hardware, title: str) -> tuple[Scores, Tensor]:
    """Score a model on all images of a loader. `title` names the progress bar.

    Returns:
        The scores, and the logits (N, classes) float32 of all processes, in the loader's order.
    """
    logits, labels = predict_logits(model, loader, hardware, title)
    indices = [index for batch in loader.batch_sampler for index in batch]  # of this process
    all_logits = logits.new_zeros((len(loader.dataset), logits.shape[1]))
    all_logits[indices] = logits
    return Scores.of(logits, labels), distributed.sum_over_processes(all_logits)
