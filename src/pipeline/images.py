"""Images decoded once: a memory-mapped file of padded uint8 images that all runs on the same files share."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import available_cores, write_whole
from dataset.augmentation_data import resize_or_pad_image
from dataset.reading import UnreadableImage, read_image

CACHE_DIR = Path(".cache/images")
_FORM = 1  # to be raised when the same files come to give other bytes
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


def decode_images(paths: Sequence[Path], size: int, cache_dir: Path = CACHE_DIR) -> DecodedImages:
    """Decodes, fits and pads each file, or finds this done already.

    The files' paths, sizes and modification times are the key, so that a changed file is decoded anew.

    Args:
        paths: image files.
        size: side of the square that they are fitted into, in pixels.
        cache_dir: the folder that keeps the result.
    """
    pixels_file = cache_dir / f"{_key(paths, size)}.npy"
    unreadable_file = pixels_file.with_suffix(".json")
    if not pixels_file.exists():
        _decode_into(pixels_file, unreadable_file, paths, size)
    unreadable = {int(place): reason for place, reason in json.loads(unreadable_file.read_text()).items()}
    for place, reason in unreadable.items():
        _log.warning("left out: %s: %s", paths[place], reason)
    return DecodedImages(np.load(pixels_file, mmap_mode="r"), unreadable)


def _key(paths: Sequence[Path], size: int) -> str:
    digest = hashlib.sha256(f"{_FORM} {size}".encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"\0{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _decode_into(pixels_file: Path, unreadable_file: Path, paths: Sequence[Path], size: int) -> None:
    unreadable: dict[int, str] = {}
    with write_whole(pixels_file) as partial:
        pixels = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(paths), size, size, 3))

        def decode(place: int) -> None:
            try:
                pixels[place] = np.asarray(resize_or_pad_image(read_image(paths[place]), size))
            except UnreadableImage as error:
                unreadable[place] = str(error)

        # Pillow lets go of the interpreter while it decodes and resizes: threads keep all cores busy.
        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in tqdm(pool.map(decode, range(len(paths))), "decoding", len(paths), unit="image", disable=None):
                pass
        pixels.flush()
        with write_whole(unreadable_file) as partial_json:  # first: who finds the pixels finds this too
            partial_json.write_text(json.dumps(dict(sorted(unreadable.items()))))
