"""Cross-validation folds of whole groups of images, and digests of the images of a run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from common import UserError, pluralise
from dataset.examining import content_digests, find_unreadable, with_white_level
from dataset.folders import ImageFolder
from dataset.groups import Groups, find_groups
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows, write_rows
from pipeline.cache import SHARED, Cache, Metadata, make_key
from pipeline.images import file_versions
from pipeline.settings import FOLDS, SPLIT_FILE, TEST, TRAIN, VALIDATION

_LEFT_OUT, _UNREADABLE = "left out", "unreadable"  # entries of the column `side`, besides `SIDES`
_SPLIT_SEED = 42  # not the seed of the run: all runs are compared on the same validation images
_CACHE_VERSION = 1  # increase when the same images get other groups or folds
_NEEDED = {1: "1", 2: "2 groups, for training and validation", 3: "3 groups, for training, validation and test"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A split of an `ImageFolder` of N images, as sorted arrays of indices. All images of a group are on one side."""

    train: np.ndarray  # with augmented images whose source trains
    validation: np.ndarray  # without augmented images; empty if all images train
    left_out: np.ndarray  # augmented images without a training source, and those in a group of a validation folder
    groups: np.ndarray  # (N,) int64
    folds: int  # number of folds

    def group_sizes(self, folder: ImageFolder) -> np.ndarray:
        """Return the number of original images in each group that trains or validates."""
        used = np.concatenate([self.train, self.validation])
        return np.unique(self.groups[used[~folder.augmented[used]]], return_counts=True)[1]

    def write(
        self, folder: ImageFolder, path: Path, held_out: ImageFolder | None = None, groups: np.ndarray | None = None
    ) -> None:
        """Write a CSV file with the columns `file`, `side` and `group`.

        `held_out` are M test images from the same folder, and `groups` (M,) their groups.
        """
        sides = np.full(len(folder.paths), _UNREADABLE, dtype=object)
        sides[self.left_out], sides[self.train], sides[self.validation] = _LEFT_OUT, TRAIN, VALIDATION
        rows = [*_rows(folder, sides, self.groups)]
        if held_out is not None:
            rows += _rows(held_out, [TEST] * len(groups), groups)
        write_rows(path, ("file", "side", "group"), rows)


def _rows(folder: ImageFolder, sides: Iterable[str], groups: np.ndarray) -> Iterator[dict[str, str]]:
    for index, (side, group) in enumerate(zip(sides, groups.tolist(), strict=True)):
        yield {"file": folder.name_of(index), "side": side, "group": str(group)}


def load_groups(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> Groups:
    """Find the groups of a training folder and its test folders (`dataset.groups.find_groups`), or read the cache."""
    counts = [len(folder.paths) for folder in folders]
    parts: list[str | bytes] = [str(_CACHE_VERSION)]
    for folder in folders:
        parts.append(file_versions(folder))
        for table in (OPEN_IMAGES, TESTING_BATCH):  # they say which images were cropped from one photograph
            path = folder.directory / table
            parts += ["\0", path.read_bytes() if path.is_file() else b""]
    key = make_key(parts)

    def fill(numbers: np.memmap) -> Metadata:
        groups = find_groups(folders, cache.examined)
        numbers[:] = np.concatenate(groups.numbers)
        return {"notes": list(groups.notes)}

    array, metadata = cache.get_or_unnamed(f"groups/{key}", (sum(counts),), np.int64, fill)
    return Groups(np.split(np.array(array), np.cumsum(counts)[:-1]), tuple(metadata["notes"]))


def split_folder(
    folder: ImageFolder,
    readable: np.ndarray,
    groups: np.ndarray,
    folds: int = FOLDS,
    fold: int | None = 0,
    cache: Cache = SHARED,
) -> Split:
    """Split N images into training and validation by stratified group k-fold (scikit-learn's `StratifiedGroupKFold`).

    An augmented image trains if its source trains; otherwise it is left out. If the folder itself names validation
    images, these validate, and images that share a group with them are left out.

    Args:
        folder, readable, groups: the images; (N,) bool; (N,) int64, where augmented images have their source's group.
        folds: number of folds, reduced if a class has fewer groups.
        fold: the fold that validates, from 0; None trains on all images.
        cache: stores the folds.

    Raises:
        UserError: a class has too few groups, or there is no such fold.
    """
    originals = np.flatnonzero(readable & ~folder.augmented)
    if folder.in_validation is not None:
        folds, validation = 1, originals[folder.in_validation[originals]]
    elif fold is None:
        _check_classes(folder, originals, groups, least=1)
        validation = originals[:0]
    else:
        numbers, possible = _find_folds(folder, originals, groups, folds, cache)
        if possible < folds:
            _log.info("%d folds instead of %d: the smallest class has too few groups of images", possible, folds)
        if fold >= possible:
            raise UserError(
                f"--fold {fold}: {folder.directory} divides into {possible} folds, from 0 to {possible - 1}, since its "
                "smallest class has too few groups of images for more"
            )
        folds, validation = possible, originals[numbers == fold]
    train = originals[~np.isin(groups[originals], groups[validation])]
    if folder.in_validation is not None:
        _check_classes(folder, validation, groups, least=1)
        _check_left(folder, train, VALIDATION)
    augmented = np.flatnonzero(readable & folder.augmented)
    train = np.sort(np.concatenate([train, augmented[np.isin(groups[augmented], groups[train])]]))
    left_out = np.setdiff1d(np.flatnonzero(readable), np.concatenate([train, validation]))
    return Split(train, validation, left_out, groups, folds)


def hold_out(folder: ImageFolder, cache: Cache = SHARED) -> list[ImageFolder]:
    """Split a folder into images for training and validation, and one fold for testing.

    A class with fewer than three groups raises UserError.
    """
    originals, groups = _originals_and_groups(folder, cache)
    numbers, _ = _find_folds(folder, originals, groups, FOLDS, cache, least=3)
    testing = originals[numbers == 0]
    training = np.setdiff1d(np.arange(len(folder.paths)), testing)
    return [folder.subset(training), replace(folder.subset(testing), part=TEST, skipped={})]


def find_side(folder: ImageFolder, run_dir: Path, side: str) -> ImageFolder:
    """Return the images of a folder on one side of a run's `split.csv`; raise UserError if some are missing."""
    rows = read_rows(run_dir / SPLIT_FILE, ("file", "side"))
    names = {row["file"] for row in rows if row["side"] == side}
    indices = [index for index in range(len(folder.paths)) if folder.name_of(index) in names]
    if not names:
        raise UserError(f"{run_dir} has no {side} images in its {SPLIT_FILE}")
    if len(indices) < len(names):
        remedy = ", or name test images with --test-dir" if side == TEST else ""
        raise UserError(
            f"{folder.directory} holds {len(indices)} of the {len(names)} {side} images of {run_dir}: "
            f"restore them{remedy}"
        )
    return replace(folder.subset(indices), part=side)


def leave_out_leaks(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> list[ImageFolder]:
    """Remove training images that share a group with test images; raise UserError if no image of a class is left."""
    training = with_white_level(folders[0], cache.examined)
    others = [replace(folder, white_level=training.white_level) for folder in folders[1:]]
    numbers, *tested = load_groups([training, *others], cache).numbers
    kept = np.flatnonzero(~np.isin(numbers, np.concatenate(tested)))
    training = folders[0].subset(kept)
    trains = np.full(len(kept), True) if training.in_validation is None else ~training.in_validation
    _check_left(training, np.flatnonzero(trains), TEST)
    return [training, *folders[1:]]


def _check_left(folder: ImageFolder, indices: np.ndarray, side: str) -> None:
    """Raise UserError if a class has no image at these indices."""
    for label, name in enumerate(folder.classes):
        if label not in folder.labels[indices]:
            raise UserError(f"{folder.directory}: all images of {name} to train on share a group with {side} images")


def count_folds(folder: ImageFolder, folds: int, cache: Cache = SHARED) -> int:
    """Return the number of folds that a folder divides into: `folds`, or fewer if a class has fewer groups."""
    originals, groups = _originals_and_groups(folder, cache)
    return _find_folds(folder, originals, groups, folds, cache)[1]


def _originals_and_groups(folder: ImageFolder, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the readable images that are not augmented, and the group numbers (N,) of all images."""
    [groups] = load_groups([with_white_level(folder, cache.examined)], cache).numbers
    return np.flatnonzero(find_readable(folder, cache) & ~folder.augmented), groups


def find_readable(folder: ImageFolder, cache: Cache = SHARED) -> np.ndarray:
    """Return whether each image can be read, (N,) bool."""
    unreadable = find_unreadable(folder.paths, cache.examined) if folder.arrays is None else {}
    return np.array([path not in unreadable for path in folder.paths], dtype=bool)


def _check_classes(folder: ImageFolder, originals: np.ndarray, groups: np.ndarray, least: int) -> None:
    """Raise UserError if a class has fewer groups than `least`."""
    labels = folder.labels[originals]
    images = np.bincount(labels, minlength=len(folder.classes)).tolist()
    counts = _count_groups(labels, groups[originals], len(folder.classes)).tolist()
    for name, members, count in zip(folder.classes, images, counts, strict=True):
        if count < least:
            raise UserError(
                f"{folder.directory / name} has {pluralise(members, 'readable image')} in {pluralise(count, 'group')} "
                f"of near-duplicates; it needs at least {_NEEDED[least]}"
            )


def _count_groups(labels: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of groups of each class, (C,), for labels (M,) and groups (M,)."""
    return np.bincount(np.unique(groups * classes + labels) % classes, minlength=classes)


def _find_folds(
    folder: ImageFolder, originals: np.ndarray, groups: np.ndarray, folds: int, cache: Cache, least: int = 2
) -> tuple[np.ndarray, int]:
    """Return the fold of each original image, (M,), and the number of folds, each with images of every class."""
    _check_classes(folder, originals, groups, least)
    labels = folder.labels[originals]
    # Renumbered in order of appearance, so that the folds only depend on which images belong together.
    _, first, inverse = np.unique(groups[originals], return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(first))[inverse]
    key = make_key([labels.tobytes(), "\0", groups.tobytes(), f"\0{_CACHE_VERSION} {folds}"])

    def fill(numbers: np.memmap) -> Metadata:
        from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

        classes = np.unique(labels)
        fewest = int(_count_groups(labels, groups, classes[-1] + 1)[classes].min())
        for count in range(min(folds, fewest), 1, -1):  # a fold can lack a class if groups have several classes
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=_SPLIT_SEED)
            for number, (_, validation) in enumerate(splitter.split(labels, labels, groups)):
                numbers[validation] = number
            if len(np.unique(labels * count + numbers)) == count * len(classes):
                return {"folds": count}
        raise UserError("the classes share too many groups of images: no split has every class on both sides")

    array, metadata = cache.get_or_unnamed(f"groups/{key}", (len(labels),), np.int64, fill)
    return np.array(array), metadata["folds"]


def describe_data(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> dict[str, Any]:
    """Describe the training and test images, in JSON types: names, counts, digests of the contents, and overlap.

    `augmented` is the digest of the augmented images, or None. `overlap` is the number of original training images that
    share a group with a test image.
    """
    training, *tests = folders
    groups = load_groups(folders, cache)
    originals = ~training.augmented
    return {
        "directory": str(training.directory),
        "digest": digest_images(training, cache),
        "images": int(originals.sum()),
        "augmented": digest_images(training, cache, training.augmented) if training.augmented.any() else None,
        "test": {
            folder.name: {
                "digest": digest_images(folder, cache),
                "images": len(folder.paths),
                "overlap": int(np.isin(groups.numbers[0][originals], numbers).sum()),
            }
            for folder, numbers in zip(tests, groups.numbers[1:], strict=True)
        },
    }


def digest_images(folder: ImageFolder, cache: Cache = SHARED, chosen: np.ndarray | None = None) -> str:
    """Compute a digest of the contents and classes of images, which is independent of file names and order.

    `chosen`, (N,) bool, selects images; by default, those that are not augmented.
    """
    chosen = ~folder.augmented if chosen is None else chosen
    contents = _contents(folder, cache)
    labels = (folder.classes[label] for label in folder.labels.tolist())
    images = zip(labels, contents, chosen.tolist(), strict=True)
    parts = sorted(f"{name}\0{content.hex()}" for name, content, used in images if used)
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def digest_all(folders: Sequence[ImageFolder], cache: Cache) -> str:
    """Compute the digests of all images of each folder."""
    return " ".join(digest_images(folder, cache, np.full(len(folder.paths), True)) for folder in folders)


def digest_split(folder: ImageFolder, split: Split, cache: Cache = SHARED) -> str:
    """Compute a digest of the contents and the order of all training and validation images."""
    contents = _contents(folder, cache)
    digest = hashlib.sha256()
    for side in (split.train, split.validation):
        for index in side.tolist():
            digest.update(b"%d " % folder.labels[index] + contents[index])
        digest.update(b"\0")
    return digest.hexdigest()


_known: WeakKeyDictionary[ImageFolder, list[bytes]] = WeakKeyDictionary()  # the runs of a sweep share folders


def _contents(folder: ImageFolder, cache: Cache) -> list[bytes]:
    """Return a digest of each image."""
    if folder not in _known:
        if folder.arrays is None:
            contents = content_digests(folder.paths, cache.examined)
        else:
            arrays = map(np.ascontiguousarray, folder.arrays)
            contents = [hashlib.blake2b(array, digest_size=16).digest() for array in arrays]
        inverted = folder.inverted.tolist()
        _known[folder] = [b"inverted" * turned + content for content, turned in zip(contents, inverted, strict=True)]
    return _known[folder]
