"""Examines each image of a dataset once: whether it can be read, its size and format, and what it looks like.

The results are kept in `.cache/examined/` of the working directory until a file changes, in two `.npz` files per image
folder. The second one holds what the images look like, and is read only if it is needed. Both may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from common import write_atomically
from dataset.duplicates import SIDE, Fingerprint, fingerprint
from dataset.folders import ImageFolder
from dataset.parallel import on_all_cores
from dataset.reading import WHITE, UnreadableImage, highest_value, read_image, upright_rgb, white_level_of

STORE = Path(".cache/examined")
THUMBNAIL = 32
_SHARPNESS_SIDE = 128
_DIGEST = 16  # bytes of a digest
_Result = TypeVar("_Result")
_STRIP = 1 << 20  # pixels, or bytes of a file, that are hashed at once


@dataclass(frozen=True)
class Examined:
    """What is known of one image file."""

    path: Path
    size: tuple[int, int]  # width and height of the upright image in pixels
    form: str  # file format and mode, such as "JPEG RGB"
    pixels: bytes  # 16-byte digest of the upright RGB pixels and the size; equal only for identical pixels
    thumbnail: np.ndarray  # (32, 32) uint8, grey, aspect ratio not kept
    intensities: np.ndarray  # (256,) share of the pixels that have each grey value
    fingerprint: Fingerprint  # what near-duplicates are found by
    sharpness: float  # RMS of the Laplacian divided by RMS of the gradient, at 128 pixels; independent of contrast
    white_level: int = 0  # that was used; 0 for images that do not have 16-bit values


# Type and shape of the stored fields of `Examined`, in order. A new field needs a line here and in `_to_image`.
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
_ATTRIBUTES = {"white": "white_level"}  # of `Examined`, where the stored name differs
_VERSION = 3  # raise it when a field is computed differently: stores of other versions are ignored
_FORMAT = json.dumps([_VERSION, _FIELDS]).encode()


def examine(
    paths: Sequence[Path], store: Path | None = STORE, white_level: int = WHITE
) -> tuple[list[Examined], dict[Path, str]]:
    """Examine files, except unchanged ones whose results are in the folder `store`.

    `white_level` is the 16-bit value that is white. Returns the readable images in order, and for each other file why
    it cannot be read.
    """

    def recall(entry: _Entry) -> Examined | str | None:
        return entry.image if entry.image and entry.image.white_level in (0, white_level) else entry.reason or None

    results = _remember(paths, store, recall, partial(_examine, white_level=white_level), "examining", with_images=True)
    found = list(zip(paths, results, strict=True))
    examined = [replace(result, path=path) for path, result in found if isinstance(result, Examined)]
    return examined, {path: reason for path, reason in found if isinstance(reason, str)}


def find_unreadable(paths: Sequence[Path], store: Path | None = STORE) -> dict[Path, str]:
    """Return the reason for each file that cannot be read; files that were read before are not read again."""
    reasons = _remember(paths, store, lambda entry: entry.reason, partial(_examine, only_read=True), "reading")
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def find_white_level(paths: Sequence[Path], store: Path | None = STORE) -> int:
    """Return the 16-bit value that is white in a dataset, since cameras store 10, 12 or 14 bits in 16-bit files."""
    return white_level_of(max(find_highest(paths, store), default=0))


def find_highest(paths: Sequence[Path], store: Path | None = STORE) -> list[int]:
    """Return the highest value of each 16-bit file, and 0 for other files, of which only the header is read."""
    return _remember(paths, store, lambda entry: entry.highest, _find_highest, "looking")


def with_white_level(folder: ImageFolder, store: Path | None = STORE) -> ImageFolder:
    """Return the folder with the white level of its 16-bit files."""
    return folder if folder.arrays is not None else replace(folder, white_level=find_white_level(folder.paths, store))


def content_digests(paths: Sequence[Path], store: Path | None = STORE) -> list[bytes]:
    """Return the 16-byte digest of each file's content; zeros for a file without read permission."""
    return _remember(paths, store, lambda entry: entry.digest, _digest_content, "reading")


def examine_image(path: Path, stored: Image.Image) -> Examined:
    """Examine an image as `read_image` returned it."""
    image = upright_rgb(stored)
    grey = image.convert("L")
    return Examined(
        path=path,
        size=image.size,
        form=f"{stored.format or 'array'} {stored.mode}",
        white_level=stored.info.get("white_level", 0),
        pixels=_digest_pixels(image),
        thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
        intensities=np.asarray(grey.histogram(), dtype=np.float32) / (grey.width * grey.height),
        fingerprint=fingerprint(grey),
        sharpness=_measure_sharpness(grey),
    )


def _measure_sharpness(grey: Image.Image) -> float:
    """Return about 2.2 for noise, 1.3 for most photographs, below 0.7 for very blurred ones, 0 for a single colour."""
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
    """What is known of one version of a file; None where it is unknown."""

    version: tuple[int, ...]  # size, modification time, change time and inode of the file
    reason: str | None = None  # why the file cannot be read as an image; "" if it can
    digest: bytes | None = None  # of the file's content
    highest: int | None = None  # the highest 16-bit value; 0 if the file has other values
    image: Examined | None = None


def _remember(
    paths: Sequence[Path],
    store: Path | None,
    recall: Callable[[_Entry], _Result | None],
    find_out: Callable[[Path, _Entry], None],
    title: str,
    with_images: bool = False,
) -> list[_Result]:
    """Return `recall(entry)` for each file; if it is None, `find_out` completes the entry, which is then stored."""
    located = [os.path.split(os.path.abspath(path)) for path in paths]
    known = {folder: _load(store, folder, with_images) for folder in {folder for folder, _ in located}}
    entries = [_find_entry(known[folder], folder, name) for folder, name in located]
    unknown = {id(entry): index for index, entry in enumerate(entries) if recall(entry) is None}
    changed: set[str] = set()

    def complete(index: int) -> None:
        find_out(paths[index], entries[index])
        changed.add(located[index][0])

    try:
        if unknown:
            on_all_cores(complete, list(unknown.values()), title)
    finally:  # an interrupted program keeps what it has found out
        for folder in changed if store else ():
            _save(_store_file(store, folder), folder, known[folder], with_images)
    return [recall(entry) for entry in entries]


def _find_entry(entries: dict[str, _Entry], folder: str, name: str) -> _Entry:
    stat = os.stat(os.path.join(folder, name))
    version = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (1 << 63) - 1)  # int64
    if name not in entries or entries[name].version != version:
        entries[name] = _Entry(version)
    return entries[name]


def _examine(path: Path, entry: _Entry, white_level: int = WHITE, only_read: bool = False) -> None:
    try:
        image = read_image(path, white_level)
        if not only_read:
            entry.image = examine_image(path, image)
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


def _store_file(store: Path, folder: str) -> Path:
    key = hashlib.blake2b(os.fsencode(folder), digest_size=_DIGEST).hexdigest()
    return Path(os.path.abspath(store), f"{key}.npz")


def _load(store: Path | None, folder: str, with_images: bool) -> dict[str, _Entry]:
    """Read the stored entries of a folder, by file name."""
    if store is None:
        return {}
    file = _store_file(store, folder)
    entries = {}
    rows = _read_rows(file, ("reasons", "digested", "digests", "highest"))
    for name, version, reason, digested, digest, highest in rows:
        entries[name] = _Entry(version, reason, digest if digested else None, highest if highest >= 0 else None)
    if with_images:
        rows = _read_rows(file.with_suffix(".images.npz"), [f"image.{field}" for field in _FIELDS])
        for name, version, *fields in rows:
            entry = entries.setdefault(name, _Entry(version, ""))
            if entry.version == version:
                entry.image = _to_image(Path(folder, name), fields)
    return entries


def _read_rows(file: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Read file name, version and the named columns of a store file; nothing if it is missing or unusable."""
    with suppress(Exception), np.load(file, allow_pickle=False) as archive:  # NumPy raises many types on damaged files
        if archive["format"].tobytes() == _FORMAT:
            files = [os.fsdecode(name) for name in archive["names"].tobytes().split(b"\0")[:-1]]
            columns = [_from_column(name, archive[name]) for name in names]
            return list(zip(files, map(tuple, archive["versions"].tolist()), *columns, strict=True))
    return []


def _from_column(name: str, column: np.ndarray) -> Sequence[Any]:
    if name == "reasons":
        return json.loads(column.tobytes())
    return column.tolist() if column.ndim == 1 else column


def _to_image(path: Path, fields: Sequence[Any]) -> Examined:
    size, form, pixels, thumbnail, intensities, print_thumbnail, print_size, sharpness, white_level = fields
    seen = Fingerprint(print_thumbnail, tuple(print_size.tolist()))
    size = tuple(size.tolist())
    return Examined(path, size, form.decode(), pixels, thumbnail, intensities, seen, sharpness, white_level)


def _save(file: Path, folder: str, entries: Mapping[str, _Entry], with_images: bool) -> None:
    """Store the entries of the files that exist. Where several programs write one store file, the last one wins."""
    with suppress(OSError):  # then the next program examines the files again
        present = set(os.listdir(folder))
        entries = {name: entry for name, entry in entries.items() if name in present}
        values = entries.values()
        _write_rows(
            file,
            entries,
            reasons=np.frombuffer(json.dumps([entry.reason for entry in values]).encode(), np.uint8),
            digested=np.array([entry.digest is not None for entry in values], bool),
            digests=np.array([entry.digest or bytes(_DIGEST) for entry in values], f"V{_DIGEST}"),
            highest=np.array([-1 if entry.highest is None else entry.highest for entry in values], "i4"),
        )
        if with_images:
            seen = {name: entry for name, entry in entries.items() if entry.image}
            columns = {}
            for field, (kind, shape) in _FIELDS.items():
                column = [attrgetter(_ATTRIBUTES.get(field, field))(entry.image) for entry in seen.values()]
                columns[f"image.{field}"] = np.array(column, kind).reshape(-1, *shape)
            _write_rows(file.with_suffix(".images.npz"), seen, **columns)


def _write_rows(file: Path, entries: Mapping[str, _Entry], **columns: np.ndarray) -> None:
    names = np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in entries), np.uint8)
    versions = np.array([entry.version for entry in entries.values()], np.int64).reshape(-1, 4)
    with write_atomically(file) as partial:
        np.savez(partial, format=np.frombuffer(_FORMAT, np.uint8), names=names, versions=versions, **columns)
