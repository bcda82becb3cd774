"""Find the groups of images that must not be divided between training, validation and test.

Two images are linked if they have identical pixels, are near-duplicates, were cropped from one source photograph, if
one was made from the other, or if a third may have been made from either. Groups are the connected components.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.duplicates import (
    Fingerprint,
    are_coarsely_alike,
    compare_closely,
    find_near_duplicates,
    find_outstanding_pairs,
    in_order_of_content,
)
from dataset.examining import STORE, Examined, examine, examine_image
from dataset.folders import ImageFolder, canonical, stem_of
from dataset.parallel import on_all_cores
from dataset.reading import UnreadableImage
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows

PIXELS, NEAR_DUPLICATE, PHOTOGRAPH, AUGMENTED = "pixels", "near-duplicate", "photograph", "augmented"
_MOST_LINKS = 64  # size of a set of equal images up to which all its pairs are linked
_FEW = 8  # a class of fewer images may consist of near-duplicates
_MANY = 500  # images of a class above which coarse resemblance may be enough to call it dense
_SMALL = 50  # images of a dense class up to which it shares its mean with other classes
_SAMPLED = 20_000  # random pairs that are compared, divided between the classes
_RULE = 0.1  # share of random pairs above which a class is dense
_LEAST_ALIKE = 3  # near-duplicates per image, on average, in a dense class
_CAUSES = ("fixed camera, symbols", "one background")
_MOST_NOTES = 5  # classes that are named


class Link(NamedTuple):
    """Two places, `first` below `second`, of images that belong together, and the kind of the link."""

    first: int
    second: int
    kind: str


@dataclass(frozen=True)
class Links:
    """The sorted links between some images, and one note per dense class; the last note counts further classes."""

    links: list[Link]
    notes: list[str]


@dataclass(frozen=True)
class Groups:
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
        stems: keys by `find_stems`, equal for images from any of which an augmented image may have been made; may be
            empty.
        store: folder that keeps the results of close comparisons for later runs.
    """
    resembling, notes = _link_near_duplicates(images, labels, store)
    links = [*_link_equal([image.pixels for image in images], PIXELS), *resembling]
    links += [*_link_equal(photographs, PHOTOGRAPH), *_link_equal(stems, AUGMENTED)]
    return Links(sorted(links), notes)


def number_groups(count: int, links: Iterable[tuple[int, int, str]]) -> np.ndarray:
    """Number the groups of `count` images, (count,) int64, from 0 in the order of their first images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array([link[:2] for link in links], dtype=np.int64).reshape(-1, 2)
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
        examined |= {len(labels) + place: image for place, image in _examine_originals(folder, store).items()}
        known = read_photographs(folder.directory, folders[0].directory)
        photographs += [known.get(file_key(path)) for path in folder.paths]
        sources += _find_sources(folder, number)
        labels += [folder.classes[label] for label in folder.labels.tolist()]
    places = sorted(examined)
    columns = ([column[place] for place in places] for column in (examined, labels, photographs))
    found = find_links(*columns, store=store)
    links = [Link(places[first], places[second], kind) for first, second, kind in found.links]
    numbers = number_groups(len(labels), links + _link_equal(sources, AUGMENTED, 1))
    ends = np.cumsum([len(folder.paths) for folder in folders])
    return Groups(tuple(np.split(numbers, ends[:-1])), tuple(found.notes))


def find_stems(paths: Sequence[Path], directory: Path, training_dir: Path) -> list[tuple[str, str] | None]:
    """Return class and stem of each image in the training folder, or moved out of it; None for other test images.

    An augmented image is named after the stem of its source, and may be made from any original with that stem.
    """
    moved = None if directory == training_dir else set(_read_moved(directory))
    return [
        (canonical(path.parent.name), stem_of(path)) if moved is None or file_key(path) in moved else None
        for path in paths
    ]


def file_key(path: Path) -> str:
    """Return class and name of a file in normalised Unicode: tables and file systems may spell them differently."""
    return f"{canonical(path.parent.name)}/{unicodedata.normalize('NFC', path.name)}"


def read_photographs(directory: Path, training_dir: Path) -> dict[str, str]:
    """Read the source photographs of the Open Images patches in a folder, by `file_key`.

    Those of test images that were moved out of the training folder are in its table.

    Raises:
        UserError: a table is damaged.
    """
    known = _read_table(directory)
    if moved := _read_moved(directory):
        of_training = _read_table(training_dir)
        known |= {file: of_training[file] for file in moved if file in of_training}
    return known


def _read_table(directory: Path) -> dict[str, str]:
    rows = _read_rows(directory / OPEN_IMAGES, ("file", "image_id"))
    return {file_key(Path(row["file"])): row["image_id"] for row in rows}


def _read_moved(directory: Path) -> list[str]:
    """Read the `file_key` of each file that was moved from the training folder to this test folder."""
    rows = _read_rows(directory / TESTING_BATCH, ("class", "file"))
    return [file_key(Path(row["class"], row["file"])) for row in rows]


def _read_rows(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    return read_rows(table, columns) if table.parent.is_dir() else []  # an .npz file has no tables


def _examine_originals(folder: ImageFolder, store: Path | None) -> dict[int, Examined]:
    """Examine the readable original images; the result is keyed by place."""
    originals = np.flatnonzero(~folder.augmented).tolist()
    if folder.arrays is None and not folder.inverted[originals].any():
        found, _ = examine([folder.paths[place] for place in originals], store, folder.white_level)
        by_path = {image.path: image for image in found}
        return {place: by_path[folder.paths[place]] for place in originals if folder.paths[place] in by_path}

    def look(place: int) -> Examined | None:
        try:
            return examine_image(folder.paths[place], folder.read(place))
        except UnreadableImage:
            return None

    images = on_all_cores(look, originals, "examining")
    return {place: image for place, image in zip(originals, images, strict=True) if image is not None}


def _find_sources(folder: ImageFolder, number: int) -> list[Hashable | None]:
    """Return for each image of the n-th folder a key that it shares with the images made from it; None if unknown."""
    moved = set(_read_moved(folder.directory)) if number else set()
    return [
        source and (number * (file_key(path) not in moved), folder.classes[label], source)
        for path, label, source in zip(folder.paths, folder.labels.tolist(), folder.sources, strict=True)
    ]


def _link_equal(keys: Sequence[Hashable | None], kind: str, most: int = _MOST_LINKS) -> list[Link]:
    """Link the places with equal keys: all pairs, or each place with the first if there are more than `most`."""
    same: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            same[key].append(place)
    links = []
    for places in same.values():
        pairs = combinations(places, 2) if len(places) <= most else product(places[:1], places[1:])
        links += [Link(first, second, kind) for first, second in pairs]
    return links


def _link_near_duplicates(
    images: Sequence[Examined], labels: Sequence[str], store: Path | None
) -> tuple[list[Link], list[str]]:
    """Link near-duplicates without identical pixels; also return notes on dense classes."""
    copies: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        copies[image.pixels, label].append(place)
    members = list(copies.values())  # the first image represents its copies
    fingerprints = [images[places[0]].fingerprint for places in members]
    _, pixels = np.unique([images[places[0]].pixels.hex() for places in members], return_inverse=True)
    names, classes = np.unique([label for _, label in copies], return_inverse=True)

    pairs, notes = _find_resembling(fingerprints, pixels, classes, store)
    links = []
    for first, second in pairs:
        if pixels[first] != pixels[second]:  # otherwise they are linked already
            many = len(members[first]) * len(members[second]) > _MOST_LINKS
            ends = (members[place][:1] if many else members[place] for place in (first, second))
            links += [Link(*sorted(pair), NEAR_DUPLICATE) for pair in product(*ends)]
    lines = [f"{names[number]}: {note}" for number, note in sorted(notes.items())]
    if len(lines) > _MOST_NOTES:
        lines[_MOST_NOTES:] = [f"{len(lines) - _MOST_NOTES} more classes whose images resemble one another"]
    return links, lines


def _find_resembling(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Find pairs of images that show the same photograph; also return notes on dense classes."""
    notes, dense, mixed = _find_dense(fingerprints, pixels, classes, store)
    others = np.flatnonzero(~dense[classes]).tolist()
    found = find_near_duplicates([fingerprints[place] for place in others], store)
    pairs = [(others[first], others[second]) for first, second in found]
    sizes = np.bincount(classes)
    held, several = _find_swallowed(pairs, classes, sizes / 2)
    for number in np.flatnonzero(held).tolist():
        notes[number] = (
            f"a chain of near-duplicates contains {held[number]} of {sizes[number]} images (frames of one movement?)"
        )
    dense |= held > 0
    mixed |= several
    kept = [pair for pair in pairs if not dense[classes[list(pair)]].any()]
    if not dense.any():
        return kept, {}
    # The mean of a few images is unreliable: small classes that resemble one another share one.
    merged = np.where((mixed & dense & (sizes < _SMALL))[classes], len(sizes), classes)
    outstanding = find_outstanding_pairs(fingerprints, merged, np.unique(merged[dense[classes]]).tolist())
    # Classes on one background may differ only in a small detail, or in colour, which grey thumbnails do not show.
    kept += [pair for pair in outstanding if len(set(classes[list(pair)])) == 1 or not mixed[classes[list(pair)]].any()]
    held, _ = _find_swallowed(kept, classes, np.minimum(sizes / 2, np.maximum(20, sizes / 4)))
    hopeless = (held > 0) & dense
    kept = [pair for pair in kept if not hopeless[classes[list(pair)]].any()]
    closer = " and much closer copies"
    return sorted(kept), {
        number: f"{note}: only identical pixels{'' if hopeless[number] else closer} count as duplicates"
        for number, note in notes.items()
    }


def _find_dense(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    """Find dense classes by random pairs of their images with one another and with images of other classes.

    Returns:
        The measurement for each dense class; which classes are dense; which resemble other classes; both bool (C,).
    """
    samples = []
    for number, others, across, pairs in _sample_pairs(fingerprints, classes):
        pairs = pairs[pixels[pairs[:, 0]] != pixels[pairs[:, 1]]]
        if len(pairs):
            alike = list(map(tuple, pairs[are_coarsely_alike(fingerprints, pairs)].tolist()))
            # Comparing very many images closely would take hours: then coarse resemblance is enough.
            close = others <= _MANY * (10 if across else 1) or len(alike) <= len(pairs) / 2
            samples.append((number, others, across, len(pairs), alike, close))
    compared = [pair for *_, alike, close in samples if close for pair in alike]
    same = dict(zip(compared, compare_closely(fingerprints, compared, store), strict=True))
    notes: dict[int, str] = {}
    dense, mixed = np.zeros((2, int(classes.max(initial=-1)) + 1), dtype=bool)
    for number, others, across, count, alike, close in samples:
        share = (sum(same[pair] for pair in alike) if close else len(alike)) / count
        if share > _RULE and share * others > _LEAST_ALIKE:
            dense[number] = True
            mixed[number] |= across
            which = "with those of other classes " if across else ""
            how = "near-duplicates" if close else "coarsely alike"
            notes.setdefault(number, f"{share:.0%} of random pairs of its images {which}are {how} ({_CAUSES[across]}?)")
    return notes, dense, mixed


def _sample_pairs(
    fingerprints: Sequence[Fingerprint], classes: np.ndarray
) -> Iterator[tuple[int, int, bool, np.ndarray]]:
    """Draw random pairs for each class, reproducibly.

    Yields:
        A class, how many images each of its images could be paired with, whether these are of other classes, and
        places (N, 2).
    """
    order = in_order_of_content(fingerprints, range(len(fingerprints)))
    ordered, count = classes[order], int(classes.max(initial=-1)) + 1
    most = min(max(_SAMPLED // max(2 * count, 1), 50), 200)
    for number in range(count):
        members, others = order[ordered == number], order[ordered != number]
        if len(members) >= _FEW:
            pairs = _draw_pairs(len(members), len(members) - 1, most)
            pairs[:, 1] += pairs[:, 1] >= pairs[:, 0]  # no image with itself
            yield number, len(members) - 1, False, members[pairs]
        first, second = _draw_pairs(len(members), len(others), most).T
        yield number, len(others), True, np.stack([members[first], others[second]], axis=1)


def _draw_pairs(rows: int, columns: int, most: int) -> np.ndarray:
    """Draw random cells (N, 2) of a table, without repetition and reproducibly."""
    cells = rows * columns
    chosen = np.arange(cells) if cells <= most else np.random.default_rng(0).choice(cells, most, replace=False)
    return np.stack(np.divmod(chosen, max(columns, 1)), axis=1)


def _find_swallowed(
    pairs: Sequence[tuple[int, int]], classes: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the classes of which one group, possibly linked through other classes, contains too many images.

    A group may contain a whole class of fewer than 8 images, unless it contains several classes.

    Args:
        pairs: places of linked images.
        classes: (N,) the class of each image.
        limits: (C,) how many images of each class a group may contain.

    Returns:
        How many images of each class such a group contains, 0 if there is none, and whether it contains too many
        images of several classes, both (C,).
    """
    groups = number_groups(len(classes), [(*pair, "") for pair in pairs])
    (group, number), counts = np.unique(np.stack([groups, classes]), axis=1, return_counts=True)
    large = counts > limits[number]
    several = (np.bincount(group[large], minlength=len(groups) + 1)[group] > 1) & (np.bincount(groups)[group] >= _FEW)
    large &= (np.bincount(classes)[number] >= _FEW) | several
    held = np.zeros(len(limits), dtype=np.int64)
    held[number[large]] = counts[large]
    mixed = np.zeros(len(limits), dtype=bool)
    mixed[number[large & several]] = True
    return held, mixed
