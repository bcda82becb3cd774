"""Prepares a run's images and predictions for browsing: mistakes first, with heatmaps and near-duplicates."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from common import UserError
from dataset.examining import Examined, examine_image
from dataset.folders import ImageFolder, canonical, read_folder
from dataset.groups import find_links, number_groups
from dataset.layout import find_layout, join_validation
from dataset.parallel import on_all_cores
from dataset.reading import place_in_square, upright_rgb
from pipeline.data import ImageDataset
from pipeline.evaluation import evaluate_folder
from pipeline.explain import class_activation_maps
from pipeline.inference import BATCH
from pipeline.prediction import TrainedRun
from pipeline.run_folder import read_settings
from pipeline.settings import SETTINGS_FILE, TEST
from pipeline.splits import find_side

_log = logging.getLogger(__name__)
_SHOWN_BY_BROWSERS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
_SHOWN_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP"}


@dataclass(frozen=True)
class TestedImage:
    """A test image and its prediction."""

    test_set: str
    path: Path  # FILE/<label>/<index> for an image of an .npz file
    picture: Examined  # of the image, or of a PNG copy if browsers cannot show it
    truth: str
    prediction: str
    confidence: float
    group: int | None  # the number of its group of near-duplicates in the test set
    images: ImageDataset  # the test set's model inputs
    index: int  # of this image in `images`

    @property
    def mistaken(self) -> bool:
        return self.prediction != self.truth


def find_run_images(
    run_dir: Path, classes: Sequence[str], test_dirs: Sequence[Path] = (), side: str = TEST
) -> list[ImageFolder]:
    """List a run's test images, or another side of its split; by default the test sets are those in `settings.json`.

    Raises:
        UserError: images are missing or have other classes.
    """
    folders = list(map(read_folder, test_dirs)) or _read_recorded(run_dir, side)
    for folder in folders:
        if folder.classes != tuple(map(canonical, classes)):
            raise UserError(
                f"{folder.directory} has the classes {', '.join(folder.classes)}, but {run_dir} was trained on "
                f"{', '.join(classes)}"
            )
    return folders


def _read_recorded(run_dir: Path, side: str) -> list[ImageFolder]:
    """List the images of a side in the folders that `settings.json` names; raise UserError if some are missing."""
    settings = read_settings(run_dir)
    test_dirs = settings.get("test_dir")
    divided = side != TEST or test_dirs == []  # the side is a part of the training folder, which split.csv lists
    names = [settings["data_dir"]] if divided and "data_dir" in settings else test_dirs
    if not names:
        raise UserError(f"{run_dir / SETTINGS_FILE} names no {side} images: train again with main.py --restart")
    for name in names:
        if not os.path.exists(name):
            remedy = "name the test images with --test-dir, or " if side == TEST else ""
            raise UserError(
                f"there is no {name} with the {side} images of {run_dir}: {remedy}run this in the folder that "
                "the training was started in"
            )
    directories = map(Path, names)
    if divided:
        return [find_side(_read_training(directory), run_dir, side) for directory in directories]
    return [read_folder(directory) for directory in directories]


def _read_training(directory: Path) -> ImageFolder:
    """Read a training folder, with the validation images if they have a folder of their own."""
    layout = find_layout(directory)
    training = read_folder(layout.training)
    return join_validation(training, read_folder(layout.validation)) if layout.validation else training


def test_again(run: TrainedRun, folders: Iterable[ImageFolder], pictures: Path) -> list[TestedImage]:
    """Repeat a run's test and find near-duplicates within each test set. `pictures` is a folder for PNG copies.

    Returns:
        The most confident mistakes first; then right answers, the least confident ones first.
    """
    tested: list[TestedImage] = []
    for number, folder in enumerate(replace(folder, white_level=run.white) for folder in folders):
        found = evaluate_folder(run, folder)
        images = found.test_set.images
        shown = _examine(folder, images.indices, pictures / str(number))
        truths, predictions = (
            [run.classes[label] for label in labels] for labels in (found.test_set.labels, found.predicted)
        )
        last = max((each.group or 0 for each in tested), default=0)
        groups = _number_near_duplicates(shown, truths, last + 1)
        tested += [
            TestedImage(
                found.test_set.name, path, shown[index], truths[index], predictions[index],
                float(found.probabilities[index].max()), groups.get(index), images, index,
            )
            for index, path in enumerate(found.test_set.paths)
        ]  # fmt: skip
    return sorted(tested, key=lambda each: (not each.mistaken, -each.confidence if each.mistaken else each.confidence))


def _examine(folder: ImageFolder, indices: Sequence[int], directory: Path) -> list[Examined]:
    """Examine images; those that browsers cannot show are copied into a new folder and have the path of the copy."""
    directory.mkdir()

    def examine(index: int) -> Examined:
        path, image = folder.paths[index], folder.read(index)
        if image.format not in _SHOWN_FORMATS or path.suffix.lower() not in _SHOWN_BY_BROWSERS or not _is_text(path):
            path = directory / f"{index}.png"
            upright_rgb(image).save(path)
        return examine_image(path, image)

    return on_all_cores(examine, indices, "examining")


def _is_text(path: Path) -> bool:
    """Return whether a file's name is valid text."""
    return not any("\ud800" <= sign <= "\udfff" for sign in str(path))


def _number_near_duplicates(images: Sequence[Examined], labels: Sequence[str], first: int) -> dict[int, int]:
    """Return the group of each image that has near-duplicates. Groups are numbered from `first`."""
    found = find_links(images, labels)
    for note in found.notes:
        _log.info("%s", note)
    groups = number_groups(len(images), found.links)
    shared = np.bincount(groups) > 1
    numbers = first + np.cumsum(shared) - 1
    return {index: int(numbers[group]) for index, group in enumerate(groups) if shared[group]}


def find_heatmaps(run: TrainedRun, tested: Iterable[TestedImage]) -> Iterator[np.ndarray]:
    """Yield the heatmap (h, w) uint8 of each image's prediction, without the part that lies on the padding."""
    tested = iter(tested)
    while batch := list(islice(tested, BATCH)):
        images = torch.cat([each.images.fetch([each.index])[0] for each in batch])
        targets = [run.classes.index(each.prediction) for each in batch]
        for each, heatmap in zip(batch, class_activation_maps(run.model, images, targets), strict=True):
            left, upper, right, lower = place_in_square(each.picture.size, images.shape[-1])
            yield (heatmap[upper:lower, left:right] * 255).round().astype(np.uint8)
