"""Train and test one run. Every training program calls `run`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from dataset.folders import ImageFolder
from dataset.groups import Groups
from models import build_model
from models.base import Classifier
from pipeline import distributed
from pipeline.baseline import score_baseline
from pipeline.cache import Cache
from pipeline.claims import claim_alone
from pipeline.data import TestSet, TrainingData, load_test_set, load_training_data, read_folders, set_white_level
from pipeline.hardware import Hardware, set_up_torch
from pipeline.logger import Logger
from pipeline.notes import check_overlap, describe_start, note_classes
from pipeline.novelty import NoveltySample
from pipeline.results import gather
from pipeline.run_folder import choose_hardware, describe, finished_results, open_folder, record_epochs
from pipeline.settings import SPLIT_FILE, VALIDATION, Settings
from pipeline.splits import describe_data, digest_all, load_groups
from pipeline.tester import Tester
from pipeline.trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """Everything that training and testing need."""

    folders: Sequence[ImageFolder]  # the training folder, then the test folders
    held_out: ImageFolder | None  # the test folder, if it is a part of the training folder
    groups: Groups  # of the training folder, and of `held_out`
    images: dict[str, Any]  # the result of `describe_data`
    config: dict[str, Any]  # the settings as `settings.json` stores them
    hardware: Hardware
    model: Classifier
    data: TrainingData


def run(
    settings: Settings,
    folders: Sequence[ImageFolder] = (),
    claimed: bool = False,
    until: int | None = None,
    keep_state: bool = True,
) -> dict[str, Any] | None:
    """Train and test a run. An interrupted run is resumed; a finished run is only read.

    A finished run is trained further if the settings ask for more epochs and its learning-rate schedule allows it.
    With several processes (`pipeline.distributed`) all of them train, and the first one tests and writes files.

    Args:
        settings: settings of the run.
        folders: the training images and one or more test sets with the same classes. By default, the contents of the
            folders that the settings name.
        claimed: whether the caller has claimed the run; otherwise it is claimed here.
        until: the epoch after which to pause without testing; a later call resumes.
        keep_state: keep the optimizer state of a finished run, which is needed to train it further.

    Returns:
        The contents of `metrics.json`; None if the run pauses, and in all processes but the first.

    Raises:
        UserError: the settings, folders or weights are invalid (no folder was created), or another program is working
            on the run, or the run cannot continue: the loss is not finite, memory is short, or a file is damaged.
    """
    folders = folders or read_folders(settings.data_dir, settings.test_dir, settings.data_augmentation)
    cache = Cache.of(settings)
    if finished := finished_results(settings, folders):
        stale = ", but the images have changed since" if images_have_changed(finished, folders, cache) else ""
        _log.info("%s has finished already%s; --restart starts over", settings.run_dir, stale)
        return finished if distributed.is_first() else None
    set_up_torch()
    prepared = _prepare(settings, folders, cache)
    if not distributed.is_first():
        distributed.wait_for_all()  # until the first process has created the folder
        Trainer(prepared.model, prepared.data, settings, prepared.hardware, logger=None).fit(until)
        distributed.leave()
        return None
    test_sets = [load_test_set(folder, prepared.model.input_size, cache) for folder in prepared.folders[1:]]
    with nullcontext() if claimed else claim_alone(settings):
        run_id = open_folder(settings, {**prepared.config, "white": prepared.folders[0].white_level})
        distributed.wait_for_all()
        _log_start(settings, prepared, test_sets)
        logger = Logger(settings, prepared.config, prepared.model.group, run_id)
        try:
            trainer = _train(settings, prepared, logger, until, keep_state)
            return _test(trainer, prepared, test_sets, cache, logger) if trainer.finished else None
        finally:
            logger.finish()


def images_have_changed(metrics: dict[str, Any], folders: Sequence[ImageFolder], cache: Cache) -> bool:
    """Return whether the images of a finished run have changed since."""
    digest = digest_all(folders, cache)
    return metrics.get("images_digest", digest) != digest


def _prepare(settings: Settings, folders: Sequence[ImageFolder], cache: Cache) -> _Prepared:
    hardware = choose_hardware(settings)
    config = describe(settings, hardware, folders[0].classes)
    torch.manual_seed(settings.seed)
    with distributed.first_alone():  # it downloads weights and decodes images for the others
        model = build_model(
            settings.model_type, len(folders[0].classes), settings.pretrained, settings.weights, settings.freeze_to,
            settings.image_size,
        )  # fmt: skip
        folders = set_white_level(folders, cache)
        # The folds must not depend on test folders, except on a part of the same folder that is held out.
        held_out = next((folder for folder in folders[1:] if folder.part), None)
        groups = load_groups(folders if held_out else folders[:1], cache)
        images = describe_data(folders, cache)
        check_overlap(images, settings, folders)
        data = load_training_data(folders[0], model.input_size, cache, groups.numbers[0], settings.folds, settings.fold)
    return _Prepared(folders, held_out, groups, images, config, hardware, model, data)


def _log_start(settings: Settings, prepared: _Prepared, test_sets: Sequence[TestSet]) -> None:
    for line in describe_start(settings, prepared.hardware, prepared.model, prepared.data, test_sets):
        _log.info("%s", line)
    for note in (*prepared.groups.notes, *note_classes(settings, prepared.data)):
        _log.warning("%s", note)


def _train(settings: Settings, prepared: _Prepared, logger: Logger, until: int | None, keep_state: bool) -> Trainer:
    data = prepared.data
    trainer = Trainer(prepared.model, data, settings, prepared.hardware, logger, keep_state)  # checks `last.pt`
    record_epochs(settings)
    data.split.write(data.folder, settings.run_dir / SPLIT_FILE, prepared.held_out, prepared.groups.numbers[-1])
    trainer.fit(until)
    distributed.leave()
    return trainer


def _test(
    trainer: Trainer, prepared: _Prepared, test_sets: Sequence[TestSet], cache: Cache, logger: Logger
) -> dict[str, Any]:
    data, settings = trainer.data, trainer.settings
    validation = learned = None
    if trainer.validates:  # otherwise there is nothing to calibrate on
        validation = TestSet.of(data.folder, data.validation, VALIDATION)
        learned = NoveltySample.of(trainer.model, data, trainer.hardware, cache)
    tester = Tester(trainer.model, data.classes, test_sets, settings, trainer.hardware, validation, learned)
    metrics = gather(trainer, tester.test(), prepared.config, prepared.images)
    metrics["images_digest"] = digest_all(prepared.folders, cache)
    metrics["baseline"] = {
        test_set.name: score_baseline(data, test_set, tester.predictions(settings.checkpoints[0], test_set), cache)
        for test_set in test_sets
    }
    logger.log_results(trainer.history, metrics, tester.figures)
    return metrics
