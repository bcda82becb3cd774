"""Recognises the layout of a folder: one sub-folder per class, or one such folder per side of a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import UserError
from dataset.folders import ImageFolder, image_files

_TRAINING, _VALIDATION, _TESTING = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


@dataclass(frozen=True)
class Layout:
    """The folder or `.npz` file of each side of a split."""

    training: Path
    validation: Path | None = None  # None for a part of the training images
    testing: Path | None = None  # None for a held-out part of the training images
    unused: tuple[Path, ...] = ()  # visible folders beside these

    @property
    def others(self) -> list[Path]:
        """The validation and test folders."""
        return [folder for folder in (self.validation, self.testing) if folder]


def find_layout(path: Path) -> Layout:
    """Find the sides of a split by the names of the folders, in any case.

    A folder `train` that holds images itself is a class. `val` without `test` is the test side. UserError if two
    folders are the same side.
    """
    if not path.is_dir():
        return Layout(path)
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    training, validation, testing = (_find_side(folders, names) for names in (_TRAINING, _VALIDATION, _TESTING))
    if training is None or image_files(training):
        return Layout(path)
    beside = (folder for folder in folders if folder not in (training, validation, testing))
    unused = tuple(folder for folder in beside if not folder.name.startswith("."))
    if not testing:
        validation, testing = None, validation
    return Layout(training, validation, testing, unused)


def _find_side(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    found = [folder for folder in folders if folder.name.lower() in names]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are the same side of a split: join them, or rename one")
    return found[0] if found else None


def join_validation(training: ImageFolder, validation: ImageFolder) -> ImageFolder:
    """Join two sibling folders of the same classes; the images of the second one are validated on."""
    # Images of both folders may have the same stem.
    sources = (source and f"{validation.name}/{source}" for source in validation.sources)
    return replace(
        training,
        directory=training.directory.parent,
        paths=training.paths + validation.paths,
        labels=np.concatenate([training.labels, validation.labels]),
        augmented=np.concatenate([training.augmented, validation.augmented]),
        sources=(*training.sources, *sources),
        inverted=np.concatenate([training.inverted, validation.inverted]),
        skipped={**training.skipped, **validation.skipped},
        in_validation=np.arange(len(training.paths) + len(validation.paths)) >= len(training.paths),
    )
