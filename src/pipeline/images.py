"""Decodes images once, into a memory-mapped file of padded uint8 images that all runs on the same files share."""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import UserError, available_cores
from dataset.folders import ImageFolder, tell_left_out
from dataset.reading import WHITE, UnreadableImage, resize_or_pad_image
from pipeline.cache import SHARED, Cache, Kept, NoRoom, Notes, release, take

_BLOCK = 16  # images per task of a thread: a task's overhead equals the time to read a small array
_FORM = 4  # part of the cache key; raise it when the same files give other bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImages:
    """N decoded images."""

    pixels: np.memmap  # (N, H, W, C) uint8; black if a file could not be read
    unreadable: dict[int, str]  # the indices of unreadable images, with the reasons
    key: str  # a digest of everything that the pixels depend on

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Return a copy (B, H, W, C) of the images at B indices."""
        return take(self.pixels, places)


def decode_images(folder: ImageFolder, input_size: tuple[int, int, int], cache: Cache = SHARED) -> DecodedImages:
    """Decode, resize and pad the images of a folder, or load them from the cache.

    Changed or replaced files are decoded again: the cache key has the files' paths, sizes, times and inodes. If the
    images do not fit into the cache, only this process keeps them.

    Args:
        input_size: channels (1 or 3), height and width, which are equal.

    Raises:
        UserError: no image can be read, the images do not fit on the disk, or files change while they are read.
    """
    key = _key(folder, input_size)
    pixels, notes = _decode_or_find(key, folder, input_size, cache)
    unreadable = {int(place): reason for place, reason in notes.items()}
    if len(unreadable) == len(folder.paths):
        raise UserError(f"{folder.directory} has no readable image: {folder.paths[0]}: {unreadable[0]}")
    faults = {folder.paths[place]: reason for place, reason in unreadable.items()}
    tell_left_out(folder.directory, {**folder.passed_over, **faults})
    return DecodedImages(pixels, unreadable, key)


def _decode_or_find(key: str, folder: ImageFolder, input_size: tuple[int, int, int], cache: Cache) -> Kept:
    channels, height, width = input_size
    shape = (len(folder.paths), height, width, channels)

    def fill(pixels: np.memmap) -> Notes:
        notes = _decode_into(pixels, folder, input_size)
        if _key(folder, input_size) != key:
            raise UserError(f"{folder.directory} changed while it was read: start again when no program writes to it")
        return notes

    try:
        return cache.get(f"images/{key}", shape, np.uint8, fill)
    except NoRoom as reason:
        if cache.directory is None:
            raise UserError(f"the decoded images of {folder.directory} do not fit on the disk: {reason}") from None
        _log.warning("cannot cache the images of %s, which are decoded for this run only: %s", folder.directory, reason)
        return _decode_or_find(key, folder, input_size, Cache(directory=None))


def _key(folder: ImageFolder, input_size: tuple[int, int, int]) -> str:
    return hashlib.sha256(f"{_FORM} {input_size} {file_versions(folder)}".encode()).hexdigest()[:32]


def file_versions(folder: ImageFolder) -> str:
    """Return a digest of the paths, sizes, times and inodes of a folder's files, and of how they are read."""
    digest = hashlib.sha256()
    here = os.getcwd()
    archive = None if folder.arrays is None else _version(folder.paths[0].parents[1])  # FILE/label/index
    for path in folder.paths:
        digest.update(os.fsencode(f"\0{os.path.join(here, path)}\0{archive or _version(path)}"))
    digest.update(folder.inverted.tobytes())
    if folder.white_level != WHITE:
        digest.update(str(folder.white_level).encode())
    return digest.hexdigest()


def _version(file: Path) -> str:
    try:
        stat = os.stat(file)
    except FileNotFoundError:  # after the folder was listed
        return "gone"
    return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"


def _decode_into(pixels: np.memmap, folder: ImageFolder, input_size: tuple[int, int, int]) -> Notes:
    """Fill `pixels`; return the indices of unreadable images, as text, with the reasons."""
    count = len(folder.paths)
    unreadable: dict[int, str] = {}

    def decode(places: range) -> int:
        for place in places:
            try:
                image = folder.read(place)
                pixels[place] = fit_image(image, image.format is None, input_size)
            except UnreadableImage as error:
                unreadable[place] = str(error)
        return len(places)

    # Pillow releases the interpreter lock while it decodes and resizes, so threads use all cores. Reading small arrays
    # holds the lock, so several threads take longer than one.
    threads = 1 if folder.is_array(0) else available_cores()
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    with ThreadPoolExecutor(threads) as pool, tqdm(desc="decoding", total=count, unit="image", disable=None) as bar:
        for decoded in pool.map(decode, blocks):
            release(pixels)
            bar.update(decoded)
    return {str(place): unreadable[place] for place in sorted(unreadable)}


def fit_image(image: Image.Image, is_array: bool, input_size: tuple[int, int, int]) -> np.ndarray:
    """Convert an image as it was read to a model's input: resize, pad and convert to the right number of channels.

    An array (`is_array`, rather than a picture) for a model with one channel is not resized.

    Returns:
        (H, W, C) uint8.

    Raises:
        UnreadableImage: such an array has not the model's size.
    """
    channels, height, width = input_size
    if channels == 1 and is_array:
        if image.size != (width, height):
            raise UnreadableImage(
                f"an array of {image.height}x{image.width} pixels, but the model takes {height}x{width}"
            )
    else:
        image = resize_or_pad_image(image, width)
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(height, width, channels)
