"""One run, from its settings to its results. Every program that trains calls this."""

from __future__ import annotations

import logging
import os
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import UserError, align, first_free, own_name, remove_partial, write_json
from dataset.audit import fix_command
from dataset.folders import ImageFolder
from models import build_model
from models.base import Classifier
from pipeline import distributed
from pipeline.baseline import score_baseline
from pipeline.cache import Cache
from pipeline.checkpoints import read_json
from pipeline.claims import claim_alone
from pipeline.data import TestSet, TrainingData, find_range, load_test_set, load_training_data, read_folders
from pipeline.hardware import Hardware, set_up_torch
from pipeline.logger import Logger
from pipeline.measures import SCORES, score_classes, top_confusions, wilson_interval
from pipeline.novelty import LearnedImages
from pipeline.recipes import RECIPES
from pipeline.settings import REPLACED, Settings
from pipeline.splits import describe_data, digest_images, load_groups
from pipeline.tester import Tester
from pipeline.trainer import Trainer

_log = logging.getLogger(__name__)

_MOST_IMBALANCE = 1.5  # of the largest class to the smallest, above which a remedy is named
_LEAST_AUGMENTED = 0.1  # of the originals, below which augmentation changes little
_MOST_COLUMNS = 10  # of a confusion matrix that the screen holds
_MOST_NAMED = 30  # classes that a line lists
_MOST_CONFUSIONS = 3  # that a line lists


def run(
    settings: Settings,
    folders: Sequence[ImageFolder] = (),
    claimed: bool = False,
    until: int | None = None,
    keep_state: bool = True,
) -> dict[str, Any] | None:
    """Trains and tests; goes on where an earlier call was stopped, and does nothing where one has finished.

    A finished run is trained further if the settings ask for more epochs and its learning-rate schedule allows it.

    Of joined processes (`pipeline.distributed`) all train, and the first one tests and writes.

    Args:
        settings: of the run.
        folders: the images to train on and one or more sets to test on, of the same classes, where they are derived
            from what lies in the folders that the settings name.
        claimed: whether the caller has claimed the run; else it is claimed here.
        until: the epoch after which to pause, without testing; another call goes on.
        keep_state: whether a finished run keeps what it takes to train it further, several times its weights.

    Returns:
        What `metrics.json` holds; None from a process that is not the first, and where the run pauses.

    Raises:
        UserError: something in the settings, the folders or the weights does not fit, and no folder has been made; or
            another program is at work on the run; or it cannot go on, since its loss is no number, memory is short or
            a file of its is damaged, and what was written stays.
    """
    folders = folders or read_folders(settings.data_dir, settings.test_dir, settings.data_augmentation)
    classes = folders[0].classes
    cache = Cache.of(settings)
    if finished := finished_results(settings, folders):
        changed = is_of_other_images(finished, folders, cache)
        note = ", on OTHER IMAGES than are there now: these results are not theirs" if changed else ""
        _log.info("%s has finished already%s; --restart begins anew", settings.run_dir, note)
        return finished if distributed.is_first() else None
    set_up_torch()
    hardware = _choose_hardware(settings)
    described = _describe(settings, hardware, classes)

    torch.manual_seed(settings.seed)
    with distributed.first_alone():  # the others find pretrained weights downloaded, and the images decoded
        model = _build(settings, len(classes))
        folders = find_range(folders, cache)
        # Without test folders, on which the folds must not depend; with the part of this folder that is held out.
        held_out = next((folder for folder in folders[1:] if folder.part), None)
        groups = load_groups(folders if held_out else folders[:1], cache)
        images = describe_data(folders, cache)
        _check_overlap(images, settings, folders)
        data = load_training_data(folders[0], model.input_size, cache, groups.numbers[0], settings.folds, settings.fold)
    if not distributed.is_first():
        distributed.wait_for_all()  # until there is a folder
        Trainer(model, data, settings, hardware, logger=None).fit(until)
        distributed.leave()
        return None
    test_sets = [load_test_set(folder, model.input_size, cache) for folder in folders[1:]]
    with nullcontext() if claimed else claim_alone(settings):
        run_id = _open_folder(settings, {**described, "white": folders[0].white})
        distributed.wait_for_all()
        _introduce(settings, hardware, model, data, test_sets)
        for note in (*groups.notes, *_notes_on_classes(settings, data)):
            _log.warning("%s", note)
        logger = Logger(settings, described, model.group, run_id)
        try:
            trainer = Trainer(model, data, settings, hardware, logger, keep_state)  # refuses to go on with other images
            _record_epochs(settings)
            data.split.write(data.folder, settings.run_dir / "split.csv", held_out, groups.numbers[-1])
            trainer.fit(until)
            distributed.leave()
            if not trainer.finished:
                return None
            tester = _make_tester(trainer, test_sets, cache)
            metrics = _gather(settings, described, model, data, trainer, tester.test())
            metrics |= _describe_images(images, data)
            metrics["images_digest"] = _digest(folders, cache)
            metrics["baseline"] = {
                test_set.name: score_baseline(
                    data, test_set, tester.predictions(settings.checkpoints[0], test_set), cache
                )
                for test_set in test_sets
            }
            logger.log_results(trainer.history, metrics, tester.figures)
        finally:
            logger.finish()
    return metrics


def _build(settings: Settings, classes: int) -> Classifier:
    return build_model(
        settings.model_type,
        classes,
        settings.pretrained,
        settings.weights,
        settings.freeze_to,
        settings.image_size,
    )


def _make_tester(trainer: Trainer, test_sets: Sequence[TestSet], cache: Cache) -> Tester:
    """Make what tests a trained run; without validation it has nothing to calibrate by."""
    data, model, hardware = trainer.data, trainer.model, trainer.hardware
    validation = learned = None
    if trainer.validates:
        validation, learned = data.validation_set, LearnedImages.of(model, data, hardware, cache)
    return Tester(model, data.classes, test_sets, trainer.settings, hardware, validation, learned)


def _describe_images(images: dict[str, Any], data: TrainingData) -> dict[str, Any]:
    """What `metrics.json` says of the images, by what `describe_data` found."""
    return {
        "data": {
            **images,
            "groups": len(data.split.group_sizes(data.folder)),
            "folds": data.split.folds,
            "classes": _count_originals(data),
        },
        "test_overlap": {name: of_set["overlap"] for name, of_set in images["test"].items()},
    }


def is_of_other_images(metrics: dict[str, Any], folders: Sequence[ImageFolder], cache: Cache) -> bool:
    """Whether a finished run was trained or tested on other images than are in its folders now."""
    return metrics.get("images_digest", digest := _digest(folders, cache)) != digest


def _digest(folders: Sequence[ImageFolder], cache: Cache) -> str:
    """Of the contents of all images that a run is trained and tested on."""
    return " ".join(digest_images(folder, cache, np.full(len(folder.paths), True)) for folder in folders)


def _check_overlap(images: dict[str, Any], settings: Settings, folders: Sequence[ImageFolder]) -> None:
    """Warns of training images that share a group with test images.

    Raises:
        UserError: there are some, and `--strict` forbids it.
    """
    overlaps = {name: of_set["overlap"] for name, of_set in images["test"].items() if of_set["overlap"]}
    if not overlaps:
        return
    found = ", ".join(f"{count} with those in {name}" for name, count in overlaps.items())
    message = f"images to train on share a group with test images, which makes scores too high: {found}"
    as_they_are = not any(folder.part or folder.validates is not None for folder in folders)
    if as_they_are and all(folder.directory.is_dir() for folder in folders):  # and not archives, or derived sets
        message += f"; this moves them out of training: {fix_command(settings.data_dir, settings.test_dir)}"
    if settings.strict:
        raise UserError(f"{message} (--strict)")
    _log.warning("%s", message)


def finished_results(settings: Settings, folders: Sequence[ImageFolder]) -> dict[str, Any] | None:
    """What `run` came to earlier, if it finished and has all that is asked for now.

    Args:
        settings: of the run.
        folders: the images to train on, and the test sets.

    Raises:
        UserError: the settings do not fit this machine, the run was begun with others, or what it wrote is damaged.
    """
    if settings.restart:
        return None
    _check_same(settings.run_dir, _describe(settings, _choose_hardware(settings), folders[0].classes))
    file = settings.run_dir / "metrics.json"
    if file.exists():
        metrics = _read_metrics(file, folders, settings.checkpoints)
        as_long = metrics["settings"].get("num_epochs", settings.num_epochs) == settings.num_epochs
        if as_long and (metrics.get("plots") or not settings.plots):
            return metrics
    return None


def _read_metrics(file: Path, folders: Sequence[ImageFolder], checkpoints: Sequence[str]) -> dict[str, Any]:
    """What a finished run came to on these folders.

    Raises:
        UserError: the file is damaged.
    """
    metrics = read_json(file)
    count = len(folders[0].classes)
    names = {folder.name for folder in folders[1:]}
    try:
        for checkpoint in checkpoints:
            tested = metrics["checkpoints"][checkpoint]["test"]
            shapes = {np.array(scores["confusion_matrix"], dtype=np.int64).shape for scores in tested.values()}
            if tested.keys() != names or shapes != {(count, count)}:
                raise ValueError
        results_table(metrics), class_tables(metrics)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file} is damaged: train again with --restart") from error
    return metrics


def _choose_hardware(settings: Settings) -> Hardware:
    """What there is, in the precision that is asked for; "auto" is that which the run was begun in, if it was."""
    precision, file = settings.precision, settings.run_dir / "settings.json"
    if precision == "auto" and file.exists() and not settings.restart:
        begun_in = read_json(file).get("precision")
        precision = begun_in if begun_in in ("fp32", "bf16") else precision
    return Hardware.choose(precision, settings.model_type)


def _describe(settings: Settings, hardware: Hardware, classes: tuple[str, ...]) -> dict[str, Any]:
    return {**settings.to_json(), "precision": hardware.precision, "classes": list(classes)}


def _check_same(run_dir: Path, described: dict[str, Any]) -> None:
    file = run_dir / "settings.json"
    if not file.exists():
        return
    earlier = read_json(file)
    if "folds" not in earlier:
        raise UserError(
            f"{run_dir} was trained by an earlier version, on another split: another --output-dir, or --restart"
        )
    differing = {
        name: f"{name} {earlier.get(name)} there, {value} here"
        for name, value in described.items()
        if not _is_same(name, earlier.get(name), value)
    }
    if differing.keys() == {"num_epochs"} and _is_less(earlier.get("num_epochs"), described["num_epochs"]):
        if why := _why_not_longer(earlier, described):
            raise UserError(f"{run_dir} cannot be trained further: {why}: another --output-dir, or --restart")
    elif differing:
        raise UserError(
            f"{run_dir} was begun with other settings ({'; '.join(differing.values())}): "
            "use these, another --output-dir, or --restart"
        )


def _is_less(earlier: Any, number: int) -> bool:
    return isinstance(earlier, int) and earlier < number


def _why_not_longer(earlier: dict[str, Any], described: dict[str, Any]) -> str | None:
    """Why more epochs would not give the results of a run that was begun with so many; None if they do."""
    last, recipe, val_freq = earlier["num_epochs"], described["recipe"], described["val_freq"]
    if RECIPES[recipe].one_cycle:
        return f"the one-cycle learning rate of recipe {recipe} was planned for {last} epochs"
    if last % val_freq and described["fold"] is not None:
        return f"it validated after epoch {last}, its last, which is no multiple of -f {val_freq}"
    return None


def _is_same(name: str, earlier: Any, value: Any) -> bool:
    """Whether a setting is what it was. A path is if it leads to the same, or to what was moved and has kept its name.

    That the images themselves are the same is checked by the digests of their contents.
    """
    if name == "test_dir" and isinstance(earlier, list) and len(earlier) == len(value):
        return all(_is_same("data_dir", *pair) for pair in zip(earlier, value, strict=True))
    if name not in ("data_dir", "weights") or not (isinstance(earlier, str) and isinstance(value, str)):
        return earlier == value
    if os.path.exists(earlier):
        return os.path.realpath(earlier) == os.path.realpath(value)
    return own_name(Path(earlier)) == own_name(Path(value))


def _open_folder(settings: Settings, described: dict[str, Any]) -> str:
    """Makes the run's folder, or moves an earlier one aside and makes it; returns the id of the run in wandb."""
    folder = settings.run_dir
    if settings.restart and folder.exists():
        aside = first_free(lambda number: settings.output_dir / REPLACED / f"{folder.name}_{number}")
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
        _log.info("the earlier run is now %s", aside)
    file = folder / "settings.json"
    if file.exists():
        run_id = read_json(file).get("wandb_run_id")
        if not isinstance(run_id, str):
            raise UserError(f"{file} is damaged: train again with --restart")
        remove_partial(folder)
        return run_id
    run_id = secrets.token_hex(4)
    write_json(file, {**described, "wandb_run_id": run_id})
    return run_id


def _record_epochs(settings: Settings) -> None:
    """Writes the number of epochs of a run that is trained further to its settings."""
    file = settings.run_dir / "settings.json"
    earlier = read_json(file)
    if earlier["num_epochs"] != settings.num_epochs:
        write_json(file, {**earlier, "num_epochs": settings.num_epochs})


def _introduce(
    settings: Settings, hardware: Hardware, model: Classifier, data: TrainingData, test_sets: list[TestSet]
) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _log.info("%s on %s: %s parameters", settings.run_dir, hardware, f"{parameters:,}")
    _log.info(
        "%d images to train on, %d to validate on, %s of the %s %s",
        len(data.train),
        len(data.validation),
        ", ".join(f"{len(test_set.images)} to test on in {test_set.name}" for test_set in test_sets),
        "classes" if len(data.classes) <= _MOST_NAMED else f"{len(data.classes)} classes",
        ", ".join(data.classes) if len(data.classes) <= _MOST_NAMED else f"{data.classes[0]} to {data.classes[-1]}",
    )
    sizes = data.split.group_sizes(data.folder)
    _log.info(
        "%d images in %d groups; %d of them share a group with others, which no split divides",
        sizes.sum(), len(sizes), sizes[sizes > 1].sum(),
    )  # fmt: skip
    if settings.fold is None:
        _log.info(
            "all images train: there is no validation, only the checkpoint of the last epoch is kept, and there is "
            "neither calibration nor what --unknown needs"
        )
    else:
        _log.info("loss and accuracy in validation: mean over images | mean over classes, by which the best are saved")


def _count_originals(data: TrainingData) -> dict[str, int]:
    """How many images of each class are used, without augmented ones."""
    used = np.concatenate([data.split.train, data.split.validation])
    labels = data.folder.labels[used[~data.folder.augmented[used]]]
    return dict(zip(data.classes, np.bincount(labels, minlength=len(data.classes)).tolist(), strict=True))


def _notes_on_classes(settings: Settings, data: TrainingData) -> Iterator[str]:
    """What a user should know of the sizes of the classes and of augmentation, one line each."""
    train, augmented = data.split.train, data.folder.augmented
    if settings.data_augmentation and not augmented.any():
        yield f"{settings.data_dir} has no <Class>_augmented folder with images: -a changes nothing"
    elif data.folder.validates is not None and len(data.split.left_out):
        yield f"{len(data.split.left_out)} images left out of training: they share a group with validation images"
    elif settings.data_augmentation:
        left_out, count = len(data.split.left_out), augmented.sum()
        yield f"{left_out} of {count} augmented images left out, since their sources validate or are not known"
        added, originals = augmented[train].sum(), (~augmented[train]).sum()
        if added < _LEAST_AUGMENTED * originals:
            yield (
                f"-a adds only {added} images to {originals}: "
                "dataset_main.py --augment all, or --augment-to N, makes more of them"
            )
    counts = np.bincount(data.folder.labels[train], minlength=len(data.classes))
    if counts.max() > _MOST_IMBALANCE * counts.min() and not (settings.balance or RECIPES[settings.recipe].balance):
        largest, smallest = (data.classes[place] for place in (counts.argmax(), counts.argmin()))
        yield (
            f"classes differ in size: {counts.max()} images of {largest} train, {counts.min()} of {smallest}; "
            "--balance draws every class equally often"
        )


def _gather(
    settings: Settings,
    described: dict[str, Any],
    model: Classifier,
    data: TrainingData,
    trainer: Trainer,
    tested: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """What `metrics.json` holds: each checkpoint's scores in validation and test, those of its epoch in training."""
    by_epoch = {row["epoch"]: row for row in trainer.history}
    for results in tested.values():
        row = by_epoch[results["epoch"]]
        for side in ("train", "val") if trainer.validates else ("train",):
            results[side] = {name: row[f"{side}_{name}"] for name in SCORES}
    return {
        "run": settings.run_name,
        "group": model.group,
        "settings": described,
        "images": {"train": len(data.train), "val": len(data.validation), "left_out": len(data.split.left_out)},
        "epochs": trainer.epoch,
        "plots": settings.plots,
        "checkpoints": tested,
    }


def results_table(metrics: dict[str, Any]) -> str:
    """The test results of a run, for the screen; checkpoints of one epoch, which are the same, in one row."""
    of_epoch: dict[int, list[str]] = defaultdict(list)
    for name, results in metrics["checkpoints"].items():
        of_epoch[results["epoch"]].append(name)
    rows = [("checkpoint", "epoch", "test set", "images", "loss", "accuracy", "per class")]
    for epoch, names in of_epoch.items():
        for test_set, scores in metrics["checkpoints"][names[0]]["test"].items():
            rows.append((
                ", ".join(names), str(epoch), test_set, str(scores["images"]), f"{scores['loss']:.4f}",
                f"{scores['accuracy']:.1%}", f"{scores['per_class_accuracy']:.1%}",
            ))  # fmt: skip
    return align(rows)


def class_tables(metrics: dict[str, Any]) -> str:
    """How well the first checkpoint tells the classes apart, a table for each test set, for the screen."""
    checkpoint = next(iter(metrics["checkpoints"]))
    classes = metrics["settings"]["classes"]
    tables = []
    for test_set, scores in metrics["checkpoints"][checkpoint]["test"].items():
        low, high = wilson_interval(scores["accuracy"], scores["images"])
        title = f"{checkpoint} on {test_set}: accuracy {scores['accuracy']:.1%}, 95% interval {low:.1%} to {high:.1%}"
        if "calibration_error" in scores:  # which runs of earlier versions lack
            title += f"; calibration error {scores['calibration_error']:.1%}"
        confusion = scores["confusion_matrix"]
        shown = len(classes) <= _MOST_COLUMNS
        rows = [("class", "images", "precision", "recall", "F1", *(f"as {name}" for name in classes if shown))]
        for name, of_class, taken in zip(classes, score_classes(np.array(confusion)), confusion, strict=True):
            shares = (of_class.precision, of_class.recall, of_class.f1)
            percents = ("-" if share is None else f"{share:.1%}" for share in shares)
            rows.append((name, str(of_class.images), *percents, *(str(count) for count in taken if shown)))
        tables.append(f"{title}\n{align(rows)}")
        if not shown and (confused := top_confusions(np.array(confusion), _MOST_COLUMNS)):
            rows = [("most frequent confusions", "as", "images")]
            rows += [
                (classes[true], classes[predicted], str(confusion[true][predicted])) for true, predicted in confused
            ]
            tables.append(align(rows))
    return "\n\n".join(tables)


def describe_confusions(metrics: dict[str, Any]) -> Iterator[str]:
    """What the first checkpoint confuses most often, a line for each test set."""
    checkpoint, classes = next(iter(metrics["checkpoints"])), metrics["settings"]["classes"]
    for test_set, scores in metrics["checkpoints"][checkpoint]["test"].items():
        confusion = np.array(scores["confusion_matrix"])
        told = [
            f"{confusion[true, taken]} of {confusion[true].sum()} {classes[true]} as {classes[taken]}"
            for true, taken in top_confusions(confusion, _MOST_CONFUSIONS)
        ]
        yield f"most frequent confusions on {test_set}: {', '.join(told) or 'none'}"
