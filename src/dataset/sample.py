"""Write the offline sample: drawings of axes, books and hammers, to try the programs without photographs.

The drawings are not meant for results. Each image has its own pose, size, proportions, colours, lighting and
background, and depends only on its seed, class, folder and number.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, available_cores, check_minimum, run_program, write_atomically
from dataset.drawing import draw
from dataset.moving import LEFT_OUT, REJECTED, is_set_aside
from dataset.reading import has_image_name, why_no_image
from dataset.tables import TESTING_BATCH

CLASSES = ("Axe", "Book", "Hammer")
TRAINING_COUNTS = {"Axe": 40, "Book": 160, "Hammer": 40}  # as imbalanced as the photographs
TESTING_COUNTS = dict.fromkeys(CLASSES, 12)
_NAME, _ALL_NAMES = re.compile(r"sample_\d{4}\.jpg"), "sample_????.jpg"
_log = logging.getLogger(__name__)


def sample_name(number: int) -> str:
    """Return the file name of a drawing."""
    return f"sample_{number:04d}.jpg"


def is_drawing(path: Path) -> bool:
    """Whether an image file, <folder>/<class>/<file>, is named as one of the sample."""
    return path.parent.name in CLASSES and _NAME.fullmatch(path.name) is not None


def draw_numbered(label: str, seed: int, testing: bool, number: int) -> tuple[Image.Image, Image.Image]:
    """Draw the image that `write_sample` writes under this number, uncompressed, and the mask of its object."""
    return draw(label, np.random.default_rng([seed, CLASSES.index(label), int(testing), number]))


def _write(path: Path, drawing: tuple[str, int, bool, int]) -> None:
    image, _ = draw_numbered(*drawing)
    with write_atomically(path) as partial:
        image.save(partial, quality=90)


def write_sample(dataset_dir: Path, testing_dir: Path, seed: int = 0) -> int:
    """Write the missing images of the sample, as <folder>/<class>/sample_<number>.jpg, unless there are other images.

    There are 40 axes, 160 books and 40 hammers for training, and 12 of each for testing. Nothing is drawn if
    `dataset_main.py` or `audit.py` have moved images. The result is the number of images written.

    Raises:
        UserError: only `testing_dir` contains other images; a model of drawings would be tested on them.
    """
    if _find_other_image(dataset_dir) or _has_moved(dataset_dir, testing_dir):
        _log.info("%s contains images already: nothing is drawn", dataset_dir)
        return 0
    if other := _find_other_image(testing_dir):
        raise UserError(
            f"{other} is not part of the sample: put photographs to train on in {dataset_dir}, or empty {testing_dir}"
        )
    drawings = {
        folder / label / sample_name(number): (label, seed, testing, number)
        for testing, folder, counts in ((False, dataset_dir, TRAINING_COUNTS), (True, testing_dir, TESTING_COUNTS))
        for label in CLASSES
        for number in range(1, counts[label] + 1)
    }
    missing = {path: drawing for path, drawing in drawings.items() if not path.exists()}
    if missing:
        with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
            written = pool.map(_write, missing.keys(), missing.values())
            list(tqdm(written, "drawing", len(missing), unit="image", disable=None))
    _log.info("%d images drawn; %d were there already", len(missing), len(drawings) - len(missing))
    return len(missing)


def check_unmixed(paths: Iterable[Path]) -> None:
    """Check that image files, <folder>/<class>/<file>, do not mix the sample with other images.

    Raises:
        UserError: they do.
    """
    by_kind = {is_drawing(path): path for path in paths}
    if len(by_kind) > 1:
        drawing, other = by_kind[True], by_kind[False]
        raise UserError(
            f"{drawing} is part of the drawn sample, but {other} is not: remove the drawings, "
            f"{drawing.parents[1] / '*' / _ALL_NAMES}, or name another folder"
        )


def _find_other_image(folder: Path) -> Path | None:
    """Return a visible image below the folder that does not belong to the sample, if there is one."""
    for path in sorted({*folder.rglob("*"), *folder.glob("*/*")}):  # only the latter follows links to class folders
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        is_image = path.is_file() and (has_image_name(path) or not why_no_image(path))
        if is_image and not hidden and not is_drawing(path):
            return path
    return None


def _has_moved(dataset_dir: Path, testing_dir: Path) -> bool:
    """Whether images were moved to the test folder, or set aside: they must not be drawn again."""
    aside = (folder / name for folder in (dataset_dir, testing_dir) for name in (REJECTED, LEFT_OUT))
    return (testing_dir / TESTING_BATCH).exists() or any(map(is_set_aside, aside))


def main() -> int:
    parser = ArgumentParser(description="Draw a sample of axes, books and hammers unless there are other images.")
    parser.add_setting("--dataset-dir", Path("dataset"), "DIR", "for 240 training images")
    parser.add_setting("--testing-dir", Path("dataset_testing"), "DIR", "for 36 test images")
    parser.add_setting("--seed", 0, "N", "determines the images")
    arguments = parser.parse_args()
    check_minimum(arguments, seed=0)
    write_sample(arguments.dataset_dir, arguments.testing_dir, arguments.seed)
    return 0


if __name__ == "__main__":
    run_program(main)
