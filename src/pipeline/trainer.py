"""Training: epochs, checkpoints, early stopping, and resuming an interrupted run."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from common import StopRequest, UserError, link
from models.base import Classifier
from pipeline import distributed
from pipeline.augmentation import augment_batch
from pipeline.cache import Cache
from pipeline.checkpoints import Checkpoint, Progress, load_state, save_state
from pipeline.compiling import Compiled
from pipeline.data import BatchOrder, ImageDataset, TrainingData, make_loader, preload_to_gpu
from pipeline.features import UnfrozenLayers, compute_features
from pipeline.hardware import Hardware, choose_threads
from pipeline.head import fit_head
from pipeline.inference import compute_logits, evaluate
from pipeline.logger import Logger
from pipeline.measures import SCORES
from pipeline.metrics import RunningScores, Scores
from pipeline.optimizer import make_average, make_optimizer, make_scheduler
from pipeline.recipes import RECIPES
from pipeline.settings import STATE_FILE, Settings

_log = logging.getLogger(__name__)

_PROBE = 2**16  # values of the images that measure the number of threads
_STRIDE = 32  # pixels; the smaller image sizes of a recipe are multiples of it


class Trainer:
    """Trains a model with cross-entropy and AdamW as its recipe says, with early stopping.

    If the recipe fits the head to frozen features first, that is epoch 0. Checkpoints and early stopping use the
    validation scores averaged over classes.

    `last.pt` holds the full state, and a run that is resumed from it gives identical results: each epoch derives its
    random numbers from the seed and its own number. The state is saved at the end of an epoch if the last save is at
    least `save_every` minutes old, at the end of training, and after a batch if the program is asked to stop.

    Attributes:
        progress: how far the training is, and its scores.
        network, validation_network: the modules that run; only the layers behind frozen ones if features are cached.
        saved_model: the model that is validated and saved, which may be a moving average of the trained one.
        validation_logits: logits (N, classes) of the last validation.
    """

    def __init__(
        self,
        model: Classifier,
        data: TrainingData,
        settings: Settings,
        hardware: Hardware,
        logger: Logger | None,
        keep_state: bool = False,
    ) -> None:
        self.data, self.settings, self.hardware, self.logger = data, settings, hardware, logger
        self.keep_state = keep_state  # of a finished run, so that it can be trained further
        self.folder = settings.run_dir
        self.recipe = RECIPES[settings.recipe]
        self.progress = Progress(data.digest)
        self.validates = len(data.validation) > 0
        self.validation_logits: Tensor | None = None
        self.model = hardware.place(model, training=True)
        batches = len(BatchOrder(len(data.train), settings.batch_size, shuffle=True))  # per epoch
        self.averaged = make_average(self.model, self.recipe, settings, batches)
        self.saved_model = self.averaged.module if self.averaged else self.model
        self.optimizer = make_optimizer(self.model, self.recipe, settings)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, settings, batches)
        self._stateful = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if self.averaged:
            self._stateful["averaged"] = self.averaged
        self._stop = StopRequest()
        self._saved_at = time.monotonic()
        self._state_file = self.folder / STATE_FILE
        if self._state_file.exists():
            self._load_last()
        if not self.finished and not self._only_head:
            self._prepare_batches()

    def _prepare_batches(self) -> None:
        """Make the loaders, and the networks that run on their batches."""
        settings, sides = self.settings, (self.data.train, self.data.validation)
        self.network, self.validation_network = self.model, self.saved_model
        frozen_to = None if self.recipe.augmentation else self.model.frozen_to
        if frozen_to and (features := self._compute_features(frozen_to)):
            sides = features
            self.network = UnfrozenLayers(self.model, frozen_to)
            self.validation_network = UnfrozenLayers(self.saved_model, frozen_to)
        train, validation = preload_to_gpu(sides, self.hardware.device)
        balanced = train.labels.numpy()[train.indices] if settings.balance or self.recipe.balance else None
        self.train_loader = make_loader(train, settings.batch_size, shuffle=True, balanced=balanced)
        self.validation_loader = make_loader(validation, settings.batch_size)
        self.network = distributed.join_gradients(self.network)
        if settings.compile and distributed.world_size() > 1:
            _log.warning("--compile does not support several processes: continuing without it")
        elif settings.compile:
            self.network = Compiled(self.network, settings.batch_size, self.hardware)

    def _set_threads(self) -> None:
        """Use as many CPU threads as train fastest, or as the interrupted run used."""
        train = self.train_loader.dataset
        count = min(self.settings.batch_size, max(2, _PROBE // train.fetch([0])[0].numel()), len(train))
        images, _ = train.fetch(range(count))

        def step() -> None:
            compute_logits(self.network, images, self.hardware).sum().backward()

        self.network.eval()  # so that neither statistics nor random numbers change
        self.progress.threads = choose_threads(step, self.progress.threads)
        self.optimizer.zero_grad()
        torch.set_num_threads(self.progress.threads)

    def _compute_features(self, freeze_point: str) -> Sequence[ImageDataset] | None:
        """Compute the output of the layers up to a freeze point, for training and validation images."""
        sides = (self.data.train, self.data.validation)
        return compute_features(self.model, freeze_point, sides, self.hardware, Cache.of(self.settings))

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self.progress.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of `history.csv`."""
        return self.progress.history

    @property
    def _only_head(self) -> bool:
        return self.recipe.fit_head and self.model.frozen_to is not None

    @property
    def _needs_head(self) -> bool:
        return self.recipe.fit_head and not self.history

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        if self._needs_head:
            return False
        return self.epoch >= (0 if self._only_head else self.settings.num_epochs) or self._stopped_early

    @property
    def _stopped_early(self) -> bool:
        return self.progress.validations_without_improvement >= self.settings.early_stopping_patience

    def fit(self, until: int | None = None) -> None:
        """Train to the last epoch or until early stopping; pause and save the full state after epoch `until`."""
        if (self.history or self.progress.unfinished) and not self._has_reached(until):
            if self.progress.unfinished:
                _log.info("resuming in epoch %d", self.epoch + 1)
            else:
                _log.info("resuming after epoch %d", self.epoch)
        alone = distributed.world_size() == 1
        if alone and not (self.settings.compile or self._only_head or self._has_reached(until)):
            self._set_threads()
        try:
            # With several processes, each may stop after a different batch, and wait for the others: they stop at once.
            with self._stop if alone else nullcontext():
                while not self._has_reached(until):
                    self._advance(until)
            if self._stopped_early:
                patience = self.settings.early_stopping_patience
                _log.info("stopped early: no lower loss in the last %d validations", patience)
            return
        except torch.OutOfMemoryError:
            if not alone or self._needs_head:  # the features of the head do not depend on the batch size
                raise
        self._suggest_batch_size()  # outside the `except` block, which keeps tensors alive

    def _has_reached(self, until: int | None) -> bool:
        """Return whether to train no further: everything is trained, or all epochs to `until` are."""
        return self.finished or (until is not None and self.epoch >= until)

    def _advance(self, until: int | None) -> None:
        """Fit the head or train an epoch, and save what is due."""
        if self._needs_head:
            self._fit_head()
        else:
            self._train_and_validate()
        if self.finished:
            self._save_checkpoint("terminal")
        stop = self._stop.made  # a request made later is granted after the next batch
        if stop or self._has_reached(until) or time.monotonic() - self._saved_at >= 60 * self.settings.save_every:
            self._save_last()
        if stop:
            self._stop.grant()

    def _suggest_batch_size(self) -> NoReturn:
        """Raise UserError with a batch size that fits. Leaves the model in an unusable state."""
        size = self.train_loader.batch_sampler.batch_sizes[0] // 2
        while size >= 2 and not self._fits(size):
            size //= 2
        advice = f"use -b {size} with --restart" if size >= 2 else "not even two images fit; use another GPU"
        raise UserError(
            f"{self.hardware} has too little memory for batches of {self.settings.batch_size} images: {advice}"
        )

    def _fits(self, size: int) -> bool:
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        gc.collect()
        torch.cuda.empty_cache()
        with suppress(torch.OutOfMemoryError):
            for _ in range(2):  # in the second step, the optimizer's state takes memory too
                self._train_batch(*self.train_loader.dataset.fetch(range(size)), size)
            return True
        return False

    def _fit_head(self) -> None:
        """Epoch 0: fit the last layer to the output of all layers before it."""
        start = time.perf_counter()
        freeze_point = self.model.freeze_points[-1]
        sides = self._compute_features(freeze_point)
        if sides is None:
            raise UserError("the features of the images do not fit on the disk: free some space, or try --no-cache")
        (train, labels), (validation, validation_labels) = (dataset.fetch(range(len(dataset))) for dataset in sides)
        train, validation = train.float().numpy(), validation.float().numpy()
        head = fit_head(train, labels.numpy(), validation, validation_labels.numpy())
        _, layer = self.model.split(freeze_point)
        head.copy_to(layer)
        if self.averaged:
            self.averaged.update_parameters(self.model)
        train_scores, validation_scores = Scores.of(torch.from_numpy(head.logits(train)), labels), None
        if self.validates:
            self.validation_logits = torch.from_numpy(head.logits(validation))
            validation_scores = Scores.of(self.validation_logits, validation_labels)
        _log.info("the head was fitted to features by logistic regression, C = %g", head.strength)
        images_per_second = sum(map(len, sides)) / (time.perf_counter() - start)
        self._finish_epoch(0.0, train_scores, validation_scores, images_per_second)

    def _train_and_validate(self) -> None:
        start = time.perf_counter()
        unfinished = self.progress.unfinished
        done = unfinished["batches"] if unfinished else 0
        before = sum(self.train_loader.batch_sampler.batch_sizes[:done])
        train = self._train_epoch()
        images_per_second = (train.images - before) / (time.perf_counter() - start)
        learning_rate = max(self.scheduler.get_last_lr())  # of a one-cycle schedule, that at the end of the epoch
        self.progress.epoch += 1
        validation = self.validation_logits = None
        if self.validates and (self.epoch % self.settings.val_freq == 0 or self.epoch == self.settings.num_epochs):
            validation, self.validation_logits = evaluate(
                self.validation_network, self.validation_loader, self.hardware, "validating"
            )
        if not self.recipe.one_cycle:
            self.scheduler.step()
        self._finish_epoch(learning_rate, train, validation, images_per_second)

    def _finish_epoch(
        self, learning_rate: float, train: Scores, validation: Scores | None, images_per_second: float
    ) -> None:
        """Save the best checkpoints, and log the epoch."""
        row = {"epoch": self.epoch, "learning_rate": learning_rate, **_columns("train", train)}
        improved: list[str] = []
        if validation:
            if not math.isfinite(validation.loss):
                raise _not_finite(f"in validation after epoch {self.epoch}", learning_rate)
            row |= _columns("val", validation)
            if improved := self.progress.compare(validation):
                self._save_checkpoint(*improved)
        self.history.append(row)
        if distributed.is_first():
            self.logger.log_epoch(self.history, images_per_second)
            self._report(row, improved, images_per_second)

    def _train_epoch(self) -> Scores:
        """Train on all images once, or on the rest of an interrupted epoch."""
        seed = int(np.random.SeedSequence([self.settings.seed, self.epoch]).generate_state(1)[0])
        torch.manual_seed(seed + distributed.rank())  # each process draws its own dropout
        scores = RunningScores(len(self.data.classes), self.hardware.device)
        done = self._resume_epoch(scores) if self.progress.unfinished else 0  # batches
        rates = [math.nan] * done  # the losses of these were checked before they were saved
        order = self.train_loader.batch_sampler
        order.set_epoch(seed, done)
        sizes = order.batch_sizes
        self.model.train()
        if self.recipe.freeze_batch_norm:
            _freeze_batch_norm(self.model)
        with tqdm(
            desc=f"epoch {self.epoch + 1}/{self.settings.num_epochs}", initial=sum(sizes[:done]), total=sum(sizes),
            unit="image", leave=False, disable=distributed.bar_hidden(), mininterval=0.5,
        ) as bar:  # fmt: skip
            for size, (images, labels) in zip(sizes[done:], self.train_loader, strict=True):
                rates.append(max(self.scheduler.get_last_lr()))
                scores.add(*self._train_batch(images, labels, size))
                if self.recipe.one_cycle:
                    self.scheduler.step()
                if self.averaged:
                    self.averaged.update_parameters(self.model)
                if self._stop.made:
                    self._check_finite(scores, rates)
                    self._save_within_epoch(len(rates), scores)
                    self._stop.grant()
                if bar.update(size) and (so_far := scores.glance()):
                    bar.set_postfix(loss=f"{so_far.loss:.3f}", accuracy=f"{so_far.accuracy:.1%}")
        self._check_finite(scores, rates)
        return scores.read()

    def _train_batch(self, images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Train on this process's share of a batch of `size` images; return logits, labels and losses (B,)."""
        self.optimizer.zero_grad()  # before the forward pass, to reuse the memory of the gradients
        if self.recipe.augmentation:
            images = images.to(self.hardware.device, non_blocking=True)
            images = augment_batch(images, self.recipe.augmentation, self._image_size())
        logits = compute_logits(self.network, images, self.hardware)
        labels = labels.to(self.hardware.device, non_blocking=True)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.recipe.label_smoothing)
        (losses.sum() * (distributed.world_size() / size)).backward()  # DDP averages gradients over processes
        self.optimizer.step()
        return logits.detach(), labels, losses.detach()

    def _image_size(self) -> int:
        """Return the height and width of the epoch's training images in pixels."""
        full, scales = self.model.input_size[1], self.recipe.image_scales
        scale = scales[self.epoch * len(scales) // self.settings.num_epochs]
        return full if scale == 1 or not self.model.any_size else max(_STRIDE, round(full * scale / _STRIDE) * _STRIDE)

    def _check_finite(self, scores: RunningScores, rates: Sequence[float]) -> None:
        """Raise UserError if the loss is no longer a finite number; `rates` are the learning rates of the batches."""
        batch = scores.count_finite_batches()
        if batch < len(rates):
            batches = len(self.train_loader.batch_sampler.batch_sizes)
            raise _not_finite(f"in epoch {self.epoch + 1}, batch {batch + 1} of {batches}", rates[batch])

    def _report(self, row: dict[str, Any], improved: list[str], images_per_second: float) -> None:
        parts = [f"epoch {self.epoch:>{len(str(self.settings.num_epochs))}}/{self.settings.num_epochs}"]
        parts.append(f"train loss {row['train_loss']:.3f} acc {row['train_accuracy']:5.1%}")
        if "val_loss" in row:
            loss, accuracy, class_loss, class_accuracy = (row[f"val_{name}"] for name in SCORES)
            parts.append(f"val loss {loss:.3f}|{class_loss:.3f} acc {accuracy:5.1%}|{class_accuracy:5.1%}")
        parts.append(f"{images_per_second:.1f} images/s")
        if improved:
            parts.append("saved " + ", ".join(name.removeprefix("best_val_") for name in improved))
        _log.info("  ".join(parts))

    def _save_checkpoint(self, *names: str) -> None:
        if not distributed.is_first():
            return
        logits = None if self.validation_logits is None else self.validation_logits.cpu()
        weights = self.saved_model.state_dict()
        checkpoint = Checkpoint(self.settings.model_type, self.data.classes, self.epoch, weights, logits)
        first, *others = (self.folder / f"{name}.pt" for name in names)
        checkpoint.save(first)
        for other in others:
            link(first, other)

    def _save_last(self) -> None:
        if not distributed.is_first():
            return
        state = dict(vars(self.progress))
        can_be_longer = self.keep_state and not self.recipe.one_cycle and not self._stopped_early
        if not self.finished or can_be_longer:  # otherwise the state is not needed, and can take gigabytes
            state |= {name: each.state_dict() for name, each in self._stateful.items()}
        save_state(state, self._state_file)
        self._saved_at = time.monotonic()

    def _save_within_epoch(self, batches: int, scores: RunningScores) -> None:
        self.progress.unfinished = {
            "batches": batches,
            "sums": scores.sums,
            "random_state": torch.get_rng_state(),
            "cuda_random_states": torch.cuda.get_rng_state_all(),
        }
        self._save_last()

    def _resume_epoch(self, scores: RunningScores) -> int:
        """Restore what `_save_within_epoch` saved; return the number of completed batches."""
        state, self.progress.unfinished = self.progress.unfinished, None
        scores.restore(state["sums"])
        torch.set_rng_state(state["random_state"])
        # There may be fewer GPUs than before.
        torch.cuda.set_rng_state_all(state["cuda_random_states"][: torch.cuda.device_count()])
        return state["batches"]

    def _load_last(self) -> None:
        state = load_state(self._state_file)
        try:
            self.progress = Progress.of(state)
            if not self.finished:
                if "model" not in state:
                    raise UserError(
                        f"{self.folder} cannot be trained further: it finished after epoch {self.epoch} without saving "
                        "its full state, as runs of sweep.py do: use another --output-dir, or main.py --restart"
                    )
                for name, each in self._stateful.items():
                    each.load_state_dict(state[name])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self._state_file} does not fit {self.settings.model_type}: start over with main.py --restart"
            ) from error
        # With another split, it might validate on images that it was trained on.
        if self.progress.digest != self.data.digest:
            raise UserError(
                f"{self.settings.data_dir} does not hold the images that {self.folder} was started with: "
                "restore them, or start over with main.py --restart"
            )


def _freeze_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _columns(side: str, scores: Scores) -> dict[str, float]:
    return {f"{side}_{name}": value for name, value in scores.to_json().items()}


def _not_finite(where: str, learning_rate: float) -> UserError:
    return UserError(
        f"the loss is no longer a finite number {where}, at a learning rate of {learning_rate:g}: try a lower one (-l)"
    )
