"""Find the groups of images that must not be divided between training, validation and test.

Two images are linked if they have identical pixels, are near-duplicates, or were cropped from one photograph. An
augmented image is linked to its source, by class and stem; if several images have these, all of them are linked, since
it is unknown which one is the source. Groups are the connected components.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import pluralise
from dataset.duplicates import (
    Fingerprint,
    are_coarsely_alike,
    compare_closely,
    find_copies_in_dense_classes,
    find_near_duplicates,
    sort_by_content,
)
from dataset.examining import STORE, Examined, examine, examine_image
from dataset.folders import ImageFolder, canonical, stem_of
from dataset.parallel import on_all_cores
from dataset.reading import UnreadableImage
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows

_MOST_LINKS = 64  # size of a set of equal images up to which all its pairs are linked
_FEW = 8  # a class of fewer images may consist of near-duplicates
_MANY = 500  # images of a class above which coarse resemblance may be enough to call it dense
_SMALL = 50  # images of a dense class up to which it shares its mean with other classes
_SAMPLED = 20_000  # random pairs that are compared, divided between the classes
_DENSE = 0.1  # share of near-duplicates among random pairs, above which a class is dense
_LEAST_ALIKE = 3  # near-duplicates per image, on average, in a dense class
_CAUSES = ("fixed camera, symbols", "one background")
_MOST_NOTES = 5  # classes that are named


class LinkKind(StrEnum):
    """Why two images belong together."""

    PIXELS = "pixels"
    NEAR_DUPLICATE = "near-duplicate"
    PHOTOGRAPH = "photograph"
    AUGMENTED = "augmented"


class Link(NamedTuple):
    """The indices of two images that belong together, `first` below `second`, and why."""

    first: int
    second: int
    kind: LinkKind


class Links(NamedTuple):
    """The sorted links between some images, and one note per dense class; the last note counts further classes."""

    links: list[Link]
    notes: list[str]


class Groups(NamedTuple):
    """The groups of the images of several folders; a group may span folders."""

    numbers: tuple[np.ndarray, ...]  # for each folder the number of each image's group, (N,) int64
    notes: tuple[str, ...]  # as in `Links`


def find_links(
    images: Sequence[Examined],
    labels: Sequence[str],
    photographs: Sequence[Hashable | None] = (),
    stems: Sequence[Hashable | None] = (),
    store: Path | None = None,
) -> Links:
    """Find which images belong together.

    In most classes, near-duplicates belong together. A class is dense if its images resemble one another, for example
    because of a fixed camera or because they are symbols:

    - More than a tenth of random pairs of its images, or of pairs with images of other classes, are near-duplicates.
    - In a class of more than 500 images, it is enough that more than half of these pairs are coarsely alike.
    - A class of at least 8 images is dense if a chain of near-duplicates, possibly through other classes, contains
      more than half of it; smaller classes are dense if one chain contains several of them.

    In a dense class, two images belong together only if they are much more similar than is usual in that class. If
    such pairs still link a quarter of the class, only images with identical pixels belong together.

    Args:
        images: N images.
        labels: N class names.
        photographs: the source photograph of each image, None if unknown; may be empty.
        stems: equal for images from any of which an augmented image may have been made, None if unknown; may be empty.
        store: folder that keeps the results of close comparisons for later runs.
    """
    resembling, notes = _link_near_duplicates(images, labels, store)
    links = [*_link_equal([image.pixels for image in images], LinkKind.PIXELS), *resembling]
    links += [*_link_equal(photographs, LinkKind.PHOTOGRAPH), *_link_equal(stems, LinkKind.AUGMENTED)]
    return Links(sorted(links), notes)


def find_dataset_links(images: Sequence[Examined], training_dir: Path, store: Path | None) -> Links:
    """Find which original images of a training folder and of its test folders belong together, as `find_links` does."""
    folders = dict.fromkeys(image.path.parent.parent for image in images)
    tables = {folder: _read_tables(folder, training_dir) for folder in folders}
    labels, photographs, stems = [], [], []
    for image in images:
        folder, file = image.path.parent.parent, _file_key(image.path)
        photograph_by_file, moved = tables[folder]
        photographs.append(photograph_by_file.get(file))
        labels.append(canonical(image.path.parent.name))
        # An augmented image is named after the stem of its source, which may be any original image with that stem.
        from_training = folder == training_dir or file in moved
        stems.append((labels[-1], stem_of(image.path)) if from_training else None)
    return find_links(images, labels, photographs, stems, store)


def number_groups(count: int, links: Iterable[Sequence[Any]]) -> np.ndarray:
    """Number the groups of `count` images, (count,) int64, from 0 in the order of their first images.

    Each link begins with the indices of two images.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = _as_array([link[:2] for link in links])
    matrix = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, components = connected_components(matrix, directed=False)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def find_groups(folders: Sequence[ImageFolder], store: Path | None = STORE) -> Groups:
    """Find the groups of a training folder and of the test folders that belong to it.

    Only original images are examined. An augmented image is in the group of its source, by label and stem. Originals of
    one class with the same stem are in one group, since it is unknown which of them was augmented. Other unreadable
    images, and augmented images of unknown source, form groups of their own.

    Args:
        folders: the training folder, followed by the test folders.
        store: folder that keeps what is known of files between runs; None keeps nothing.
    """
    examined: dict[int, Examined] = {}
    labels: list[str] = []
    photographs: list[str | None] = []
    sources: list[Hashable | None] = []
    for number, folder in enumerate(folders):
        examined |= {len(labels) + index: image for index, image in _examine_originals(folder, store).items()}
        photograph_by_file, moved = _read_tables(folder.directory, folders[0].directory)
        for path, label, stem in zip(folder.paths, folder.labels.tolist(), folder.sources, strict=True):
            file = _file_key(path)
            labels.append(folder.classes[label])
            photographs.append(photograph_by_file.get(file))
            # Images that were moved to a test folder, and those made from them, may be in training.
            sources.append(stem and (0 if file in moved else number, labels[-1], stem))
    indices = list(examined)
    known_labels = [labels[index] for index in indices]
    known_photographs = [photographs[index] for index in indices]
    found = find_links(list(examined.values()), known_labels, known_photographs, store=store)
    links = [Link(indices[first], indices[second], kind) for first, second, kind in found.links]
    numbers = number_groups(len(labels), links + _link_equal(sources, LinkKind.AUGMENTED, 1))
    ends = np.cumsum([len(folder.paths) for folder in folders])
    return Groups(tuple(np.split(numbers, ends[:-1])), tuple(found.notes))


def _file_key(path: Path) -> str:
    """Return class and name of a file in normalised Unicode: tables and file systems may spell them differently."""
    return f"{canonical(path.parent.name)}/{unicodedata.normalize('NFC', path.name)}"


def _read_tables(directory: Path, training_dir: Path) -> tuple[dict[str, str], set[str]]:
    """Read the Open Images photographs that files of a folder were cut from, and which files were moved there.

    Files are named by `_file_key`; an .npz file has no tables. The photographs of files that were moved out of the
    training folder are in its table. UserError if a table is damaged.
    """
    rows = read_rows(directory / OPEN_IMAGES, ("file", "image_id"))
    photographs = {_file_key(Path(row["file"])): row["image_id"] for row in rows}
    rows = read_rows(directory / TESTING_BATCH, ("class", "file"))
    moved = {_file_key(Path(row["class"], row["file"])) for row in rows}
    if moved and directory != training_dir:
        in_training, _ = _read_tables(training_dir, training_dir)
        photographs |= {file: in_training[file] for file in moved & in_training.keys()}
    return photographs, moved


def _examine_originals(folder: ImageFolder, store: Path | None) -> dict[int, Examined]:
    """Examine the readable original images; the result is keyed by index, in ascending order."""

    def look(index: int) -> Examined | None:
        try:
            return examine_image(folder.paths[index], folder.read(index))
        except UnreadableImage:
            return None

    originals = np.flatnonzero(~folder.augmented).tolist()
    if folder.arrays is None and not folder.inverted[originals].any():
        readable, _ = examine([folder.paths[index] for index in originals], store, folder.white_level)
        by_path = {image.path: image for image in readable}
        images = [by_path.get(folder.paths[index]) for index in originals]
    else:
        images = on_all_cores(look, originals, "examining")
    return {index: image for index, image in zip(originals, images, strict=True) if image is not None}


def _link_equal(keys: Sequence[Hashable | None], kind: LinkKind, most: int = _MOST_LINKS) -> list[Link]:
    """Link images with equal keys: all pairs, or each image with the first if there are more than `most`."""
    same: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            same[key].append(index)
    links = []
    for members in same.values():
        pairs = combinations(members, 2) if len(members) <= most else product(members[:1], members[1:])
        links += [Link(first, second, kind) for first, second in pairs]
    return links


def _link_near_duplicates(
    images: Sequence[Examined], labels: Sequence[str], store: Path | None
) -> tuple[list[Link], list[str]]:
    """Link near-duplicates without identical pixels; also return notes on dense classes."""
    copies: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        copies[image.pixels, label].append(index)
    members = list(copies.values())  # the first image represents its copies
    fingerprints = [images[first].fingerprint for first, *_ in members]
    _, pixels = np.unique([digest.hex() for digest, _ in copies], return_inverse=True)
    names, classes = np.unique([label for _, label in copies], return_inverse=True)

    pairs, notes = _find_resembling(fingerprints, pixels, classes, store)
    links = []
    for first, second in pairs:
        if pixels[first] != pixels[second]:  # otherwise they are linked already
            many = len(members[first]) * len(members[second]) > _MOST_LINKS
            ends = (members[index][:1] if many else members[index] for index in (first, second))
            links += [Link(*sorted(pair), LinkKind.NEAR_DUPLICATE) for pair in product(*ends)]
    lines = [f"class {names[number]}: {note}" for number, note in sorted(notes.items())]
    if len(lines) > _MOST_NOTES:
        more = pluralise(len(lines) - _MOST_NOTES, "more class", "more classes")
        lines[_MOST_NOTES:] = [f"{more} whose images resemble one another"]
    return links, lines


def _find_resembling(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Find pairs of images that show the same photograph; also return notes on dense classes."""
    notes, dense, mixed = _find_dense(fingerprints, pixels, classes, store)
    others = np.flatnonzero(~dense[classes])
    found = find_near_duplicates([fingerprints[index] for index in others.tolist()], store)
    pairs = others[_as_array(found)]
    sizes = np.bincount(classes)
    chained, several = _find_classes_in_one_group(pairs, classes, sizes / 2)
    for number in np.flatnonzero(chained).tolist():
        notes[number] = (
            f"a chain of near-duplicates contains {chained[number]} of {sizes[number]} images (frames of one movement?)"
        )
    dense |= chained > 0
    mixed |= several
    pairs = pairs[~dense[classes[pairs]].any(axis=1)]
    # The mean of a few images is unreliable: small classes that resemble one another share one.
    merged = np.where((mixed & dense & (sizes < _SMALL))[classes], len(sizes), classes)
    copies = _as_array(find_copies_in_dense_classes(fingerprints, merged, np.unique(merged[dense[classes]]).tolist()))
    # Classes on one background may differ only in a small detail, or in colour, which grey thumbnails do not show.
    first, second = classes[copies].T
    pairs = np.concatenate([pairs, copies[(first == second) | ~(mixed[first] | mixed[second])]])
    chained, _ = _find_classes_in_one_group(pairs, classes, np.minimum(sizes / 2, np.maximum(20, sizes / 4)))
    only_identical = (chained > 0) & dense
    pairs = pairs[~only_identical[classes[pairs]].any(axis=1)]
    closer = " and much closer copies"
    return sorted(map(tuple, pairs.tolist())), {
        number: f"{note}: only identical pixels{'' if only_identical[number] else closer} count as duplicates"
        for number, note in notes.items()
    }


def _as_array(pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _find_dense(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    """Find dense classes by random pairs of their images with one another and with images of other classes.

    Returns:
        The measurement for each dense class; which classes are dense; which resemble other classes; both bool (C,).
    """
    samples = []
    for sample in _sample_pairs(fingerprints, pixels, classes):
        alike = list(map(tuple, sample.pairs[are_coarsely_alike(fingerprints, sample.pairs)].tolist()))
        # Comparing very many images closely would take hours: then coarse resemblance is enough.
        few = sample.others <= _MANY * (10 if sample.across else 1)
        samples.append((sample, alike, few or len(alike) <= len(sample.pairs) / 2))
    compared = [pair for _, alike, close in samples if close for pair in alike]
    same = dict(zip(compared, compare_closely(fingerprints, compared, store), strict=True))
    notes: dict[int, str] = {}
    dense, mixed = np.zeros((2, int(classes.max(initial=-1)) + 1), dtype=bool)
    for (number, others, across, pairs), alike, close in samples:
        share = (sum(same[pair] for pair in alike) if close else len(alike)) / len(pairs)
        if share > _DENSE and share * others > _LEAST_ALIKE:
            dense[number] = True
            mixed[number] |= across
            which = "with those of other classes " if across else ""
            how = "near-duplicates" if close else "coarsely alike"
            notes.setdefault(number, f"{share:.0%} of random pairs of its images {which}are {how} ({_CAUSES[across]}?)")
    return notes, dense, mixed


class _Sample(NamedTuple):
    """Random pairs of the images of a class with one another, or with images of other classes."""

    number: int  # of the class
    others: int  # images that each image of the class could be paired with
    across: bool  # whether these are of other classes
    pairs: np.ndarray  # (N, 2) indices


def _sample_pairs(fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray) -> Iterator[_Sample]:
    """Draw random pairs of images without identical pixels for each class, reproducibly."""
    order = sort_by_content(fingerprints, range(len(fingerprints)))
    ordered, count = classes[order], int(classes.max(initial=-1)) + 1
    most = min(max(_SAMPLED // max(2 * count, 1), 50), 200)
    for number in range(count):
        members = order[ordered == number]
        for across in (False, True):
            others = order[ordered != number] if across else members
            if across or len(members) >= _FEW:
                first, second = _draw_pairs(len(members), len(others) - (not across), most)
                if not across:
                    second += second >= first  # no image with itself
                pairs = np.stack([members[first], others[second]], axis=1)
                pairs = pairs[pixels[pairs[:, 0]] != pixels[pairs[:, 1]]]
                if len(pairs):
                    yield _Sample(number, len(others) - (not across), across, pairs)


def _draw_pairs(rows: int, columns: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows and columns of random cells of a table, without repetition and reproducibly."""
    cells = rows * columns
    chosen = np.arange(cells) if cells <= most else np.random.default_rng(0).choice(cells, most, replace=False)
    return np.divmod(chosen, max(columns, 1))


def _find_classes_in_one_group(
    pairs: np.ndarray, classes: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the classes of which one group, possibly linked through other classes, contains too many images.

    A group may contain a whole class of fewer than 8 images, unless it contains several classes.

    Args:
        pairs: (M, 2) indices of linked images.
        classes: (N,) the class of each image.
        limits: (C,) how many images of each class a group may contain.

    Returns:
        How many images of each class such a group contains, 0 if there is none, and whether it contains too many
        images of several classes, both (C,).
    """
    groups = number_groups(len(classes), pairs)
    (group, number), counts = np.unique(np.stack([groups, classes]), axis=1, return_counts=True)
    large = counts > limits[number]
    several = (np.bincount(group[large], minlength=len(groups) + 1)[group] > 1) & (np.bincount(groups)[group] >= _FEW)
    large &= (np.bincount(classes)[number] >= _FEW) | several
    contained = np.zeros(len(limits), dtype=np.int64)
    contained[number[large]] = counts[large]
    mixed = np.zeros(len(limits), dtype=bool)
    mixed[number[large & several]] = True
    return contained, mixed
