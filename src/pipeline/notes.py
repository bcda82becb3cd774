"""What a run reports about its data before it trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common import UserError, pluralise
from dataset.audit import audit_command
from dataset.folders import ImageFolder
from models.base import Classifier
from pipeline.data import TestSet, TrainingData
from pipeline.hardware import Hardware
from pipeline.measures import are_imbalanced
from pipeline.recipes import RECIPES
from pipeline.settings import Settings

_log = logging.getLogger(__name__)
_LEAST_AUGMENTED = 0.1  # share of the original images, below which more augmentation is recommended
_MOST_NAMED = 30  # classes in one line


def check_overlap(data_record: dict[str, Any], settings: Settings, folders: Sequence[ImageFolder]) -> None:
    """Warn of train/test leakage, training images in a group of test images; raise UserError with `--strict`."""
    overlaps = {name: of_set["overlap"] for name, of_set in data_record["test"].items() if of_set["overlap"]}
    if not overlaps:
        return
    found = ", ".join(f"{count} with those in {name}" for name, count in overlaps.items())
    message = f"images to train on share a group with test images, which makes scores too high: {found}"
    unchanged = not any(folder.part or folder.in_validation is not None for folder in folders)
    if unchanged and all(folder.directory.is_dir() for folder in folders):  # neither archives nor derived sets
        message += f"; this moves them out of training: {audit_command(settings.data_dir, settings.test_dir, fix=True)}"
    if settings.strict:
        raise UserError(f"{message} (--strict)")
    _log.warning("%s", message)


def describe_start(
    settings: Settings, hardware: Hardware, model: Classifier, data: TrainingData, test_sets: Sequence[TestSet]
) -> Iterator[str]:
    """Yield one line each about hardware, images, groups and validation."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield f"{settings.run_dir} on {hardware}: {parameters:,} parameters"
    tested = ", ".join(f"{len(test_set.images)} to test on in {test_set.name}" for test_set in test_sets)
    names = f"classes {', '.join(data.classes)}"
    if len(data.classes) > _MOST_NAMED:
        names = f"{len(data.classes)} classes {data.classes[0]} to {data.classes[-1]}"
    yield f"{len(data.train)} images to train on, {len(data.validation)} to validate on, {tested} of the {names}"
    sizes = data.split.group_sizes(data.folder)
    yield f"{sizes.sum()} images in {len(sizes)} groups; {sizes[sizes > 1].sum()} of them share a group with others"
    if settings.fold is None:
        yield (
            "no validation (--fold none): all images train, only the checkpoint of the last epoch is saved, and "
            "probabilities are not calibrated"
        )
    else:
        yield "loss and accuracy in validation: mean over images | mean over classes, which selects checkpoints"


def note_classes(settings: Settings, data: TrainingData) -> Iterator[str]:
    """Yield warnings about class imbalance and augmentation, one line each."""
    train, augmented, left_out = data.split.train, data.folder.augmented, len(data.split.left_out)
    if settings.data_augmentation and not augmented.any():
        yield f"{settings.data_dir} has no <Class>_augmented folder with images: -a changes nothing"
    elif data.folder.in_validation is not None and left_out:
        yield f"{pluralise(left_out, 'image')} left out of training, because of a group shared with validation images"
    elif settings.data_augmentation:
        yield f"{left_out} of {augmented.sum()} augmented images left out: their sources validate or are unknown"
        added, originals = augmented[train].sum(), (~augmented[train]).sum()
        if added < _LEAST_AUGMENTED * originals:
            yield (
                f"-a adds only {added} images to {originals}: "
                "dataset_main.py --augment all, or --augment-to N, creates more"
            )
    counts = np.bincount(data.folder.labels[train], minlength=len(data.classes))
    if are_imbalanced(counts) and not (settings.balance or RECIPES[settings.recipe].balance):
        largest, smallest = data.classes[counts.argmax()], data.classes[counts.argmin()]
        yield (
            f"class imbalance: {counts.max()} training images of class {largest}, {counts.min()} of class {smallest}; "
            "--balance draws every class equally often"
        )
