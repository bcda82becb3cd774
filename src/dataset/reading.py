"""Reads one image file, of whatever format and mode, or says why it cannot be read."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such a picture is refused, see below

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy"})


_outcomes: dict[tuple[Path, int, int], str | None] = {}  # of reading each version of a file: why it failed, or None


class UnreadableImage(Exception):
    """The file is not an image that can be read; the message is the reason, in a few words."""


def read_image(path: Path) -> Image.Image:
    """Reads a file whole, as it is stored: neither turned nor converted.

    An `.npy` file is one image of shape (H, W), (1, H, W) or (3, H, W), uint8 or floating point from 0 to 1.

    Raises:
        UnreadableImage: it is empty, cut off, no image, or larger than Pillow's limit of pixels.
    """
    try:
        version = _version(path)
        image = _read(path)
    except UnreadableImage as error:
        _outcomes[version] = str(error)
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(str(error.strerror)) from error
    _outcomes[version] = None
    return image


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, or None if it can; one that was read before is read again only if it has changed."""
    version = _version(path)
    if version not in _outcomes:
        with suppress(UnreadableImage):
            read_image(path)
    return _outcomes[version]


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data says, lays transparency on white, and scales 16-bit grey values to 8 bits."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # Pillow would cut 16-bit values off at 255
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _version(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


def _read(path: Path) -> Image.Image:
    try:
        if path.suffix.lower() == ".npy":
            return _from_array(np.load(path, allow_pickle=False))
        with Image.open(path) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # Pillow itself only warns below twice the limit
            image.load()
            return image
    except UnreadableImage:
        raise
    except Exception as error:  # the readers of the formats raise many kinds on damaged files
        raise UnreadableImage(_reason(path, error)) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    elif array.ndim != 2:
        raise UnreadableImage(f"an array of shape {array.shape}, not (H, W), (1, H, W) or (3, H, W)")
    if not array.size:
        raise UnreadableImage("an array without a pixel")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise UnreadableImage("an array with values that are not finite")
        if array.min() < 0 or array.max() > 1:
            raise UnreadableImage("a floating-point array with values outside 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImage(f"an array of {array.dtype}, not of uint8 or floating point")
    return Image.fromarray(np.ascontiguousarray(array))


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return error.strerror or type(error).__name__
    if not os.path.getsize(path):
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"over the limit of {Image.MAX_IMAGE_PIXELS:,} pixels"
    return str(error).partition("\n")[0] or type(error).__name__
