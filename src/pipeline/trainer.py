"""Trains a model and keeps its best checkpoints."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from common import StopRequest, UserError, link
from models.base import Classifier
from pipeline import distributed
from pipeline.augmentation import augment
from pipeline.cache import Cache
from pipeline.checkpoints import Checkpoint, load_state, save_state
from pipeline.compiling import Compiled
from pipeline.data import BatchOrder, ImageBatches, TrainingData, bring_near, make_loader
from pipeline.features import BehindFrozen, compute_features
from pipeline.hardware import Hardware
from pipeline.head import fit_head
from pipeline.inference import compute_logits, evaluate, evaluation_batch
from pipeline.logger import Logger
from pipeline.measures import SCORES
from pipeline.metrics import RunningScores, Scores
from pipeline.optimizer import EagerAdamW, MovingAverage, freeze_first, group_layers, growing_rates
from pipeline.recipes import RECIPES
from pipeline.settings import Settings

_log = logging.getLogger(__name__)

# What `last.pt` keeps besides the states of model, optimizer and scheduler.
_PROGRESS = (
    "digest", "epoch", "unfinished", "history", "best_accuracy", "best_loss", "validations_without_improvement",
)  # fmt: skip


_STEP = 32  # pixels, by which networks commonly shrink an image: smaller sizes are multiples of it


class Trainer:
    """Cross-entropy and AdamW by a recipe, and early stopping. Where the recipe fits the head first, that is epoch 0.

    Checkpoints are selected, and training is stopped, by the validation scores averaged over classes, which are the
    plain ones where all classes have equally many validation images.

    Everything that the rest of a run depends on is in `last.pt`: a run goes on from there, with identical results. It
    is written at the end of an epoch, but not more often than every `save_every` minutes, at the end of the run, and
    after a batch if the program is told to stop. Random numbers are drawn in each epoch from the seed and the
    epoch's number.
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
        self.keep_state = keep_state  # also of a finished run, if it can be trained further
        self.folder = settings.run_dir
        self.recipe = RECIPES[settings.recipe]
        self.model = hardware.place(model, training=True)
        batches = len(BatchOrder(len(data.train), settings.batch_size, shuffle=True))
        self.averaged = self._make_average(batches)
        self.saved_model = self.averaged.module if self.averaged else self.model
        self.classes, self.digest = data.classes, data.digest
        self.validates = len(data.validation) > 0
        self.validation_logits: Tensor | None = None  # of the last epoch
        layers, rates = self._group_parameters()
        self.optimizer = EagerAdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in zip(layers, rates, strict=True)],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            amsgrad=self.recipe.amsgrad,
            fused=True,
        )
        self.scheduler = self._make_scheduler(batches, rates)
        self.epoch = 0  # finished ones
        self.unfinished: dict[str, Any] | None = None  # what an epoch came to that was stopped within
        self.best_accuracy, self.best_loss = -math.inf, math.inf
        self.validations_without_improvement = 0
        self.history: list[dict[str, Any]] = []
        self._stop = StopRequest()
        self._saved = time.monotonic()  # when `last.pt` was written, or read
        if (self.folder / "last.pt").exists():
            self._load_last()
        if self.finished or self._only_head:
            return
        # What runs, in place of the whole model where frozen layers need not.
        self.network, self.validation_network = self.model, self.saved_model
        sides = self._find_features() or (data.train, data.validation)
        train, validation = bring_near(sides, hardware.device)
        balance = settings.balance or self.recipe.balance
        balanced = train.labels.numpy()[train.places] if balance else None
        self.train_loader = make_loader(train, settings.batch_size, shuffle=True, balanced=balanced)
        self.validation_loader = make_loader(validation, evaluation_batch(settings))
        self.network = distributed.join_gradients(self.network)
        if settings.compile and distributed.world_size() > 1:
            _log.warning("--compile is for runs of one process: going on without")
        elif settings.compile:
            self.network = Compiled(self.network, settings.batch_size, hardware)

    def _find_features(self) -> Sequence[ImageBatches] | None:
        """Has frozen layers run once for each image, if there are any and images are trained on as they are."""
        if not self.model.frozen_to or self.recipe.augmentation:
            return None
        freeze_point = self.model.frozen_to
        features = self._compute_features(freeze_point)
        if features:
            self.network = BehindFrozen(self.model, freeze_point)
            self.validation_network = BehindFrozen(self.saved_model, freeze_point)
        return features

    def _compute_features(self, freeze_point: str) -> Sequence[ImageBatches] | None:
        """The output of the layers up to there, for the images to train and to validate on."""
        sides = (self.data.train, self.data.validation)
        return compute_features(self.model, freeze_point, sides, self.hardware, Cache.of(self.settings))

    def _group_parameters(self) -> tuple[list[list[nn.Parameter]], list[float]]:
        """What is trained, by learning rate; freezes what the recipe leaves out."""
        rate = self.settings.learning_rate
        if not self.recipe.fit_head or self._only_head:
            return [self.model.trainable_parameters()], [rate]
        layers = group_layers(self.model)
        trained = freeze_first(layers, self.recipe.trained)
        _log.info("fine-tuning the last %d of %d layers", len(trained), len(layers))
        return trained, growing_rates(len(trained), rate, self.recipe.first_rate)

    def _make_average(self, batches: int) -> MovingAverage | None:
        """Args: the number of batches in an epoch."""
        if share := self.recipe.first_share:
            return MovingAverage(self.model, share ** (1 / (self.settings.num_epochs * batches)), warm_up=0)
        return MovingAverage(self.model, self.recipe.averaging) if self.recipe.averaging else None

    def _make_scheduler(self, batches: int, rates: Sequence[float]) -> LRScheduler:
        """Args: the number of batches in an epoch, and the highest learning rate of each group of parameters."""
        if not self.recipe.one_cycle:
            return ExponentialLR(self.optimizer, self.settings.gamma)
        return OneCycleLR(self.optimizer, list(rates), self.settings.num_epochs * batches)

    @property
    def _only_head(self) -> bool:
        """Whether fitting the head is all that there is to train."""
        return self.recipe.fit_head and self.model.frozen_to is not None

    def fit(self, until: int | None = None) -> None:
        """Trains to the last epoch or until early stopping, from wherever the run stands.

        Args:
            until: the epoch after which to pause, with all that is needed to go on saved.
        """
        if (self.history or self.unfinished) and not self._pauses(until):
            where = f"in epoch {self.epoch + 1}" if self.unfinished else f"after epoch {self.epoch}"
            _log.info("going on %s", where)
        try:
            # Joined processes would each stop after another batch, and wait for one another: these stop at once.
            with self._stop if distributed.world_size() == 1 else nullcontext():
                while not self._pauses(until):
                    if self.recipe.fit_head and not self.history:
                        self._fit_head()
                    else:
                        self._run_epoch()
                    if self.finished:
                        self._save_checkpoint("terminal")
                    stop = self._stop.made
                    if stop or self._pauses(until) or time.monotonic() - self._saved >= 60 * self.settings.save_every:
                        self._save_last()
                    if stop:  # a later one is granted after the next batch
                        self._stop.grant()
            if self._stopped_early():
                _log.info(
                    "stopped early: no lower loss in the last %d validations", self.settings.early_stopping_patience
                )
            return
        except torch.OutOfMemoryError:
            if distributed.world_size() > 1:
                raise
        self._tell_what_fits()  # not in the `except` block, where the error keeps the tensors alive that did not fit

    def _tell_what_fits(self) -> NoReturn:
        """Tries smaller batches, and spoils the model in doing so.

        Raises:
            UserError: always; it says which one did.
        """
        size = self.train_loader.batch_sampler.batch_sizes[0] // 2
        while size >= 2 and not self._fits(size):
            size //= 2
        advice = f"-b {size} would do, with --restart" if size >= 2 else "not even two images fit; use another GPU"
        raise UserError(
            f"{self.hardware} has too little memory for batches of {self.settings.batch_size} images: {advice}"
        )

    def _fits(self, size: int) -> bool:
        self.optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        try:
            for _ in range(2):  # the second has the optimizer's averages beside it
                self._train_batch(*self.train_loader.dataset.__getitems__(list(range(size))), size)
        except torch.OutOfMemoryError:
            self.optimizer.state.clear()  # half made, it would be taken for whole
            return False
        return True

    def _pauses(self, until: int | None) -> bool:
        return self.finished or (until is not None and self.epoch >= until)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        if self.recipe.fit_head and not self.history:
            return False
        last = 0 if self._only_head else self.settings.num_epochs
        return self.epoch >= last or self._stopped_early()

    def _can_be_longer(self) -> bool:
        """Whether more epochs give the results of a run that was begun with so many, and are not stopped early."""
        return not self.recipe.one_cycle and not self._stopped_early()

    def _stopped_early(self) -> bool:
        return self.validations_without_improvement >= self.settings.early_stopping_patience

    def _fit_head(self) -> None:
        """Epoch 0: fits the last layer to what the layers before it make of the images.

        Raises:
            UserError: the features do not fit on the disk.
        """
        start = time.perf_counter()
        freeze_point = self.model.freeze_points[-1]
        sides = self._compute_features(freeze_point)
        if sides is None:
            raise UserError("the features of the images do not fit on the disk: make room, or try --no-cache")
        (train, labels), (validation, validation_labels) = (
            batches.__getitems__(list(range(len(batches)))) for batches in sides
        )
        head = fit_head(train.float().numpy(), labels.numpy(), validation.float().numpy(), validation_labels.numpy())
        _, layer = self.model.split(freeze_point)
        with torch.no_grad():
            for parameter, values in ((layer.weight, head.weight), (layer.bias, head.bias)):
                own = torch.from_numpy(values).to(parameter) * distributed.is_first()
                parameter.copy_(distributed.sum_over_processes(own))  # the same in all joined processes
        if self.averaged:
            self.averaged.update_parameters(self.model)
        scores = Scores.of(torch.from_numpy(head.logits(train.float().numpy())), labels)
        row = {"epoch": 0, "learning_rate": 0.0, **_columns("train", scores)}
        improved: list[str] = []
        if self.validates:
            self.validation_logits = torch.from_numpy(head.logits(validation.float().numpy()))
            scores = Scores.of(self.validation_logits, validation_labels)
            row |= _columns("val", scores)
            improved = self._keep_best(scores)
        _log.info("the head was fitted to features by logistic regression, C = %g", head.strength)
        self._finish_epoch(row, improved, sum(map(len, sides)) / (time.perf_counter() - start))

    def _run_epoch(self) -> None:
        start = time.perf_counter()
        done = self.unfinished["batches"] if self.unfinished else 0
        before = sum(self.train_loader.batch_sampler.batch_sizes[:done])
        train = self._train()
        images_per_second = (train.images - before) / (time.perf_counter() - start)
        learning_rate = max(self.scheduler.get_last_lr())  # in a cycle, that at the end of the epoch
        self.epoch += 1
        row = {"epoch": self.epoch, "learning_rate": learning_rate, **_columns("train", train)}
        improved: list[str] = []
        self.validation_logits = None
        if self.validates and (self.epoch % self.settings.val_freq == 0 or self.epoch == self.settings.num_epochs):
            validation, self.validation_logits = evaluate(
                self.validation_network, self.validation_loader, self.hardware, "validating"
            )
            row |= _columns("val", validation)
            if not math.isfinite(validation.loss):
                raise _not_finite(f"in validation after epoch {self.epoch}", learning_rate)
            improved = self._keep_best(validation)
        if not self.recipe.one_cycle:
            self.scheduler.step()
        self._finish_epoch(row, improved, images_per_second)

    def _finish_epoch(self, row: dict[str, Any], improved: list[str], images_per_second: float) -> None:
        self.history.append(row)
        if distributed.is_first():
            self.logger.log_epoch(self.history, images_per_second)
            self._report(row, improved, images_per_second)

    def _train(self) -> Scores:
        """One pass over the training images, or what is left of it."""
        seed = _epoch_seed(self.settings.seed, self.epoch)
        torch.manual_seed(seed + distributed.rank())  # dropout is each process's own
        scores = RunningScores(len(self.classes), self.hardware.device)
        batches, rates = 0, []
        if self.unfinished:
            batches = self.unfinished["batches"]
            rates = [math.nan] * batches  # not needed: their losses were checked before they were saved
            scores.restore(self.unfinished["sums"])
            torch.set_rng_state(self.unfinished["random_state"])
            states = self.unfinished["cuda_random_states"]
            torch.cuda.set_rng_state_all(states[: torch.cuda.device_count()])  # this machine may have fewer
            self.unfinished = None
        order = self.train_loader.batch_sampler
        order.set_epoch(seed, batches)
        sizes = order.batch_sizes
        title = f"epoch {self.epoch + 1}/{self.settings.num_epochs}"
        self.model.train()
        if self.recipe.keep_statistics:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        with tqdm(
            desc=title, initial=sum(sizes[:batches]), total=sum(sizes), unit="image", leave=False,
            disable=distributed.bar_hidden(), mininterval=0.5,
        ) as bar:  # fmt: skip
            for size, (images, labels) in zip(sizes[batches:], self.train_loader, strict=True):
                rates.append(max(self.scheduler.get_last_lr()))
                scores.add(*self._train_batch(images, labels, size))
                if self.recipe.one_cycle:
                    self.scheduler.step()
                if self.averaged:
                    self.averaged.update_parameters(self.model)
                batches += 1
                if self._stop.made:
                    self._check_finite(scores, rates)
                    self._save_within_epoch(batches, scores)
                    self._stop.grant()
                if bar.update(size) and (so_far := scores.glance()):
                    bar.set_postfix(loss=f"{so_far.loss:.3f}", accuracy=f"{so_far.accuracy:.1%}")
        self._check_finite(scores, rates)
        return scores.read()

    def _train_batch(self, images: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, labels and losses (B,) of this process's share of a batch of `size` images, before the step."""
        self.optimizer.zero_grad()  # before the forward pass, whose tensors may take the gradients' place
        if self.recipe.augmentation:
            images = images.to(self.hardware.device, non_blocking=True)
            images = augment(images, self.recipe.augmentation, self._side())
        logits = compute_logits(self.network, images, self.hardware)
        labels = labels.to(self.hardware.device, non_blocking=True)
        losses = cross_entropy(logits, labels, reduction="none", label_smoothing=self.recipe.label_smoothing)
        (losses.sum() * (distributed.world_size() / size)).backward()  # whose mean over processes is the batch's
        self.optimizer.step()
        return logits.detach(), labels, losses.detach()

    def _side(self) -> int:
        """Height and width of the images that the epoch trains on, in pixels."""
        full, sizes = self.model.input_size[1], self.recipe.sizes
        share = sizes[self.epoch * len(sizes) // self.settings.num_epochs]
        return full if share == 1 or not self.model.any_size else max(_STEP, round(full * share / _STEP) * _STEP)

    def _check_finite(self, scores: RunningScores, rates: Sequence[float]) -> None:
        """Stops where it went wrong: once weights are no numbers, nothing good comes of them.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        batch = scores.count_finite_batches()
        if batch < len(rates):
            batches = len(self.train_loader.batch_sampler.batch_sizes)
            raise _not_finite(f"in epoch {self.epoch + 1}, batch {batch + 1} of {batches}", rates[batch])

    def _keep_best(self, validation: Scores) -> list[str]:
        """Saves the checkpoints that this validation improves on; returns their names."""
        improved = []
        if validation.per_class_accuracy > self.best_accuracy:
            self.best_accuracy = validation.per_class_accuracy
            improved.append("best_val_acc")
        self.validations_without_improvement += 1
        if validation.per_class_loss < self.best_loss:
            self.best_loss = validation.per_class_loss
            self.validations_without_improvement = 0
            improved.append("best_val_loss")
        if improved:
            self._save_checkpoint(*improved)
        return improved

    def _report(self, row: dict[str, Any], improved: list[str], images_per_second: float) -> None:
        parts = [f"epoch {self.epoch:>{len(str(self.settings.num_epochs))}}/{self.settings.num_epochs}"]
        loss, accuracy = row["train_loss"], row["train_accuracy"]
        parts.append(f"train loss {loss:.3f} acc {accuracy:5.1%}")
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
        checkpoint = Checkpoint(self.settings.model_type, self.classes, self.epoch, weights, logits)
        first, *others = (self.folder / f"{name}.pt" for name in names)
        checkpoint.save(first)
        for other in others:
            link(first, other)

    def _save_last(self) -> None:
        if not distributed.is_first():
            return
        state = {name: getattr(self, name) for name in _PROGRESS}
        if not self.finished or (self.keep_state and self._can_be_longer()):  # else gigabytes that nobody needs
            state |= {name: part.state_dict() for name, part in self._parts().items()}
        save_state(state, self.folder / "last.pt")
        self._saved = time.monotonic()

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts | ({"averaged": self.averaged} if self.averaged else {})

    def _save_within_epoch(self, batches: int, scores: RunningScores) -> None:
        self.unfinished = {
            "batches": batches,
            "sums": scores.sums,
            "random_state": torch.get_rng_state(),
            "cuda_random_states": torch.cuda.get_rng_state_all(),
        }
        self._save_last()

    def _load_last(self) -> None:
        file = self.folder / "last.pt"
        state = load_state(file)
        digest = self.digest
        try:
            for name in _PROGRESS:
                setattr(self, name, state[name])
            if not self.finished:
                self._check_state(state)
                for name, part in self._parts().items():
                    part.load_state_dict(state[name])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} does not fit {self.settings.model_type}: begin anew with --restart") from error
        if digest != self.digest:  # another split: it might validate on what it has been trained on
            raise UserError(
                f"{self.settings.data_dir} does not hold the images that {self.folder} was begun with: "
                "bring them back, or begin anew with --restart"
            )

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raises UserError where a finished run was not to be trained further."""
        if "model" not in state:
            raise UserError(
                f"{self.folder} cannot be trained further: it finished after epoch {self.epoch} without keeping the "
                "state to go on from, as runs of sweep.py do: another --output-dir, or --restart"
            )


def _columns(side: str, scores: Scores) -> dict[str, float]:
    return {f"{side}_{name}": value for name, value in scores.to_json().items()}


def _not_finite(place: str, learning_rate: float) -> UserError:
    return UserError(
        f"the loss is no longer a finite number {place}, at a learning rate of {learning_rate:g}: try a lower one (-l)"
    )


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that an epoch's random numbers do not depend on how it was reached."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
