"""The loss, and accuracies that are read off one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.distributed import rank, sum_over_processes, world_size
from pipeline.measures import SCORES


@dataclass(frozen=True)
class Scores:
    """How well a set of images was classified.

    The mean over images weighs a class by its size. The mean over classes weighs all classes alike: it is the one to
    select by where classes differ in size. Both are the same where they do not.

    Attributes:
        losses: (C,) float64, the sum of the cross-entropy, in nats, over the images of each class.
        confusion: (C, C) int64; rows are true classes, columns predicted ones.
    """

    losses: np.ndarray
    confusion: np.ndarray

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Scores:
        """Scores logits (N, C) against labels (N,)."""
        scores = RunningScores(logits.shape[1], logits.device)
        scores.add(logits, labels, cross_entropy(logits, labels, reduction="none"))
        return scores.read()

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean over images."""
        return float(self.losses.sum() / self.images)

    @property
    def accuracy(self) -> float:
        """The share of images that are classified correctly, 0 to 1."""
        return float(self.confusion.trace() / self.images)

    @property
    def per_class_loss(self) -> float:
        """The loss averaged over the images of each class, then over the classes that have images."""
        return self._mean_over_classes(self.losses)

    @property
    def per_class_accuracy(self) -> float:
        """Balanced accuracy, or macro recall, 0 to 1: the mean of the classes' recalls."""
        return self._mean_over_classes(self.confusion.diagonal())

    def _mean_over_classes(self, sums: np.ndarray) -> float:
        counts = self.confusion.sum(axis=1)
        present = counts > 0
        return float((sums[present] / counts[present]).mean())

    def to_json(self) -> dict[str, Any]:
        """The four numbers of `SCORES`, in JSON's types."""
        return {name: getattr(self, name) for name in SCORES}


class RunningScores:
    """Adds up batches on the device, without waiting for it. Read at the end; `glance` reads the scores so far.

    Attributes:
        sums: (C + 1 + C * C,) float64, the loss of each class, the number of batches until a loss was no longer finite,
            then the confusion matrix: all that a stopped run must keep.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        size = num_classes + 1 + num_classes**2
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)  # one tensor, to be read in one copy
        self._glanced = torch.zeros_like(self.sums, device="cpu", pin_memory=device.type == "cuda")

    def restore(self, sums: Tensor) -> None:
        """Goes on from the `sums` of a stopped run, which the first of several joined processes counts for all."""
        self.sums.copy_(sums)
        if rank() > 0:
            finite_batches = self.sums[self._num_classes].clone()
            self.sums.zero_()
            self.sums[self._num_classes] = finite_batches

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Adds a batch.

        Args:
            logits: (B, C).
            labels: (B,) int64.
            losses: (B,), of each image.
        """
        count = self._num_classes
        cells = count + 1 + labels * count + logits.argmax(dim=1)
        self.sums.index_add_(0, cells, torch.ones_like(cells, dtype=torch.float64))
        self.sums.index_add_(0, labels, losses.double())
        self.sums[count] += self.sums[:count].isfinite().all()

    def glance(self) -> Scores | None:
        """The scores so far, for display: on a GPU as of the last glance, so that nothing waits; None before."""
        scores = self._scores(self._glanced) if self._glanced[self._num_classes + 1 :].any() else None
        self._glanced.copy_(self.sums, non_blocking=True)
        return scores

    def read(self) -> Scores:
        """The scores of all batches, of all joined processes."""
        return self._scores(sum_over_processes(self.sums).cpu())

    def count_finite_batches(self) -> int:
        """How many batches went by before the loss was no longer a finite number in one of the joined processes."""
        # One may see it a batch before the others, which share its gradients: rounded down, it is that one's count.
        return int(sum_over_processes(self.sums[self._num_classes])) // world_size()

    def _scores(self, sums: Tensor) -> Scores:
        count = self._num_classes
        return Scores(sums[:count].clone().numpy(), sums[count + 1 :].long().view(count, count).numpy())
