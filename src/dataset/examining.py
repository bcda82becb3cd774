"""Looks once at every image of a dataset: can it be read, what is its form, and what does it look like.

What is known of a file is kept on disk until the file changes, in `.cache/examined/` of the working directory: two
`.npz` files per image directory. One has what the images look like, and is read only where that is needed. They may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import available_cores, write_whole
from dataset.duplicates import SIDE, Fingerprint, fingerprint
from dataset.folders import ImageFolder
from dataset.reading import WHITE, UnreadableImage, highest_value, read_image, upright_rgb, white_of

STORE = Path(".cache/examined")
THUMBNAIL = 32
_SHARPNESS_SIDE = 128
_DIGEST = 16  # bytes of a digest
_BLOCK = 16  # images that a thread is given at once: handing one over costs memory, and as long as reading a small one
_STRIP = 1 << 20  # pixels, or bytes of a file, that are digested at once
_LARGEST = (1 << 63) - 1
_Image, _Result = TypeVar("_Image"), TypeVar("_Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """What is known of one image file.

    Attributes:
        path: the file.
        size: width and height in pixels, as it is looked at.
        form: file format and mode, such as "JPEG RGB".
        pixels: 16 bytes, a digest of the upright RGB pixels and of the size: equal for identical pixels only.
        thumbnail: (32, 32) uint8, grey, its aspect not kept.
        intensities: (256,) share of pixels of each grey value.
        fingerprint: what near-duplicates are found by.
        sharpness: the Laplacian by the gradient, root mean squares, at 128 pixels; contrast cancels out.
        white: the 16-bit value that was taken for white; 0 for files of other values, which have none.
    """

    path: Path
    size: tuple[int, int]
    form: str
    pixels: bytes
    thumbnail: np.ndarray
    intensities: np.ndarray
    fingerprint: Fingerprint
    sharpness: float
    white: int = 0


# The fields of `Examined` that are stored: type and shape per image. A new field needs a line here.
_FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "size": ("i4", (2,)),
    "form": ("S32", ()),
    "pixels": (f"V{_DIGEST}", ()),
    "thumbnail": ("u1", (THUMBNAIL, THUMBNAIL)),
    "intensities": ("f4", (256,)),
    "fingerprint.thumbnail": ("u1", (SIDE, SIDE)),
    "fingerprint.size": ("i4", (2,)),
    "sharpness": ("f8", ()),
    "white": ("i4", ()),
}
_VERSION = 3  # of how the fields are computed; a store of another version is not used
_FORMAT = json.dumps([_VERSION, _FIELDS]).encode()


def examine(
    paths: Sequence[Path], store: Path | None = STORE, white: int = WHITE
) -> tuple[list[Examined], dict[Path, str]]:
    """Looks at every file, and remembers what it saw until the file changes.

    Args:
        paths: N files.
        store: a folder for what is remembered beyond this process; None keeps nothing on disk.
        white: the 16-bit value that is white.

    Returns:
        What is known of those that can be read, in their order, and why the others cannot.
    """

    def recall(entry: _Entry) -> Examined | str | None:
        return entry.image if entry.image and entry.image.white in (0, white) else entry.reason or None

    results = _remember(paths, store, recall, partial(_examine, white=white), "examining", True)
    examined = [
        result if result.path == path else replace(result, path=path)
        for path, result in zip(paths, results, strict=True)
        if isinstance(result, Examined)
    ]
    return examined, {path: why for path, why in zip(paths, results, strict=True) if isinstance(why, str)}


def find_unreadable(paths: Sequence[Path], store: Path | None = STORE) -> dict[Path, str]:
    """Why some of the files cannot be read; takes no time for those that were read before."""
    reasons = _remember(paths, store, lambda entry: entry.reason, _try_to_read, "reading")
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def find_white(paths: Sequence[Path], store: Path | None = STORE) -> int:
    """The 16-bit value that is white in a dataset: the end of the range that its files use.

    Cameras and microscopes write 10, 12 or 14 bits into files of 16.
    """
    return white_of(max(find_highest(paths, store), default=0))


def find_highest(paths: Sequence[Path], store: Path | None = STORE) -> list[int]:
    """The highest 16-bit value of each file; 0 for files of other values. Of these only the start is read."""
    return _remember(paths, store, lambda entry: entry.highest, _find_highest, "looking")


def in_own_range(folder: ImageFolder, store: Path | None = STORE) -> ImageFolder:
    """The same folder, with its 16-bit values scaled by the range that they use."""
    return folder if folder.arrays is not None else replace(folder, white=find_white(folder.paths, store))


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, or None if it can."""
    return _remember([path], None, lambda entry: entry.reason, _try_to_read, "reading")[0] or None


def content_digests(paths: Sequence[Path], store: Path | None = STORE) -> list[bytes]:
    """The 16-byte digest of the content of each file, in order; a file that has not changed is not read again.

    Of a file that may not be read it is all zeros.

    Raises:
        OSError: a file is missing.
    """
    return _remember(paths, store, lambda entry: entry.digest, _digest_content, "reading")


def on_all_cores(function: Callable[[_Image], _Result], images: Sequence[_Image], title: str) -> list[_Result]:
    """What a function makes of each image, with a bar; the images are named by their paths, say, or places."""

    def work(start: int) -> list[_Result]:
        return [function(image) for image in images[start : start + _BLOCK]]

    results: list[_Result] = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,  # Pillow lets go of the interpreter while it decodes
        tqdm(desc=title, total=len(images), unit="image", disable=None) as bar,
    ):
        for some in pool.map(work, range(0, len(images), _BLOCK)):
            results += some
            bar.update(len(some))
    return results


def examine_image(path: Path, stored: Image.Image) -> Examined:
    """What is known of an image that was read as it is stored."""
    image = upright_rgb(stored)
    grey = image.convert("L")
    return Examined(
        path=path,
        size=image.size,
        form=f"{stored.format or 'array'} {stored.mode}",
        white=stored.info.get("white", 0),
        pixels=_digest_pixels(image),
        thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
        intensities=np.asarray(grey.histogram(), dtype=np.float32) / (grey.width * grey.height),
        fingerprint=fingerprint(grey),
        sharpness=_measure_sharpness(grey),
    )


def _measure_sharpness(grey: Image.Image) -> float:
    """About 2.2 for noise, 1.3 for most photographs, below 0.7 for very blurred ones, 0 for a single colour."""
    small = grey.copy()
    small.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    pixels = np.pad(np.asarray(small, dtype=np.float32), 1, mode="edge")
    centre = pixels[1:-1, 1:-1]
    right, below = pixels[1:-1, 2:] - centre, pixels[2:, 1:-1] - centre
    laplacian = right + below + (pixels[1:-1, :-2] - centre) + (pixels[:-2, 1:-1] - centre)
    gradient = float(np.square(right).sum() + np.square(below).sum())
    return math.sqrt(float(np.square(laplacian).sum()) / gradient) if gradient else 0.0


def _digest_pixels(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=_DIGEST)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):  # all at once would take another copy of the image
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.digest()


@dataclass
class _Entry:
    """What is known of one version of a file.

    Attributes:
        version: size, time of modification, time of change and inode of the file.
        reason: why it cannot be read as an image, or "" if it can be; None if unknown.
        digest: of the file's content; None if unknown.
        highest: its highest 16-bit value, or 0 if it has other values; None if unknown.
        image: what it looks like; None if unknown, or only known on disk.
    """

    version: tuple[int, ...]
    reason: str | None = None
    digest: bytes | None = None
    highest: int | None = None
    image: Examined | None = None


@dataclass
class _Folder:
    """The files of one folder, by name.

    Attributes:
        entries: what is known of them.
        loaded: the store files that were read into this, but for the images.
        changed: whether a reason or digest is known that is in no store file.
        examined: whether an image is known that is in no store file.
    """

    entries: dict[str, _Entry] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    changed: bool = False
    examined: bool = False


_known: dict[str, _Folder] = {}  # by absolute directory


def _remember(
    paths: Sequence[Path],
    store: Path | None,
    recall: Callable[[_Entry], _Result | None],
    find_out: Callable[[Path, _Entry], None],
    title: str,
    images: bool = False,
) -> list[_Result]:
    """What `recall` gives for each file; where that is None, `find_out` has to complete the entry first."""
    located = [os.path.split(os.path.abspath(path)) for path in paths]
    with _kept({folder for folder, _ in located}, store, images):
        entries = [_find_entry(folder, name) for folder, name in located]
        unknown = {id(entry): place for place, entry in enumerate(entries) if recall(entry) is None}

        def complete(place: int) -> None:
            find_out(paths[place], entries[place])
            known = _known[located[place][0]]
            known.changed = True
            known.examined |= images

        if unknown:
            on_all_cores(complete, list(unknown.values()), title)
        return [recall(entry) for entry in entries]


def _find_entry(folder: str, name: str) -> _Entry:
    stat = os.stat(os.path.join(folder, name))
    version = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & _LARGEST)  # of an int64
    entries = _known[folder].entries
    if name not in entries or entries[name].version != version:
        entries[name] = _Entry(version)
    return entries[name]


def _examine(path: Path, entry: _Entry, white: int) -> None:
    try:
        entry.image = examine_image(path, read_image(path, white))
        entry.reason = ""
    except UnreadableImage as error:
        entry.reason = str(error)


def _try_to_read(path: Path, entry: _Entry) -> None:
    try:
        read_image(path)
        entry.reason = ""
    except UnreadableImage as error:
        entry.reason = str(error)


def _find_highest(path: Path, entry: _Entry) -> None:
    entry.highest = highest_value(path)


def _digest_content(path: Path, entry: _Entry) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    try:
        with path.open("rb") as file:
            while block := file.read(_STRIP):
                digest.update(block)
        entry.digest = digest.digest()
    except FileNotFoundError:
        raise
    except OSError:
        entry.digest = bytes(_DIGEST)


@contextmanager
def _kept(folders: set[str], store: Path | None, images: bool) -> Iterator[None]:
    """Loads what a store knows of folders, and saves at the end what was found out, also if that was interrupted.

    Images that are on disk do not stay in memory.
    """
    for folder in folders:
        known = _known.setdefault(folder, _Folder())
        if store is not None and (file := _store_file(store, folder)) and str(file) not in known.loaded:
            known.loaded.add(str(file))
            known.entries = _load(file) | known.entries
        if store is not None and images:
            _load_images(_images_file(file), folder)
    try:
        yield
    finally:
        for folder in folders if store is not None else ():
            _save(_store_file(store, folder), folder, images)


def _store_file(store: Path, folder: str) -> Path:
    key = hashlib.blake2b(os.fsencode(folder), digest_size=_DIGEST).hexdigest()
    return Path(os.path.abspath(store), f"{key}.npz")


def _images_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.images.npz")


def _load(file: Path) -> dict[str, _Entry]:
    """The entries of a store file; none if there is no such file, or it cannot be used."""
    with _tolerate_damage(file), np.load(file, allow_pickle=False) as archive:
        names, versions = _read_index(archive)
        digests = archive["digests"].tobytes()
        columns = zip(
            names,
            versions,
            json.loads(archive["reasons"].tobytes()),
            archive["digested"].tolist(),
            archive["highest"].tolist(),
            range(0, len(digests), _DIGEST),
            strict=True,
        )
        return {
            name: _Entry(
                version,
                reason,
                digests[start : start + _DIGEST] if digested else None,
                highest if highest >= 0 else None,
            )
            for name, version, reason, digested, highest, start in columns
        }
    return {}


def _load_images(file: Path, folder: str) -> None:
    """Completes the entries of a folder by the images of a store file, as far as it can be used."""
    entries = _known[folder].entries
    with _tolerate_damage(file), np.load(file, allow_pickle=False) as archive:
        names, versions = _read_index(archive)
        columns = [_from_column(archive[f"image.{field}"]) for field in _FIELDS]
        for name, version, *values in zip(names, versions, *columns, strict=True):
            entry = entries.setdefault(name, _Entry(version, ""))
            if entry.version == version and entry.image is None:
                fields = dict(zip(_FIELDS, values, strict=True))
                seen = Fingerprint(fields.pop("fingerprint.thumbnail"), fields.pop("fingerprint.size"))
                entry.image = Examined(path=Path(folder, name), fingerprint=seen, **fields)


@contextmanager
def _tolerate_damage(file: Path) -> Iterator[None]:
    """Ends what is done with a store file silently where it is missing or cannot be used."""
    try:
        yield
    except FileNotFoundError:
        pass
    except Exception as error:  # the readers of ZIP files and arrays raise many kinds on damaged ones
        _log.debug("%s is not used: %s", file, error)


def _read_index(archive: Any) -> tuple[list[str], Iterator[tuple[int, ...]]]:
    """The names and the versions of the files that an archive tells of."""
    if archive["format"].tobytes() != _FORMAT:
        raise ValueError("another version")
    names = [os.fsdecode(name) for name in archive["names"].tobytes().split(b"\0")[:-1]]
    return names, map(tuple, archive["versions"].tolist())


def _from_column(column: np.ndarray) -> Iterable[Any]:
    """Stored values as `Examined` has them: digests as bytes, texts as str, sizes as tuples, images as arrays."""
    if column.dtype.kind == "V":
        return [value.tobytes() for value in column]
    if column.dtype.kind == "S":
        return [value.decode() for value in column.tolist()]
    if column.shape[1:] == (2,):
        return map(tuple, column.tolist())
    return column if column.ndim > 1 else column.tolist()


def _save(file: Path, folder: str, images: bool) -> None:
    """Writes what is known of the files that are in a folder; other programs may do the same, and the last one wins.

    Args:
        file: the store file.
        folder: whose files they are.
        images: whether all images that were stored are in memory; after this none is.
    """
    known = _known[folder]
    try:
        if known.changed or (images and known.examined):
            present = set(os.listdir(folder))
            entries = {name: entry for name, entry in known.entries.items() if name in present}
        if known.changed:
            digests = b"".join(entry.digest or bytes(_DIGEST) for entry in entries.values())
            _write_archive(
                file,
                entries,
                reasons=np.frombuffer(json.dumps([entry.reason for entry in entries.values()]).encode(), np.uint8),
                digested=np.array([entry.digest is not None for entry in entries.values()], bool),
                digests=np.frombuffer(digests, f"V{_DIGEST}"),
                highest=np.array([-1 if entry.highest is None else entry.highest for entry in entries.values()], "i4"),
            )
            known.changed = False
        if images and known.examined:
            seen = {name: entry for name, entry in entries.items() if entry.image}
            columns = {}
            for field, (kind, shape) in _FIELDS.items():
                values = [attrgetter(field)(entry.image) for entry in seen.values()]
                columns[f"image.{field}"] = _as_column(values, kind, shape)
            _write_archive(_images_file(file), seen, **columns)
            known.examined = False
    except OSError as error:
        _log.debug("%s could not be written: %s", file, error)
    if images and not known.examined:
        for entry in known.entries.values():
            entry.image = None


def _write_archive(file: Path, entries: Mapping[str, _Entry], **columns: np.ndarray) -> None:
    names = b"".join(os.fsencode(name) + b"\0" for name in entries)
    versions = np.array([entry.version for entry in entries.values()], np.int64).reshape(-1, 4)
    with write_whole(file) as partial:
        np.savez(
            partial,
            format=np.frombuffer(_FORMAT, np.uint8),
            names=np.frombuffer(names, np.uint8),
            versions=versions,
            **columns,
        )


def _as_column(values: Sequence[Any], kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind.startswith("V"):
        return np.frombuffer(b"".join(values), kind)
    if kind.startswith("S"):
        values = [value.encode() for value in values]
    return np.array(values, kind).reshape(-1, *shape)
