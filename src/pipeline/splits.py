"""Which images train and which validate: folds of whole groups, and what a run was trained and tested on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import DTypeLike

from common import UserError
from dataset.examining import STORE, content_digests, find_unreadable, in_own_range
from dataset.folders import ImageFolder
from dataset.groups import Groups, find_groups
from dataset.tables import OPEN_IMAGES, TESTING_BATCH, read_rows, write_rows
from pipeline.cache import SHARED, Cache, Kept, NoRoom, Notes
from pipeline.images import file_versions
from pipeline.settings import FOLDS

_SPLIT_SEED = 42  # not the run's: all runs are compared on the same validation images
_ATTEMPTS = 20  # shuffles that are tried until each fold has images of every class
_FORM = 1  # to be raised when the same images come to have other groups or folds
_SIDES = ("unreadable", "left out", "train", "validation")
_TEST = "test"  # the side of images that are held out
_NEEDED_FOR = ("one to train on", "one to validate on", "one to test on")  # what the groups of a class are needed for
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Places in an `ImageFolder`, each array int, ascending.

    Attributes:
        train: images to train on; augmented ones only if their source trains.
        validation: images to validate on, none of them augmented; empty where all images train.
        left_out: other readable images: augmented ones whose source validates or is not known, and those that share a
            group with a folder of validation images.
        groups: (N,) int64, of all images of the folder; no group is divided between `train` and `validation`.
        folds: into how many parts the images are divided.
    """

    train: np.ndarray
    validation: np.ndarray
    left_out: np.ndarray
    groups: np.ndarray
    folds: int

    def group_sizes(self, folder: ImageFolder) -> np.ndarray:
        """How many images that are not augmented each group of a folder has, without empty ones."""
        return np.unique(self.groups[~folder.augmented], return_counts=True)[1]

    def write(
        self, folder: ImageFolder, path: Path, held_out: ImageFolder | None = None, groups: np.ndarray | None = None
    ) -> None:
        """Writes a CSV file with the columns `file`, `side` and `group`.

        A side is one of train, validation, left out, unreadable and test.

        Args:
            folder: the images that are divided.
            path: the file.
            held_out: M images of the same folder that are tested on.
            groups: (M,) int64, theirs.
        """
        sides = np.zeros(len(folder.paths), dtype=int)
        for side, places in enumerate((self.left_out, self.train, self.validation), start=1):
            sides[places] = side
        rows = [
            {"file": folder.name_of(place), "side": _SIDES[side], "group": str(group)}
            for place, (side, group) in enumerate(zip(sides.tolist(), self.groups.tolist(), strict=True))
        ]
        if held_out is not None:
            rows += [
                {"file": held_out.name_of(place), "side": _TEST, "group": str(group)}
                for place, group in enumerate(groups.tolist())
            ]
        write_rows(path, ("file", "side", "group"), rows)


def load_groups(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> Groups:
    """The groups of a training folder and its test folders, by `dataset.groups.find_groups`.

    Args:
        folders: the training folder first.
        cache: keeps the result.
    """
    counts = [len(folder.paths) for folder in folders]
    digest = hashlib.sha256(str(_FORM).encode())
    for folder in folders:
        digest.update(file_versions(folder).encode())
        for table in (OPEN_IMAGES, TESTING_BATCH):  # which say what was cut from one photograph
            path = folder.directory / table
            digest.update(b"\0" + (path.read_bytes() if path.is_file() else b""))
    key = digest.hexdigest()[:32]
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
    An augmented image trains if its source trains, else it is left out. Where the folder says which images validate,
    these do, and images that share a group with one of them are left out.

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
    if folder.validates is not None:
        folds, validation = 1, originals[folder.validates[originals]]
    elif fold is None:
        _check_classes(folder, originals, groups, least=1)
        validation = originals[:0]
    else:
        _check_classes(folder, originals, groups, least=2)
        numbers, possible = _find_folds(folder.labels[originals], groups[originals], folds, cache)
        if possible < folds:
            _log.info("%d folds, not %d: the smallest class has too few groups of images", possible, folds)
        if fold >= possible:
            raise UserError(
                f"--fold {fold}: {folder.directory} divides into {possible} folds, from 0 to {possible - 1} "
                "(more need more groups of images in its smallest class)"
            )
        folds, validation = possible, originals[numbers == fold]
    train = originals[~np.isin(groups[originals], groups[validation])]
    if folder.validates is not None:
        _check_classes(folder, validation, groups, least=1)
        _check_left(folder, train, "validation")
    augmented = np.flatnonzero(readable & folder.augmented)
    train = np.sort(np.concatenate([train, augmented[np.isin(groups[augmented], groups[train])]]))
    left_out = np.setdiff1d(np.flatnonzero(readable), np.concatenate([train, validation]))
    return Split(train, validation, left_out, groups, folds)


def hold_out(folder: ImageFolder, cache: Cache = SHARED) -> list[ImageFolder]:
    """Divides the images of a folder into those to train and validate on and those to test on, a fold of whole groups.

    Raises:
        UserError: a class has fewer than three groups.
    """
    store = None if cache.directory is None else STORE
    unreadable = find_unreadable(folder.paths, store) if folder.arrays is None else {}
    originals = np.array([place for place, path in enumerate(folder.paths) if path not in unreadable], dtype=np.int64)
    [groups] = load_groups([in_own_range(folder, store)], cache).numbers
    _check_classes(folder, originals, groups, least=3)
    numbers, _ = _find_folds(folder.labels[originals], groups[originals], FOLDS, cache)
    testing = originals[numbers == 0]
    training = np.setdiff1d(np.arange(len(folder.paths)), testing)
    return [folder.subset(training), replace(folder.subset(testing), part=_TEST, passed_over={})]


def find_side(folder: ImageFolder, run_dir: Path, side: str) -> ImageFolder:
    """The images of a folder that a run trained on, validated on, or held out to test on, by its `split.csv`.

    Raises:
        UserError: there are none, or they are not there.
    """
    rows = read_rows(run_dir / "split.csv", ("file", "side"))
    names = {row["file"] for row in rows if row["side"] == side}
    places = [place for place in range(len(folder.paths)) if folder.name_of(place) in names]
    if not names:
        raise UserError(f"{run_dir} has no {side} images: split.csv names none")
    if len(places) < len(names):
        remedy = ", or name test images with --test-dir" if side == _TEST else ""
        raise UserError(
            f"{folder.directory} holds {len(places)} of the {len(names)} {side} images of {run_dir}: bring them back"
            + remedy
        )
    return replace(folder.subset(places), part=side)


def leave_out_leaks(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> list[ImageFolder]:
    """The training folder without the images that share a group with a test image, and the test folders.

    Raises:
        UserError: nothing is left of a class.
    """
    numbers, *tested = load_groups(folders, cache).numbers
    kept = np.flatnonzero(~np.isin(numbers, np.concatenate(tested)))
    training = folders[0].subset(kept)
    trains = np.full(len(kept), True) if training.validates is None else ~training.validates
    _check_left(training, np.flatnonzero(trains), "test")
    return [training, *folders[1:]]


def _check_left(folder: ImageFolder, places: np.ndarray, side: str) -> None:
    """Raises UserError where these places have no image of a class."""
    for label, name in enumerate(folder.classes):
        if label not in folder.labels[places]:
            raise UserError(f"{folder.directory}: all images of {name} to train on share a group with {side} images")


def count_folds(folder: ImageFolder, folds: int, cache: Cache = SHARED) -> int:
    """Into how many folds a folder can be divided, at most `folds`: small classes allow fewer.

    Raises:
        UserError: a class has fewer than two groups.
    """
    [groups] = load_groups([folder], cache).numbers
    originals = np.flatnonzero(~folder.augmented)
    _check_classes(folder, originals, groups, least=2)
    return _find_folds(folder.labels[originals], groups[originals], folds, cache)[1]


def _check_classes(folder: ImageFolder, originals: np.ndarray, groups: np.ndarray, least: int) -> None:
    """Raises UserError where a class has fewer groups than `least`."""
    labels = folder.labels[originals]
    images = np.bincount(labels, minlength=len(folder.classes)).tolist()
    counts = _count_groups(labels, groups[originals], len(folder.classes)).tolist()
    for name, members, count in zip(folder.classes, images, counts, strict=True):
        if count < least:
            same = f", all near-duplicates of one another: they make {count} group" if members > 1 else ""
            raise UserError(
                f"{folder.directory / name} has {members} readable image(s){same}. It needs at least {least}"
                + (f" groups, {', '.join(_NEEDED_FOR[: least - 1])} and {_NEEDED_FOR[least - 1]}" if least > 1 else "")
            )


def _count_groups(labels: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """(C,) how many groups have images of each class, of M labels and M numbers of groups."""
    return np.bincount(np.unique(groups * classes + labels) % classes, minlength=classes)


def _find_folds(labels: np.ndarray, groups: np.ndarray, folds: int, cache: Cache) -> tuple[np.ndarray, int]:
    """(M,) the fold of each of M images, and how many folds there are: each has images of every class.

    Raises:
        UserError: not even two folds have images of every class.
    """
    # Numbered as they occur: the folds then depend on which images belong together, and on nothing else.
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    groups = np.argsort(np.argsort(first))[inverse]
    parts = (labels.tobytes(), groups.tobytes(), f"{_FORM} {folds}".encode())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]

    def fill(numbers: np.memmap) -> Notes:
        from sklearn.model_selection import StratifiedGroupKFold  # takes a second to import

        classes = np.unique(labels)
        fewest = int(_count_groups(labels, groups, classes[-1] + 1)[classes].min())
        for count in range(min(folds, fewest), 1, -1):  # groups of several classes can leave a class out of a fold
            splitter = StratifiedGroupKFold(count, shuffle=True, random_state=_SPLIT_SEED)
            for number, (_, validation) in enumerate(splitter.split(labels, labels, groups)):
                numbers[validation] = number
            if len(np.unique(labels * count + numbers)) == count * len(classes):
                return {"folds": count}
        raise UserError("the classes share so many groups of images that no split leaves each of them on both sides")

    kept = _keep(cache, f"groups/{key}", labels.shape, np.int64, fill)
    return np.array(kept.array), kept.notes["folds"]


def describe_data(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> dict[str, Any]:
    """What a run is trained and tested on, in JSON's types: names, counts, digests of the contents, and overlap.

    The digests depend on the images and their classes, not on file names. `augmented` is that of the augmented images,
    None without any. `overlap` is the number of images to train on that share a group with a test image.
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
    """A digest of the contents of images and of their classes, whatever their names and order.

    Args:
        folder: N images.
        cache: where digests of files are kept.
        chosen: (N,) bool, which of them; by default those that are not augmented.
    """
    chosen = ~folder.augmented if chosen is None else chosen
    contents = _contents(folder, cache)
    labels = (folder.classes[label] for label in folder.labels.tolist())
    parts = sorted(
        f"{name}\0{content.hex()}"
        for name, content, used in zip(labels, contents, chosen.tolist(), strict=True)
        if used
    )
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]


def digest_split(folder: ImageFolder, split: Split, cache: Cache = SHARED) -> str:
    """A digest of the contents and the order of all images that train and that validate."""
    contents = _contents(folder, cache)
    digest = hashlib.sha256()
    for places in (split.train, split.validation):
        for place in places.tolist():
            digest.update(b"%d " % folder.labels[place] + contents[place])
        digest.update(b"\0")
    return digest.hexdigest()


_known: WeakKeyDictionary[ImageFolder, list[bytes]] = WeakKeyDictionary()  # the runs of a sweep share their folders


def _contents(folder: ImageFolder, cache: Cache) -> list[bytes]:
    """A digest of each image's contents."""
    if folder not in _known:
        if folder.arrays is None:
            contents = content_digests(folder.paths, None if cache.directory is None else STORE)
        else:
            contents = [
                hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest() for image in folder.arrays
            ]
        inverted = folder.inverted.tolist()
        _known[folder] = [b"inverted" * turned + content for content, turned in zip(contents, inverted, strict=True)]
    return _known[folder]
