"""Padding and augmenting a dataset of photographs: this project and the plain reference.

Both read all photographs, pad them, and write augmented images until all classes have the same size. They take turns,
each time in a fresh process, with the files in memory. The quality of the written images is the loss by compression of
the same image.
"""

from __future__ import annotations

import io
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from measuring import Measured, add_number, measure, parse_with_photographs, take_turns, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.augmentation_data import QUALITY, create_augmented_data, prepare_to_augment
from dataset.folders import image_files, read_folder
from dataset.reading import read_image, resize_or_pad_image


def run_reference(dataset_dir: Path, output_dir: Path) -> None:
    """Run the plain script."""
    import reference

    reference.seed_everything(0)
    reference.load_dataset(dataset_dir)
    reference.augment_dataset(dataset_dir, output_dir)


def run_project(dataset_dir: Path, output_dir: Path) -> None:
    """Run this project, which writes padded images to the image cache and augmented ones next to their class."""
    from pipeline.cache import Cache
    from pipeline.images import decode_images

    prepare_to_augment(dataset_dir)
    decode_images(read_folder(dataset_dir), (3, 224, 224), Cache(output_dir / "cache"))
    create_augmented_data(dataset_dir)


def run_side(run: Callable[[Path, Path], None], photographs: Path, made: int) -> Measured:
    """Measure a side on a copy of the photographs; it must make a number of images."""
    with tempfile.TemporaryDirectory() as place:
        dataset_dir = Path(place, "dataset")
        shutil.copytree(photographs, dataset_dir)
        measured = measure(run, dataset_dir, Path(place, "output"))
        if (found := len(list(Path(place).glob("*/*_augmented/*.jpg")))) != made:
            raise RuntimeError(f"{run.__name__} wrote {found} images, not {made}")
    return measured


def measure_quality(paths: list[Path]) -> dict[str, float]:
    """Return the mean peak signal-to-noise ratio, in dB, of padded images as each side saves them."""
    from matplotlib import pyplot as plt

    ratios: dict[str, list[float]] = {"reference": [], "project": []}
    for path in paths:
        image = resize_or_pad_image(read_image(path))
        saved = {"reference": io.BytesIO(), "project": io.BytesIO()}
        plt.imsave(saved["reference"], np.asarray(image) / 255, format="jpg")
        image.save(saved["project"], "JPEG", quality=QUALITY)
        for side, file in saved.items():
            with Image.open(file) as stored:
                error = np.mean((np.asarray(stored.convert("RGB"), dtype=float) - np.asarray(image, dtype=float)) ** 2)
            ratios[side].append(10 * np.log10(255**2 / max(error, 1e-3)))
    return {side: round(float(np.mean(values)), 1) for side, values in ratios.items()}


def main() -> int:
    parser = ArgumentParser(description="Measures padding and augmenting photographs.")
    add_number(parser, "--repeats", 3, "repetitions")
    arguments = parse_with_photographs(parser)
    photographs = arguments.data / "open_images"
    counts = [len(image_files(folder)) for folder in sorted(photographs.iterdir())]
    made = sum(max(counts) - count for count in counts)
    sides = {
        side: partial(run_side, run, photographs, made)
        for side, run in (("reference", run_reference), ("project", run_project))
    }
    measured = take_turns(arguments.repeats, sides)
    medians = {side: statistics.median(one.seconds for one in runs) for side, runs in measured.items()}
    peak_mb = {side: round(statistics.median(one.peak_mb for one in runs)) for side, runs in measured.items()}
    results = {
        "photographs": sum(counts),
        "augmented": made,
        "repeats": arguments.repeats,
        "seconds": {side: round(value, 1) for side, value in medians.items()},
        "ratio": round(medians["reference"] / medians["project"], 1),
        "peak_mb_of_the_main_process": peak_mb,
        "quality_db": measure_quality(image_files(photographs / "Hammer")),
    }
    write_results("augmentation", results)
    return 0


if __name__ == "__main__":
    run_program(main)
