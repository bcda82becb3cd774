"""Looks once at every image of a dataset: can it be read, what is its form, and what does it look like.

What is known of a file is kept on disk until the file changes, in `.cache/examined/` of the working directory: one
`.npz` file per image directory. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import available_cores, write_whole
from dataset.duplicates import SIDE, Fingerprint, fingerprint
from dataset.reading import UnreadableImage, read_image, upright_rgb

STORE = Path(".cache/examined")
THUMBNAIL = 32
_SHARPNESS_SIDE = 128
_DIGEST = 16  # bytes of a digest
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
    """

    path: Path
    size: tuple[int, int]
    form: str
    pixels: bytes
    thumbnail: np.ndarray
    intensities: np.ndarray
    fingerprint: Fingerprint
    sharpness: float


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
}
_VERSION = 1  # of how the fields are computed; a store of another version is not used
_FORMAT = json.dumps([_VERSION, _FIELDS]).encode()


def examine(paths: Sequence[Path], store: Path | None = STORE) -> tuple[list[Examined], dict[Path, str]]:
    """Looks at every file, and remembers what it saw until the file changes.

    Args:
        paths: N files.
        store: a folder for what is remembered beyond this process; None keeps nothing on disk.

    Returns:
        What is known of those that can be read, in their order, and why the others cannot.
    """
    results = _remember(paths, store, lambda entry: entry.what or None, _examine, "examining")
    examined = [
        result if result.path == path else replace(result, path=path)
        for path, result in zip(paths, results, strict=True)
        if isinstance(result, Examined)
    ]
    return examined, {path: why for path, why in zip(paths, results, strict=True) if isinstance(why, str)}


def find_unreadable(paths: Sequence[Path], store: Path | None = STORE) -> dict[Path, str]:
    """Why some of the files cannot be read; takes no time for those that were read before."""
    reasons = _remember(paths, store, _reason, _try_to_read, "reading")
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, or None if it can."""
    return _remember([path], None, _reason, _try_to_read, "reading")[0] or None


def content_digests(paths: Sequence[Path], store: Path | None = STORE) -> list[bytes]:
    """The 16-byte digest of the content of each file, in order; a file that has not changed is not read again.

    Of a file that may not be read it is all zeros.

    Raises:
        OSError: a file is missing.
    """
    return _remember(paths, store, lambda entry: entry.digest, _digest_content, "reading")


def on_all_cores(function: Callable[[_Image], _Result], images: Sequence[_Image], title: str) -> list[_Result]:
    """What a function makes of each image, with a bar; the images are named by their paths, say, or places."""
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow lets go of the interpreter while it decodes
        return list(tqdm(pool.map(function, images), title, len(images), unit="image", disable=None))


def examine_image(path: Path, stored: Image.Image) -> Examined:
    """What is known of an image that was read as it is stored."""
    image = upright_rgb(stored)
    grey = image.convert("L")
    return Examined(
        path=path,
        size=image.size,
        form=f"{stored.format or 'array'} {stored.mode}",
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
        what: the image, or why it cannot be read, or "" if it can be but was not examined; None if unknown.
        digest: of the file's content; None if unknown.
    """

    version: tuple[int, ...]
    what: Examined | str | None = None
    digest: bytes | None = None


@dataclass
class _Folder:
    """The files of one folder, by name.

    Attributes:
        entries: what is known of them.
        loaded: the store files that were read into this.
        changed: whether something is known that is in no store file.
    """

    entries: dict[str, _Entry] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    changed: bool = False


_known: dict[str, _Folder] = {}  # by absolute directory


def _remember(
    paths: Sequence[Path],
    store: Path | None,
    recall: Callable[[_Entry], _Result | None],
    find_out: Callable[[Path, _Entry], None],
    title: str,
) -> list[_Result]:
    """What `recall` gives for each file; where that is None, `find_out` has to complete the entry first."""
    located = [os.path.split(os.path.abspath(path)) for path in paths]
    with _kept({folder for folder, _ in located}, store):
        entries = [_find_entry(folder, name) for folder, name in located]
        unknown = {id(entry): place for place, entry in enumerate(entries) if recall(entry) is None}

        def complete(place: int) -> None:
            find_out(paths[place], entries[place])
            _known[located[place][0]].changed = True

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


def _examine(path: Path, entry: _Entry) -> None:
    try:
        entry.what = examine_image(path, read_image(path))
    except UnreadableImage as error:
        entry.what = str(error)


def _reason(entry: _Entry) -> str | None:
    return "" if isinstance(entry.what, Examined) else entry.what


def _try_to_read(path: Path, entry: _Entry) -> None:
    try:
        read_image(path)
        entry.what = ""
    except UnreadableImage as error:
        entry.what = str(error)


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
def _kept(folders: set[str], store: Path | None) -> Iterator[None]:
    """Loads what a store knows of folders, and saves at the end what was found out, also if that was interrupted."""
    for folder in folders:
        known = _known.setdefault(folder, _Folder())
        if store is not None and (file := _store_file(store, folder)) and str(file) not in known.loaded:
            known.loaded.add(str(file))
            known.entries = _load(file, folder) | known.entries
    try:
        yield
    finally:
        for folder in folders if store is not None else ():
            if _known[folder].changed:
                _save(_store_file(store, folder), folder)


def _store_file(store: Path, folder: str) -> Path:
    key = hashlib.blake2b(os.fsencode(folder), digest_size=_DIGEST).hexdigest()
    return Path(os.path.abspath(store), f"{key}.npz")


def _load(file: Path, folder: str) -> dict[str, _Entry]:
    """The entries of a store file; none if there is no such file, or it cannot be used."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            if archive["format"].tobytes() != _FORMAT:
                return {}
            names = [os.fsdecode(name) for name in archive["names"].tobytes().split(b"\0")[:-1]]
            reasons = json.loads(archive["reasons"].tobytes())
            digests = [digest.tobytes() if known else None for digest, known in zip(
                archive["digests"], archive["digested"], strict=True)]  # fmt: skip
            images = iter(_read_images(archive, folder, [n for n, r in zip(names, reasons, strict=True) if r is True]))
            return {
                name: _Entry(tuple(version), next(images) if reason is True else reason, digest)
                for name, version, reason, digest in zip(
                    names, archive["versions"].tolist(), reasons, digests, strict=True
                )
            }
    except FileNotFoundError:
        return {}
    except Exception as error:  # the readers of ZIP files and arrays raise many kinds on damaged ones
        _log.debug("%s is not used: %s", file, error)
        return {}


def _read_images(archive: Any, folder: str, names: Sequence[str]) -> Iterator[Examined]:
    columns = {name: archive[f"image.{name}"] for name in _FIELDS}
    if {len(column) for column in columns.values()} - {len(names)}:
        raise ValueError("columns of different lengths")
    for place, name in enumerate(names):
        values = {field: _as_python(column[place]) for field, column in columns.items()}
        seen = Fingerprint(values.pop("fingerprint.thumbnail"), values.pop("fingerprint.size"))
        yield Examined(path=Path(folder, name), fingerprint=seen, **values)


def _as_python(value: Any) -> Any:
    """A stored value as `Examined` has it: digests as bytes, texts as str, sizes as tuples, images as arrays."""
    if isinstance(value, np.void):
        return value.tobytes()
    if isinstance(value, bytes):
        return value.decode()
    if value.shape == (2,):
        return tuple(value.tolist())
    return value if value.ndim else value.item()


def _save(file: Path, folder: str) -> None:
    """Writes what is known of the files that are in a folder; other programs may do the same, and the last one wins."""
    known = _known[folder]
    try:
        present = set(os.listdir(folder))
        entries = {name: entry for name, entry in known.entries.items() if name in present}
        images = [entry.what for entry in entries.values() if isinstance(entry.what, Examined)]
        reasons = [isinstance(entry.what, Examined) or entry.what for entry in entries.values()]
        content = {
            "format": np.frombuffer(_FORMAT, np.uint8),
            "names": np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in entries), np.uint8),
            "versions": np.array([entry.version for entry in entries.values()], np.int64).reshape(-1, 4),
            "reasons": np.frombuffer(json.dumps(reasons).encode(), np.uint8),
            "digested": np.array([entry.digest is not None for entry in entries.values()], bool),
            "digests": _as_column([entry.digest or bytes(_DIGEST) for entry in entries.values()], f"V{_DIGEST}", ()),
        }
        for name, (kind, shape) in _FIELDS.items():
            content[f"image.{name}"] = _as_column(list(map(attrgetter(name), images)), kind, shape)
        with write_whole(file) as partial:
            np.savez(partial, **content)
        known.changed = False
    except OSError as error:
        _log.debug("%s could not be written: %s", file, error)


def _as_column(values: Sequence[Any], kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind.startswith("V"):
        return np.frombuffer(b"".join(values), kind)
    if kind.startswith("S"):
        values = [value.encode() for value in values]
    return np.array(values, kind).reshape(-1, *shape)
