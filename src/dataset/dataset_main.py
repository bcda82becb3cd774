"""Makes a dataset: gets the images, audits them, reduces, splits and augments the classes, and draws the figures.

    python src/dataset/dataset_main.py --source existing

Each step does what is missing and leaves what is right alone, so that the program can be run again at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, check_least, run_program, say
from dataset.audit import audit, fix_command, summarise
from dataset.augmentation_data import (
    ALL,
    MINORITY,
    TESTING_BATCH,
    add_extra_testing,
    check_augmentation,
    create_augmented_data,
    create_testing_batch,
    prepare_to_augment,
    reduce_classes,
)
from dataset.folders import (
    AUGMENTED,
    canonical,
    check_apart,
    check_known_classes,
    class_folder,
    class_names,
    image_files,
    own_class_names,
    tell_left_out,
)
from dataset.moving import LEFT_OUT, REJECTED, alone_in
from dataset.plotting_dataset import ClassSizes, plot_dataset
from dataset.preparedataset import CLASSES, fetch
from dataset.sample import write_sample
from dataset.tables import read_rows


def make_dataset(arguments: argparse.Namespace) -> None:
    """Does all steps in order, and prints a line or more on each.

    Raises:
        UserError: test images are also in the training folders, or a step cannot do its work.
    """
    dataset_dir, testing_dir, seed = arguments.dataset_dir, arguments.testing_dir, arguments.seed
    check_apart([dataset_dir, testing_dir, *filter(None, [arguments.extra_testing])])
    if arguments.source == "openimages" and dataset_dir.is_dir() and own_class_names(dataset_dir):
        _check_classes(arguments)  # before anything is fetched
    _get_images(arguments)
    _check_classes(arguments)
    testing_dir.mkdir(parents=True, exist_ok=True)
    with alone_in(dataset_dir):
        prepare_to_augment(dataset_dir, arguments.augment, arguments.augment_to)
        _check(arguments)
        check_augmentation(
            dataset_dir, testing_dir, arguments.max_per_class, arguments.testing_per_class, seed, arguments.augment,
            arguments.augment_to,
        )  # fmt: skip
        moved = reduce_classes(dataset_dir, arguments.max_per_class, seed)
        say("reduce", f"to {arguments.max_per_class} a class: {_counts(moved)} moved to {dataset_dir}/left_out")
        moved = create_testing_batch(dataset_dir, testing_dir, arguments.testing_per_class, seed)
        say("split", f"{_counts(moved)} moved to {testing_dir}")
        if arguments.extra_testing:
            say("split", f"{_counts(add_extra_testing(arguments.extra_testing, testing_dir))} copied to {testing_dir}")
        made = create_augmented_data(dataset_dir, seed, mode=arguments.augment, target=arguments.augment_to)
        say("augment", f"{_counts(made)} written")
        sizes = measure_classes(dataset_dir, testing_dir)
        for path in plot_dataset(dataset_dir, sizes, arguments.figures_dir):
            say("draw", str(path))
    for name, size in sizes.items():
        say("now", f"{name}: {size.kept} to train on, {size.augmented} augmented, {size.testing} to test on")


def _get_images(arguments: argparse.Namespace) -> None:
    dataset_dir, testing_dir = arguments.dataset_dir, arguments.testing_dir
    if arguments.source == "openimages":
        classes = class_names(dataset_dir) if dataset_dir.is_dir() and own_class_names(dataset_dir) else CLASSES
        say("fetch", f"{_counts(fetch(classes, dataset_dir, seed=arguments.seed))} added from Open Images")
    elif arguments.source == "sample":
        say("sample", f"{write_sample(dataset_dir, testing_dir, arguments.seed)} images drawn")
    elif not own_class_names(dataset_dir):
        raise UserError(f"{dataset_dir} has no images: put some in, or choose --source openimages or --source sample")


def _check_classes(arguments: argparse.Namespace) -> None:
    extra = arguments.extra_testing
    if extra and not extra.is_dir():
        raise UserError(f"there is no folder {extra}")
    for flag, directory in (("--testing-dir", arguments.testing_dir), ("--extra-testing", extra)):
        if directory:
            check_known_classes(arguments.dataset_dir, directory, f"name the folder that belongs to it with {flag}")


def _check(arguments: argparse.Namespace) -> None:
    testing_dirs = [arguments.testing_dir, *filter(None, [arguments.extra_testing])]
    report = audit(arguments.dataset_dir, testing_dirs)
    for line in summarise(report):
        say("audit", line)
    if report.unreadable or report.twins:
        say("audit", "audit.py names the files, and with --fix moves them out of training")
    if report.poor:
        say("audit", "audit.py names the images of low quality, which stay where they are")
    for directory in report.images:
        inside = {path: why for path, why in report.unreadable.items() if directory in path.parents}
        tell_left_out(directory, inside)
    if report.leaks and not arguments.allow_leaks:
        first = report.leaks[0]
        raise UserError(
            f"{len(report.leaks)} images to train on share a group with test images, such as {first.path} and "
            f"{first.of}; `{fix_command(arguments.dataset_dir, testing_dirs)}` moves them out of training, "
            "and what else is wrong; --allow-leaks goes on with them"
        )


def measure_classes(dataset_dir: Path, testing_dir: Path) -> Mapping[str, ClassSizes]:
    """Counts the images of each class, also of those that were moved away."""

    batch = Counter(canonical(row["class"]) for row in read_rows(testing_dir / TESTING_BATCH, ["class"]))
    sizes = {}
    for name in class_names(dataset_dir):
        kept = len(image_files(class_folder(dataset_dir, name)))
        aside = sum(len(image_files(class_folder(dataset_dir / place, name))) for place in (LEFT_OUT, REJECTED))
        sizes[name] = ClassSizes(
            found=kept + aside + batch[name],
            kept=kept,
            augmented=len(image_files(class_folder(dataset_dir, name + AUGMENTED))),
            testing=len(image_files(class_folder(testing_dir, name))),
        )
    return sizes


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main() -> int:
    parser = ArgumentParser(description="Makes a balanced dataset and a test set; running it again changes nothing.")
    parser.add_argument(
        "--source", choices=("openimages", "sample", "existing"), default="existing",
        help="where images come from: fetched, drawn, or those in the folder (default: %(default)s)",
    )  # fmt: skip
    for flag, default, purpose in (
        ("--dataset-dir", "dataset", "a folder a class, to train on"),
        (
            "--testing-dir",
            "dataset_testing",
            "the same to test on; a class that has images there keeps them as they are",
        ),
        ("--figures-dir", "saved_models/figures/dataset", "for the figures"),
    ):
        parser.add_argument(
            flag, type=Path, default=Path(default), metavar="DIR", help=f"{purpose} (default: %(default)s)"
        )
    parser.add_argument(
        "--extra-testing", type=Path, metavar="DIR", help="a folder a class, to be copied to the test folders too"
    )
    for flag, default, purpose in (
        ("--max-per-class", 1500, "images a class; others are moved to left_out/"),
        ("--testing-per-class", 30, "images of each class to be moved to the test folders"),
        ("--seed", 0, "decides what is drawn at random"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{purpose} (default: %(default)s)")
    parser.add_argument(
        "--augment", choices=(MINORITY, ALL), default=MINORITY,
        help=f"{MINORITY}: bring every class up to the size of the largest; {ALL}: give every class the same share of "
        "augmented images, one for each of its own (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--augment-to", type=int, metavar="N",
        help=f"images with the augmented ones: of each class with {MINORITY}, of the largest with {ALL}",
    )  # fmt: skip
    parser.add_argument(
        "--allow-leaks", action="store_true", help="go on where images to train on share a group with test images"
    )
    arguments = parser.parse_args()
    check_least(arguments, max_per_class=2, testing_per_class=0, seed=0)
    if arguments.augment_to is not None:
        check_least(arguments, augment_to=1)
    if arguments.max_per_class < arguments.testing_per_class + 2:
        raise UserError(
            f"--max-per-class {arguments.max_per_class}: must leave two images beside "
            f"the {arguments.testing_per_class} of --testing-per-class"
        )
    make_dataset(arguments)
    return 0


if __name__ == "__main__":
    run_program(main)
