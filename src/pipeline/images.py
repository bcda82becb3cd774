"""Decodes images once, into a memory-mapped file of padded uint8 images that all runs on the same files share."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common import UserError
from dataset.folders import ImageFolder, log_skipped
from dataset.parallel import on_all_cores
from dataset.reading import WHITE, UnreadableImage, resize_or_pad_image
from pipeline.cache import SHARED, Cache, CacheError, Metadata, copy_rows, drop_pages, make_key

_DROPPED_AT_ONCE = 16  # images whose memory pages are dropped together
_CACHE_VERSION = 4  # part of the cache key; raise it when the same files give other bytes


@dataclass(frozen=True)
class DecodedImages:
    """N decoded images."""

    pixels: np.memmap  # (N, H, W, C) uint8; black if a file could not be read
    unreadable: dict[int, str]  # the indices of unreadable images, with the reasons
    key: str  # a digest of everything that the pixels depend on

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool: whether each image could be read."""
        return ~np.isin(np.arange(len(self.pixels)), list(self.unreadable))

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Return a copy (B, H, W, C) of the images at B indices."""
        return copy_rows(self.pixels, indices)


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
    channels, height, width = input_size

    def fill(pixels: np.memmap) -> Metadata:
        reasons = _decode_into(pixels, folder, input_size)
        if _key(folder, input_size) != key:
            raise UserError(f"{folder.directory} changed while it was read: start again when no program writes to it")
        return {str(index): reason for index, reason in sorted(reasons.items())}

    shape = (len(folder.paths), height, width, channels)
    warning = f"cannot cache the images of {folder.directory}, which are decoded for this run only"
    try:
        pixels, metadata = cache.get_or_unnamed(f"images/{key}", shape, np.uint8, fill, warning)
    except CacheError as reason:
        raise UserError(f"the decoded images of {folder.directory} do not fit on the disk: {reason}") from None
    unreadable = {int(index): reason for index, reason in metadata.items()}
    if len(unreadable) == len(folder.paths):
        raise UserError(f"{folder.directory} has no readable image: {folder.paths[0]}: {unreadable[0]}")
    faults = {folder.paths[index]: reason for index, reason in unreadable.items()}
    log_skipped(folder.directory, {**folder.skipped, **faults})
    return DecodedImages(pixels, unreadable, key)


def _key(folder: ImageFolder, input_size: tuple[int, int, int]) -> str:
    return make_key([f"{_CACHE_VERSION} {input_size} {file_versions(folder)}"])


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


def _decode_into(pixels: np.memmap, folder: ImageFolder, input_size: tuple[int, int, int]) -> dict[int, str]:
    """Fill `pixels`; return the indices of unreadable images with the reasons."""
    unreadable: dict[int, str] = {}

    def decode(index: int) -> None:
        try:
            pixels[index] = fit_image(folder.read(index), input_size)
        except UnreadableImage as error:
            unreadable[index] = str(error)
        if index % _DROPPED_AT_ONCE == 0:
            drop_pages(pixels)

    # Reading small arrays holds the interpreter lock, so several threads take longer than one.
    on_all_cores(decode, range(len(folder.paths)), "decoding", threads=1 if folder.is_array(0) else None)
    return unreadable


def fit_image(image: Image.Image, input_size: tuple[int, int, int]) -> np.ndarray:
    """Convert an image as it was read to a model's input: resize, pad and convert to the right number of channels.

    An array, which has no `format`, is not resized for a model with one channel.

    Returns:
        (H, W, C) uint8.

    Raises:
        UnreadableImage: such an array has not the model's size.
    """
    channels, height, width = input_size
    if channels == 1 and image.format is None:
        if image.size != (width, height):
            raise UnreadableImage(
                f"an array of {image.height}x{image.width} pixels, but the model takes {height}x{width}"
            )
    else:
        image = resize_or_pad_image(image, width)
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(height, width, channels)
