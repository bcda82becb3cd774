"""The loss, and accuracies that are read off one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.distributed import sum_over_processes, world_size
from pipeline.measures import SCORES


@dataclass(frozen=True)
class Scores:
    """How well a set of images was classified.

    Attributes:
        loss: mean cross-entropy, in nats.
        confusion: (C, C) int64; rows are true classes, columns predicted ones.
    """

    loss: float
    confusion: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Scores:
        """Scores logits (N, C) against labels (N,)."""
        scores = RunningScores(logits.shape[1], logits.device)
        scores.add(logits, labels, cross_entropy(logits, labels, reduction="sum"))
        return scores.read()

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of images that are classified right, 0 to 1."""
        return float(self.confusion.trace() / self.images)

    @property
    def per_class_accuracy(self) -> float:
        """The mean of the classes' recalls, 0 to 1, over the classes that have images."""
        counts = self.confusion.sum(axis=1)
        present = counts > 0
        return float((self.confusion.diagonal()[present] / counts[present]).mean())

    def to_json(self) -> dict[str, Any]:
        """The three numbers, in JSON's types."""
        return {name: getattr(self, name) for name in SCORES}


class RunningScores:
    """Adds up batches on the device, without waiting for it. Read at the end; `glance` looks on.

    Attributes:
        sums: (2 + C * C,) float64, the sum of the losses, the number of batches until it was no longer finite, then the
            confusion matrix: all that a stopped run must keep.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self.sums = torch.zeros(2 + num_classes**2, dtype=torch.float64, device=device)  # one, to be read in one copy
        self._glanced = torch.zeros_like(self.sums, device="cpu", pin_memory=device.type == "cuda")

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (B, C).
            labels: (B,) int64.
            loss: the sum of the images' losses, a scalar.
        """
        cells = 2 + labels * self._num_classes + logits.argmax(dim=1)
        self.sums.index_add_(0, cells, torch.ones_like(cells, dtype=torch.float64))
        self.sums[0] += loss
        self.sums[1] += self.sums[0].isfinite()

    def glance(self) -> Scores | None:
        """The scores so far, for the eye: on a GPU as of the last glance, so that nothing waits; None before."""
        scores = self._scores(self._glanced) if self._glanced[2:].any() else None
        self._glanced.copy_(self.sums, non_blocking=True)
        return scores

    def read(self) -> Scores:
        """The scores of all batches, of all joined processes."""
        return self._scores(sum_over_processes(self.sums).cpu())

    def count_finite_batches(self) -> int:
        """How many batches went by before the loss was no longer a finite number in one of the joined processes."""
        # One may see it a batch before the others, which share its gradients: rounded down, it is that one's count.
        return int(sum_over_processes(self.sums[1])) // world_size()

    def _scores(self, sums: Tensor) -> Scores:
        confusion = sums[2:].long().view(self._num_classes, self._num_classes).numpy()
        return Scores(float(sums[0]) / int(confusion.sum()), confusion)
