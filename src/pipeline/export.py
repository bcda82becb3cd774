"""Writes a trained model as one file that runs without this program."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from common import write_whole
from models.base import Classifier
from pipeline.prediction import TrainedRun

TOLERANCE = 1e-4  # in a probability


class _FromBytesToProbabilities(nn.Module):
    """(N, C, H, W) uint8 to (N, classes) float32 probabilities."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.model.normalise(images)).softmax(dim=1)


def export_model(run: TrainedRun, file: Path) -> float:
    """Writes a run's model in torch.export's format, in fp32, and its classes beside it in the same file.

    The file is loaded again and checked on random images before it gets its name.

    Args:
        run: is moved to the CPU.
        file: ends in .pt2.

    Returns:
        How far the file's probabilities are off, at most.

    Raises:
        RuntimeError: that is more than `TOLERANCE`.
    """
    original = (
        _FromBytesToProbabilities(run.model.cpu().to(memory_format=torch.contiguous_format))
        .eval()
        .requires_grad_(False)
    )
    images = _random_images(5, run.model.input_size)
    batches = {0: torch.export.Dim("batch", min=1)}
    with write_whole(file) as partial:
        program = torch.export.export(original, (images,), dynamic_shapes={"images": batches})
        torch.export.save(program, partial, extra_files={"classes.json": json.dumps(run.classes)})
        exported = torch.export.load(partial).module()
        error = max(_difference(original, exported, batch) for batch in (images, images[:1]))
        if not error <= TOLERANCE:  # which NaN is not either
            raise RuntimeError(f"the exported model's probabilities are off by {error:.1e}")
    return error


def _random_images(count: int, input_size: tuple[int, int, int]) -> Tensor:
    """(N, C, H, W) uint8, the same ones each time: noise, the first of little contrast, the last of all there is."""
    noise = torch.rand((count, *input_size), generator=torch.Generator().manual_seed(0))
    contrasts = torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)
    return (255 * (0.5 + contrasts * (noise - 0.5))).round().to(torch.uint8)


def _difference(original: nn.Module, exported: nn.Module, images: Tensor) -> float:
    return float((original(images) - exported(images)).abs().max())
