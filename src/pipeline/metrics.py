"""Loss and accuracies, computed from per-class sums of losses and a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.distributed import rank, sum_over_processes, world_size
from pipeline.measures import SCORES, mean_over_classes


@dataclass(frozen=True)
class Scores:
    """The scores of a set of classified images.

    The mean over images weights a class by its size. The mean over classes weights all classes equally; use it for
    model selection if classes are imbalanced.
    """

    losses: np.ndarray  # (C,) float64, the sum of cross-entropies, in nats, over the images of each class
    confusion: np.ndarray  # (C, C) int64; rows are true classes

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Scores:
        """Score logits (N, C) against labels (N,)."""
        scores = RunningScores(logits.shape[1], logits.device)
        scores.add(logits, labels, cross_entropy(logits, labels, reduction="none"))
        return scores.read()

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """The mean cross-entropy over images."""
        return float(self.losses.sum() / self.images)

    @property
    def accuracy(self) -> float:
        """The fraction of images classified correctly."""
        return float(self.confusion.trace() / self.images)

    @property
    def per_class_loss(self) -> float:
        """The cross-entropy averaged over the images of each class, then over the classes that have images."""
        return mean_over_classes(self.losses, self.confusion.sum(axis=1))

    @property
    def per_class_accuracy(self) -> float:
        """Balanced accuracy, also called macro recall: the mean recall of the classes."""
        return mean_over_classes(self.confusion.diagonal(), self.confusion.sum(axis=1))

    def to_json(self) -> dict[str, Any]:
        """Return the four numbers of `SCORES`."""
        return {name: getattr(self, name) for name in SCORES}


class RunningScores:
    """Accumulates the scores of batches on the device, without synchronising.

    Attributes:
        sums: (C + 1 + C * C,) float64: the loss of each class, the number of batches before the first non-finite loss,
            and the confusion matrix. A run saves it to resume.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        size = num_classes + 1 + num_classes**2
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)  # one tensor, read in one copy
        self._glanced = torch.zeros_like(self.sums, device="cpu", pin_memory=device.type == "cuda")

    def restore(self, sums: Tensor) -> None:
        """Continue from the `sums` of a stopped run.

        Only rank 0 keeps the restored sums, because `read` adds up those of all ranks.
        """
        self.sums.copy_(sums)
        if rank() > 0:
            finite_batches = self.sums[self._num_classes].clone()
            self.sums.zero_()
            self.sums[self._num_classes] = finite_batches

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Add a batch of logits (B, C), labels (B,) int64 and the loss (B,) of each image."""
        count = self._num_classes
        cells = count + 1 + labels * count + logits.argmax(dim=1)
        self.sums.index_add_(0, cells, torch.ones_like(cells, dtype=torch.float64))
        self.sums.index_add_(0, labels, losses.double())
        self.sums[count] += self.sums[:count].isfinite().all()

    def glance(self) -> Scores | None:
        """Return the scores so far for display, or None.

        On a GPU, they are those of the previous call, so that nothing waits.
        """
        scores = self._scores(self._glanced) if self._glanced[self._num_classes + 1 :].any() else None
        self._glanced.copy_(self.sums, non_blocking=True)
        return scores

    def read(self) -> Scores:
        """Return the scores of all batches of all processes."""
        return self._scores(sum_over_processes(self.sums).cpu())

    def count_finite_batches(self) -> int:
        """Return the number of batches before the first non-finite loss in any process."""
        # The process with the non-finite loss counts one batch less than the others, which get its gradients in the
        # next batch. Rounding down gives the smaller count.
        return int(sum_over_processes(self.sums[self._num_classes])) // world_size()

    def _scores(self, sums: Tensor) -> Scores:
        count = self._num_classes
        return Scores(sums[:count].clone().numpy(), sums[count + 1 :].long().view(count, count).numpy())
