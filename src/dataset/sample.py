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
from common import ArgumentParser, UserError, available_cores, check_least, run_program, write_whole
from dataset.drawing import draw

CLASSES = ("Axe", "Book", "Hammer")
TRAINING_COUNTS = {"Axe": 40, "Book": 160, "Hammer": 40}  # as imbalanced as the photographs
TESTING_COUNTS = dict.fromkeys(CLASSES, 12)
_NAME = re.compile(r"sample_\d{4}\.jpg")
_log = logging.getLogger(__name__)


def draw_numbered(label: str, seed: int, testing: bool, number: int) -> tuple[Image.Image, Image.Image]:
    """Draw the image that `write_sample` writes under this number, uncompressed, and the mask of its object."""
    return draw(label, np.random.default_rng([seed, CLASSES.index(label), int(testing), number]))


def _write(path: Path, drawing: tuple[str, int, bool, int]) -> None:
    image, _ = draw_numbered(*drawing)
    with write_whole(path) as partial:
        image.save(partial, quality=90)


def write_sample(dataset_dir: Path, testing_dir: Path, seed: int = 0) -> int:
    """Write the missing images of the sample, as <folder>/<class>/sample_<number>.jpg, unless there are other images.

    There are 40 axes, 160 books and 40 hammers for training, and 12 of each for testing. The result is the number of
    images written.

    Raises:
        UserError: only `testing_dir` contains other images; a model of drawings would be tested on them.
    """
    foreign = _find_foreign(dataset_dir) or _find_foreign(testing_dir)
    if foreign and not any(dataset_dir.glob("*/[!.]*")):
        raise UserError(f"{foreign} is not part of the sample: put images in {dataset_dir} too, or empty {testing_dir}")
    if foreign:
        _log.info("%s contains images already: nothing is drawn", dataset_dir)
        return 0
    drawings = {
        folder / label / f"sample_{number:04d}.jpg": (label, seed, testing, number)
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
    by_kind = {path.parent.name in CLASSES and _NAME.fullmatch(path.name) is not None: path for path in paths}
    if len(by_kind) > 1:
        drawing, other = by_kind[True], by_kind[False]
        raise UserError(
            f"{drawing} is part of the drawn sample, but {other} is not: remove the drawings, "
            f"{drawing.parents[1] / '*/sample_????.jpg'}, or name another folder"
        )


def _find_foreign(folder: Path) -> Path | None:
    """Return a visible file below the folder that does not belong to the sample, if there is one."""
    for path in sorted({*folder.rglob("*"), *folder.glob("*/*")}):  # only the latter follows links to class folders
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and not _NAME.fullmatch(path.name):
            return path
    return None


def main() -> int:
    parser = ArgumentParser(description="Draw a sample of axes, books and hammers unless there are other images.")
    parser.add_argument(
        "--dataset-dir", type=Path, default=Path("dataset"), metavar="DIR",
        help="for 240 training images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--testing-dir", type=Path, default=Path("dataset_testing"), metavar="DIR",
        help="for 36 test images (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="determines the images (default: %(default)s)")
    arguments = parser.parse_args()
    check_least(arguments, seed=0)
    write_sample(arguments.dataset_dir, arguments.testing_dir, arguments.seed)
    return 0


if __name__ == "__main__":
    run_program(main)
