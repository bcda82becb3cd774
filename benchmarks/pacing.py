"""The training and validation speed of both sides, from some batches; whole epochs and runs are extrapolated."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from measuring import Timed, measure, measure_in_turns, median, three_digits  # isort: skip  (it adds src/ to the path)
from dataset.folders import ImageFolder, read_folder
from models import build_model, model_class
from pipeline.cache import Cache
from pipeline.data import ImageBatches, TrainingData, load_training_data
from pipeline.settings import Settings
from pipeline.splits import Split, load_groups, split_folder


@dataclass(frozen=True)
class Pace:
    """The measurements of a run in seconds, and the numbers to extrapolate with.

    Attributes:
        ready: until the images were ready for training.
        train, validation: per image.
        warm_up: how much longer the first training batch took than the others; once per run.
        waits: per epoch, until both loaders gave their first batch.
        saving: per epoch, of checkpoints.
        timed: images that `train` and `validation` were measured on.
        images: for training and for validation in an epoch.
        prepared: per image, of frozen layers that run once; 0 if they run in training.
    """

    ready: float
    train: float
    validation: float
    warm_up: float
    waits: float
    saving: float
    timed: tuple[int, int]
    images: tuple[int, int]
    prepared: float = 0.0

    @property
    def epoch(self) -> float:
        """The extrapolated seconds of an epoch with validation and checkpoints."""
        return self.images[0] * self.train + self.images[1] * self.validation + self.waits + self.saving

    @property
    def preparation(self) -> float:
        """The extrapolated seconds of the frozen layers for all images."""
        return sum(self.images) * self.prepared


def pace_of_project(settings: Settings, cache_dir: Path, batches: int, cut: int | None = None) -> Pace:
    """Train and validate like `main.py`, starting from decoded images.

    Args:
        settings: of the run.
        cache_dir: with decoded images, if they are to be found.
        batches: that are timed.
        cut: the number of training and validation images that frozen layers run on; None for all.
    """
    import torch

    from pipeline.features import compute_features
    from pipeline.hardware import Hardware, set_up_torch
    from pipeline.inference import evaluate
    from pipeline.trainer import Trainer

    set_up_torch()
    torch.manual_seed(settings.seed)
    begin = time.perf_counter()
    folder = read_folder(settings.data_dir, settings.data_augmentation)
    model = _build(settings, len(folder.classes))
    data = load_training_data(folder, model.input_size, Cache(cache_dir))
    ready = time.perf_counter() - begin
    images = len(data.train), len(data.validation)
    hardware = Hardware.choose(settings.precision)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # the trainer looks for features here
        settings = replace(settings, output_dir=Path("runs"))
        settings.run_dir.mkdir(parents=True)
        prepared = 0.0
        if cut:
            data = _cut(data, cut)
            hardware.place(model, training=True)

            def compute(part: Any) -> None:
                sides = (part.train, part.validation)
                compute_features(model, model.frozen_to, sides, hardware, Cache.of(settings))

            compute(_cut(data, 8))  # warms up
            seconds = _seconds(lambda: compute(data))
            prepared = seconds / (len(data.train) + len(data.validation))
        trainer = Trainer(model, data, settings, hardware, logger=None)
        train = trainer.train_loader = Timed(trainer.train_loader, batches)
        del train.batch_sampler.batch_sizes[1 + batches :]
        trainer._train()
        validation = Timed(trainer.validation_loader, batches)
        del validation.batch_sampler.batch_sizes[1 + batches :]
        evaluate(trainer.validation_network, validation, hardware, "")
        saving = _seconds(lambda: _save(trainer))
    return _pace(ready, train, validation, saving, images, prepared)


def _save(trainer: Any) -> None:
    trainer._save_last()
    trainer._save_checkpoint("best_val_acc", "best_val_loss")


def _cut(data: TrainingData, count: int) -> TrainingData:
    def some(batches: ImageBatches) -> ImageBatches:
        return batches.select(batches.indices[:count])

    return replace(data, train=some(data.train), validation=some(data.validation))


def decode(settings: Settings, cache_dir: Path) -> None:
    """Put a run's decoded images into the cache of the project."""
    folder = read_folder(settings.data_dir, settings.data_augmentation)
    load_training_data(folder, model_class(settings.model_type).input_size, Cache(cache_dir))


def split_all(folder: ImageFolder) -> Split:
    """Return the project's split of a folder; all its images must be readable."""
    [groups] = load_groups([folder], Cache(directory=None)).numbers
    return split_folder(folder, np.ones(len(folder.paths), dtype=bool), groups, cache=Cache(directory=None))


def pace_of_reference(settings: Settings, batches: int) -> Pace:
    """Train and validate the reference on the same images."""
    import reference

    reference.seed_everything(settings.seed)
    split = split_all(
        read_folder(settings.data_dir, settings.data_augmentation)
    )  # the same split; its search is not timed
    begin = time.perf_counter()
    folder = read_folder(settings.data_dir, settings.data_augmentation)
    model = _build(settings, len(folder.classes))
    arguments = (split.train, split.validation, settings.batch_size)
    if all(map(folder.is_array, range(len(folder.paths)))):
        run = reference.Run(model, reference.ArrayFiles(folder.paths, folder.labels), *arguments)
    else:
        run = reference.image_run(model, folder.paths, folder.labels, *arguments)
    ready = time.perf_counter() - begin
    train, validation, saving = time_reference(run, batches)
    return _pace(ready, train, validation, saving, (len(split.train), len(split.validation)))


def time_reference(run: Any, batches: int) -> tuple[Timed, Timed, float]:
    """Train, validate and save the reference for some batches; return both loaders and the seconds."""
    train = run.train_loader = Timed(run.train_loader, batches)
    run.train()
    validation = run.validation_loader = Timed(run.validation_loader, batches)
    run.validate()
    with tempfile.TemporaryDirectory() as place:
        return train, validation, _seconds(lambda: run.save(Path(place)))


def _build(settings: Settings, classes: int) -> Any:
    return build_model(settings.model_type, classes, settings.pretrained, settings.weights, settings.freeze_to)


def _seconds(function: Callable[[], None]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _pace(
    ready: float, train: Timed, validation: Timed, saving: float, images: tuple[int, int], prepared: float = 0.0
) -> Pace:
    return Pace(
        ready,
        train.seconds / train.images,
        validation.seconds / validation.images,
        train.warm_up,
        train.waited + validation.waited,
        saving,
        (train.images, validation.images),
        images,
        prepared,
    )


def compare_paces(
    repeats: int, settings: Settings, cache_dir: Path, batches: int, cut: int | None = None
) -> tuple[dict[str, Pace], dict[str, float]]:
    """Measure both sides in turns.

    Args:
        repeats: how often to measure each.
        settings, cache_dir, batches, cut: as for `pace_of_project`.

    Returns:
        The medians of each side's paces, and of its peak memory in MB.
    """
    measure(decode, settings, cache_dir)
    sides = {
        "reference": (pace_of_reference, settings, batches),
        "project": (pace_of_project, settings, cache_dir, batches, cut),
    }
    measured = measure_in_turns(repeats, sides)
    paces = {side: _medians([one.result for one in all_]) for side, all_ in measured.items()}
    return paces, {side: median(one.peak_mb for one in all_) for side, all_ in measured.items()}


def _medians(paces: Sequence[Pace]) -> Pace:
    """Return the median of each number."""
    first = asdict(paces[0])
    middle = {
        name: median(getattr(pace, name) for pace in paces) for name, value in first.items() if type(value) is float
    }
    return replace(paces[0], **middle)


def describe(pace: Pace) -> Mapping[str, Any]:
    """Return the entries of a results file for a pace."""
    return {
        "measured": {
            "images to train on": pace.timed[0],
            "images to validate on": pace.timed[1],
            "images ready after s": pace.ready,
            "training images a second": three_digits(1 / pace.train),
            "validation images a second": three_digits(1 / pace.validation),
            "first batch longer by s": three_digits(pace.warm_up),
            "waiting for the loaders s": pace.waits,
            "saving checkpoints s": pace.saving,
        },
        "extrapolated": {
            "images to train on": pace.images[0],
            "images to validate on": pace.images[1],
            "epoch s": three_digits(pace.epoch),
        },
    }
