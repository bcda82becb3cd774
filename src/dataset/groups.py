"""The groups of images that must not be divided between training, validation and test.

Two images are in one group if they have identical pixels, are near-duplicates, were cut from one source photograph, or
one was made from the other, or if both may be what a third was made from; or if both are in a group with a third.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
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
from dataset.examining import STORE, Examined, examine, examine_image, on_all_cores
from dataset.folders import ImageFolder, canonical, stem_of
from dataset.reading import UnreadableImage
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows

PIXELS, NEAR_DUPLICATE, PHOTOGRAPH, AUGMENTED = "pixels", "near-duplicate", "photograph", "augmented"
_MOST_LINKS = 64  # members of a set of equal images up to which each is linked with each
_FEW = 8  # the images of a class of fewer may all be near-duplicates
_MANY = 500  # images of a class above which not all that are only coarsely alike are compared closely
_SMALL = 50  # images of a dense class up to which its mean is that of several classes
_SAMPLED = 20_000  # random pairs that are compared, divided between the classes
_RULE = 0.1  # the share of random pairs above which resemblance is the rule
_CAUSES = ("fixed camera, symbols", "one background")
_MOST_NOTES = 5  # classes that are named
_LEAST_ALIKE = 3  # near-duplicates that an image has on average where resemblance is the rule


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
        notes: a line per class in which resemblance alone does not count; of many, the first ones.
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
    images: Sequence[Examined],
    labels: Sequence[str],
    photographs: Sequence[Hashable | None] = (),
    stems: Sequence[Hashable | None] = (),
    store: Path | None = None,
) -> Links:
    """Finds which images belong together.

    In most classes near-duplicates do. A class is dense if more than a tenth of random pairs of its images, or of pairs
    with images of other classes, are near-duplicates: its images resemble one another, as those of a fixed camera or
    of symbols do. Of a class of more than 500 images it is enough that more than half of the pairs are coarsely alike.
    A class of at least 8 images is treated alike if a chain of near-duplicates, also through other classes, holds more
    than half of it, and so are smaller ones if a chain does so with several. There only copies count that are far
    closer than the class's own images; if a group of these holds a quarter of the class, only identical pixels do.

    Args:
        images: N images.
        labels: N names of classes.
        photographs: the source photograph of each, None where it is not known; may be empty.
        stems: what images have in common of which one augmented image may have been made, as `find_stems` gives it;
            may be empty.
        store: a folder in which the results of close comparisons are kept; None keeps them in memory only.
    """
    resembling, notes = _link_near_duplicates(images, labels, store)
    links = [*_link_equal([image.pixels for image in images], PIXELS), *resembling]
    links += [*_link_equal(photographs, PHOTOGRAPH), *_link_equal(stems, AUGMENTED)]
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

    Only originals are examined. An augmented image is in the group of its source, by label and stem. Originals of one
    class that have the same stem are in one group, since what was made from which cannot be told. Other images that
    cannot be read are in a group of their own, as are augmented ones whose source is not known.

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
        store=store,
    )
    links = [Link(places[first], places[second], kind) for first, second, kind in found.links]
    links += _link_equal(
        [key for number in range(len(folders)) for key in _find_sources(folders, number)], AUGMENTED, 1
    )
    numbers = number_groups(int(starts[-1]), links)
    return Groups(tuple(np.split(numbers, starts[1:-1])), tuple(found.notes))


def find_photographs(folder: ImageFolder, training_dir: Path) -> list[str | None]:
    """The source photograph of each image, as far as a table tells it; None for augmented images."""
    known = read_photographs(folder.directory, training_dir)
    return [
        None if augmented else known.get(file_key(path))
        for path, augmented in zip(folder.paths, folder.augmented.tolist(), strict=True)
    ]


def find_stems(paths: Sequence[Path], directory: Path, training_dir: Path) -> list[tuple[str, str] | None]:
    """The class and the stem of each image of the training folder, or moved out of it; None for other test images.

    An augmented image is named after the stem of its source: it may be made from any original with that stem.
    """
    moved = None if directory == training_dir else set(_read_moved(directory))
    return [
        (canonical(path.parent.name), stem_of(path)) if moved is None or file_key(path) in moved else None
        for path in paths
    ]


def file_key(path: Path) -> str:
    """The class and the name of a file, by which tables and folders are compared: a disk may spell both otherwise."""
    return f"{canonical(path.parent.name)}/{unicodedata.normalize('NFC', path.name)}"


def read_photographs(directory: Path, training_dir: Path) -> dict[str, str]:
    """The source photographs of the patches of Open Images in a folder, by `file_key`.

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
    rows = _read_rows(directory / OPEN_IMAGES, ("file", "image_id"))
    return {file_key(Path(row["file"])): row["image_id"] for row in rows}


def _read_moved(directory: Path) -> list[str]:
    """The files, by `file_key`, that were moved to a test folder out of the training folder."""
    rows = _read_rows(directory / TESTING_BATCH, ("class", "file"))
    return [file_key(Path(row["class"], row["file"])) for row in rows]


def _read_rows(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    return read_rows(table, columns) if table.parent.is_dir() else []  # beside an .npz file there is none


def _examine_originals(folder: ImageFolder, store: Path | None) -> dict[int, Examined]:
    """The original images that can be read, by their places."""
    originals = np.flatnonzero(~folder.augmented).tolist()
    if folder.arrays is None and not folder.inverted[originals].any():
        found, _ = examine([folder.paths[place] for place in originals], store, folder.white)
        by_path = {image.path: image for image in found}
        return {place: by_path[folder.paths[place]] for place in originals if folder.paths[place] in by_path}

    def look(place: int) -> Examined | None:
        try:
            return examine_image(folder.paths[place], folder.read(place))
        except UnreadableImage:
            return None

    images = zip(originals, on_all_cores(look, originals, "examining"), strict=True)
    return {place: image for place, image in images if image is not None}


def _find_sources(folders: Sequence[ImageFolder], number: int) -> list[Hashable | None]:
    """What each image of a folder has in common with those made from it; None if an image's source is not known."""
    folder = folders[number]
    moved = set(_read_moved(folder.directory)) if number else set()
    return [
        source and (number * (file_key(path) not in moved), folder.classes[label], source)
        for path, label, source in zip(folder.paths, folder.labels.tolist(), folder.sources, strict=True)
    ]


def _link_equal(keys: Sequence[Hashable | None], kind: str, most: int = _MOST_LINKS) -> list[Link]:
    """Links the places that have the same key: each with each, or each with the first where they are many."""
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
    """Links near-duplicates that do not have identical pixels, and tells in which classes these mean nothing."""
    copies: dict[tuple[bytes, str], list[int]] = defaultdict(list)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        copies[image.pixels, label].append(place)
    members = list(copies.values())  # one image of each stands for all
    fingerprints = [images[places[0]].fingerprint for places in members]
    _, pixels = np.unique([images[places[0]].pixels.hex() for places in members], return_inverse=True)
    names, classes = np.unique([label for _, label in copies], return_inverse=True)

    pairs, notes = _find_resembling(fingerprints, pixels, classes, store)
    links = []
    for first, second in pairs:
        if pixels[first] != pixels[second]:  # else they are linked already
            many = len(members[first]) * len(members[second]) > _MOST_LINKS
            ends = (members[place][:1] if many else members[place] for place in (first, second))
            for one, other in product(*ends):
                links.append(Link(min(one, other), max(one, other), NEAR_DUPLICATE))
    told = [f"{names[number]}: {note}" for number, note in sorted(notes.items())]
    if len(told) > _MOST_NOTES:
        told[_MOST_NOTES:] = [f"{len(told) - _MOST_NOTES} more classes whose images resemble one another"]
    return links, told


def _find_resembling(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Pairs of images that show the same, and what to note of the dense classes."""
    notes, dense, mixed = _find_dense(fingerprints, pixels, classes, store)
    others = np.flatnonzero(~dense[classes]).tolist()
    found = find_near_duplicates([fingerprints[place] for place in others], store)
    pairs = [(others[first], others[second]) for first, second in found]
    sizes = np.bincount(classes)
    held, several = _find_swallowed(pairs, classes, sizes / 2)
    for number in np.flatnonzero(held).tolist():
        notes[number] = f"a chain of near-duplicates holds {held[number]} of {sizes[number]} images (one movement?)"
    dense |= held > 0
    mixed |= several
    kept = [pair for pair in pairs if not dense[classes[list(pair)]].any()]
    if not dense.any():
        return kept, {}
    # The mean of a handful of images is no mean: small classes that resemble one another have a common one.
    merged = np.where((mixed & dense & (sizes < _SMALL))[classes], len(sizes), classes)
    outstanding = find_outstanding_pairs(fingerprints, merged, np.unique(merged[dense[classes]]).tolist())
    # Classes on one background may differ in a small detail only, or in colour, which a grey thumbnail does not show.
    kept += [pair for pair in outstanding if len(set(classes[list(pair)])) == 1 or not mixed[classes[list(pair)]].any()]
    held, _ = _find_swallowed(kept, classes, np.minimum(sizes / 2, np.maximum(20, sizes / 4)))
    hopeless = (held > 0) & dense
    kept = [pair for pair in kept if not hopeless[classes[list(pair)]].any()]
    closer = " and copies far closer than that"
    return sorted(kept), {
        number: f"{note}: only identical pixels{'' if hopeless[number] else closer} count"
        for number, note in notes.items()
    }


def _find_dense(
    fingerprints: Sequence[Fingerprint], pixels: np.ndarray, classes: np.ndarray, store: Path | None
) -> tuple[dict[int, str], np.ndarray, np.ndarray]:
    """Judges each class by random pairs of its images, and of these with images of other classes.

    Returns:
        By class what was measured where it is dense, whether it is, and whether it resembles other classes, each (C,).
    """
    order = in_order_of_content(fingerprints, range(len(fingerprints)))
    count = int(classes.max(initial=-1)) + 1
    by_class = np.argsort(classes[order], kind="stable")  # places in the order, of one class after the other
    ends = np.searchsorted(classes[order][by_class], np.arange(count + 1))
    dense, mixed = np.zeros((2, count), dtype=bool)
    notes: dict[int, str] = {}
    most = min(max(_SAMPLED // max(2 * count, 1), 50), 200)
    samples = []
    for number in range(count):
        own = by_class[ends[number] : ends[number + 1]]
        members, others = order[own], len(order) - len(own)
        if len(members) >= _FEW:
            pairs = _draw_pairs(len(members), len(members) - 1, most)
            pairs[:, 1] += pairs[:, 1] >= pairs[:, 0]  # no image with itself
            samples.append((number, False, len(members) - 1, members[pairs]))
        first, second = _draw_pairs(len(members), others, most).T
        second = order[_places_of_others(own, second)]
        samples.append((number, True, others, np.stack([members[first], second], axis=1)))
    samples = [(*sample, pairs[pixels[pairs[:, 0]] != pixels[pairs[:, 1]]]) for *sample, pairs in samples]
    samples = [sample for sample in samples if len(sample[-1])]
    coarse = [are_coarsely_alike(fingerprints, pairs) for *_, pairs in samples]
    # Of so many that comparing each closely would take hours, coarse resemblance is enough.
    closely = [
        others <= _MANY * (10 if across else 1) or alike.mean() <= 0.5
        for (_, across, others, _), alike in zip(samples, coarse, strict=True)
    ]
    compared = [
        pair
        for (*_, pairs), alike, close in zip(samples, coarse, closely, strict=True)
        if close
        for pair in map(tuple, pairs[alike].tolist())
    ]
    same = iter(compare_closely(fingerprints, compared, store))
    for (number, across, others, _), alike, close in zip(samples, coarse, closely, strict=True):
        found = sum(next(same) for _ in range(alike.sum())) if close else alike.sum()
        share = found / len(alike)
        if share > _RULE and share * others > _LEAST_ALIKE:
            dense[number] = True
            mixed[number] |= across
            which = "with those of other classes " if across else ""
            how = "near-duplicates" if close else "coarsely alike"
            notes.setdefault(number, f"{share:.0%} of random pairs of its images {which}are {how} ({_CAUSES[across]}?)")
    return notes, dense, mixed


def _places_of_others(own: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The places of the n-th ones, from 0, of what does not lie at the places `own`, which ascend."""
    # Before the n-th other one lie n others, and those of `own` that have no more than n others before them.
    return numbers + np.searchsorted(own - np.arange(len(own)), numbers, side="right")


def _draw_pairs(rows: int, columns: int, most: int) -> np.ndarray:
    """Random places (N, 2) in a table, each at most once; always the same."""
    cells = rows * columns
    chosen = np.arange(cells) if cells <= most else np.random.default_rng(0).choice(cells, most, replace=False)
    return np.stack(np.divmod(chosen, max(columns, 1)), axis=1)


def _find_swallowed(
    pairs: Sequence[tuple[int, int]], classes: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the classes of which one group holds too much, also where it is linked through other classes.

    Of a class of fewer than 8 images a group may hold all, unless it does so with several classes.

    Args:
        pairs: places of images that are linked.
        classes: (N,) the class of each image.
        limits: (C,) how many images of each class a group may hold.

    Returns:
        How many images such a group holds of each class, 0 where there is none, and whether it holds too much of
        several classes, both (C,).
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
