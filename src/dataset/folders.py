"""Finds the images of a dataset: one folder per class, with augmented copies in `<Class>_augmented` beside it.

A dataset may also be one `.npz` file with the arrays `images` and `labels`.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common import UserError, base_name, printable, short_name
from dataset.moving import LEFT_OUT, REJECTED, is_set_aside
from dataset.reading import (
    WHITE,
    has_image_name,
    image_of_array,
    is_array,
    load_archive,
    read_image,
    upright_rgb,
    why_no_image,
)

AUGMENTED_SUFFIX = "_augmented"
_SPARE = 30  # bytes that the name of an augmented image adds to that of its source
_LITTER = {"Thumbs.db", "desktop.ini"}  # written by Windows
_MOST_LISTED = 20  # files skipped for the same reason, and classes, that a message lists
_HIDDEN = "hidden, since its name begins with a dot: rename it to use it"
_LINK = "a link, which is not followed: put the file itself there, or make the whole folder a link"
_log = logging.getLogger(__name__)
_reported: set[str] = set()


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The N images of a folder or an `.npz` file, in a fixed order.

    Attributes:
        directory: the folder, or the `.npz` file.
        classes: their canonical names, sorted.
        paths: N files; for an `.npz` file FILE/<label>/<index>, which do not exist.
        labels: (N,) int64, indices into `classes`.
        augmented: (N,) bool, whether it is an augmented copy.
        sources: N stems by `stem_of`: the source's for an augmented image, else the image's own; None if the
            source of an augmented image is unknown.
        inverted: (N,) bool, read with black and white exchanged.
        arrays: (N, H, W) or (N, C, H, W), the images of an `.npz` file.
        white_level: the value that is white in 16-bit files.
        skipped: what else lies in the class folders and beside them, with the reason.
        part: the name of the part, if this is only a part of the folder.
        in_validation: (N,) bool, the images to validate on; None if the folds select them.
    """

    directory: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    augmented: np.ndarray
    sources: tuple[str | None, ...]
    inverted: np.ndarray
    arrays: np.ndarray | None = None
    white_level: int = WHITE
    skipped: Mapping[Path, str] = field(default_factory=dict)
    part: str | None = None
    in_validation: np.ndarray | None = None

    def read(self, index: int) -> Image.Image:
        """Read one image as it is stored, inverted if it should be; UnreadableImage if it cannot be read."""
        image = (
            read_image(self.paths[index], self.white_level)
            if self.arrays is None
            else image_of_array(self.arrays[index])
        )
        if not self.inverted[index]:
            return image
        inverted = ImageOps.invert(image if image.mode == "L" else upright_rgb(image))
        inverted.format = image.format
        return inverted

    @property
    def name(self) -> str:
        """The name of the part or the folder, as test results show it."""
        return self.part or base_name(self.directory)

    def name_of(self, index: int) -> str:
        """Return `cat/0001.jpg`; `<label>/<index>` for an `.npz` file; `train/cat/0001.jpg` for joined folders."""
        return "/".join(self.paths[index].parts[-2 if self.in_validation is None else -3 :])

    def is_array(self, index: int) -> bool:
        """Whether an image is stored as an array."""
        return self.arrays is not None or is_array(self.paths[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageFolder:
        """Return the images at these indices, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=self.labels[indices],
            augmented=self.augmented[indices],
            sources=tuple(self.sources[i] for i in indices),
            inverted=self.inverted[indices],
            arrays=None if self.arrays is None else self.arrays[indices],
            in_validation=None if self.in_validation is None else self.in_validation[indices],
        )


def augmented_name(source: Path, number: int) -> str:
    """Return the file name of an image made from `source`."""
    return f"{stem_of(source)}_aug_{number:04d}.jpg"


def stem_of(path: Path) -> str:
    """Return the part of an image's name that images made from it carry: without suffix, shortened if very long."""
    return short_name(path.name if path.suffix[1:].isdecimal() else path.stem, _SPARE)  # scan.001 is not scan.002


def parse_augmented(augmented: Path) -> tuple[str | None, int]:
    """Return the stem of the image that an augmented one was made from, and its number; None and 0 if unknown."""
    match = re.fullmatch(r"(.+)_aug_(\d+)", augmented.stem, re.DOTALL)
    return (match[1], int(match[2])) if match else (None, 0)


def source_stem(augmented: Path) -> str | None:
    """Return the stem of the image that an augmented one was made from; None if it is unknown."""
    return parse_augmented(augmented)[0]


def canonical(name: str) -> str:
    """Normalise a class name to NFC without surrounding white space, also before a final `_augmented`.

    macOS may store a name decomposed, so that one class has different folder names on two machines.
    """
    name = unicodedata.normalize("NFC", name).strip()
    own = name.removesuffix(AUGMENTED_SUFFIX)
    return name if own == name else own.rstrip() + AUGMENTED_SUFFIX


def class_folder(directory: Path, name: str) -> Path:
    """Return the folder with this canonical name, or `<directory>/<name>` if there is none."""
    folder = directory / name
    if not folder.is_dir() and directory.is_dir():
        for other in sorted(directory.iterdir()):
            if canonical(other.name) == canonical(name) and other.is_dir():
                return other
    return folder


def class_images(directory: Path, name: str) -> list[Path]:
    """Return the image files of a class, sorted by name."""
    return image_files(class_folder(directory, name))


def check_known_classes(training_dir: Path, testing_dir: Path, remedy: str) -> None:
    """Raise UserError, ending with the remedy, if a test folder that exists has a class that training lacks."""
    names = own_class_names(testing_dir) if testing_dir.exists() else []
    known = class_names(training_dir) if names else ()
    if unknown := [name for name in names if name not in known]:
        folder = class_folder(testing_dir, unknown[0])
        raise UserError(f"{folder} is a class that {training_dir} does not have: {remedy}")


def check_apart(directories: Sequence[Path]) -> None:
    """Raise UserError if two folders are the same, or one lies inside another."""
    for first, second in combinations(directories, 2):
        one, other = first.resolve(), second.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} must be separate folders, neither inside the other")


def class_names(directory: Path, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the canonical names of the class folders in a directory, sorted.

    UserError if it is missing, has a class that is not known, or fewer than two if none are given, two folders of one
    class, or `_augmented` without its class.
    """
    folders = _class_folders(directory)
    names = own_class_names(directory)
    if orphans := [name for name in folders if name.removesuffix(AUGMENTED_SUFFIX) not in names]:
        missing = orphans[0].removesuffix(AUGMENTED_SUFFIX)
        raise UserError(f"{folders[orphans[0]]} has no class folder {missing} beside it")
    if not names and _has_images(directory):
        raise UserError(
            f"{directory} holds images but no class folders: put the images of each class into a sub-folder of its "
            f"own, for example {directory / 'cat'} and {directory / 'dog'}"
        )
    if not names:
        raise UserError(f"{directory} is empty: it needs a sub-folder of images for each class")
    if "" in names:
        raise UserError(f"{directory} has a folder {folders[''].name!a}, whose name is only white space: rename it")
    _check_names(directory, names, known)
    return tuple(names)


def own_class_names(directory: Path) -> list[str]:
    """Return the canonical names of all class folders in a directory, sorted; UserError if it is missing."""
    return [name for name in _class_folders(directory) if not name.endswith(AUGMENTED_SUFFIX)]


def _check_names(directory: Path, names: Sequence[str], known: Sequence[str] | None) -> None:
    if known is None and len(names) < 2:
        inner = directory / names[0]
        nested = inner.is_dir() and sum(path.is_dir() for path in inner.iterdir()) > 1
        hint = f"; if the folders in {inner} are the classes, name that folder" if nested else ""
        raise UserError(f"{directory} has a single class, {names[0]}: at least 2 are needed{hint}")
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(f"{directory} has a class {odd[0]!a}, which tables and figures cannot show: rename it")
    if known is not None and (unknown := [name for name in names if name not in known]):
        listed = ", ".join(known[:_MOST_LISTED]) + ", ..." * (len(known) > _MOST_LISTED)
        raise UserError(
            f"{directory} has a class {unknown[0]}, which is none of {listed}: name a folder with these classes"
        )


def _class_folders(directory: Path) -> dict[str, Path]:
    """Return the class folders and `_augmented` folders in a directory by canonical name, sorted.

    UserError if the directory is missing, two folders have the same name, or a link is broken, since the disk of a
    class may not be mounted.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}: name one with a sub-folder of images for each class")
    folders: dict[str, Path] = {}
    for folder in sorted(directory.iterdir()):
        if folder.is_symlink() and not folder.exists() and not folder.name.startswith("."):
            raise UserError(
                f"{folder} is a link to {os.readlink(folder)}, which cannot be reached: mount or restore that, "
                "or remove the link"
            )
        if not folder.is_dir() or not _is_class(folder):
            continue
        other = folders.setdefault(canonical(folder.name), folder)
        if other != folder:
            raise UserError(
                f"{directory} has two folders of one class, {other.name!a} and {folder.name!a}: put their images into "
                "one of them, or rename one"
            )
    return dict(sorted(folders.items()))


def _is_class(folder: Path) -> bool:
    """Whether a folder in a dataset is a class: neither skipped nor a folder of images set aside."""
    aside = folder.name in (REJECTED, LEFT_OUT) and is_set_aside(folder) and not _has_images(folder)
    return not aside and _why_not_class(folder) is None


def _why_not_class(folder: Path) -> str | None:
    """Return why a folder in a dataset is skipped; None if it is not."""
    if folder.name.startswith("."):
        return _HIDDEN
    parent = folder.parent.resolve()
    if folder.is_symlink() and folder.resolve() in (parent, *parent.parents):
        return "a link to a folder that contains it"
    return None


def skipped_beside(directory: Path) -> dict[Path, str]:
    """Return images and folders of images in a dataset that belong to no class, by name, with the reason."""
    reasons = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            reason = _why_not_class(path)
            if reason and (reason != _HIDDEN or _has_images(path)):
                reasons[path] = reason
        elif path.name not in _LITTER and _has_images(path):
            reasons[path] = "an image outside the class folders"
    return reasons


def _has_images(path: Path) -> bool:
    """Whether a path is an image, or a folder that directly holds one, visible or hidden."""
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return any(file.is_file() and not why_no_image(file) for file in files)
    except OSError:
        return False


def image_files(directory: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name, except links; none if there is no such folder."""
    return _list_folder(directory)[0]


def skipped_files(directory: Path) -> dict[Path, str]:
    """Return what else lies directly in a folder, sorted by name, with the reason why it is not used."""
    return _list_folder(directory)[1]


def _list_folder(directory: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the images and what is skipped directly in a folder."""
    images, folders, skipped = _scan(directory) if directory.is_dir() else ([], [], {})
    for folder in folders:
        skipped[folder] = _LINK if folder.is_symlink() else "a folder inside a class folder, which is not searched"
    return images, dict(sorted(skipped.items()))


def _scan(directory: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Return images, visible folders and links to folders, and what is skipped; hidden files only if images."""
    images: list[Path] = []
    folders: list[Path] = []
    skipped: dict[Path, str] = {}
    with os.scandir(directory) as entries:  # distinguishes files from folders without a system call
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = directory / entry.name
            if entry.name.startswith("."):
                if not entry.is_symlink() and ".partial" not in entry.name and _has_images(path):
                    skipped[path] = _HIDDEN
            elif entry.name in _LITTER:
                continue
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(path)):
                folders.append(path)
            elif entry.is_symlink():
                skipped[path] = _LINK
            elif not entry.is_file():
                skipped[path] = "not a regular file"
            elif not has_image_name(path) and (reason := why_no_image(path)):
                skipped[path] = reason
            else:
                images.append(path)
    return images, folders, skipped


def log_skipped(directory: Path, reasons: Mapping[Path, str]) -> None:
    """Log each skipped file with the reason, once per process; of many with the same reason, only the first."""
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for path, reason in reasons.items():
        if os.path.abspath(path) not in _reported:
            by_reason[reason].append(path)
    for reason, files in by_reason.items():
        if len(files) > _MOST_LISTED:
            _log.warning("left out: %d files, for example %s: %s", len(files), printable(files[0]), printable(reason))
        else:
            for path in files:
                _log.warning("left out: %s: %s", printable(path), printable(reason))
        _reported.update(map(os.path.abspath, files))
    if by_reason:
        _log.warning("left out of %s: %d", printable(directory), sum(map(len, by_reason.values())))


def find_images(directory: Path, on_skipped: Callable[[Path, str], object]) -> Iterator[Path]:
    """Find the images in a folder and its sub-folders, sorted by name, each folder's own images first.

    Links to folders are followed, unless their target is searched anyway; links to files are not. `on_skipped` is
    called with everything else and the reason why it is not used.
    """
    root = Path(os.path.realpath(directory))
    searched = {root}
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        try:
            images, folders, skipped = _scan(folder)
        except OSError as error:
            on_skipped(folder, error.strerror)
            continue
        for path in filter(Path.is_symlink, folders):
            target = Path(os.path.realpath(path))
            if target in searched or root in target.parents or target in root.parents:
                skipped[path] = "a link to a folder that is already searched, or that contains it"
            searched.add(target)
        for path, reason in skipped.items():
            on_skipped(path, reason)
        yield from images
        waiting += [path for path in reversed(folders) if path not in skipped]


def read_folder(directory: Path, with_augmented: bool = False, classes: Sequence[str] | None = None) -> ImageFolder:
    """List the images of every class without opening them, or read an `.npz` file.

    Args:
        directory: one folder per class, or an `.npz` file.
        with_augmented: list the `<Class>_augmented` folders too.
        classes: the classes that may occur, into which the labels are indices; by default those that do, at least two.

    Raises:
        UserError: as `class_names` or `load_archive`, or a class has no images.
    """
    if directory.suffix.lower() == ".npz" and not directory.is_dir():
        return _read_archive(directory, classes)
    names = class_names(directory, classes)
    classes = tuple(classes or names)
    folders = _class_folders(directory)
    skipped = skipped_beside(directory)
    listed: list[tuple[Path, int, bool]] = []  # file, label, whether it is augmented
    for name in names:
        for suffix in ("", AUGMENTED_SUFFIX) if with_augmented else ("",):
            folder = folders.get(name + suffix, directory / (name + suffix))  # missing if there are none
            images, skipped_here = _list_folder(folder)
            if not images and not suffix:
                why = next((f": {path}: {reason}" for path, reason in skipped_here.items()), "")
                raise UserError(f"{folder} has no images{why}")
            skipped |= skipped_here
            listed += [(path, classes.index(name), bool(suffix)) for path in images]
    paths, labels, is_augmented = zip(*listed, strict=True)
    return ImageFolder(
        directory=directory,
        classes=classes,
        paths=paths,
        labels=np.array(labels, dtype=np.int64),
        augmented=np.array(is_augmented),
        sources=tuple(source_stem(path) if augmented else stem_of(path) for path, _, augmented in listed),
        inverted=np.zeros(len(paths), dtype=bool),
        skipped=skipped,
    )


def _read_archive(file: Path, classes: Sequence[str] | None) -> ImageFolder:
    if not file.exists():
        raise UserError(f"there is no file {file}: name one with the arrays `images` and `labels`, or a folder")
    images, labels = load_archive(file)
    texts, text_indices = np.unique(labels.astype(str), return_inverse=True)
    text_names = [canonical(text) for text in texts.tolist()]
    names = sorted(set(text_names))
    if not names:
        raise UserError(f"{file} is empty: it needs images of each class")
    _check_names(file, names, classes)
    if unfit := [name for name in names if not name or name.startswith(".") or "/" in name or "\0" in name]:
        raise UserError(f"{file} has a label {unfit[0]!r}, which cannot be a file name: rename it")
    classes = tuple(classes or names)
    count = len(images)
    return ImageFolder(
        directory=file,
        classes=classes,
        paths=tuple(file / text_names[text] / str(number) for number, text in enumerate(text_indices)),
        labels=np.array([classes.index(name) for name in text_names], dtype=np.int64)[text_indices],
        augmented=np.zeros(count, dtype=bool),
        sources=tuple(map(str, range(count))),
        inverted=np.zeros(count, dtype=bool),
        arrays=images,
    )
