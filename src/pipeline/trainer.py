"""Trains a model and keeps its best checkpoints."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR
from tqdm import tqdm

from common import UserError
from models.base import Classifier
from pipeline.checkpoints import Checkpoint, load_state, save_state
from pipeline.data import TrainingData, make_loader
from pipeline.hardware import Hardware
from pipeline.inference import evaluate, forward
from pipeline.logger import Logger
from pipeline.metrics import RunningScores, Scores
from pipeline.settings import Settings

_log = logging.getLogger(__name__)

# What `last.pt` keeps besides the states of model, optimizer and scheduler.
_PROGRESS = ("epoch", "best_accuracy", "best_loss", "validations_without_improvement", "history")


class Trainer:
    """Cross-entropy, AdamW (amsgrad), a learning rate that falls by `gamma` after each epoch, early stopping.

    Everything that the next epoch depends on is in `last.pt`, written after each epoch: a run that was stopped goes on
    from there. Random numbers are drawn anew in each epoch, from the seed and the epoch's number.
    """

    def __init__(
        self,
        model: Classifier,
        data: TrainingData,
        settings: Settings,
        hardware: Hardware,
        logger: Logger,
    ) -> None:
        self.settings, self.hardware, self.logger = settings, hardware, logger
        self.folder = settings.run_dir
        self.model = model.to(hardware.device, memory_format=torch.channels_last)
        self.classes = data.classes
        self.train_loader = make_loader(data.train, settings.batch_size, shuffle=True)
        self.validation_loader = make_loader(data.validation, settings.batch_size)
        self.optimizer = torch.optim.AdamW(
            model.trainable_parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            amsgrad=True,
            fused=True,
        )
        self.scheduler = ExponentialLR(self.optimizer, settings.gamma)
        self.epoch = 0  # finished ones
        self.best_accuracy, self.best_loss = -math.inf, math.inf
        self.validations_without_improvement = 0
        self.history: list[dict[str, Any]] = []

    def fit(self) -> None:
        """Trains to the last epoch or until early stopping, from wherever the run stands."""
        if (self.folder / "last.pt").exists():
            self._load_last()
            _log.info("going on after epoch %d", self.epoch)
        while not self._finished():
            self._run_epoch()
            self._save_last()
        self._save_checkpoint("terminal")

    def _finished(self) -> bool:
        patience = self.settings.early_stopping_patience
        return self.epoch >= self.settings.num_epochs or self.validations_without_improvement >= patience

    def _run_epoch(self) -> None:
        start = time.perf_counter()
        learning_rate = self.scheduler.get_last_lr()[0]
        train = self._train()
        images_per_second = train.images / (time.perf_counter() - start)
        self.epoch += 1
        row = {"epoch": self.epoch, "learning_rate": learning_rate, **_columns("train", train)}
        improved: list[str] = []
        if self.epoch % self.settings.val_freq == 0 or self.epoch == self.settings.num_epochs:
            validation = evaluate(self.model, self.validation_loader, self.hardware, "validating")
            row |= _columns("val", validation)
        if not all(map(math.isfinite, row.values())):
            raise UserError(
                f"the loss is no longer a finite number in epoch {self.epoch}, at a learning rate of "
                f"{learning_rate:g}: try a lower one (-l) with --restart"
            )
        if "val_loss" in row:
            improved = self._keep_best(validation)
        self.scheduler.step()
        self.history.append(row)
        self.logger.log_epoch(self.history, images_per_second)
        self._report(row, improved, images_per_second)

    def _train(self) -> Scores:
        """One pass over the training images."""
        torch.manual_seed(_epoch_seed(self.settings.seed, self.epoch))
        scores = RunningScores(len(self.classes), self.hardware.device)
        title = f"epoch {self.epoch + 1}/{self.settings.num_epochs}"
        self.model.train()
        total = len(self.train_loader.dataset)
        with tqdm(desc=title, total=total, unit="image", leave=False, disable=None, mininterval=0.5) as bar:
            for images, labels in self.train_loader:
                logits, labels = forward(self.model, images, labels, self.hardware)
                loss = cross_entropy(logits, labels)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                scores.add(logits.detach(), labels, loss.detach())
                if bar.update(len(labels)) and (so_far := scores.glance()):
                    bar.set_postfix(loss=f"{so_far.loss:.3f}", accuracy=f"{so_far.accuracy:.1%}")
        return scores.read()

    def _keep_best(self, validation: Scores) -> list[str]:
        """Saves the checkpoints that this validation improves on; returns their names."""
        improved = []
        if validation.accuracy > self.best_accuracy:
            self.best_accuracy = validation.accuracy
            improved.append("best_val_acc")
        self.validations_without_improvement += 1
        if validation.loss < self.best_loss:
            self.best_loss = validation.loss
            self.validations_without_improvement = 0
            improved.append("best_val_loss")
        for name in improved:
            self._save_checkpoint(name)
        return improved

    def _report(self, row: dict[str, Any], improved: list[str], images_per_second: float) -> None:
        parts = [f"epoch {self.epoch:>{len(str(self.settings.num_epochs))}}/{self.settings.num_epochs}"]
        for side in ("train", "val"):
            if f"{side}_loss" in row:
                parts.append(
                    f"{side} loss {row[f'{side}_loss']:.4f} accuracy {row[f'{side}_accuracy']:6.1%} "
                    f"per class {row[f'{side}_per_class_accuracy']:6.1%}"
                )
        parts.append(f"{images_per_second:.1f} images/s")
        if improved:
            parts.append("saved " + ", ".join(improved))
        _log.info("  ".join(parts))

    def _save_checkpoint(self, name: str) -> None:
        checkpoint = Checkpoint(self.settings.model_type, self.classes, self.epoch, self.model.state_dict())
        checkpoint.save(self.folder / f"{name}.pt")

    def _save_last(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **{name: getattr(self, name) for name in _PROGRESS},
        }
        save_state(state, self.folder / "last.pt")

    def _load_last(self) -> None:
        state = load_state(self.folder / "last.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name in _PROGRESS:
            setattr(self, name, state[name])


def _columns(side: str, scores: Scores) -> dict[str, float]:
    return {f"{side}_{name}": value for name, value in scores.to_json().items()}


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that an epoch's random numbers do not depend on how it was reached."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
