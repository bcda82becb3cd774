"""Makes a dataset: gets the images, audits them, reduces, splits and augments the classes, and draws figures.

    python src/dataset/dataset_main.py --source existing

Each step leaves finished work alone, so the program can be run again at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, check_minimum, list_counts, print_step, run_program
from dataset.audit import audit, audit_command, summarise
from dataset.augmentation_data import (
    ALL,
    MINORITY,
    add_extra_testing,
    check_augmentation,
    create_augmented_data,
    create_testing_batch,
    prepare_to_augment,
    reduce_classes,
)
from dataset.folders import (
    AUGMENTED_SUFFIX,
    canonical,
    check_apart,
    check_known_classes,
    class_images,
    class_names,
    log_skipped,
    own_class_names,
)
from dataset.moving import LEFT_OUT, REJECTED, lock_dataset
from dataset.plotting_dataset import ClassSizes, plot_dataset
from dataset.preparedataset import fetch
from dataset.sample import CLASSES, check_unmixed, write_sample
from dataset.tables import TESTING_BATCH, read_rows


def make_dataset(arguments: argparse.Namespace) -> None:
    """Run all steps in order and print what each one did."""
    dataset_dir, testing_dir, seed = arguments.dataset_dir, arguments.testing_dir, arguments.seed
    testing_dirs = [testing_dir, *filter(None, [arguments.extra_testing])]
    check_apart([dataset_dir, *testing_dirs])
    has_classes = dataset_dir.is_dir() and bool(own_class_names(dataset_dir))
    if has_classes:
        _check_classes(arguments)  # before a download
    _get_images(arguments, has_classes)
    _check_classes(arguments)
    check_unmixed(path for name in class_names(dataset_dir) for path in class_images(dataset_dir, name))
    testing_dir.mkdir(parents=True, exist_ok=True)
    plan = {"mode": arguments.augment, "target": arguments.augment_to}
    with lock_dataset(dataset_dir):
        prepare_to_augment(dataset_dir, **plan)
        _audit(dataset_dir, testing_dirs, arguments.allow_leaks)
        check_augmentation(dataset_dir, testing_dir, arguments.max_per_class, arguments.testing_per_class, seed, **plan)
        moved = reduce_classes(dataset_dir, arguments.max_per_class, seed)
        print_step(
            "reduce", f"to {arguments.max_per_class} per class: {list_counts(moved)} moved to {dataset_dir / LEFT_OUT}"
        )
        moved = create_testing_batch(dataset_dir, testing_dir, arguments.testing_per_class, seed)
        print_step("split", f"{list_counts(moved)} moved to {testing_dir}")
        if arguments.extra_testing:
            copied = add_extra_testing(arguments.extra_testing, testing_dir)
            print_step("split", f"{list_counts(copied)} copied to {testing_dir}")
        print_step("augment", f"{list_counts(create_augmented_data(dataset_dir, seed, **plan))} written")
        sizes = measure_classes(dataset_dir, testing_dir)
        for path in plot_dataset(dataset_dir, sizes, arguments.figures_dir):
            print_step("draw", str(path))
    for name, size in sizes.items():
        print_step("now", f"{name}: {size.kept} to train on, {size.augmented} augmented, {size.testing} to test on")


def _get_images(arguments: argparse.Namespace, has_classes: bool) -> None:
    dataset_dir = arguments.dataset_dir
    if arguments.source == "openimages":
        classes = class_names(dataset_dir) if has_classes else CLASSES
        print_step("fetch", f"{list_counts(fetch(classes, dataset_dir, seed=arguments.seed))} added from Open Images")
    elif arguments.source == "sample":
        print_step("sample", f"{write_sample(dataset_dir, arguments.testing_dir, arguments.seed)} images drawn")
    elif not has_classes:
        raise UserError(f"{dataset_dir} has no images: put some in, or choose --source openimages or --source sample")


def _check_classes(arguments: argparse.Namespace) -> None:
    extra = arguments.extra_testing
    if extra and not extra.is_dir():
        raise UserError(f"there is no folder {extra}")
    for flag, directory in (("--testing-dir", arguments.testing_dir), ("--extra-testing", extra)):
        if directory:
            check_known_classes(arguments.dataset_dir, directory, f"name the folder that belongs to it with {flag}")


def _audit(dataset_dir: Path, testing_dirs: list[Path], allow_leaks: bool) -> None:
    report = audit(dataset_dir, testing_dirs)
    for line in summarise(report):
        print_step("audit", line)
    if report.skipped or report.duplicates:
        print_step("audit", f"to move the files to {REJECTED}/: {audit_command(dataset_dir, testing_dirs, fix=True)}")
    if report.skipped or report.duplicates or report.poor:
        print_step("audit", f"to list them: {audit_command(dataset_dir, testing_dirs)}")
    for directory in report.images:
        skipped = report.skipped.items()
        log_skipped(directory, {path: why for path, why in skipped if directory in (path.parent, path.parent.parent)})
    if report.leaks and not allow_leaks:
        first = report.leaks[0]
        raise UserError(
            f"{len(report.leaks)} images to train on share a group with test images, for example {first.path} and "
            f"{first.of}; `{audit_command(dataset_dir, testing_dirs, fix=True)}` moves them and all other findings, "
            f"also those of the test folders, to {REJECTED}/ in each folder; --allow-leaks continues with them"
        )


def measure_classes(dataset_dir: Path, testing_dir: Path) -> Mapping[str, ClassSizes]:
    """Count the images of each class, including those that were moved away."""
    moved = Counter(canonical(row["class"]) for row in read_rows(testing_dir / TESTING_BATCH, ["class"]))
    sizes = {}
    for name in class_names(dataset_dir):
        kept = len(class_images(dataset_dir, name))
        aside = sum(len(class_images(dataset_dir / folder, name)) for folder in (LEFT_OUT, REJECTED))
        sizes[name] = ClassSizes(
            found=kept + moved[name] + aside,
            kept=kept,
            augmented=len(class_images(dataset_dir, name + AUGMENTED_SUFFIX)),
            testing=len(class_images(testing_dir, name)),
        )
    return sizes


def main() -> int:
    parser = ArgumentParser(description="Makes a balanced dataset and a test set. Running it again changes nothing.")
    parser.add_argument(
        "--source", choices=("openimages", "sample", "existing"), default="existing",
        help="download images, draw them, or use those in the folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_setting("--dataset-dir", Path("dataset"), "DIR", "training images, one folder per class")
    testing = "test images; a class that has some keeps them as they are"
    parser.add_setting("--testing-dir", Path("dataset_testing"), "DIR", testing)
    parser.add_setting("--figures-dir", Path("saved_models/figures/dataset"), "DIR", "where figures are written")
    parser.add_setting("--max-per-class", 1500, "N", "images of each class; more are moved to left_out/")
    parser.add_setting("--testing-per-class", 30, "N", "images of each class to move to the test folders")
    parser.add_setting("--seed", 0, "N", "seed of all random choices")
    parser.add_argument(
        "--extra-testing", type=Path, metavar="DIR",
        help="more test images, one folder per class, which are copied to the test folders",
    )  # fmt: skip
    parser.add_argument(
        "--augment", choices=(MINORITY, ALL), default=MINORITY,
        help=f"{MINORITY}: fill every class up to the size of the largest; {ALL}: give every class the same share of "
        "augmented images, by default one per image (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--augment-to", type=int, metavar="N",
        help=f"images including augmented ones: of every class with {MINORITY}, of the largest with {ALL}",
    )  # fmt: skip
    parser.add_argument("--allow-leaks", action="store_true", help="continue when test images leak into training")
    arguments = parser.parse_args()
    check_minimum(arguments, max_per_class=2, testing_per_class=0, seed=0)
    if arguments.augment_to is not None:
        check_minimum(arguments, augment_to=1)
    if arguments.max_per_class < arguments.testing_per_class + 2:
        raise UserError(
            f"--max-per-class {arguments.max_per_class}: must leave two images beside "
            f"the {arguments.testing_per_class} of --testing-per-class"
        )
    make_dataset(arguments)
    return 0


if __name__ == "__main__":
    run_program(main)
