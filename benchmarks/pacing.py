"""The training and validation speed of both sides, from some batches; whole epochs and runs are extrapolated."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from measuring import Measured, Timed, measure, median, seconds_of, take_turns, three_digits  # isort: skip  (it adds src/ to the path)
from dataset.folders import AUGMENTED_SUFFIX, ImageFolder, read_folder
from models import build_model, model_class
from pipeline.cache import Cache
from pipeline.data import ImageDataset, TrainingData, load_training_data
from pipeline.settings import Settings
from pipeline.splits import Split, load_groups, split_folder


@dataclass(frozen=True)
class Pace:
    """The measurements of a run in seconds, and the numbers to extrapolate with."""

    ready: float  # until the images were ready for training
    train: float  # per image
    validation: float  # per image
    warm_up: float  # how much longer the first training batch took than the others; once per run
    waits: float  # per epoch, until both loaders gave their first batch
    saving: float  # per epoch, of checkpoints
    timed: tuple[int, int]  # images that `train` and `validation` were measured on
    images: tuple[int, int]  # for training and for validation in an epoch
    prepared: float = 0.0  # per image, of frozen layers that run once; 0 if they run in training
    peak_mb: float | None = None  # the peak memory of the process, if it was measured

    @classmethod
    def of(
        cls, ready: float, train: Timed, validation: Timed, saving: float, images: tuple[int, int], **others: float
    ) -> Pace:
        """Make a pace of the loaders that a run used."""
        return cls(
            ready,
            train.seconds / train.images,
            validation.seconds / validation.images,
            train.warm_up,
            train.waited + validation.waited,
            saving,
            (train.images, validation.images),
            images,
            **others,
        )

    @classmethod
    def median_of(cls, measured: list[Measured]) -> Pace:
        """Return the median of each number of several runs."""
        paces = [asdict(replace(one.result, peak_mb=one.peak_mb)) for one in measured]
        numbers = [name for name, value in paces[0].items() if isinstance(value, float)]
        return cls(**paces[0] | {name: median(pace[name] for pace in paces) for name in numbers})

    @property
    def epoch(self) -> float:
        """The extrapolated seconds of an epoch with validation and checkpoints."""
        return self.images[0] * self.train + self.images[1] * self.validation + self.waits + self.saving

    @property
    def preparation(self) -> float:
        """The extrapolated seconds of the frozen layers for all images."""
        return sum(self.images) * self.prepared

    def to_json(self) -> dict[str, Any]:
        """Return the entries of a results file."""
        return {
            "measured": {
                "images to train on": self.timed[0],
                "images to validate on": self.timed[1],
                "images ready after s": self.ready,
                "training images per second": three_digits(1 / self.train),
                "validation images per second": three_digits(1 / self.validation),
                "first batch longer by s": three_digits(self.warm_up),
                "waiting for the loaders s": self.waits,
                "saving checkpoints s": self.saving,
            },
            "extrapolated": {
                "images to train on": self.images[0],
                "images to validate on": self.images[1],
                "epoch s": three_digits(self.epoch),
            },
            "peak memory MB": self.peak_mb,
        }


def compare_paces(
    repeats: int, settings: Settings, cache_dir: Path, batches: int, cut: int | None = None
) -> dict[str, Pace]:
    """Measure both sides in turns, and return the medians of each; see `pace_of_project` for the arguments."""
    measure(decode, settings, cache_dir)
    sides = {
        "reference": partial(measure, pace_of_reference, settings, batches),
        "project": partial(measure, pace_of_project, settings, cache_dir, batches, cut),
    }
    return {side: Pace.median_of(measured) for side, measured in take_turns(repeats, sides).items()}


def decode(settings: Settings, cache_dir: Path) -> float:
    """Return the seconds until a run's images are ready: listed, decoded into the project's cache, and split."""
    return seconds_of(lambda: load_images(settings, model_class(settings.model_type).input_size, cache_dir))


def load_images(settings: Settings, input_size: tuple[int, int, int], cache_dir: Path) -> TrainingData:
    """Load a run's images as the project does."""
    folder = read_folder(settings.data_dir, settings.data_augmentation)
    return load_training_data(folder, input_size, Cache(cache_dir))


def pace_of_project(settings: Settings, cache_dir: Path, batches: int, cut: int | None = None) -> Pace:
    """Train and validate like `main.py`, starting from decoded images.

    Args:
        settings: of the run.
        cache_dir: with decoded images, if there are any.
        batches: timed ones, in training and in validation.
        cut: the number of training and validation images that frozen layers run on; None for all.
    """
    import torch

    from pipeline.features import compute_features
    from pipeline.hardware import Hardware, set_up_torch
    from pipeline.trainer import Trainer

    set_up_torch()
    torch.manual_seed(settings.seed)
    begin = time.perf_counter()
    model = _build(settings, len(read_folder(settings.data_dir).classes))
    data = load_images(settings, model.input_size, cache_dir)
    ready = time.perf_counter() - begin
    images = len(data.train), len(data.validation)
    hardware = Hardware.choose(settings.precision)
    with tempfile.TemporaryDirectory() as place, chdir(place):  # the trainer looks for features here
        settings = replace(settings, output_dir=Path("runs"))
        settings.run_dir.mkdir(parents=True)
        prepared = 0.0
        if cut:
            data = _cut(data, cut)
            hardware.place(model, training=True)

            def compute(part: TrainingData) -> None:
                sides = (part.train, part.validation)
                compute_features(model, model.frozen_to, sides, hardware, Cache.of(settings))

            compute(_cut(data, 8))  # warms up
            prepared = seconds_of(lambda: compute(data)) / (len(data.train) + len(data.validation))
        trainer = Trainer(model, data, settings, hardware, logger=None)
        train, validation = time_trainer(trainer, batches)
        saving = seconds_of(lambda: _save(trainer))
    return Pace.of(ready, train, validation, saving, images, prepared=prepared)


def time_trainer(trainer: Any, batches: int) -> tuple[Timed, Timed]:
    """Train and validate for some batches with the project's trainer; return both loaders."""
    from pipeline.inference import evaluate

    train = trainer.train_loader = Timed(trainer.train_loader, batches)
    validation = Timed(trainer.validation_loader, batches)
    for loader in (train, validation):
        del loader.batch_sampler.batch_sizes[1 + batches :]
    trainer._train_epoch()
    evaluate(trainer.validation_network, validation, trainer.hardware, "")
    return train, validation


def _save(trainer: Any) -> None:
    trainer._save_last()
    trainer._save_checkpoint("best_val_acc", "best_val_loss")


def _cut(data: TrainingData, count: int) -> TrainingData:
    def some(dataset: ImageDataset) -> ImageDataset:
        return dataset.select(dataset.indices[:count])

    return replace(data, train=some(data.train), validation=some(data.validation))


def pace_of_reference(settings: Settings, batches: int) -> Pace:
    """Train and validate the reference on the same images."""
    import reference

    reference.seed_everything(settings.seed)
    split = split_all(read_folder(settings.data_dir, settings.data_augmentation))  # its search is not timed
    begin = time.perf_counter()
    folder = read_folder(settings.data_dir, settings.data_augmentation)
    model = _build(settings, len(folder.classes))
    arguments = (split.train, split.validation, settings.batch_size)
    if all(map(folder.is_array, range(len(folder.paths)))):
        run = reference.Run(model, reference.ArrayFiles(folder.paths, folder.labels), *arguments)
    else:
        run = reference.image_run(model, folder.paths, folder.labels, *arguments)
    ready = time.perf_counter() - begin
    return Pace.of(ready, *time_reference(run, batches), (len(split.train), len(split.validation)))


def time_reference(run: Any, batches: int) -> tuple[Timed, Timed, float]:
    """Train, validate and save the reference for some batches; return both loaders and the seconds."""
    train = run.train_loader = Timed(run.train_loader, batches)
    run.train()
    validation = run.validation_loader = Timed(run.validation_loader, batches)
    run.validate()
    with tempfile.TemporaryDirectory() as place:
        return train, validation, seconds_of(lambda: run.save(Path(place)))


def _build(settings: Settings, classes: int) -> Any:
    return build_model(settings.model_type, classes, settings.pretrained, settings.weights, settings.freeze_to)


def split_all(folder: ImageFolder) -> Split:
    """Return the project's split of a folder; all its images must be readable."""
    [groups] = load_groups([folder], Cache(directory=None)).numbers
    return split_folder(folder, np.ones(len(folder.paths), dtype=bool), groups, cache=Cache(directory=None))


def link_split(folder: ImageFolder, others: Path) -> tuple[int, int]:
    """Link the images of the project's split below `others/train` and `others/validation`; return their numbers.

    Augmented images are linked into the folder of their class.
    """
    split = split_all(folder)
    for name, indices in (("train", split.train), ("validation", split.validation)):
        for index in indices:
            path = folder.paths[index]
            target = others / name / path.parent.name.removesuffix(AUGMENTED_SUFFIX) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return len(split.train), len(split.validation)
