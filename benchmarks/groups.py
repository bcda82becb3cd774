"""Time and memory for finding the groups of many images, with and without a filled store.

Two kinds of datasets are generated in a temporary folder. "photographs": distinct images of random shapes, of which one
in a hundred is a recompressed copy of another; measures `examine` and `find_groups`. "dense": 32x32 images of ten
classes, each a pattern of colours with noise, so that all images of a class are similar; measures the whole audit.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from measuring import add_number, measure, three_digits, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, UserError, available_cores, run_program

SIZES = (2_000, 20_000, 100_000)
DENSE = 50_000
CLASSES = 10
COPIED = 100  # one image in so many is a copy of the one before
_SIDE = 64
_BLOCK = 500  # images that a process generates at a time


def draw_photograph(number: int) -> Image.Image:
    """Generate a distinct picture: smooth colours with a few shapes."""
    from PIL import ImageDraw

    generator = np.random.default_rng([1, number])
    cells = generator.integers(2, 7, 2)
    colours = generator.integers(0, 256, (*cells, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pencil = ImageDraw.Draw(image)
    for _ in range(int(generator.integers(3, 8))):
        corners = np.sort(generator.integers(0, _SIDE, (2, 2)), axis=0).ravel().tolist()
        draw = pencil.ellipse if generator.random() < 0.5 else pencil.rectangle
        draw(corners, fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


def write_photographs(directory: Path, numbers: range) -> None:
    """Write some of the distinct images and the copies among them, alternating between the classes."""
    for number in numbers:
        copied = number % COPIED == COPIED - 1
        image = draw_photograph(number - 1 if copied else number)
        image.save(_folder(directory, number // 2) / f"{number:06d}.jpg", quality=60 if copied else 90)


def write_dense(directory: Path, numbers: range) -> None:
    """Write some of the images of ten patterns of 4 x 4 colours, with noise."""
    for number in numbers:
        pattern = np.random.default_rng([2, number % CLASSES]).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
        noise = np.random.default_rng([3, number]).integers(-60, 60, (32, 32, 3))
        image = Image.fromarray((pattern + noise).clip(0, 255).astype(np.uint8))
        image.save(_folder(directory, number) / f"{number:06d}.png")


def _folder(directory: Path, number: int) -> Path:
    return directory / f"class_{number % CLASSES}"


def draw(directory: Path, write: Callable[[Path, range], None], count: int) -> None:
    """Write a dataset of `count` images, on all cores."""
    for number in range(CLASSES):
        _folder(directory, number).mkdir(parents=True)
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    with ProcessPoolExecutor(available_cores()) as pool:
        drawn = pool.map(partial(write, directory), blocks)
        list(tqdm(drawn, "drawing", len(blocks), disable=None))


def find_groups_of(directory: str, place: str) -> int:
    """Examine a dataset with a store below `place`; return the number of groups of several images."""
    from dataset.folders import read_folder
    from dataset.groups import find_groups

    os.chdir(place)
    groups = find_groups([read_folder(Path(directory))])
    return int((np.unique(groups.numbers[0], return_counts=True)[1] > 1).sum())


def audit_images(directory: str, place: str) -> dict[str, Any]:
    """Audit a dataset with a store below `place`; return the number of duplicates, and of notes on dense classes."""
    from dataset.audit import audit

    os.chdir(place)
    report = audit(Path(directory), [])
    return {"duplicates": len(report.duplicates), "notes": len(report.notes)}


def measure_dataset(
    write: Callable[[Path, range], None], count: int, function: Callable[[str, str], Any]
) -> dict[str, Any]:
    """Measure the first and the second call of a function on a generated dataset, each in a fresh process."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place, "dataset")
        draw(directory, write, count)
        calls = [measure(function, str(directory), place) for _ in range(2)]
    return {
        "seconds": [three_digits(call.seconds) for call in calls],
        "peak_mb": [round(call.peak_mb) for call in calls],
        "result": calls[-1].result,
    }


def main() -> int:
    parser = ArgumentParser(description="Measures finding the groups of many images.")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=SIZES, metavar="N",
        help=f"numbers of images to group (default: {' '.join(map(str, SIZES))})",
    )  # fmt: skip
    add_number(parser, "--dense", DENSE, "number of similar images to audit; 0 for none")
    arguments = parser.parse_args()
    if wrong := [size for size in (*arguments.sizes, arguments.dense or CLASSES) if size < CLASSES]:
        raise UserError(f"{wrong[0]} images are too few: each of {CLASSES} classes needs one")
    results: dict[str, Any] = {"photographs": {}}
    for size in arguments.sizes:
        results["photographs"][str(size)] = measure_dataset(write_photographs, size, find_groups_of)
    if arguments.dense:
        results["dense"] = {"images": arguments.dense, **measure_dataset(write_dense, arguments.dense, audit_images)}
    write_results("groups", results)
    return 0


if __name__ == "__main__":
    run_program(main)
