"""Reads one image file, of whatever format and mode, or an archive of arrays, or says why it cannot be read."""

from __future__ import annotations

import ctypes
import io
import math
import os
import warnings
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from common import UserError, first_line

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such a picture is refused, see below
warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage that a picture is read in spite of

# Names of files that are taken for images unopened. What a file is, its content says, whatever its name.
_USUAL_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".npy"})
NOT_AN_IMAGE = "not an image"
WHITE = 65535  # the value that is white in files of 16-bit values, unless a dataset uses a part of the range only
_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and microscopes use of the 16
_ARRAY = b"\x93NUMPY"  # that an .npy file begins with
# A file is to take no more than a gigabyte: the decoders and what comes after them take up to 12 bytes a pixel.
Image.MAX_IMAGE_PIXELS = 65_000_000
_SHARES = {"WEBP": 0.5}  # of that limit: its decoder keeps several copies
_LARGEST_ARRAY, _LARGEST_ARCHIVE = 300_000_000, 1_000_000_000  # bytes
_STRIP = 1 << 20  # pixels that are converted at once
# What each EXIF orientation asks for.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """The file is not an image that can be read; the message is the reason, in a few words."""


def read_image(path: Path, white: int = WHITE) -> Image.Image:
    """Reads a file whole, as it is stored: neither turned nor converted. Its content says what it is, not its name.

    An `.npy` file is one image of shape (H, W), (1, H, W) or (3, H, W), uint8 or floating point from 0 to 1.

    Args:
        path: the file.
        white: the 16-bit value that `upright_rgb` is to make white.

    Returns:
        The image. Its `format` is None if it is an array, else that of the picture.

    Raises:
        UnreadableImage: it is empty, cut off, no image, larger than the limit of pixels, or of values or colours that
            could mean anything.
    """
    try:
        if is_array(path):
            return image_of_array(_load_array(_read_bytes(path)))
        with Image.open(path, formats=_formats()) as image:
            limit = int(Image.MAX_IMAGE_PIXELS * _SHARES.get(image.format, 1))
            if image.width * image.height > limit:  # Pillow itself only warns below twice its limit
                raise UnreadableImage(_over(limit))
            if white != WHITE and _is_deep_colour(image):
                return _read_deep_colour(path, image, white)
            deep = image.mode.startswith("I") or _is_deep_colour(image)
            image.load()
            _check_values(image)
            if deep:
                image.info["white"] = white
            return image
    except UnreadableImage:
        raise
    except Exception as error:  # the readers of the formats raise many kinds on damaged files
        raise UnreadableImage(_reason(path, error)) from error


def highest_value(path: Path) -> int:
    """The highest value of a file of 16-bit values; 0 for any other file, and for one that cannot be read.

    Of colours, of which Pillow keeps the upper 8 bits, it is the highest that these allow.
    """
    try:
        if is_array(path):
            return 0
        with Image.open(path, formats=_formats()) as image:
            colour = _is_deep_colour(image)
            if not (colour or image.mode.startswith("I")):
                return 0
        if not colour:
            return read_image(path).getextrema()[1]
        channels = read_image(path).getextrema()[: 1 if image.mode == "LA" else 3]  # without transparency
        return max(highest for _, highest in channels) << 8 | 255
    except Exception:  # `read_image` says why
        return 0


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a file, of which the start was read, has 16 bits per colour, or per grey value beside transparency."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile) for tile in image.tile)


def _read_deep_colour(path: Path, opened: Image.Image, white: int) -> Image.Image:
    """Reads 16 bits per colour by OpenCV and scales them: Pillow would keep the upper 8 only.

    Args:
        path: the file.
        opened: the same, of which Pillow has read the start.
        white: the value that becomes 255.
    """
    import cv2  # of which most datasets have no need

    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)  # (H, W, 3 or 4) as BGR(A)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise UnreadableImage("a picture of 16 bits per colour that is damaged")
    scaled = (np.arange(WHITE + 1) * 255 / white).round().clip(0, 255).astype(np.uint8)[values[..., :3]]
    image = Image.fromarray(np.ascontiguousarray(scaled[..., ::-1]))
    if values.shape[2] == 4:
        image.putalpha(Image.fromarray((values[..., 3] >> 8).astype(np.uint8)))
    image.format = opened.format
    if exif := opened.getexif():
        image.info["exif"] = exif.tobytes()
    image.info["white"] = white
    return image


def white_of(highest: int) -> int:
    """The value that is white where 16-bit values reach the highest one: the end of the range that is in use.

    Of files of other values the highest one is 0.
    """
    return next(2**bits - 1 for bits in _DEPTHS if highest < 2**bits) if highest else WHITE


def is_array(path: Path) -> bool:
    """Whether a file begins as an `.npy` file does."""
    with path.open("rb") as file:
        return file.read(len(_ARRAY)) == _ARRAY


def has_image_name(path: Path) -> bool:
    """Whether a file is called as images usually are."""
    return path.suffix.lower() in _USUAL_SUFFIXES


def why_no_image(path: Path) -> str | None:
    """Why a regular file is not taken for an image, by its first bytes; None if it is."""
    try:
        if not is_array(path):
            Image.open(path, formats=_formats()).close()
    except Image.DecompressionBombError:  # `read_image` says so
        pass
    except Exception as error:  # the readers of the formats raise many kinds on damaged files
        return _reason(path, error)
    return None


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data says, lays transparency on white, and scales other grey values to 8 bits.

    These are 16-bit integers, of which `read_image` knows the white one, and, in floating point, values from 0 to 1.
    """
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
        # It is upright now; Pillow keeps the EXIF data, by which it would be turned once more.
        image.info = {name: value for name, value in image.info.items() if name in ("transparency", "white")}
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):  # all at once would take several times the memory
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(_to_rgb(image.crop(box)), box)
    return rgb


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data raises many kinds, and is no reason not to show an image
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        image = image_of_array(np.asarray(image))
    elif image.mode.startswith("I"):  # Pillow would cut 16-bit values off at 255
        grey = np.asarray(image).astype(np.float32) / (image.info.get("white", WHITE) / 255)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_archive(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images (N, H, W) or (N, C, H, W), and the labels (N,), of an `.npz` file.

    The values of the images are looked at one by one, by `image_of_array`.

    Raises:
        UserError: it is damaged, lacks either, they do not fit together, or it would take more than a gigabyte.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > _LARGEST_ARCHIVE:
                raise UserError(
                    f"{file} unpacks to more than {_LARGEST_ARCHIVE / 1e9:.1f} GB: make it a folder of .npy files"
                )
            arrays = {name: archive[name] for name in ("images", "labels") if name in archive}
    except (UserError, FileNotFoundError, PermissionError):
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


@cache
def _formats() -> tuple[str, ...]:
    """All that Pillow reads, and HEIC, which telephones write.

    Not PostScript, which is a programming language: Pillow would have a program run it. Nor what Pillow knows by its
    first bytes only.
    """
    from pillow_heif import register_heif_opener  # of which programs that read no image need not wait

    register_heif_opener()
    Image.init()
    _silence_libtiff()
    return tuple(name for name in Image.ID if name not in ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"))


def _silence_libtiff() -> None:
    """Has the library that Pillow reads TIFFs with print nothing: it tells of damage in several lines of its own."""
    mapped = Path("/proc/self/maps").read_text(errors="surrogateescape").split("\n")
    files = {line[line.index("/") :] for line in mapped if "/" in line}
    for file in files:
        if os.path.basename(file).startswith("libtiff"):
            library = ctypes.CDLL(file)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _over(limit: int) -> str:
    return f"over the limit of {limit:,} pixels"


def _check_values(image: Image.Image) -> None:
    """Refuses what `upright_rgb` would have to guess at."""
    if image.mode == "LAB":
        raise UnreadableImage("a picture in LAB, whose colours are not converted")
    if image.mode == "F":
        _check_range(np.asarray(image), "picture")
    if image.mode == "I":
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > 65535:
            raise UnreadableImage("a picture of 32-bit values: 16 bits are the most")


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
    if array.shape[0] * array.shape[1] > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(_over(Image.MAX_IMAGE_PIXELS))
    if np.issubdtype(array.dtype, np.floating):
        _check_range(array, "array")
        array = array * 255
        array = array.round(out=array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImage(f"an array of {array.dtype}, not of uint8 or floating point")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_range(array: np.ndarray, what: str) -> None:
    lowest, highest = array.min(), array.max()
    if not (math.isfinite(lowest) and math.isfinite(highest)):  # neither hides a NaN
        raise UnreadableImage(f"{'an' if what == 'array' else 'a'} {what} with values that are not finite")
    if lowest < 0 or highest > 1:
        raise UnreadableImage(f"a floating-point {what} with values outside 0 to 1")


def _read_bytes(path: Path) -> bytes:
    if os.path.getsize(path) > _LARGEST_ARRAY:
        raise UnreadableImage(f"over the limit of {_LARGEST_ARRAY // 10**6} MB")
    return path.read_bytes()


def _load_array(content: bytes) -> np.ndarray:
    """What `np.load` gives for a small file of the usual kind, in a tenth of the time; any other is left to it."""
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
        return "not an array, or a pickled one" if path.suffix.lower() == ".npy" else NOT_AN_IMAGE
    if isinstance(error, Image.DecompressionBombError):
        return _over(Image.MAX_IMAGE_PIXELS)
    return first_line(error)
