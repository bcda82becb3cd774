"""Reads an image of any format and mode, or an archive of arrays, and brings images into the form that models take."""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from common import UserError, first_line

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `read_image` refuses such images
warnings.filterwarnings("ignore", module=r"PIL\.")  # damage that does not prevent reading

# Files with these suffixes are listed as images without being opened. Reading goes by a file's content.
_USUAL_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".npy"})
NOT_AN_IMAGE = "not an image"
WHITE = 65535  # the white level of 16-bit files, unless a dataset uses only a part of the range
_DEPTHS = (8, 10, 12, 14, 16)  # bits per value that cameras and microscopes store in 16-bit files
_ARRAY = b"\x93NUMPY"  # the first bytes of an .npy file
Image.MAX_IMAGE_PIXELS = 65_000_000  # decoding and conversion take up to 12 bytes per pixel: less than 1 GB
_SHARES = {"WEBP": 0.5}  # of that limit, since its decoder keeps several copies
_LARGEST_ARRAY, _LARGEST_ARCHIVE = 300_000_000, 1_000_000_000  # bytes
_STRIP = 1 << 20  # pixels converted at once
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class UnreadableImage(Exception):
    """The file cannot be read as an image. The message is the reason, in a few words."""


def read_image(path: Path, white_level: int = WHITE) -> Image.Image:
    """Read an image as it is stored, neither rotated nor converted. The content decides the format, not the name.

    An `.npy` file is one image of shape (H, W), (1, H, W) or (3, H, W), uint8 or floating point from 0 to 1; its
    `format` is None. `white_level` is the 16-bit value that `upright_rgb` maps to white.

    Raises:
        UnreadableImage: the file is empty, truncated, too large, not an image, or its values are ambiguous.
    """
    try:
        if is_array(path):
            if os.path.getsize(path) > _LARGEST_ARRAY:
                raise UnreadableImage(f"over the limit of {_LARGEST_ARRAY // 10**6} MB")
            return image_of_array(np.load(path, allow_pickle=False))
        with Image.open(path, formats=_formats()) as image:
            limit = int(Image.MAX_IMAGE_PIXELS * _SHARES.get(image.format, 1))
            if image.width * image.height > limit:  # Pillow raises above twice its limit only
                raise UnreadableImage(_too_large(limit))
            deep_colour = _is_deep_colour(image)
            if deep_colour and white_level != WHITE:
                return _read_deep_colour(path, image, white_level)
            deep = deep_colour or image.mode.startswith("I")
            image.load()
            _check_values(image)
            if deep:
                image.info["white_level"] = white_level
            return image
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        raise UnreadableImage(_reason(path, error)) from error


def highest_value(path: Path) -> int:
    """Return the highest value of a 16-bit image, for colours rounded up to 8 bits; 0 for any other file."""
    try:
        if is_array(path):
            return 0
        with Image.open(path, formats=_formats()) as image:
            colour = _is_deep_colour(image)
            if not (colour or image.mode.startswith("I")):
                return 0
        if not colour:
            return read_image(path).getextrema()[1]
        channels = read_image(path).getextrema()[: 1 if image.mode == "LA" else 3]  # without alpha
        return max(highest for _, highest in channels) << 8 | 255
    except Exception:  # `read_image` reports the reason
        return 0


def white_level_of(highest: int) -> int:
    """Return the value that is white in 16-bit images whose highest value is this; 0 stands for other images."""
    return next(2**bits - 1 for bits in _DEPTHS if highest < 2**bits) if highest else WHITE


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened image has 16 bits per colour channel, or per grey value beside an alpha channel."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile) for tile in image.tile)


def _read_deep_colour(path: Path, opened: Image.Image, white_level: int) -> Image.Image:
    """Read 16 bits per channel with OpenCV, since Pillow drops the lower 8, and scale the white level to 255."""
    import cv2

    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)  # (H, W, 3 or 4) as BGR(A)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise UnreadableImage("a damaged image with 16 bits per channel")
    scaled = (np.arange(WHITE + 1) * 255 / white_level).round().clip(0, 255).astype(np.uint8)[values[..., :3]]
    image = Image.fromarray(np.ascontiguousarray(scaled[..., ::-1]))
    if values.shape[2] == 4:
        image.putalpha(Image.fromarray((values[..., 3] >> 8).astype(np.uint8)))
    image.format = opened.format
    if exif := opened.getexif():
        image.info["exif"] = exif.tobytes()
    image.info["white_level"] = white_level
    return image


def is_array(path: Path) -> bool:
    """Whether a file begins as an `.npy` file does."""
    with path.open("rb") as file:
        return file.read(len(_ARRAY)) == _ARRAY


def has_image_name(path: Path) -> bool:
    """Whether a file has a usual image suffix."""
    return path.suffix.lower() in _USUAL_SUFFIXES


def why_no_image(path: Path) -> str | None:
    """Return why the first bytes of a file are not those of an image; None if they are."""
    try:
        if not is_array(path):
            Image.open(path, formats=_formats()).close()
    except Image.DecompressionBombError:  # `read_image` reports it
        pass
    except Exception as error:  # decoders raise many types on damaged files
        return _reason(path, error)
    return None


def resize_or_pad_image(image: Image.Image, size: int = 224) -> Image.Image:
    """Fit an image of any size and mode into an RGB square, centred, padded with black, with its aspect ratio kept.

    The EXIF orientation is applied, transparency becomes white, and 16-bit grey values are scaled to 8 bits.
    """
    image = upright_rgb(image)
    left, upper, right, lower = place_in_square(image.size, size)
    image = image.resize((right - left, lower - upper), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (size, size))
    padded.paste(image, (left, upper))
    return padded


def place_in_square(image_size: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Return where `resize_or_pad_image` puts an upright image of this width and height: left, upper, right, lower."""
    scale = size / max(image_size)
    width, height = (max(1, round(side * scale)) for side in image_size)
    left, upper = (size - width) // 2, (size - height) // 2
    return left, upper, left + width, upper + height


def upright_rgb(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, put transparency on white, and scale 16-bit and floating-point grey values to 8 bits.

    The white level is the one that was given to `read_image`. Floating-point values lie between 0 and 1.
    """
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
        # Pillow keeps the EXIF data, which would rotate the image once more.
        image.info = {name: value for name, value in image.info.items() if name in ("transparency", "white_level")}
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
    except Exception:  # damaged EXIF data raises many types; the image itself is readable
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        image = image_of_array(np.asarray(image))
    elif image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        grey = np.asarray(image).astype(np.float32) / (image.info.get("white_level", WHITE) / 255)
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_archive(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the images (N, H, W) or (N, C, H, W) and the labels (N,) of an `.npz` file; UserError if they do not fit.

    The values are checked later, by `image_of_array`.
    """
    images, labels = _load_arrays(file)
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


def _load_arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > _LARGEST_ARCHIVE:
                raise UserError(
                    f"{file} unpacks to more than {_LARGEST_ARCHIVE / 1e9:.1f} GB: make it a folder of .npy files"
                )
            arrays = {name: archive[name] for name in ("images", "labels") if name in archive}
    except (UserError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # NumPy raises many types on damaged files
        kind = "has pickled objects in it" if "Object arrays" in str(error) else "is damaged or not an .npz file"
        raise UserError(f"{file} {kind}: it must hold the arrays `images` and `labels`") from error
    if missing := {"images", "labels"} - arrays.keys():
        raise UserError(f"{file} has no array `{min(missing)}`: it must hold `images` and `labels`")
    return arrays["images"], arrays["labels"]


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads, and HEIC.

    PostScript is left out, because Pillow would run it as a program, and so are formats that Pillow only identifies.
    """
    from pillow_heif import register_heif_opener

    register_heif_opener()
    Image.init()
    _silence_libtiff()
    return tuple(name for name in Image.ID if name not in ("EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"))


def _silence_libtiff() -> None:
    """Stop Pillow's libtiff from printing messages of its own about damaged files."""
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").split("\n"):
        file = line[line.find("/") :]
        if os.path.basename(file).startswith("libtiff"):
            library = ctypes.CDLL(file)
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def _too_large(limit: int) -> str:
    return f"over the limit of {limit:,} pixels"


def _check_values(image: Image.Image) -> None:
    """Raise UnreadableImage for values that `upright_rgb` cannot convert without guessing."""
    if image.mode == "LAB":
        raise UnreadableImage("a LAB image, whose colours are not converted")
    if image.mode == "F":
        _check_range(np.asarray(image), "image")
    if image.mode == "I":
        lowest, highest = image.getextrema()
        if lowest < 0 or highest > WHITE:
            raise UnreadableImage("an image of 32-bit values: at most 16 bits are supported")


def image_of_array(array: np.ndarray) -> Image.Image:
    """Convert an array to a grey or RGB image, or raise UnreadableImage.

    The array must be (H, W), (1, H, W) or (3, H, W), uint8 or floating point from 0 to 1.
    """
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)
    elif array.ndim != 2:
        raise UnreadableImage(f"an array of shape {array.shape}, not (H, W), (1, H, W) or (3, H, W)")
    if not array.size:
        raise UnreadableImage("an empty array")
    if array.shape[0] * array.shape[1] > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(_too_large(Image.MAX_IMAGE_PIXELS))
    if np.issubdtype(array.dtype, np.floating):
        _check_range(array, "array")
        array = array * 255
        array = array.round(out=array).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableImage(f"an array of {array.dtype}, not of uint8 or floating point")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_range(array: np.ndarray, what: str) -> None:
    lowest, highest = array.min(), array.max()
    if not (math.isfinite(lowest) and math.isfinite(highest)):  # NaN propagates through both
        raise UnreadableImage(f"an {what} with values that are not finite")
    if lowest < 0 or highest > 1:
        raise UnreadableImage(f"a floating-point {what} with values outside 0 to 1")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # only the system's errors have one
        return error.strerror
    if not os.path.getsize(path):
        return "an empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an array, or a pickled one" if path.suffix.lower() == ".npy" else NOT_AN_IMAGE
    if "Object arrays" in str(error):
        return "an array of pickled objects"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(Image.MAX_IMAGE_PIXELS)
    return first_line(error)
