"""Looks once at every image of a dataset: can it be read, what is its form, and what does it look like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import available_cores
from dataset.duplicates import Fingerprint, fingerprint
from dataset.reading import UnreadableImage, read_image, upright_rgb

THUMBNAIL = 32
_SHARPNESS_SIDE = 128
_seen: dict[tuple[Path, int, int], Examined | str] = {}  # of each version of a file: what it is, or what is wrong
_Image, _Result = TypeVar("_Image"), TypeVar("_Result")


@dataclass(frozen=True)
class Examined:
    """What is known of one image file.

    Attributes:
        path: the file.
        size: width and height in pixels, as it is looked at.
        form: file format and mode, such as "JPEG RGB".
        thumbnail: (32, 32) uint8, grey, its aspect not kept.
        intensities: (256,) share of pixels of each grey value.
        fingerprint: what near-duplicates are found by.
        sharpness: the Laplacian by the gradient, root mean squares, at 128 pixels; contrast cancels out.
    """

    path: Path
    size: tuple[int, int]
    form: str
    thumbnail: np.ndarray
    intensities: np.ndarray
    fingerprint: Fingerprint
    sharpness: float


def examine(paths: Sequence[Path]) -> tuple[list[Examined], dict[Path, str]]:
    """Looks at every file, and remembers what it saw until the file changes.

    Returns:
        What is known of those that can be read, in their order, and why the others cannot.
    """
    results = on_all_cores(_examine, paths, "examining")
    examined = [result for result in results if isinstance(result, Examined)]
    return examined, {path: why for path, why in zip(paths, results, strict=True) if isinstance(why, str)}


def find_unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Why some of the files cannot be read; takes no time for those that were examined before."""
    reasons = on_all_cores(why_unreadable, paths, "reading")
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def on_all_cores(function: Callable[[_Image], _Result], images: Sequence[_Image], title: str) -> list[_Result]:
    """What a function makes of each image, with a bar; the images are named by their paths, say, or places."""
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow lets go of the interpreter while it decodes
        return list(tqdm(pool.map(function, images), title, len(images), unit="image", disable=None))


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, or None if it can."""
    seen = _seen.get(_version(path))
    if seen is None:
        try:
            read_image(path)
        except UnreadableImage as error:
            return str(error)
    return seen if isinstance(seen, str) else None


def _examine(path: Path) -> Examined | str:
    version = _version(path)
    if version not in _seen:
        try:
            _seen[version] = examine_image(path, read_image(path))
        except UnreadableImage as error:
            _seen[version] = str(error)
    return _seen[version]


def _version(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


def examine_image(path: Path, stored: Image.Image) -> Examined:
    """What is known of an image that was read as it is stored."""
    image = upright_rgb(stored)
    grey = image.convert("L")
    return Examined(
        path=path,
        size=image.size,
        form=f"{stored.format or 'array'} {stored.mode}",
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
