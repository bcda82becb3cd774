"""Reads one image file, of whatever format and mode, or an archive of arrays, or says why it cannot be read."""

from __future__ import annotations

import io
import math
import os
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from common import UserError

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
    except FileNotFoundError as error:
        raise UnreadableImage(str(error.strerror)) from error
    try:
        image = load_image(path)
    except UnreadableImage as error:
        _outcomes[version] = str(error)
        raise
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


def load_archive(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images (N, H, W) or (N, C, H, W), and the labels (N,), of an `.npz` file.

    The values of the images are looked at one by one, by `image_of_array`.

    Raises:
        UserError: it is damaged, lacks either, or they do not fit together.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("images", "labels") if name in archive}
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # the readers of ZIP files and arrays raise many kinds on damaged ones
        kind = "has pickled objects in it" if "Object arrays" in str(error) else "is damaged, or no .npz file"
        raise UserError(f"{file} {kind}: it must hold the arrays `images` and `labels`") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"{file} has no array `{name}`: it must hold `images` and `labels`")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[1] not in (1, 3)) or 0 in images.shape[1:]:
        raise UserError(
            f"{file} has images of shape {images.shape}: it must be (N, H, W), (N, 1, H, W) or (N, 3, H, W)"
        )
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{file} has images of {images.dtype}: they must be uint8, or floating point from 0 to 1")
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(f"{file} has labels of shape {labels.shape} and {labels.dtype}: it must be (N,) of int or str")
    if len(labels) != len(images):
        raise UserError(f"{file} has {len(images)} images and {len(labels)} labels: each image needs one")
    return images, labels


def _version(path: Path) -> tuple[Path, int, int]:
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


def load_image(path: Path) -> Image.Image:
    """As `read_image`, but keeps no record of the file: for any number of them.

    Raises:
        UnreadableImage: as `read_image`.
    """
    try:
        if path.suffix.lower() == ".npy":
            return image_of_array(_load_array(path.read_bytes()))
        with Image.open(path) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # Pillow itself only warns below twice the limit
            image.load()
            return image
    except UnreadableImage:
        raise
    except Exception as error:  # the readers of the formats raise many kinds on damaged files
        raise UnreadableImage(_reason(path, error)) from error


def image_of_array(array: np.ndarray) -> Image.Image:
    """The image, grey or RGB, that an array holds: (H, W), (1, H, W) or (3, H, W), uint8 or floating point 0 to 1.

    Raises:
        UnreadableImage: it is of another shape or type, or has values that are not finite or out of range.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    elif array.ndim != 2:
        raise UnreadableImage(f"an array of shape {array.shape}, not (H, W), (1, H, W) or (3, H, W)")
    if not array.size:
        raise UnreadableImage("an array without a pixel")
    if np.issubdtype(array.dtype, np.floating):
        lowest, highest = array.min(), array.max()
        if not (math.isfinite(lowest) and math.isfinite(highest)):  # neither hides a NaN
            raise UnreadableImage("an array with values that are not finite")
        if lowest < 0 or highest > 1:
            raise UnreadableImage("a floating-point array with values outside 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImage(f"an array of {array.dtype}, not of uint8 or floating point")
    return Image.fromarray(np.ascontiguousarray(array))


def _load_array(content: bytes) -> np.ndarray:
    """What `np.load` gives for a small file of the usual kind, in a tenth of the time; any other is left to it."""
    if not content.startswith(b"\x93NUMPY"):
        raise ValueError("not an array, or a pickled one")
    start = 10 + int.from_bytes(content[8:10], "little")
    if content[6:8] != b"\x01\x00" or len(content) < start:
        return np.load(io.BytesIO(content), allow_pickle=False)
    shape, order, dtype = _parse_header(content[:start])
    return np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape, order=order)


@lru_cache
def _parse_header(header: bytes) -> tuple[tuple[int, ...], str, np.dtype]:
    stream = io.BytesIO(header)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise UnreadableImage("an array of pickled objects")
    return shape, "F" if fortran else "C", dtype


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # the system's; Pillow's own have none
        return error.strerror
    if not os.path.getsize(path):
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"over the limit of {Image.MAX_IMAGE_PIXELS:,} pixels"
    return str(error).partition("\n")[0] or type(error).__name__
