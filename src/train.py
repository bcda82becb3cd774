"""Trains a classifier on a folder of photographs and tests it, in one command: `python src/train.py photos`.

The folder holds one sub-folder per class; or `train` with `val`, `test` or both, each with one sub-folder per class. An
`.npz` file of arrays also works. Nothing is moved or copied. `main.py` has all settings; `dataset_main.py` prepares
datasets.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import ArgumentParser, UserError, base_name, check_outside, list_counts, pluralise, print_step, run_program
from dataset.layout import Layout, find_layout, join_validation
from pipeline.settings import Settings

if TYPE_CHECKING:
    from dataset.folders import ImageFolder

_MODEL = "EfficientNetLite0"
_FLAGS = ["model_type", "num_epochs", "batch_size", "plots", "weights", "freeze_to", "seed", "wandb", "restart"]
_MOST_COUNTED = 30  # classes whose images are listed one by one


def main() -> int:
    arguments = _parse()
    layout = find_layout(arguments.folder)
    folders = _read(layout)
    # torch takes seconds to import: --help and errors do not wait for it
    from pipeline.distributed import joined_processes
    from pipeline.results import print_results
    from pipeline.run import run

    settings = _make_settings(arguments, layout)
    for line in _audit(layout, folders[0]):
        print_step("audit", line)
    for folder in layout.unused:
        print_step("split", f"{folder} is not one of train, val and test: it is not used")
    folders = _divide(layout, folders)
    logging.getLogger("pipeline.data").setLevel(logging.WARNING)  # the audit has described the range of 16-bit values
    with joined_processes():
        metrics = run(settings, folders)
    if metrics is not None:
        print()
        print_results(settings, metrics)
    return 0


def _parse() -> argparse.Namespace:
    parser = ArgumentParser(description="Trains a classifier on a folder of photographs and tests it.")
    # fmt: off
    parser.add_argument("folder", type=Path, metavar="FOLDER",
        help="folder with one sub-folder per class; or with train, and val, test or both, each with one sub-folder "
        "per class; or an .npz file")
    Settings.add_flags(parser, _FLAGS, model_type=_MODEL)
    parser.add_argument("-o", "--output-dir", type=Path, metavar="DIR",
        help="folder in which the run's own folder is created (default: saved_models/ and the name of FOLDER)")
    # fmt: on
    arguments = parser.parse_args()
    arguments.output_dir = arguments.output_dir or Path(
        "saved_models", base_name(arguments.folder).removesuffix(".npz")
    )
    for place in (Path.cwd(), arguments.output_dir):  # the first gets files too, for example the cache
        check_outside(
            place, arguments.folder,
            f"{place} is inside {arguments.folder}, where every sub-folder is a class: run this from another folder, "
            "or choose another --output-dir",
        )  # fmt: skip
    return arguments


def _make_settings(arguments: argparse.Namespace, layout: Layout) -> Settings:
    """Fine-tune a pretrained model if there are weights for it; else train from scratch."""
    from models import has_weights

    pretrained = has_weights(arguments.model_type)
    if not pretrained and (arguments.weights or arguments.freeze_to):
        raise UserError(f"there are no ImageNet weights for {arguments.model_type}: omit --weights and --freeze-to")
    return Settings(
        **{name: getattr(arguments, name) for name in _FLAGS},
        output_dir=arguments.output_dir,
        pretrained=pretrained,
        recipe=None if pretrained else "scratch",
        data_dir=arguments.folder if layout.validation else layout.training,
        test_dir=(layout.testing,) if layout.testing else (),
    )


def _read(layout: Layout) -> list[ImageFolder]:
    """Read the folders of the layout, the training folder first.

    Raises:
        UserError: a folder is missing or empty, the classes differ, or photographs are mixed with the drawn sample.
    """
    from dataset.sample import check_unmixed
    from pipeline.data import read_folders

    folders = read_folders(layout.training, tuple(layout.others), with_augmented=False)
    check_unmixed(path for folder in folders for path in folder.paths)
    return folders


def _audit(layout: Layout, training: ImageFolder) -> Iterator[str]:
    """Yield lines that count the images and describe problems with them."""
    from dataset.audit import audit, audit_command, summarise

    if training.arrays is not None:
        counts = np.bincount(training.labels, minlength=len(training.classes)).tolist()
        yield f"{layout.training}: {_count(dict(zip(training.classes, counts, strict=True)))}"
        return
    report = audit(layout.training, layout.others)
    for directory, counts in report.images.items():
        yield f"{directory}: {_count(counts)}"
    yield from summarise(report)
    if report.skipped or report.duplicates:
        yield f"to list these files: {audit_command(layout.training, layout.others)}"
        yield f"to move them out of the way: {audit_command(layout.training, layout.others, fix=True)}"


def _count(counts: Mapping[str, int]) -> str:
    if len(counts) > _MOST_COUNTED:
        sizes = counts.values()
        return f"{sum(sizes)} images of {len(counts)} classes, {min(sizes)} to {max(sizes)} per class"
    return list_counts(counts)


def _divide(layout: Layout, folders: list[ImageFolder]) -> list[ImageFolder]:
    """Divide the images into a part for training and validation, and a test part that shares no group with it."""
    from pipeline.splits import find_readable, hold_out, leave_out_leaks

    if not layout.testing:
        total = find_readable(folders[0]).sum()
        folders = hold_out(folders[0])
        count = len(folders[1].paths)
        print_step("split", f"{count} of {total} images are held out for testing; near-duplicates stay together")
        return folders
    if layout.validation:
        folders = [join_validation(*folders[:2]), folders[2]]
        print_step("split", f"{layout.validation} is used for validation, {layout.testing} for testing")
    else:
        print_step("split", f"{layout.testing} is used for testing, a part of {layout.training} for validation")
    kept = leave_out_leaks(folders)
    if count := len(folders[0].paths) - len(kept[0].paths):
        one, several = "image shares a group with test images: it is", "images share a group with test images: they are"
        print_step("split", f"{pluralise(count, one, several)} left out of training")
    return kept


if __name__ == "__main__":
    run_program(main)
