"""Runs a model over images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.base import Classifier
from pipeline import distributed
from pipeline.hardware import Hardware
from pipeline.metrics import Scores


def forward(model: Classifier, images: Tensor, labels: Tensor, hardware: Hardware) -> tuple[Tensor, Tensor]:
    """One batch, from the loader to the logits.

    Args:
        model: on the hardware's device.
        images: (B, C, H, W) uint8, anywhere.
        labels: (B,) int64, anywhere.
        hardware: where and in which precision to compute.

    Returns:
        Logits (B, classes) float32, and the labels, both on the device.
    """
    return compute_logits(model, images, hardware), labels.to(hardware.device, non_blocking=True)


def compute_logits(model: Classifier, images: Tensor, hardware: Hardware) -> Tensor:
    """Logits (B, classes) float32, on the device, of images (B, C, H, W) uint8, anywhere."""
    images = images.to(hardware.device, non_blocking=True)
    with hardware.autocast():
        logits = model(model.normalise(images))
    return logits.float()


@torch.inference_mode()
def predict(model: Classifier, loader: DataLoader, hardware: Hardware, title: str) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and labels (N,) of all images of a loader, in its order, on the device."""
    model.eval()
    batches = []
    bar_hidden = None if distributed.is_first() else True
    with tqdm(desc=title, total=len(loader.dataset), unit="image", leave=False, disable=bar_hidden) as bar:
        for size, (images, labels) in zip(loader.batch_sampler.batch_sizes, loader, strict=True):
            batches.append(forward(model, images, labels, hardware))
            bar.update(size)
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return logits, labels


def evaluate(model: Classifier, loader: DataLoader, hardware: Hardware, title: str) -> Scores:
    """Scores a model on all images of a loader. `title` names the progress bar."""
    return Scores.of(*predict(model, loader, hardware, title))
