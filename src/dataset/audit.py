"""Finds what makes results wrong: unreadable files, duplicates, train/test leakage, poor images, distribution shift.

python src/dataset/audit.py --dataset-dir dataset --testing-dir dataset_testing --fix
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, command, list_counts, pluralise, printable, run_program
from dataset.examining import STORE, Examined, examine, find_highest, find_unreadable, find_white_level
from dataset.folders import (
    AUGMENTED_SUFFIX,
    canonical,
    check_apart,
    check_known_classes,
    class_folder,
    class_names,
    image_files,
    own_class_names,
    skipped_beside,
    skipped_files,
)
from dataset.groups import LinkKind, find_dataset_links, number_groups
from dataset.moving import REJECTED, finish_moves, lock_dataset, set_aside
from dataset.quality import UsualFlaw, find_poor_images
from dataset.reading import WHITE, white_level_of
from dataset.shift import Aspect, measure_shift, summarise_shift

LEAK, LABEL_CONFLICT, DUPLICATE = "leak", "label conflict", "duplicate"
_TITLES = {DUPLICATE: "duplicates within a class", LABEL_CONFLICT: "duplicates between classes", LEAK: "leaks"}
_GROUP = "group"  # the link of two images that are linked through others only
_REASONS = {  # closest first
    LinkKind.PIXELS: "has the same pixels as",
    LinkKind.NEAR_DUPLICATE: "is a near-duplicate of",
    LinkKind.PHOTOGRAPH: "is cut from the same photograph as",
    LinkKind.AUGMENTED: "has the same class and stem as",
    _GROUP: "is linked through other images to",
}
_COPIES = (LinkKind.PIXELS, LinkKind.NEAR_DUPLICATE)  # the other links make leaks only
_POOR = "images of low quality"
_MOSTLY = 0.9  # share of 16-bit files with fewer bits than training, above which a note is printed


@dataclass(frozen=True)
class Duplicate:
    """An image that `--fix` moves, since it belongs with another one."""

    path: Path
    of: Path  # the image that is kept
    kind: str  # LEAK in training for one in a test folder, LABEL_CONFLICT between classes, DUPLICATE within a class
    link: str  # what links the two: a `LinkKind`, or "group" for a link through other images only

    @property
    def exact(self) -> bool:
        """Whether both images have identical pixels."""
        return self.link == LinkKind.PIXELS


@dataclass(frozen=True)
class Report:
    """The findings of an audit."""

    images: dict[Path, dict[str, int]]  # number of readable images per folder and class
    skipped: dict[Path, str]  # everything else in the class folders and beside them, with the reason
    duplicates: list[Duplicate]  # sorted by path
    shift: dict[Path, list[Aspect]]  # the differences of each test folder from the training folder
    poor: dict[Path, list[str]]  # images of low quality, with their flaws
    usual_flaws: list[UsualFlaw]  # of many images of a class, which `poor` does not list
    notes: list[str]  # on 16-bit files with fewer bits, and on classes in which near-duplicates are usual

    @property
    def leaks(self) -> list[Duplicate]:
        return [duplicate for duplicate in self.duplicates if duplicate.kind == LEAK]

    @property
    def clean(self) -> bool:
        """Whether nothing was found; images of low quality do not count, since a person has to judge them."""
        shifted = any(aspect.shifted for aspects in self.shift.values() for aspect in aspects)
        return not (self.skipped or self.duplicates or shifted)


def audit(dataset_dir: Path, testing_dirs: Sequence[Path]) -> Report:
    """Examine a training folder and its test folders without changing them; augmented images only for readability.

    Args:
        dataset_dir: one folder per class.
        testing_dirs: may lack classes and images, or not exist.

    Raises:
        UserError: the training folder is missing or has fewer than two classes or no images; folders overlap; a test
            folder has a class that training lacks; or a table of source photographs is damaged.
    """
    classes = _find_classes(dataset_dir, testing_dirs)
    paths = {
        directory: [path for name in names for path in image_files(class_folder(directory, name))]
        for directory, names in classes.items()
    }
    white_level = find_white_level(paths[dataset_dir])
    examined: dict[Path, list[Examined]] = {}
    skipped: dict[Path, str] = {}
    for directory, names in classes.items():
        images, skipped_here = examine(paths[directory], white_level=white_level)
        if directory == dataset_dir and not images and not skipped_here:
            raise UserError(f"{directory} has no images in its sub-folders {', '.join(names)}")
        skipped_here |= _find_skipped(directory, names)
        if images or skipped_here:
            examined[directory] = images
        skipped |= skipped_here
    poor, usual_flaws = find_poor_images([image for images in examined.values() for image in images])
    duplicates, notes = _find_duplicates(dataset_dir, examined)
    labels = {directory: _labels(images) for directory, images in examined.items()}
    return Report(
        images={
            directory: {name: int((own_labels == name).sum()) for name in classes[directory]}
            for directory, own_labels in labels.items()
        },
        skipped=dict(sorted(skipped.items())),
        duplicates=duplicates,
        shift={
            directory: measure_shift(examined[dataset_dir], labels[dataset_dir], images, labels[directory])
            for directory, images in examined.items()
            if directory != dataset_dir
        },
        poor=poor,
        usual_flaws=usual_flaws,
        notes=[*_describe_range(paths, dataset_dir, white_level), *notes],
    )


def _find_classes(dataset_dir: Path, testing_dirs: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the classes of the training folder and of each test folder that exists."""
    check_apart([dataset_dir, *testing_dirs])
    for directory in testing_dirs:
        remedy = "name the folder that belongs to it with --testing-dir (without a value: compare with none)"
        check_known_classes(dataset_dir, directory, remedy)
    testing = {directory: own_class_names(directory) for directory in testing_dirs if directory.exists()}
    return {dataset_dir: class_names(dataset_dir), **testing}


def _find_skipped(directory: Path, names: Sequence[str]) -> dict[Path, str]:
    """Return unreadable augmented images, and files and folders that are not images, with the reason."""
    augmented = [class_folder(directory, name + AUGMENTED_SUFFIX) for name in names]
    skipped = find_unreadable([path for folder in augmented for path in image_files(folder)])
    for folder in (*(class_folder(directory, name) for name in names), *augmented):
        skipped |= skipped_files(folder)
    return skipped | skipped_beside(directory)


def _describe_range(paths: Mapping[Path, Sequence[Path]], dataset_dir: Path, white_level: int) -> Iterator[str]:
    """Describe 16-bit files that use a part of the range only, and folders that do not fit that part."""
    bits = white_level.bit_length()
    if white_level != WHITE:
        yield f"16-bit files of {dataset_dir} hold {bits}-bit values: {white_level} is white, not {WHITE}"
    for directory, files in paths.items():
        values = [highest for highest in find_highest(files) if highest]
        if above := sum(highest > white_level for highest in values):
            which = f"{above} of {len(values)} 16-bit files"
            yield f"{directory}: {which} have values above {white_level}, which become white"
        low = sum(white_level_of(highest) < white_level for highest in values)
        if low > _MOSTLY * len(values):
            yield f"{directory}: {low} of {len(values)} 16-bit files use less than {bits} bits: a different bit depth?"


def audit_command(dataset_dir: Path, testing_dirs: Sequence[Path], fix: bool = False) -> str:
    """Return the command that lists what `audit` finds, or moves it to `rejected/`."""
    return command(__file__, *["--fix"] * fix, "--dataset-dir", dataset_dir, "--testing-dir", *testing_dirs)


def fix(report: Report) -> int:
    """Move unreadable files and duplicates to `rejected/` in their folder, with a log; return their number.

    Images of low quality stay. Of linked images, the test image stays, otherwise the one with more pixels. Raises
    UserError, without moving anything, if more than half of a class would be moved for near-duplicates rather than for
    identical pixels.
    """
    for directory, counts in report.images.items():
        similar = [each.path for each in report.duplicates if each.path.parent.parent == directory and not each.exact]
        moved = Counter(canonical(path.parent.name) for path in similar)
        for name, count in counts.items():
            if moved[name] > count / 2:
                raise UserError(
                    f"{class_folder(directory, name)}: --fix would move {moved[name]} of its {count} images, which "
                    "resemble others; nothing was moved: look at the report, without --fix, and move them by hand"
                )
    reasons = {
        path: why
        for path, why in report.skipped.items()
        if path.is_file() and not path.is_symlink() and path.parent not in report.images  # only in class folders
    }
    reasons |= {each.path: f"{each.kind}: {_REASONS[each.link]} {each.of}" for each in report.duplicates}
    for directory in report.images:
        set_aside(directory, REJECTED, {path: why for path, why in reasons.items() if path.parent.parent == directory})
    return len(reasons)


def _find_duplicates(
    dataset_dir: Path, examined: Mapping[Path, Sequence[Examined]]
) -> tuple[list[Duplicate], list[str]]:
    """Find the leaks and duplicates, sorted by path; also return notes on dense classes.

    Which images count as near-duplicates depends on the images of their class, so the search is repeated without the
    duplicates found until there are no more.
    """
    duplicates, notes = _search_once(dataset_dir, examined)
    more = duplicates
    while more:
        moved = {duplicate.path for duplicate in duplicates}
        left = {folder: [image for image in images if image.path not in moved] for folder, images in examined.items()}
        more, _ = _search_once(dataset_dir, left)
        duplicates += more
    return sorted(duplicates, key=lambda duplicate: duplicate.path), notes


def _search_once(dataset_dir: Path, examined: Mapping[Path, Sequence[Examined]]) -> tuple[list[Duplicate], list[str]]:
    """Find the leaks and duplicates that follow from the links between images.

    A training image leaks if any test image is in its group, also a duplicate that `--fix` moves, since that is still
    tested on. Within a folder each image is kept that is not a near-duplicate of one kept before: a chain of links
    does not count, nor do crops of one photograph.
    """
    # Test folders first, and the largest images of each folder first: these are kept.
    folders = (*(folder for folder in examined if folder != dataset_dir), dataset_dir)
    by_size = (sorted(examined[folder], key=lambda i: (-i.size[0] * i.size[1], i.path)) for folder in folders)
    images = list(chain.from_iterable(by_size))
    found = find_dataset_links(images, dataset_dir, STORE)
    labels = _labels(images).tolist()
    paths = [image.path for image in images]
    folder = [path.parent.parent for path in paths]
    numbers = number_groups(len(images), found.links).tolist()
    tested: dict[int, int] = {}  # the first test image of a group
    for index, group in enumerate(numbers):
        if folder[index] != dataset_dir:
            tested.setdefault(group, index)
    neighbours: dict[int, list[tuple[int, str]]] = defaultdict(list)  # earlier images, the most closely linked first
    for link in sorted(found.links, key=lambda link: (list(_REASONS).index(link.kind), link.first)):
        neighbours[link.second].append((link.first, link.kind))

    duplicates = []
    moved: set[int] = set()
    for index, group in enumerate(numbers):
        leaks = folder[index] == dataset_dir and group in tested
        if leaks:
            direct = [(other, link) for other, link in neighbours[index] if folder[other] != dataset_dir]
            kept = direct or [(tested[group], _GROUP)]
        else:
            copies = [(other, link) for other, link in neighbours[index] if folder[other] == folder[index]]
            kept = [(other, link) for other, link in copies if link in _COPIES and other not in moved]
        if kept:
            other, link = kept[0]
            kind = LEAK if leaks else DUPLICATE if labels[index] == labels[other] else LABEL_CONFLICT
            duplicates.append(Duplicate(paths[index], paths[other], kind, link))
            moved.add(index)
    return duplicates, found.notes


def _labels(images: Sequence[Examined]) -> np.ndarray:
    return np.array([canonical(image.path.parent.name) for image in images])


def describe(report: Report) -> Iterator[str]:
    """Yield the lines that the program prints."""
    for directory, counts in report.images.items():
        yield f"{directory}: {list_counts(counts)}"
    yield f"unreadable files: {len(report.skipped)}"
    yield from (f"  {printable(path)}: {reason}" for path, reason in report.skipped.items())
    for kind, title in _TITLES.items():
        duplicates = [each for each in report.duplicates if each.kind == kind]
        yield f"{title}: {len(duplicates)}"
        yield from (f"  {printable(each.path)} {_REASONS[each.link]} {printable(each.of)}" for each in duplicates)
    yield from report.notes
    yield f"{_POOR}: {len(report.poor)}{' (review them: --fix does not move them)' if report.poor else ''}"
    yield from (f"  {printable(path)}: {', '.join(flaws)}" for path, flaws in report.poor.items())
    for usual in report.usual_flaws:
        count = f"{usual.count} of {usual.images} images"
        yield f"  {printable(usual.folder)}: {usual.flaw}: {count}, usual in this class, not listed"
    for directory, aspects in report.shift.items():
        yield f"shift of {directory}: {summarise_shift(aspects)}"
        if aspects:
            yield "  difference from training (in brackets: the largest between random parts of the training images)"
        for aspect in aspects:
            numbers = f"{aspect.distance:8.2f} ({aspect.random_parts:.2f}) {aspect.unit}"
            yield f"  {aspect.name:12}{numbers:36}{aspect.sentence if aspect.shifted else 'as in training'}"
    if report.clean:
        yield f"No problems found{', except images of low quality' if report.poor else ''}."


def summarise(report: Report) -> Iterator[str]:
    """Yield a few lines without file names."""
    found = [f"unreadable files: {len(report.skipped)}"]
    found += [f"{title}: {sum(each.kind == kind for each in report.duplicates)}" for kind, title in _TITLES.items()]
    found += [f"{_POOR}: {len(report.poor)}"]
    yield "; ".join(found)
    yield from report.notes
    for directory, aspects in report.shift.items():
        yield f"shift of {directory}: {summarise_shift(aspects)}"


def to_json(report: Report) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "clean": report.clean,
        "images": {str(directory): counts for directory, counts in report.images.items()},
        "unreadable": {str(path): reason for path, reason in report.skipped.items()},
        "twins": [
            {"path": str(each.path), "of": str(each.of), "kind": each.kind, "exact": each.exact, "link": each.link}
            for each in report.duplicates
        ],
        "poor": {str(path): flaws for path, flaws in report.poor.items()},
        "poor_as_a_rule": [{**usual._asdict(), "folder": str(usual.folder)} for usual in report.usual_flaws],
        "notes": report.notes,
        "shift": {
            str(directory): [{**asdict(aspect), "shifted": aspect.shifted} for aspect in aspects]
            for directory, aspects in report.shift.items()
        },
    }


def main() -> int:
    parser = ArgumentParser(
        description="Reports unreadable files, duplicates, train/test leakage, images of low quality and distribution "
        "shift. The exit status is 1 if anything except low quality is found, else 0."
    )
    parser.add_setting("--dataset-dir", Path("dataset"), "DIR", "training images, one folder per class")
    parser.add_argument(
        "--testing-dir", type=Path, nargs="*", default=[Path("dataset_testing")], metavar="DIR",
        help="folders of test images, or no value for none; folders that are empty or missing are skipped "
        "(default: dataset_testing)",
    )  # fmt: skip
    parser.add_argument(
        "--fix", action="store_true",
        help=f"move everything that is found, except images of low quality, to {REJECTED}/ in its folder, with a log; "
        "nothing is moved if a class would lose more than half of its images",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        if arguments.fix:
            for folder in filter(Path.is_dir, (arguments.dataset_dir, *arguments.testing_dir)):
                stack.enter_context(lock_dataset(folder))
                finish_moves(folder, REJECTED)
        report = audit(arguments.dataset_dir, arguments.testing_dir)
        for folder in arguments.testing_dir:
            if not folder.exists():
                print(f"note: there is no folder {printable(folder)}, so nothing is compared with it", file=sys.stderr)
        if arguments.json:
            print(json.dumps(to_json(report), indent=2))
        else:
            print(*describe(report), sep="\n")
        if arguments.fix and (moved := fix(report)):
            print(f"{pluralise(moved, 'file')} moved to {REJECTED}/", file=sys.stderr)
            if conflicts := sum(each.kind == LABEL_CONFLICT for each in report.duplicates):
                print(f"in two classes: {conflicts} of them; check which label is right", file=sys.stderr)
    return 0 if report.clean else 1


if __name__ == "__main__":
    run_program(main)
