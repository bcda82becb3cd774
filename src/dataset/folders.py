"""How a dataset lies on the disk: a folder a class, and beside it `<Class>_augmented` with images made from these.

Or one `.npz` file with the arrays `images` and `labels`.
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

from common import UserError, own_name, printable, short_name
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

AUGMENTED = "_augmented"
_SPARE = 30  # bytes that the name of an augmented image adds to its source's
_LITTER = {"Thumbs.db", "desktop.ini"}  # that Windows leaves in folders of images
_MOST_TOLD = 20  # files left out for one reason that are named one by one
_HIDDEN = "hidden, since its name begins with a dot: rename it to use it"
_LINK = "a link, which is not followed: put the file itself there, or make the whole folder a link"
_log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images below a folder, or in an `.npz` file, in a fixed order.

    Attributes:
        directory: the folder, or the `.npz` file.
        classes: their canonical names, sorted.
        paths: N files; of an `.npz` file FILE/<label>/<place in it>, which are only names.
        labels: (N,) int64, places in `classes`.
        augmented: (N,) bool, made from another image.
        sources: N stems, as `stem_of` gives them: an augmented image's source, any other's own; None where an
            augmented image's name does not tell.
        inverted: (N,) bool, read with black and white exchanged.
        arrays: (N, H, W) or (N, C, H, W), the images of an `.npz` file.
        white: the value that is white in files of 16-bit values.
        passed_over: what else lies in the class folders and beside them, each with the reason why it is not used.
        part: what these images are called where they are a part of the folder.
        validates: (N,) bool, which of them validate; None where that is left to the folds.
    """

    directory: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: np.ndarray
    augmented: np.ndarray
    sources: tuple[str | None, ...]
    inverted: np.ndarray
    arrays: np.ndarray | None = None
    white: int = WHITE
    passed_over: Mapping[Path, str] = field(default_factory=dict)
    part: str | None = None
    validates: np.ndarray | None = None

    def read(self, place: int) -> Image.Image:
        """Reads one image, as it is stored but for being inverted where it should be.

        Raises:
            UnreadableImage: the message is the reason.
        """
        image = read_image(self.paths[place], self.white) if self.arrays is None else image_of_array(self.arrays[place])
        if not self.inverted[place]:
            return image
        inverted = ImageOps.invert(image if image.mode == "L" else upright_rgb(image))
        inverted.format = image.format
        return inverted

    @property
    def name(self) -> str:
        """The name of the part or the folder, which the results of a test set go by."""
        return self.part or own_name(self.directory)

    def name_of(self, place: int) -> str:
        """An image's folder and file name, such as `cat/0001.jpg`; of an `.npz` file `<label>/<place in it>`.

        Where two folders are joined, theirs comes first: `train/cat/0001.jpg`.
        """
        return "/".join(self.paths[place].parts[-2 if self.validates is None else -3 :])

    def is_array(self, place: int) -> bool:
        """Whether an image is stored as numbers, and not as a picture."""
        return self.arrays is not None or is_array(self.paths[place])

    def subset(self, places: Sequence[int] | np.ndarray) -> ImageFolder:
        """The same with the images at these places only, in this order."""
        places = np.asarray(places, dtype=np.int64)
        return replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            labels=self.labels[places],
            augmented=self.augmented[places],
            sources=tuple(self.sources[place] for place in places),
            inverted=self.inverted[places],
            arrays=None if self.arrays is None else self.arrays[places],
            validates=None if self.validates is None else self.validates[places],
        )


def augmented_name(source: Path, number: int) -> str:
    """The file name of an image made from `source`."""
    return f"{stem_of(source)}_aug_{number:04d}.jpg"


def stem_of(path: Path) -> str:
    """What images made from this one carry in their names: its name without suffix, shortened where it is very long."""
    return short_name(path.name if path.suffix[1:].isdecimal() else path.stem, _SPARE)  # scan.001 is not scan.002


def source_stem(augmented: Path) -> str | None:
    """The stem of the image that an augmented one was made from, or None where its name does not tell."""
    match = re.fullmatch(r"(.+)_aug_\d+", augmented.stem, re.DOTALL)
    return match[1] if match else None


def canonical(name: str) -> str:
    """The name of a class as it is compared and shown: composed (NFC), without white space at its ends.

    macOS may store a name decomposed, so that folders of one class have different names on two machines. A name that
    ends with `_augmented` becomes the canonical name of its class and `_augmented`.
    """
    name = unicodedata.normalize("NFC", name).strip()
    own = name.removesuffix(AUGMENTED)
    return name if own == name else own.rstrip() + AUGMENTED


def class_folder(directory: Path, name: str) -> Path:
    """Finds the folder of a class in a directory, by its canonical name; `<directory>/<name>` if there is none.

    Args:
        directory: it need not exist.
        name: of a class, or of a class and `_augmented`.
    """
    folder = directory / name
    if folder.is_dir() or not directory.is_dir():
        return folder
    wanted = canonical(name)
    others = [directory / other for other in sorted(os.listdir(directory)) if canonical(other) == wanted]
    return next((other for other in others if other.is_dir()), folder)


def check_known_classes(training_dir: Path, testing_dir: Path, remedy: str) -> None:
    """Checks that a training folder has every class of a folder of test images, which may lack some or be missing.

    Raises:
        UserError: it lacks one; the message ends with the remedy.
    """
    names = own_class_names(testing_dir) if testing_dir.exists() else []
    known = class_names(training_dir) if names else ()
    if unknown := [name for name in names if name not in known]:
        folder = class_folder(testing_dir, unknown[0])
        raise UserError(f"{folder} is a class that {training_dir} does not have: {remedy}")


def check_apart(directories: Sequence[Path]) -> None:
    """Sees to it that no folder is another one, or lies in it.

    Raises:
        UserError: one is, or does.
    """
    for first, second in combinations(directories, 2):
        one, other = first.resolve(), second.resolve()
        if one == other or one in other.parents or other in one.parents:
            raise UserError(f"{first} and {second} must be folders apart: what is tested on must not be trained on")


def class_names(directory: Path, least: int = 2) -> tuple[str, ...]:
    """The canonical names of the class folders in a directory, sorted.

    Raises:
        UserError: there is no such folder, or it has fewer than `least` class folders, or two of one class, or
            augmented images of a class that has none of its own.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}: name one with a sub-folder of images for each class")
    folders = _class_folders(directory)
    names = own_class_names(directory)
    if orphans := sorted(set(folders) - set(names) - {name + AUGMENTED for name in names}):
        raise UserError(f"{folders[orphans[0]]} has no class folder {orphans[0].removesuffix(AUGMENTED)} beside it")
    if not names and _holds_images(directory):
        raise UserError(
            f"{directory} holds images but no class folders: put the images of each class into a sub-folder of its "
            f"own, such as {directory / 'cat'} and {directory / 'dog'}"
        )
    if not names:
        raise UserError(f"{directory} is empty: it needs a sub-folder of images for each class")
    if "" in names:
        raise UserError(f"{directory} has a folder {folders[''].name!a}, a name of white space only: rename it")
    _check_names(directory, names, least)
    return tuple(names)


def own_class_names(directory: Path) -> list[str]:
    """The canonical names of whatever class folders there are in a directory, sorted.

    Raises:
        UserError: there is no such directory, or it has two folders of one class.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}")
    return sorted(name for name in _class_folders(directory) if not name.endswith(AUGMENTED))


def _check_names(directory: Path, names: Sequence[str], least: int) -> None:
    if len(names) < least:
        raise UserError(f"{directory} has a single class, {names[0]}: there is nothing to tell apart")
    if odd := [name for name in names if not name.isprintable()]:
        raise UserError(f"{directory} has a class {odd[0]!a}, which tables and figures cannot show: rename it")


def _class_folders(directory: Path) -> dict[str, Path]:
    """The folders of classes and of augmented images in a directory, by their canonical names.

    Raises:
        UserError: two of them have the same name, or a link leads nowhere.
    """
    folders: dict[str, Path] = {}
    for folder in sorted(directory.iterdir()):
        _check_link(folder)
        if not folder.is_dir() or _why_no_class(folder) is not None:
            continue
        other = folders.setdefault(canonical(folder.name), folder)
        if other != folder:
            raise UserError(
                f"{directory} has two folders of one class, {other.name!a} and {folder.name!a}: put their images into "
                "one of them, or rename one"
            )
    return folders


def _check_link(path: Path) -> None:
    """Raises UserError for a visible link to nowhere: a class whose disk is not mounted must not be overlooked."""
    if path.is_symlink() and not os.path.exists(path) and not path.name.startswith("."):
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which cannot be reached: mount or restore that, "
            "or remove the link"
        )


def _why_no_class(folder: Path) -> str | None:
    """Why a folder in a dataset is not a class: "" if that is as it should be; None if it is one."""
    if folder.name.startswith("."):
        return _HIDDEN
    if folder.name in (REJECTED, LEFT_OUT) and is_set_aside(folder) and not _holds_images(folder):
        return ""
    around = folder.parent.resolve()
    if folder.is_symlink() and folder.resolve() in (around, *around.parents):
        return "a link to a folder that it lies in"
    return None


def passed_over_beside(directory: Path) -> dict[Path, str]:
    """What holds images in a dataset's folder and belongs to no class, each with the reason; sorted by name."""
    reasons = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            reason = _why_no_class(path)
            if reason and (reason != _HIDDEN or _holds_images(path)):
                reasons[path] = reason
        elif path.name not in _LITTER and path.is_file() and not why_no_image(path):
            reasons[path] = "an image in no folder of a class"
    return reasons


def _holds_images(folder: Path) -> bool:
    """Whether an image, visible or hidden, lies right in a folder. A folder that cannot be listed has none."""
    try:
        return any(path.is_file() and not why_no_image(path) for path in folder.iterdir())
    except OSError:
        return False


def image_files(directory: Path) -> list[Path]:
    """The image files right in a folder, sorted by name; none where there is no such folder.

    The folder may be a link, a file in it may not: what is in a dataset lies in its folders, once.
    """
    return _sort_out(directory)[0]


def passed_over(directory: Path) -> dict[Path, str]:
    """What else is right in a folder, sorted by name, each with the reason why it is not used."""
    return _sort_out(directory)[1]


def _sort_out(directory: Path) -> tuple[list[Path], dict[Path, str]]:
    """What `image_files` gives, and `passed_over`."""
    if not directory.is_dir():
        return [], {}
    images, folders, others = _list(directory)
    for folder in folders:
        others[folder] = _LINK if folder.is_symlink() else "a folder in the folder of a class, which is not looked into"
    return images, dict(sorted(others.items()))


def _list(directory: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """What is in a folder, sorted by name: images, visible folders and links to such, and the rest with the reasons.

    What is hidden is passed over without a reason where it holds no images.

    Raises:
        OSError: the folder cannot be listed.
    """
    images: list[Path] = []
    folders: list[Path] = []
    others: dict[Path, str] = {}
    with os.scandir(directory) as entries:  # tells files from folders without asking after each
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = directory / entry.name
            if entry.name.startswith("."):
                if ".partial" not in entry.name and _has_image(path, entry):
                    others[path] = _HIDDEN
            elif entry.name in _LITTER:
                continue
            elif entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(path)):
                folders.append(path)
            elif reason := _why_passed_over(path, entry):
                others[path] = reason
            else:
                images.append(path)
    return images, folders, others


def _has_image(path: Path, entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return _holds_images(path)
    return entry.is_file(follow_symlinks=False) and not why_no_image(path)


def _why_passed_over(path: Path, entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        return _LINK
    if not entry.is_file():
        return "not a regular file"
    return None if has_image_name(path) else why_no_image(path)


def tell_left_out(directory: Path, reasons: Mapping[Path, str]) -> None:
    """Names each file that is not used, once in a program's life, with the reason, and says how many they are.

    Of many files with the same reason it names the first.
    """
    by_reason: dict[str, list[Path]] = defaultdict(list)
    for path, reason in reasons.items():
        if os.path.abspath(path) not in _told:
            by_reason[reason].append(path)
    for reason, told in by_reason.items():
        if len(told) > _MOST_TOLD:
            _log.warning("left out: %d files, such as %s: %s", len(told), printable(told[0]), printable(reason))
        else:
            for path in told:
                _log.warning("left out: %s: %s", printable(path), printable(reason))
        _told.update(map(os.path.abspath, told))
    if by_reason:
        _log.warning("left out of %s: %d", printable(directory), sum(map(len, by_reason.values())))


def find_images(directory: Path, on_passed_over: Callable[[Path, str], object]) -> Iterator[Path]:
    """The image files in a folder and in the folders in it, each folder's own sorted by name and before those.

    Which files are images, and which links are followed, is as in a dataset: links to folders are, unless what they
    lead to is searched anyway.

    Args:
        directory: the folder.
        on_passed_over: is called with whatever else there is, and the reason why it is not used.
    """
    root = Path(os.path.realpath(directory))
    searched = {root}
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        try:
            images, folders, others = _list(folder)
        except OSError as error:
            on_passed_over(folder, error.strerror)
            continue
        for path, reason in others.items():
            on_passed_over(path, reason)
        yield from images
        inner = []
        for path in folders:
            target = Path(os.path.realpath(path))
            if not path.is_symlink():
                inner.append(path)
            elif target in searched or root in target.parents or target in root.parents:
                on_passed_over(path, "a link to a folder that is searched already, or around it")
            else:
                searched.add(target)
                inner.append(path)
        waiting += reversed(inner)


def read_labelled(directory: Path, classes: Sequence[str]) -> ImageFolder:
    """Lists the images of a folder that has some of these classes, or all, and no other; labels are places in them.

    Raises:
        UserError: as `read_folder`, or the folder has another class.
    """
    if directory.is_dir():
        _check_known(directory, class_names(directory, 1), classes)  # before a folder around them is looked into
    folder = read_folder(directory, least_classes=1)
    _check_known(directory, folder.classes, classes)
    places = np.array([classes.index(name) for name in folder.classes], dtype=np.int64)
    return replace(folder, classes=tuple(classes), labels=places[folder.labels])


def _check_known(directory: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in classes]:
        known = ", ".join(classes[:_MOST_TOLD]) + ", ..." * (len(classes) > _MOST_TOLD)
        raise UserError(f"{directory} has a class {unknown[0]}, which is none of {known}: name a folder of these")


def read_folder(directory: Path, with_augmented: bool = False, least_classes: int = 2) -> ImageFolder:
    """Lists the images of every class; opens none, but reads an `.npz` file.

    Args:
        directory: holds a folder a class, or is an `.npz` file.
        with_augmented: list the `<Class>_augmented` folders too.
        least_classes: how many there must be.

    Raises:
        UserError: as `class_names` or `load_archive`, or a class has no images.
    """
    if directory.suffix.lower() == ".npz" and not directory.is_dir():
        return _read_archive(directory, least_classes)
    classes = class_names(directory, least_classes)
    folders = _class_folders(directory)
    paths: list[Path] = []
    labels: list[int] = []
    augmented: list[bool] = []
    others = passed_over_beside(directory)
    for label, name in enumerate(classes):
        originals, unused = _sort_out(folders[name])
        if not originals:
            why = next((f": {path}: {reason}" for path, reason in unused.items()), "")
            raise UserError(f"{folders[name]} has no images{why}")
        augmented_folder = folders.get(name + AUGMENTED)
        made, unused_too = _sort_out(augmented_folder) if with_augmented and augmented_folder else ([], {})
        others |= unused | unused_too
        paths += originals + made
        labels += [label] * len(originals + made)
        augmented += [False] * len(originals) + [True] * len(made)
    return ImageFolder(
        directory=directory,
        classes=classes,
        paths=tuple(paths),
        labels=np.array(labels, dtype=np.int64),
        augmented=np.array(augmented, dtype=bool),
        sources=tuple(
            source_stem(path) if made else stem_of(path) for path, made in zip(paths, augmented, strict=True)
        ),
        inverted=np.zeros(len(paths), dtype=bool),
        passed_over=others,
    )


def _read_archive(file: Path, least_classes: int) -> ImageFolder:
    if not file.exists():
        raise UserError(f"there is no file {file}: name one with the arrays `images` and `labels`, or a folder")
    images, labels = load_archive(file)
    spelled, spellings = np.unique(labels.astype(str), return_inverse=True)
    texts = np.array([canonical(text) for text in spelled.tolist()], dtype=str)[spellings]
    classes, places = np.unique(texts, return_inverse=True)
    if not len(classes):
        raise UserError(f"{file} is empty: it needs images of each class")
    _check_names(file, classes.tolist(), least_classes)
    if unfit := [name for name in classes if not name or name.startswith(".") or "/" in name or "\0" in name]:
        raise UserError(f"{file} has a label {str(unfit[0])!r}: labels name files, and must do as file names")
    count = len(images)
    return ImageFolder(
        directory=file,
        classes=tuple(classes.tolist()),
        paths=tuple(file / text / str(number) for number, text in enumerate(texts.tolist())),
        labels=places.astype(np.int64),
        augmented=np.zeros(count, dtype=bool),
        sources=tuple(map(str, range(count))),
        inverted=np.zeros(count, dtype=bool),
        arrays=images,
    )
