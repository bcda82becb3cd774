"""Finds what makes results wrong: unreadable files, duplicates, train/test leakage, poor images, distribution shift.

python src/dataset/audit.py --dataset-dir dataset --testing-dir dataset_testing --fix
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, command, list_counts, pluralise, printable, run_program
from dataset.examining import STORE, Examined, examine, find_highest, find_unreadable, find_white
from dataset.folders import (
    AUGMENTED,
    canonical,
    check_apart,
    check_known_classes,
    class_folder,
    class_names,
    image_files,
    own_class_names,
    passed_over,
    passed_over_beside,
)
from dataset.groups import AUGMENTED as SAME_STEM
from dataset.groups import (
    NEAR_DUPLICATE,
    PHOTOGRAPH,
    PIXELS,
    Links,
    file_key,
    find_links,
    find_stems,
    number_groups,
    read_photographs,
)
from dataset.moving import REJECTED, alone_in, finish_moves, set_aside
from dataset.quality import Rule, find_poor_images
from dataset.reading import WHITE, white_of
from dataset.shift import Aspect, in_short, measure_shift

LEAK, LABEL_CONFLICT, DUPLICATE = "leak", "label conflict", "duplicate"
_TITLES = {DUPLICATE: "duplicates within a class", LABEL_CONFLICT: "duplicates between classes", LEAK: "leaks"}
_GROUP = "group"  # the link of two images that are linked through others only
_REASONS = {
    PIXELS: "has the same pixels as",
    NEAR_DUPLICATE: "is a near-duplicate of",
    PHOTOGRAPH: "is cut from the same photograph as",
    SAME_STEM: "has the same class and stem as",
    _GROUP: "is linked through other images to",
}
_POOR = "images of low quality"
_MOSTLY = 0.9  # share of 16-bit files with fewer bits than training, above which a note is printed


@dataclass(frozen=True)
class Twin:
    """A duplicate or leaked image, and the image that it duplicates.

    Attributes:
        path: the image that `--fix` moves.
        of: the image that it keeps.
        kind: `LEAK` for a test image in training, `LABEL_CONFLICT` between classes, `DUPLICATE` within one.
        link: what links the two: a kind of `dataset.groups`, or "group" for a link through other images only.
    """

    path: Path
    of: Path
    kind: str
    link: str

    @property
    def exact(self) -> bool:
        """Whether both images have identical pixels."""
        return self.link == PIXELS


@dataclass(frozen=True)
class Report:
    """The findings of an audit.

    Attributes:
        images: number of readable images per folder and class.
        unreadable: everything else in the class folders and beside them, with the reason.
        twins: images that belong with another one, sorted by path.
        shift: the differences of each test folder from the training folder.
        poor: images of low quality, with their flaws.
        rules: flaws that are usual in a class; `poor` does not list them.
        notes: on 16-bit files with fewer bits, and on classes in which near-duplicates are usual.
    """

    images: dict[Path, dict[str, int]]
    unreadable: dict[Path, str]
    twins: list[Twin]
    shift: dict[Path, list[Aspect]]
    poor: dict[Path, list[str]]
    rules: list[Rule]
    notes: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> list[Twin]:
        return [twin for twin in self.twins if twin.kind == LEAK]

    @property
    def clean(self) -> bool:
        """Whether nothing was found; images of low quality do not count, since a person has to judge them."""
        shifted = any(aspect.shifted for aspects in self.shift.values() for aspect in aspects)
        return not (self.unreadable or self.twins or shifted)


def audit(dataset_dir: Path, testing_dirs: Sequence[Path]) -> Report:
    """Examine a training folder and its test folders without changing them.

    Augmented images are only checked for readability. Which images count as near-duplicates depends on the images of
    their class, so the search is repeated without the twins found until there are no more.

    Args:
        dataset_dir: one folder per class.
        testing_dirs: may lack classes and images, or not exist.

    Raises:
        UserError: the training folder is missing or has fewer than two classes or no images; folders overlap; a test
            folder has a class that training lacks; or a table of source photographs is damaged.
    """
    check_apart([dataset_dir, *testing_dirs])
    for directory in testing_dirs:
        remedy = "name the folder that belongs to it with --testing-dir (without a value: compare with none)"
        check_known_classes(dataset_dir, directory, remedy)
    classes = {directory: own_class_names(directory) for directory in testing_dirs if directory.exists()}
    classes[dataset_dir] = class_names(dataset_dir)
    of_class = {
        directory: [path for name in names for path in image_files(class_folder(directory, name))]
        for directory, names in classes.items()
    }
    white = find_white(of_class[dataset_dir])
    unreadable: dict[Path, str] = {}
    examined: dict[Path, list[Examined]] = {}
    for directory, names in classes.items():
        found, bad = examine(of_class[directory], white=white)
        if directory == dataset_dir and not found and not bad:
            raise UserError(f"{directory} has no images in its sub-folders {', '.join(names)}")
        made = [class_folder(directory, name + AUGMENTED) for name in names]
        bad |= find_unreadable([path for folder in made for path in image_files(folder)])
        for folder in (*(class_folder(directory, name) for name in names), *made):
            bad |= passed_over(folder)
        bad |= passed_over_beside(directory)
        if found or bad:
            examined[directory] = found
        unreadable |= bad
    poor, rules = find_poor_images([image for images in reversed(examined.values()) for image in images])
    links, twins = _find_twins(dataset_dir, examined)
    more = twins
    while more:
        moved = {twin.path for twin in twins}
        left = {place: [image for image in images if image.path not in moved] for place, images in examined.items()}
        _, more = _find_twins(dataset_dir, left)
        twins += more
    labels = {directory: _labels(images) for directory, images in examined.items()}
    counts = {directory: Counter(labels[directory].tolist()) for directory in reversed(examined)}
    training = examined.pop(dataset_dir)
    return Report(
        images={directory: {name: count[name] for name in classes[directory]} for directory, count in counts.items()},
        unreadable=dict(sorted(unreadable.items())),
        twins=sorted(twins, key=lambda twin: twin.path),
        shift={
            directory: measure_shift(training, labels[dataset_dir], images, labels[directory])
            for directory, images in examined.items()
        },
        poor=poor,
        rules=rules,
        notes=[*_describe_range(of_class, dataset_dir, white), *links.notes],
    )


def _describe_range(of_class: Mapping[Path, Sequence[Path]], dataset_dir: Path, white: int) -> Iterator[str]:
    """Describe 16-bit files that use a part of the range only, and folders that do not fit that part."""
    bits = white.bit_length()
    if white != WHITE:
        yield f"16-bit files of {dataset_dir} hold {bits}-bit values: {white} is white, not {WHITE}"
    for directory, paths in of_class.items():
        values = [highest for highest in find_highest(paths) if highest]
        if above := sum(highest > white for highest in values):
            yield f"{directory}: {above} of {len(values)} 16-bit files have values above {white}, which become white"
        low = sum(white_of(highest) < white for highest in values)
        if low > _MOSTLY * len(values):
            yield f"{directory}: {low} of {len(values)} 16-bit files use less than {bits} bits: a different bit depth?"


def fix_command(dataset_dir: Path, testing_dirs: Sequence[Path]) -> str:
    """Return the command that moves what `audit` finds out of training."""
    return command(__file__, "--fix", "--dataset-dir", dataset_dir, "--testing-dir", *testing_dirs)


def fix(report: Report) -> int:
    """Move unreadable files and twins to `rejected/` in their folder, with a log; return their number.

    Images of low quality stay. Of linked images, the test image stays, otherwise the one with more pixels. Raises
    UserError, without moving anything, if more than half of a class would be moved for near-duplicates rather than for
    identical pixels.
    """
    for directory, counts in report.images.items():
        similar = [twin.path for twin in report.twins if directory in twin.path.parents and not twin.exact]
        moved = Counter(canonical(path.parent.name) for path in similar)
        for name, count in counts.items():
            if moved[name] > count / 2:
                raise UserError(
                    f"{class_folder(directory, name)}: --fix would move {moved[name]} of its {count} images, which "
                    "resemble others; nothing was moved: look at the report, without --fix, and move them by hand"
                )
    reasons = {
        path: why
        for path, why in report.unreadable.items()
        if path.is_file() and not path.is_symlink() and path.parent not in report.images  # only in class folders
    }
    reasons |= {twin.path: f"{twin.kind}: {_REASONS[twin.link]} {twin.of}" for twin in report.twins}
    for directory in report.images:
        set_aside(directory, REJECTED, {path: why for path, why in reasons.items() if directory in path.parents})
    return len(reasons)


def _link(dataset_dir: Path, examined: Mapping[Path, Sequence[Examined]]) -> tuple[list[Examined], Links]:
    """Return all images, test folders first and each folder's largest images first, and the links between them."""
    images: list[Examined] = []
    photographs: list[str | None] = []
    stems: list[tuple[str, str] | None] = []
    for directory, members in examined.items():
        known = read_photographs(directory, dataset_dir)
        ordered = sorted(members, key=lambda image: (-image.size[0] * image.size[1], image.path))
        photographs += [known.get(file_key(image.path)) for image in ordered]
        stems += find_stems([image.path for image in ordered], directory, dataset_dir)
        images += ordered
    return images, find_links(images, _labels(images).tolist(), photographs, stems, STORE)


def _find_twins(dataset_dir: Path, examined: Mapping[Path, Sequence[Examined]]) -> tuple[Links, list[Twin]]:
    """Find the links between images, and the leaks and duplicates that follow from them.

    A training image leaks if any test image is in its group, also a duplicate that `--fix` moves, since that is still
    tested on. Within a folder each image is kept that is not a near-duplicate of one kept before: a chain of links
    does not count, nor do crops of one photograph.
    """
    images, found = _link(dataset_dir, examined)
    labels = _labels(images).tolist()
    paths = [image.path for image in images]
    folder = [path.parent.parent for path in paths]
    groups = number_groups(len(images), found.links).tolist()
    tested: dict[int, int] = {}
    for place, group in enumerate(groups):
        if folder[place] != dataset_dir:
            tested.setdefault(group, place)
    neighbours: dict[int, list[tuple[int, str]]] = {}
    for first, second, kind in found.links:
        neighbours.setdefault(second, []).append((first, kind))

    twins = []
    moved: set[int] = set()
    for place, group in enumerate(groups):
        near = sorted(neighbours.get(place, ()), key=lambda link: (list(_REASONS).index(link[1]), link[0]))
        if folder[place] == dataset_dir and group in tested:
            direct = [(other, kind) for other, kind in near if folder[other] != dataset_dir]
            other, link = direct[0] if direct else (tested[group], _GROUP)
            twins.append(Twin(paths[place], paths[other], LEAK, link))
            continue
        for other, link in near:
            if link in (PIXELS, NEAR_DUPLICATE) and folder[place] == folder[other] and other not in moved:
                kind = DUPLICATE if labels[place] == labels[other] else LABEL_CONFLICT
                twins.append(Twin(paths[place], paths[other], kind, link))
                moved.add(place)
                break
    return found, twins


def _labels(images: Sequence[Examined]) -> np.ndarray:
    return np.array([canonical(image.path.parent.name) for image in images])


def describe(report: Report) -> Iterator[str]:
    """Yield the lines that the program prints."""
    for directory, counts in report.images.items():
        yield f"{directory}: {list_counts(counts)}"
    yield f"unreadable files: {len(report.unreadable)}"
    yield from (f"  {printable(path)}: {reason}" for path, reason in report.unreadable.items())
    for kind, title in _TITLES.items():
        twins = [twin for twin in report.twins if twin.kind == kind]
        yield f"{title}: {len(twins)}"
        yield from (f"  {printable(twin.path)} {_REASONS[twin.link]} {printable(twin.of)}" for twin in twins)
    yield from report.notes
    yield f"{_POOR}: {len(report.poor)}{' (review them: --fix does not move them)' if report.poor else ''}"
    yield from (f"  {printable(path)}: {', '.join(flaws)}" for path, flaws in report.poor.items())
    for rule in report.rules:
        count = f"{rule.count} of {rule.images} images"
        yield f"  {printable(rule.folder)}: {rule.flaw}: {count}, usual in this class, not listed"
    for directory, aspects in report.shift.items():
        yield f"shift of {directory} (in brackets: the largest difference between random parts of the training images)"
        for aspect in aspects:
            numbers = f"{aspect.distance:8.2f} ({aspect.random_parts:.2f}) {aspect.unit}"
            yield f"  {aspect.name:12}{numbers:36}{aspect.sentence if aspect.shifted else 'as in training'}"
        yield f"  In short: {in_short(aspects)}."


def summarise(report: Report) -> Iterator[str]:
    """Yield a few lines without file names."""
    found = [f"unreadable files: {len(report.unreadable)}"]
    found += [f"{title}: {sum(twin.kind == kind for twin in report.twins)}" for kind, title in _TITLES.items()]
    found += [f"{_POOR}: {len(report.poor)}"]
    yield "; ".join(found)
    yield from report.notes
    for directory, aspects in report.shift.items():
        yield f"shift of {directory}: {in_short(aspects)}"


def to_json(report: Report) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "clean": report.clean,
        "images": {str(directory): counts for directory, counts in report.images.items()},
        "unreadable": {str(path): reason for path, reason in report.unreadable.items()},
        "twins": [
            {"path": str(twin.path), "of": str(twin.of), "kind": twin.kind, "exact": twin.exact, "link": twin.link}
            for twin in report.twins
        ],
        "poor": {str(path): flaws for path, flaws in report.poor.items()},
        "poor_as_a_rule": [{**rule._asdict(), "folder": str(rule.folder)} for rule in report.rules],
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
    parser.add_argument(
        "--dataset-dir", type=Path, default=Path("dataset"), metavar="DIR",
        help="training images, one folder per class (default: %(default)s)",
    )  # fmt: skip
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
                stack.enter_context(alone_in(folder))
                finish_moves(folder, REJECTED)
        report = audit(arguments.dataset_dir, arguments.testing_dir)
        for folder in arguments.testing_dir:
            if not folder.exists():
                print(f"note: there is no folder {printable(folder)}, nothing is compared with it", file=sys.stderr)
        if arguments.json:
            print(json.dumps(to_json(report), indent=2))
        else:
            print(*describe(report), sep="\n")
        if arguments.fix and (moved := fix(report)):
            print(f"{pluralise(moved, 'file')} moved to {REJECTED}/", file=sys.stderr)
            if conflicts := sum(twin.kind == LABEL_CONFLICT for twin in report.twins):
                print(f"{conflicts} of them are in two classes: check which label is right", file=sys.stderr)
    return 0 if report.clean else 1


if __name__ == "__main__":
    run_program(main)
