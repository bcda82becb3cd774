"""Which images train and which validate: folds of whole groups, and what a run was trained and tested on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from common import UserError, own_name
from dataset.examining import STORE, content_digests
from dataset.folders import ImageFolder
from dataset.groups import Groups, find_groups
from dataset.tables import write_rows
from pipeline.cache import SHARED, Cache, Kept, NoRoom, Notes
from pipeline.images import file_versions
from pipeline.settings import FOLDS

_SPLIT_SEED = 42  # not the run's: all runs are compared on the same validation images
_SIDES = ("left out", "train", "validation")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Places in an `ImageFolder`, each array int, ascending.

    Attributes:
        train: images to train on; augmented ones only if their source trains.
        validation: images to validate on, none of them augmented; empty where all images train.
        left_out: readable augmented images whose source validates or is not known.
        groups: (N,) int64, of all images of the folder; no group is divided between `train` and `validation`.
    """

    train: np.ndarray
    validation: np.ndarray
    left_out: np.ndarray
    groups: np.ndarray

    def write(self, folder: ImageFolder, path: Any) -> None:
        """Writes a CSV file with the columns `file`, `side` (train, validation or left out) and `group`."""
        sides = np.zeros(len(folder.paths), dtype=int)
        sides[self.train], sides[self.validation] = 1, 2
        rows = (
            {"file": folder.name_of(place), "side": _SIDES[side], "group": str(group)}
            for place, (side, group) in enumerate(zip(sides.tolist(), self.groups.tolist(), strict=True))
        )
        write_rows(path, ("file", "side", "group"), rows)


def load_groups(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> Groups:
    """The groups of a training folder and its test folders, by `dataset.groups.find_groups`.

    Args:
        folders: the training folder first.
        cache: keeps the result.
    """
    counts = [len(folder.paths) for folder in folders]
    key = hashlib.sha256("".join(map(file_versions, folders)).encode()).hexdigest()[:32]
    store = None if cache.directory is None else STORE

    def fill(numbers: np.memmap) -> Notes:
        groups = find_groups(folders, store)
        numbers[:] = np.concatenate(groups.numbers)
        return {"notes": list(groups.notes)}

    kept = _keep(cache, f"groups/{key}", (sum(counts),), np.int64, fill)
    numbers = np.split(np.array(kept.array), np.cumsum(counts)[:-1])
    return Groups(numbers, tuple(kept.notes["notes"]))


def _keep(
    cache: Cache, name: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[np.memmap], Notes]
) -> Kept:
    try:
        return cache.get(name, shape, dtype, fill)
    except NoRoom:
        return Cache(directory=None).get(name, shape, dtype, fill)


def split_folder(
    folder: ImageFolder,
    readable: np.ndarray,
    groups: np.ndarray,
    folds: int = FOLDS,
    fold: int | None = 0,
    cache: Cache = SHARED,
) -> Split:
    """Divides the images into folds of whole groups, of which one validates and the others train.

    The folds are those of scikit-learn's `StratifiedGroupKFold`: each has about the same share of every class.
    An augmented image trains if its source trains, else it is left out.

    Args:
        folder: the images, N.
        readable: (N,) bool; the others are on neither side.
        groups: (N,) int64; an augmented image has its source's.
        folds: how many; fewer where a class has fewer groups.
        fold: which one validates, from 0; None to train on all images.
        cache: keeps the folds.

    Raises:
        UserError: a class has too few groups to be divided, or there is no such fold.
    """
    originals = np.flatnonzero(readable & ~folder.augmented)
    if fold is None:
        _check_classes(folder, originals, groups, least=1)
        validation = originals[:0]
    else:
        folds = min(folds, _check_classes(folder, originals, groups, least=2))
        if fold >= folds:
            raise UserError(
                f"--fold {fold}: {folder.directory} divides into {folds} folds, from 0 to {folds - 1} "
                "(more need more groups of images in its smallest class)"
            )
        validation = originals[_find_folds(folder.labels[originals], groups[originals], folds, cache) == fold]
    train = np.setdiff1d(originals, validation, assume_unique=True)
    _check_sides(folder, train, validation, fold)
    augmented = np.flatnonzero(readable & folder.augmented)
    trains = np.isin(groups[augmented], groups[train])
    return Split(np.sort(np.concatenate([train, augmented[trains]])), validation, augmented[~trains], groups)


def _check_classes(folder: ImageFolder, originals: np.ndarray, groups: np.ndarray, least: int) -> int:
    """The number of groups of the class that has the fewest.

    Raises:
        UserError: it is less than `least`.
    """
    fewest = len(originals) + 1
    for label, name in enumerate(folder.classes):
        members = originals[folder.labels[originals] == label]
        count = len(np.unique(groups[members]))
        if count < least:
            same = f", all near-duplicates of one another: they make {count} group" if len(members) > 1 else ""
            raise UserError(
                f"{folder.directory / name} has {len(members)} readable image(s){same}. It needs at least {least}"
                + (" groups, one to train on and one to validate on" if least > 1 else "")
            )
        fewest = min(fewest, count)
    return fewest


def _check_sides(folder: ImageFolder, train: np.ndarray, validation: np.ndarray, fold: int | None) -> None:
    """Raises UserError where a class is missing on a side, as groups of several classes can make it."""
    for places, purpose in ((train, "train"), (validation, "validate")):
        missing = set(range(len(folder.classes))) - set(folder.labels[places].tolist())
        if missing and not (fold is None and purpose == "validate"):
            raise UserError(
                f"fold {fold} of {folder.directory} leaves no image of {folder.classes[min(missing)]} to {purpose} on: "
                "choose another --fold or fewer --folds"
            )


def _find_folds(labels: np.ndarray, groups: np.ndarray, folds: int, cache: Cache) -> np.ndarray:
    """(M,) the fold of each of M images."""
    # Numbered as they occur: the folds then depend on which images belong together, and on nothing else.
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(first))[inverse]
    key = hashlib.sha256(b"\0".join((labels.tobytes(), groups.tobytes(), str(folds).encode()))).hexdigest()[:32]

    def fill(numbers: np.memmap) -> Notes:
        from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=_SPLIT_SEED)
        for number, (_, validation) in enumerate(splitter.split(labels, labels, groups)):
            numbers[validation] = number
        return {}

    return np.array(_keep(cache, f"groups/{key}", labels.shape, np.int64, fill).array)


def describe_data(folders: Sequence[ImageFolder], groups: Groups, cache: Cache = SHARED) -> dict[str, Any]:
    """What a run is trained and tested on, in JSON's types: names, counts, digests of the contents, and overlap.

    The digests depend on the images and their classes, not on file names or augmentation. `overlap` is the number of
    images to train on that share a group with a test image.
    """
    training, *tests = folders
    originals = ~training.augmented
    return {
        "directory": str(training.directory),
        "digest": digest_images(training, cache),
        "images": int(originals.sum()),
        "groups": len(np.unique(groups.numbers[0][originals])),
        "test": {
            own_name(folder.directory): {
                "digest": digest_images(folder, cache),
                "images": len(folder.paths),
                "overlap": int(np.isin(groups.numbers[0][originals], numbers).sum()),
            }
            for folder, numbers in zip(tests, groups.numbers[1:], strict=True)
        },
    }


def digest_images(folder: ImageFolder, cache: Cache = SHARED, with_augmented: bool = False) -> str:
    """A digest of the contents of a folder's images and their classes, whatever their names and order."""
    contents = _contents(folder, cache.directory is not None)
    labels = (folder.classes[label] for label in folder.labels.tolist())
    chosen = ~folder.augmented | with_augmented
    parts = sorted(
        f"{name}\0{content.hex()}"
        for name, content, used in zip(labels, contents, chosen.tolist(), strict=True)
        if used
    )
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def digest_split(folder: ImageFolder, split: Split, cache: Cache = SHARED) -> str:
    """A digest of the contents and the order of all images that train and that validate."""
    contents = _contents(folder, cache.directory is not None)
    digest = hashlib.sha256()
    for places in (split.train, split.validation):
        for place in places.tolist():
            digest.update(b"%d " % folder.labels[place] + contents[place])
        digest.update(b"\0")
    return digest.hexdigest()


@lru_cache(maxsize=16)  # the runs of a sweep share their folders
def _contents(folder: ImageFolder, keep: bool) -> list[bytes]:
    """A digest of each image's contents."""
    if folder.arrays is None:
        contents = content_digests(folder.paths, STORE if keep else None)
    else:
        contents = [hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest() for array in folder.arrays]
    return [
        content + b"inverted" if inverted else content
        for content, inverted in zip(contents, folder.inverted.tolist(), strict=True)
    ]
