"""How a dataset lies on the disk: a folder a class, and beside it `<Class>_augmented` with images made from these."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from common import UserError
from dataset.reading import IMAGE_SUFFIXES

AUGMENTED = "_augmented"
REJECTED, LEFT_OUT = "rejected", "left_out"  # beside the class folders: what was moved out of them, and is no class
_LITTER = {"Thumbs.db", "desktop.ini"}  # that Windows leaves in folders of images


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, in a fixed order.

    Attributes:
        directory: the folder.
        classes: their names, sorted.
        paths: N files.
        labels: (N,) int64, places in `classes`.
        augmented: (N,) bool, made from another image.
        sources: N stems of file names: an augmented image's source, any other's own; None where an augmented image's
            name does not tell.
    """

    directory: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    augmented: np.ndarray
    sources: tuple[str | None, ...]


def augmented_name(source: Path, number: int) -> str:
    """The file name of an image made from `source`."""
    return f"{source.stem}_aug_{number:04d}.jpg"


def source_stem(augmented: Path) -> str | None:
    """The stem of the image that an augmented one was made from, or None where its name does not tell."""
    match = re.fullmatch(r"(.+)_aug_\d+", augmented.stem, re.DOTALL)
    return match[1] if match else None


def check_apart(directories: Sequence[Path]) -> None:
    """Sees to it that no folder is another one, or lies in it.

    Raises:
        UserError: one is, or does.
    """
    for first, second in combinations(directories, 2):
        one, other = first.resolve(), second.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} must be folders apart: what is tested on must not be trained on")


def class_names(directory: Path) -> tuple[str, ...]:
    """The names of the class folders in a directory, sorted.

    Raises:
        UserError: there is no such folder, or it has fewer than two class folders, or augmented images of a class
            that has none of its own.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}: name one with a sub-folder of images for each class")
    folders = _class_folders(directory)
    names = sorted(name for name in folders if not name.endswith(AUGMENTED))
    if orphans := sorted(folders - set(names) - {name + AUGMENTED for name in names}):
        raise UserError(f"{directory / orphans[0]} has no class folder {orphans[0].removesuffix(AUGMENTED)} beside it")
    if not names:
        raise UserError(f"{directory} is empty: it needs a sub-folder of images for each class")
    if len(names) == 1:
        raise UserError(f"{directory} has a single class, {names[0]}: there is nothing to tell apart")
    return tuple(names)


def _class_folders(directory: Path) -> set[str]:
    folders = {entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    return folders - {REJECTED, LEFT_OUT}


def image_files(directory: Path) -> list[Path]:
    """The image files right in a folder, sorted by name; none where there is no such folder."""
    if not directory.is_dir():
        return []
    return sorted(
        path for path in directory.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip


def other_files(directory: Path) -> list[Path]:
    """The visible files right in a folder whose names are not those of images, sorted by name."""
    images = set(image_files(directory))
    return sorted(
        path for path in directory.iterdir()
        if path.is_file() and path not in images and not path.name.startswith(".") and path.name not in _LITTER
    )  # fmt: skip


def has_classes(directory: Path) -> bool:
    """Whether there is a folder with class folders in it.

    Raises:
        UserError: there is no such folder.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}")
    return bool(_class_folders(directory))


def read_folder(directory: Path, with_augmented: bool = False) -> ImageFolder:
    """Lists the images of every class; opens none.

    Args:
        directory: holds a folder a class.
        with_augmented: list the `<Class>_augmented` folders too.

    Raises:
        UserError: as `class_names`, or a class has no images.
    """
    classes = class_names(directory)
    paths: list[Path] = []
    labels: list[int] = []
    augmented: list[bool] = []
    for label, name in enumerate(classes):
        originals = image_files(directory / name)
        if not originals:
            raise UserError(f"{directory / name} has no images")
        made = image_files(directory / (name + AUGMENTED)) if with_augmented else []
        paths += originals + made
        labels += [label] * len(originals + made)
        augmented += [False] * len(originals) + [True] * len(made)
    return ImageFolder(
        directory=directory,
        classes=classes,
        paths=tuple(paths),
        labels=np.array(labels, dtype=np.int64),
        augmented=np.array(augmented, dtype=bool),
        sources=tuple(source_stem(path) if made else path.stem for path, made in zip(paths, augmented, strict=True)),
    )
