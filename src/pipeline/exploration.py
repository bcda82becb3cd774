"""What a run makes of its test images, for a person to look through: mistakes first, and where the model looked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from common import UserError
from dataset.examining import Examined, examine_image, on_all_cores
from dataset.folders import ImageFolder, canonical, read_folder
from dataset.groups import find_links, number_groups
from dataset.reading import place_in_square, upright_rgb
from pipeline.checkpoints import read_json
from pipeline.data import ImageBatches, load_test_set, make_loader
from pipeline.inference import BATCH, predict
from pipeline.prediction import TrainedRun
from pipeline.splits import find_side
from pipeline.tester import class_activation_maps

_log = logging.getLogger(__name__)
SIDES = ("test", "validation", "train")  # of a run's images
_SHOWN_BY_BROWSERS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}
_SHOWN_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP"}


@dataclass(frozen=True)
class Picture:
    """An image as it can be shown.

    Attributes:
        file: the image itself where a browser can be given it, else a PNG of it.
        size: width and height in pixels, upright.
        examined: what else is known of it.
    """

    file: Path
    size: tuple[int, int]
    examined: Examined


@dataclass(frozen=True)
class TestedImage:
    """A test image, and what a run says of it.

    Attributes:
        test_set: the name of the set.
        path: the image; of an `.npz` file FILE/<label>/<place in it>.
        picture: what shows it.
        truth: its class.
        prediction: the class that it was taken for.
        confidence: the probability of that.
        group: the number of the images of its set that show the same as it, or as one of them; None if none does.
        images: the set's, as the model takes them.
        place: its own among these.
    """

    test_set: str
    path: Path
    picture: Picture
    truth: str
    prediction: str
    confidence: float
    group: int | None
    images: ImageBatches
    place: int

    @property
    def mistaken(self) -> bool:
        return self.prediction != self.truth


def find_images(
    run_dir: Path, classes: Sequence[str], test_dirs: Sequence[Path] = (), side: str = SIDES[0]
) -> list[ImageFolder]:
    """Lists what a run was tested on, or another side of its split; opens no image.

    Args:
        run_dir: the run's folder.
        classes: that it was trained on.
        test_dirs: where the test sets are; by default, where `settings.json` says that they were.
        side: one of `SIDES`.

    Raises:
        UserError: images are not there, or are of other classes.
    """
    settings = read_json(run_dir / "settings.json")
    names = test_dirs or settings.get("test_dir")
    divided = side != SIDES[0] or names == []  # sides of one folder, as split.csv names them
    if divided and isinstance(settings.get("data_dir"), str):
        names = [settings["data_dir"]]
    if not isinstance(names, list) or not names:
        raise UserError(f"{run_dir / 'settings.json'} names no {side} images: train again with --restart")
    directories = [Path(str(name)) for name in names]
    for directory in directories:
        if not test_dirs and not directory.exists():
            remedy = "name its test images with --test-dir, or " if side == SIDES[0] else ""
            raise UserError(
                f"there is no {directory}, which holds the {side} images of {run_dir}: "
                f"{remedy}start this in the folder that the run was started in"
            )
    folders = [read_folder(directory) for directory in directories]
    if divided:
        folders = [find_side(folder, run_dir, side) for folder in folders]
    for folder in folders:
        if folder.classes != tuple(map(canonical, classes)):
            raise UserError(
                f"{folder.directory} has the classes {', '.join(folder.classes)} now, "
                f"and {run_dir} was trained on {', '.join(classes)}"
            )
    return folders


def test_again(run: TrainedRun, folders: Iterable[ImageFolder], pictures: Path) -> list[TestedImage]:
    """Tests a run as its own test did, and looks for near-duplicates within each set.

    Args:
        run: the model.
        folders: the test sets.
        pictures: a folder for PNGs of what no browser shows.

    Returns:
        Mistakes first, the most confident one at the head; then right answers, the least confident one first.
    """
    tested: list[TestedImage] = []
    for number, folder in enumerate(replace(folder, white=run.white) for folder in folders):
        test_set = load_test_set(folder, run.model.input_size)
        loader = make_loader(test_set.images, BATCH)
        logits, _ = predict(run.model, loader, run.hardware, f"testing on {test_set.name}")
        probabilities, predictions = run.probabilities(logits).cpu().max(dim=1)
        shown = _make_pictures(folder, test_set.images.places, pictures / str(number))
        last = max((each.group or 0 for each in tested), default=0)
        labels = [run.classes[label] for label in test_set.labels]
        groups = _group([picture.examined for picture in shown], labels, last + 1)
        for place, picture in enumerate(shown):
            tested.append(
                TestedImage(
                    test_set=test_set.name,
                    path=test_set.paths[place],
                    picture=picture,
                    truth=run.classes[test_set.labels[place]],
                    prediction=run.classes[predictions[place]],
                    confidence=float(probabilities[place]),
                    group=groups.get(place),
                    images=test_set.images,
                    place=place,
                )
            )
    return sorted(tested, key=lambda each: (not each.mistaken, -each.confidence if each.mistaken else each.confidence))


def _make_pictures(folder: ImageFolder, places: Sequence[int], directory: Path) -> list[Picture]:
    directory.mkdir()

    def make(place: int) -> Picture:
        path, image = folder.paths[place], folder.read(place)
        shown = image.format in _SHOWN_FORMATS and path.suffix.lower() in _SHOWN_BY_BROWSERS and _is_text(path)
        if not shown:
            path = directory / f"{place}.png"
            upright_rgb(image).save(path)
        examined = examine_image(path, image)
        return Picture(path, examined.size, examined)

    return on_all_cores(make, places, "examining")


def _is_text(path: Path) -> bool:
    """Whether a file's name is text, as nearly all are, and not mere bytes."""
    return not any("\ud800" <= sign <= "\udfff" for sign in str(path))


def _group(images: Sequence[Examined], labels: Sequence[str], first: int) -> dict[int, int]:
    """The places of images that show the same as another, each with the number of its group, from `first` on."""
    found = find_links(images, labels)
    for note in found.notes:
        _log.info("%s", note)
    groups = number_groups(len(images), found.links)
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[inverse] > 1).tolist()
    numbers = {group: first + place for place, group in enumerate(dict.fromkeys(groups[shared].tolist()))}
    return {place: numbers[groups[place]] for place in shared}


def find_heatmaps(run: TrainedRun, tested: Iterable[TestedImage]) -> Iterator[np.ndarray]:
    """For each image where the model looked for its prediction, a batch at a time.

    Returns:
        (h, w) uint8, laid over the whole picture: what falls on the padding is cut off.
    """
    tested = iter(tested)
    while batch := list(islice(tested, BATCH)):
        images = torch.cat([each.images.__getitems__([each.place])[0] for each in batch]).to(run.hardware.device)
        targets = [run.classes.index(each.prediction) for each in batch]
        for each, heatmap in zip(batch, class_activation_maps(run.model, images, targets), strict=True):
            left, upper, right, lower = place_in_square(each.picture.size, images.shape[-1])
            yield (heatmap[upper:lower, left:right] * 255).round().astype(np.uint8)
