"""What a folder of photographs holds: a folder per class, or one such folder for each side of a split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import UserError
from dataset.folders import ImageFolder, image_files

_TRAINING, _VALIDATION, _TESTING = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


@dataclass(frozen=True)
class Layout:
    """The folders, or the `.npz` file, of each side.

    Attributes:
        training: what is trained on.
        validation: what validates; None for a part of the training images.
        testing: what is tested on; None for a part of the training images, which is held out.
        unused: visible folders beside these.
    """

    training: Path
    validation: Path | None = None
    testing: Path | None = None
    unused: tuple[Path, ...] = ()

    @property
    def others(self) -> list[Path]:
        """What is not trained on."""
        return [folder for folder in (self.validation, self.testing) if folder]


def find_layout(path: Path) -> Layout:
    """Finds the sides of a split in a folder, by their names in any case.

    A folder `train` that holds images itself is a class. `val` without `test` is tested on.

    Raises:
        UserError: there are two folders of one side.
    """
    if not path.is_dir():
        return Layout(path)
    training, validation, testing = (_find_side(path, names) for names in (_TRAINING, _VALIDATION, _TESTING))
    if training is None or image_files(training):
        return Layout(path)
    beside = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    unused = tuple(folder for folder in beside if folder not in (training, validation, testing))
    if not testing:
        validation, testing = None, validation
    return Layout(training, validation, testing, unused)


def _find_side(directory: Path, names: tuple[str, ...]) -> Path | None:
    found = sorted(folder for folder in directory.iterdir() if folder.name.lower() in names and folder.is_dir())
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are folders of one side: join them, or rename one")
    return found[0] if found else None


def join_validation(training: ImageFolder, validation: ImageFolder) -> ImageFolder:
    """The images of two folders beside each other, of the same classes, of which those of the second one validate."""
    # An image's source is found by its name, and both folders may number theirs from 1.
    sources = (source and f"{validation.name}/{source}" for source in validation.sources)
    return replace(
        training,
        directory=training.directory.parent,
        paths=training.paths + validation.paths,
        labels=np.concatenate([training.labels, validation.labels]),
        augmented=np.concatenate([training.augmented, validation.augmented]),
        sources=(*training.sources, *sources),
        inverted=np.concatenate([training.inverted, validation.inverted]),
        passed_over={**training.passed_over, **validation.passed_over},
        validates=np.arange(len(training.paths) + len(validation.paths)) >= len(training.paths),
    )
