"""The groups of images that must not be divided between training, validation and test.

Two images are in one group if they have identical pixels, are near-duplicates, were cut from one source photograph, or
one was made from the other; or if both are in a group with a third.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.duplicates import (
    Fingerprint,
    compare_closely,
    find_candidates,
    find_near_duplicates,
    find_outstanding_pairs,
    in_order_of_content,
)
from dataset.examining import STORE, Examined, examine, examine_image, on_all_cores
from dataset.folders import ImageFolder
from dataset.reading import UnreadableImage
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows

PIXELS, NEAR_DUPLICATE, PHOTOGRAPH, AUGMENTED = "pixels", "near-duplicate", "photograph", "augmented"
_SAMPLE = 64  # images of a class by which it is judged before all of it is compared
_ROUND = 128  # pairs of a class that are compared before it is judged again
_MOST_LINKS = 64  # members of a set of equal images up to which each is linked with each
_FEW = 8  # a class of fewer images is never dense
_MANY = 500  # images of a class above which not all that are only coarsely alike are compared closely
_RESEMBLING = "nearly all images resemble one another (fixed camera, symbols): only identical pixels"
_CLOSE = f"{_RESEMBLING} and copies far closer than the class's own images count as duplicates"
_IDENTICAL = f"{_RESEMBLING} count as duplicates"


class Link(NamedTuple):
    """Two images, by their places, that belong together.

    Attributes:
        first: a place.
        second: a larger one.
        kind: `PIXELS`, `NEAR_DUPLICATE`, `PHOTOGRAPH` or `AUGMENTED`.
    """

    first: int
    second: int
    kind: str


@dataclass(frozen=True)
class Links:
    """What holds images together.

    Attributes:
        links: sorted by place.
        notes: a line per class in which resemblance alone does not count.
    """

    links: list[Link]
    notes: list[str]


@dataclass(frozen=True)
class Groups:
    """The groups of the images of several folders.

    Attributes:
        numbers: for each folder an array (N,) int64, the number of each image's group. Images of two folders that have
            the same number are in one group.
        notes: a line per class in which resemblance alone does not count.
    """

    numbers: tuple[np.ndarray, ...]
    notes: tuple[str, ...]


def find_links(
    images: Sequence[Examined], labels: Sequence[str], photographs: Sequence[Hashable | None] | None = None
) -> Links:
    """Finds which images belong together.

    In most classes near-duplicates do. A class is dense if a set of near-duplicates holds more than a tenth of it and
    more than ten images, or more than half of it, or if it has more than 500 images and most of them are coarsely
    alike: all its images resemble one another, and near-duplicates mean nothing. There only copies count that are far
    closer than the class's own images; if a group of these holds a quarter of the class, only identical pixels do.

    Args:
        images: N images.
        labels: N names of classes.
        photographs: the source photograph of each, None where it is not known; None if none is.
    """
    resembling, notes = _link_near_duplicates(images, labels)
    links = [*_link_equal([image.pixels for image in images], PIXELS), *resembling]
    if photographs is not None:
        links += _link_equal(photographs, PHOTOGRAPH)
    return Links(sorted(links), notes)


def number_groups(count: int, links: Iterable[tuple[int, int, str]]) -> np.ndarray:
    """The number of each image's group, (count,) int64, from 0 on in the order of the groups' first images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array([link[:2] for link in links], dtype=np.int64).reshape(-1, 2)
    matrix = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, components = connected_components(matrix, directed=False)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def find_groups(folders: Sequence[ImageFolder], store: Path | None = STORE) -> Groups:
    """Finds the groups of a training folder and of the test folders that belong to it.

    Only originals are examined. An augmented image is in the group of its source, by label and stem; if several
    originals of the class have that stem, all are in one group. An image that cannot be read is in a group of its own,
    as is an augmented one whose source is not known.

    Args:
        folders: the training folder, followed by the test folders.
        store: where what is known of files is kept between runs; None keeps nothing.
    """
    starts = np.cumsum([0, *(len(folder.paths) for folder in folders)])
    examined: dict[int, Examined] = {}
    for start, folder in zip(starts.tolist(), folders, strict=False):
        examined |= {start + place: image for place, image in _examine_originals(folder, store).items()}
    places = sorted(examined)
    labels = [folder.classes[label] for folder in folders for label in folder.labels.tolist()]
    photographs = [photograph for folder in folders for photograph in find_photographs(folder, folders[0].directory)]
    found = find_links(
        [examined[place] for place in places],
        [labels[place] for place in places],
        [photographs[place] for place in places],
    )
    links = [Link(places[first], places[second], kind) for first, second, kind in found.links]
    links += _link_augmented(folders, starts.tolist())
    numbers = number_groups(int(starts[-1]), links)
    return Groups(tuple(np.split(numbers, starts[1:-1])), tuple(found.notes))


def find_photographs(folder: ImageFolder, training_dir: Path) -> list[str | None]:
    """The source photograph of each image, as far as a table tells it; None for augmented images."""
    known = read_photographs(folder.directory, training_dir)
    return [
        None if augmented else known.get(f"{path.parent.name}/{path.name}")
        for path, augmented in zip(folder.paths, folder.augmented.tolist(), strict=True)
    ]


def read_photographs(directory: Path, training_dir: Path) -> dict[str, str]:
    """The source photographs of the patches of Open Images in a folder, by `<class>/<file>`.

    Test images that were moved out of the training folder are found in its table.

    Raises:
        UserError: a table is damaged.
    """
    known = _read_table(directory)
    if moved := _read_moved(directory):
        of_training = _read_table(training_dir)
        known |= {file: of_training[file] for file in moved if file in of_training}
    return known


def _read_table(directory: Path) -> dict[str, str]:
    return {row["file"]: row["image_id"] for row in _read_rows(directory / OPEN_IMAGES, ("file", "image_id"))}


def _read_moved(directory: Path) -> list[str]:
    """The files, as `<class>/<file>`, that were moved to a test folder out of the training folder."""
    rows = _read_rows(directory / TESTING_BATCH, ("class", "file"))
    return [f"{row['class']}/{row['file']}" for row in rows]


def _read_rows(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    return read_rows(table, columns) if table.parent.is_dir() else []  # beside an .npz file there is none


def _examine_originals(folder: ImageFolder, store: Path | None) -> dict[int, Examined]:
    """The original images that can be read, by their places."""
    originals = np.flatnonzero(~folder.augmented).tolist()
    if folder.arrays is None and not folder.inverted[originals].any():
        found, _ = examine([folder.paths[place] for place in originals], store)
        by_path = {image.path: image for image in found}
        return {place: by_path[folder.paths[place]] for place in originals if folder.paths[place] in by_path}

    def look(place: int) -> Examined | None:
        try:
            return examine_image(folder.paths[place], folder.read(place))
        except UnreadableImage:
            return None

    images = zip(originals, on_all_cores(look, originals, "examining"), strict=True)
    return {place: image for place, image in images if image is not None}


def _link_augmented(folders: Sequence[ImageFolder], starts: Sequence[int]) -> list[Link]:
    """Links augmented images with their sources, also with those that were moved to a test folder."""
    links = []
    moved = [set(_read_moved(folder.directory)) for folder in folders]
    originals: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    made: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for number, (start, folder) in enumerate(zip(starts, folders, strict=False)):
        for place, (label, source) in enumerate(zip(folder.labels.tolist(), folder.sources, strict=True)):
            if source is None:
                continue
            name, path = folder.classes[label], folder.paths[place]
            if folder.augmented[place]:
                made[number, name, source].append(start + place)
                continue
            originals[number, name, source].append(start + place)
            if number and f"{path.parent.name}/{path.name}" in moved[number]:
                originals[0, name, source].append(start + place)
    for key, places in made.items():
        first = places[0]
        related = {*places[1:], *originals[key]}
        links += [Link(min(first, other), max(first, other), AUGMENTED) for other in related]
    return links


def _link_equal(keys: Sequence[Hashable | None], kind: str) -> list[Link]:
    """Links the places that have the same key: each with each, or each with the first where they are many."""
    same: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            same[key].append(place)
    links = []
    for places in same.values():
        pairs = combinations(places, 2) if len(places) <= _MOST_LINKS else product(places[:1], places[1:])
        links += [Link(first, second, kind) for first, second in pairs]
    return links


def _link_near_duplicates(images: Sequence[Examined], labels: Sequence[str]) -> tuple[list[Link], list[str]]:
    """Links near-duplicates that do not have identical pixels, and tells in which classes these mean nothing."""
    copies: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        copies[image.pixels, label].append(place)
    members = list(copies.values())  # one image of each stands for all
    pixels = [images[places[0]].pixels for places in members]
    fingerprints = [images[places[0]].fingerprint for places in members]
    names = sorted({label for _, label in copies})
    numbers = {name: number for number, name in enumerate(names)}
    classes = np.array([numbers[label] for _, label in copies], dtype=np.int64)

    pairs, notes = _find_resembling(fingerprints, classes)
    links = []
    for first, second in pairs:
        if pixels[first] != pixels[second]:  # else they are linked already
            linked = list(product(members[first], members[second]))
            for one, other in linked if len(linked) <= _MOST_LINKS else linked[:1]:
                links.append(Link(min(one, other), max(one, other), NEAR_DUPLICATE))
    return links, [f"{names[number]}: {note}" for number, note in sorted(notes.items())]


def _find_resembling(
    fingerprints: Sequence[Fingerprint], classes: np.ndarray
) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Pairs of images that show the same, and what to note of the dense classes."""
    dense = _find_dense(fingerprints, classes)
    others = [place for place, number in enumerate(classes.tolist()) if number not in dense]
    found = find_near_duplicates([fingerprints[place] for place in others])
    pairs = [(others[first], others[second]) for first, second in found]
    dense |= _find_swallowed(pairs, classes, _is_rule)
    kept = [pair for pair in pairs if dense.isdisjoint(classes[list(pair)].tolist())]
    outstanding = find_outstanding_pairs(fingerprints, classes, sorted(dense)) if dense else []
    hopeless = _find_swallowed(outstanding, classes, _holds_class)
    kept += [pair for pair in outstanding if hopeless.isdisjoint(classes[list(pair)].tolist())]
    return sorted(kept), {number: _IDENTICAL if number in hopeless else _CLOSE for number in dense}


def _find_dense(fingerprints: Sequence[Fingerprint], classes: np.ndarray) -> set[int]:
    """The classes that a sample of each shows to be dense; it costs little, whatever their size.

    A large class is dense also if most of the sample is coarsely alike: comparing all of it closely would take hours.
    """
    dense: set[int] = set()
    pending: dict[int, list[tuple[int, int]]] = {}
    sampled: dict[int, int] = {}
    for number in np.unique(classes).tolist():
        members = np.flatnonzero(classes == number).tolist()
        if len(members) >= _FEW:
            sample = in_order_of_content(fingerprints, members)[:_SAMPLE]
            candidates = find_candidates([fingerprints[place] for place in sample])
            candidates = [candidates[place] for place in np.random.default_rng(0).permutation(len(candidates))]
            if len(members) > _MANY and _largest_group(candidates) > len(sample) / 2:
                dense.add(number)
                continue
            pending[number] = [(int(sample[first]), int(sample[second])) for first, second in candidates]
            sampled[number] = len(sample)
    alike: dict[int, list[tuple[int, int]]] = defaultdict(list)
    while pending:
        compared = {number: pairs[:_ROUND] for number, pairs in pending.items()}
        flat = [pair for pairs in compared.values() for pair in pairs]
        same = iter(compare_closely(fingerprints, flat))
        for number, pairs in compared.items():
            alike[number] += [pair for pair in pairs if next(same)]
            if _is_rule(_largest_group(alike[number]), sampled[number]):
                dense.add(number)
        pending = {n: pairs[_ROUND:] for n, pairs in pending.items() if len(pairs) > _ROUND and n not in dense}
    return dense


def _find_swallowed(
    pairs: Sequence[tuple[int, int]], classes: np.ndarray, is_much: Callable[[int, int], bool]
) -> set[int]:
    """The classes of which one group, formed by pairs within the class, holds much."""
    within: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, second in pairs:
        if classes[first] == classes[second]:
            within[int(classes[first])].append((first, second))
    counts = np.bincount(classes)
    return {number for number, found in within.items() if is_much(_largest_group(found), int(counts[number]))}


def _largest_group(pairs: Sequence[tuple[int, int]]) -> int:
    if not pairs:
        return 0
    places, ends = np.unique(np.array(pairs), return_inverse=True)
    return int(np.bincount(number_groups(len(places), [(*pair, "") for pair in ends.reshape(-1, 2)])).max())


def _is_rule(size: int, count: int) -> bool:
    """Whether a group of this size, in a class of so many images, is so large that resemblance is the rule there."""
    return size > max(10, count / 10) or (count >= _FEW and size > count / 2)


def _holds_class(size: int, count: int) -> bool:
    """Whether a group of copies that are far closer than usual is too large to be one of copies."""
    return size > max(20, count / 4)
