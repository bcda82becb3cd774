"""Images decoded once: a memory-mapped file of padded uint8 images that all runs on the same files share."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import UserError, available_cores, write_whole
from dataset.augmentation_data import resize_or_pad_image
from dataset.folders import ImageFolder
from dataset.reading import UnreadableImage

CACHE_DIR = Path(".cache/images")
_BLOCK = 16  # images that a thread is given at once: handing one over takes as long as reading a small array
_FORM = 2  # to be raised when the same files come to give other bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodedImages:
    """N images as the models take them.

    Attributes:
        pixels: (N, H, W, C) uint8, memory-mapped; black where a file could not be read.
        unreadable: the places of those, each with the reason.
    """

    pixels: np.memmap
    unreadable: dict[int, str]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """A copy (B, H, W, C) of the images at B places.

        The pages that were read stay in the system's cache, but leave this process, whose memory would otherwise grow
        to the size of the whole file in the first epoch.
        """
        batch = np.asarray(self.pixels[places])
        self.pixels.base.madvise(mmap.MADV_DONTNEED)
        return batch


def decode_images(folder: ImageFolder, input_size: tuple[int, int, int], cache_dir: Path = CACHE_DIR) -> DecodedImages:
    """Decodes, fits and pads each image, or finds this done already.

    The files' paths, sizes and modification times are the key, so that a changed file is decoded anew.

    Args:
        folder: the images.
        input_size: channels (1 for grey, or 3), and height and width, which are the same.
        cache_dir: the folder that keeps the result.

    Raises:
        UserError: no image can be read.
    """
    pixels_file = cache_dir / f"{_key(folder, input_size)}.npy"
    unreadable_file = pixels_file.with_suffix(".json")
    if not pixels_file.exists():
        _decode_into(pixels_file, unreadable_file, folder, input_size)
    unreadable = {int(place): reason for place, reason in json.loads(unreadable_file.read_text()).items()}
    if len(unreadable) == len(folder.paths):
        raise UserError(f"{folder.directory} has no readable image: {folder.paths[0]}: {unreadable[0]}")
    for place, reason in unreadable.items():
        _log.warning("left out: %s: %s", folder.paths[place], reason)
    return DecodedImages(np.load(pixels_file, mmap_mode="r"), unreadable)


def _key(folder: ImageFolder, input_size: tuple[int, int, int]) -> str:
    digest = hashlib.sha256(f"{_FORM} {input_size}".encode())
    here = os.getcwd()
    archive = None if folder.arrays is None else _version(folder.directory)
    for path in folder.paths:
        digest.update(os.fsencode(f"\0{os.path.join(here, path)}\0{archive or _version(path)}"))
    digest.update(folder.inverted.tobytes())
    return digest.hexdigest()[:32]


def _version(file: Path) -> str:
    stat = os.stat(file)
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def _decode_into(
    pixels_file: Path, unreadable_file: Path, folder: ImageFolder, input_size: tuple[int, int, int]
) -> None:
    channels, height, width = input_size
    count = len(folder.paths)
    unreadable: dict[int, str] = {}
    with write_whole(pixels_file) as partial:
        pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, height, width, channels))

        def decode(places: range) -> int:
            for place in places:
                try:
                    pixels[place] = _fit(folder, place, input_size)
                except UnreadableImage as error:
                    unreadable[place] = str(error)
            return len(places)

        # Pillow lets go of the interpreter while it decodes and resizes: threads keep all cores busy. Who reads small
        # arrays holds it nearly all the time: several threads take longer than one.
        threads = 1 if folder.is_array(0) else available_cores()
        blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
        with (
            ThreadPoolExecutor(threads) as pool,
            tqdm(desc="decoding", total=count, unit="image", disable=None) as bar,
        ):
            for decoded in pool.map(decode, blocks):
                bar.update(decoded)
        pixels.flush()
        with write_whole(unreadable_file) as partial_json:  # first: who finds the pixels finds this too
            partial_json.write_text(json.dumps(dict(sorted(unreadable.items()))))


def _fit(folder: ImageFolder, place: int, input_size: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8. An array for a model of one channel must have the model's size; all else is resized and padded.

    Raises:
        UnreadableImage: the image cannot be read, or is such an array of another size.
    """
    channels, height, width = input_size
    image = folder.read(place)
    if channels == 1 and folder.is_array(place):
        if image.size != (width, height):
            raise UnreadableImage(
                f"an array of {image.height}x{image.width} pixels, where the model takes {height}x{width}"
            )
    else:
        image = resize_or_pad_image(image, width)
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(height, width, channels)
