"""Unusual files: images that programs must read, and files that they must reject.

All readable ones show the same picture, in colour or grey, after the EXIF orientation is applied.
"""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.reading import read_image

WIDTH, HEIGHT = 64, 48
COLOURS = np.array([[(200, 40, 40), (40, 180, 40)], [(40, 40, 200), (255, 255, 255)]], np.uint8)  # of the four quarters
GREYS = np.array([[0, 90], [180, 255]], np.uint8)

# The inverse of what each EXIF orientation asks a viewer to do (exiftool's manual, "Orientation").
_UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture() -> Image.Image:
    """Return red and green above blue and white, RGB (64, 48)."""
    return Image.fromarray(_enlarge(COLOURS))


def grey_picture() -> Image.Image:
    """Return the four `GREYS`, L (64, 48)."""
    return Image.fromarray(_enlarge(GREYS))


def _enlarge(quarters: np.ndarray) -> np.ndarray:
    return quarters.repeat(HEIGHT // 2, axis=0).repeat(WIDTH // 2, axis=1)


def quarters_of(image: Image.Image) -> np.ndarray:
    """Return the pixels in the middle of each quarter of a padded picture, (2, 2, 3)."""
    side = image.width
    high = side * HEIGHT / WIDTH
    rows = [round(side / 2 + sign * high / 4) for sign in (-1, 1)]
    columns = [round(side / 4), round(3 * side / 4)]
    return np.asarray(image)[np.ix_(rows, columns)]


def write_coloured(folder: Path) -> list[Path]:
    """Write `picture` in every format and mode, and under unusual names."""
    rgb = picture()
    see_through = rgb.convert("RGBA")
    see_through.paste((0, 0, 0, 0), (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))  # the white quarter
    flat = rgb.quantize(4)
    black = Image.new("RGB", rgb.size)
    flat_through = flat.copy()
    white = np.asarray(flat)[-1, -1].item()
    flat_through.putpalette(flat.getpalette()[: 3 * white] + [0, 0, 0] + flat.getpalette()[3 * white + 3 :])

    def save(name: str, image: Image.Image, **options: object) -> None:
        image.save(folder / name, **options)

    good = {"quality": 95, "subsampling": 0}
    save("plain.JPG", rgb, **good)
    save("progressive.jpeg", rgb, progressive=True, **good)
    save("cmyk.jpg", _to_cmyk(rgb), **good)
    _write_ycck(folder / "ycck.jpg", rgb)
    save("exif damaged.jpg", rgb, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40)), **good)
    for orientation, undo in _UNDO.items():
        stored = rgb if undo is None else rgb.transpose(undo)
        save(f"exif {orientation}.jpg", stored, exif=exif_of(orientation), **good)
    save("exif 6.png", rgb.transpose(_UNDO[6]), exif=exif_of(6))
    _write_16_bits(folder / "sixteen bits a colour.png", rgb)
    save("palette.png", flat)
    save("palette with a transparent colour.png", flat_through, transparency=white)
    save("alpha.png", see_through)
    save("alpha.tif", see_through)
    save("alpha.webp", see_through, lossless=True)
    save("transparent colour.png", rgb, transparency=(255, 255, 255))
    save("animated.gif", rgb, save_all=True, append_images=[black])
    save("animated.webp", rgb, save_all=True, append_images=[black], lossless=True)
    save("animated.png", rgb, save_all=True, append_images=[black])
    save("pages.tiff", rgb, save_all=True, append_images=[black])
    save("cmyk.tif", _to_cmyk(rgb))
    save("plain.bmp", rgb)
    save("a bitmap.jpg", rgb, format="BMP")  # the suffix does not match the format
    save("a picture.npy", rgb, format="PNG")
    save("no suffix", rgb, format="PNG")
    save("a picture.txt", rgb, format="PNG")
    save("plain.ppm", rgb)
    save("plain.jfif", rgb, format="JPEG", **good)
    read_image(folder / "plain.ppm")  # registers HEIC with Pillow
    save("photo.heic", rgb, format="HEIF", quality=100, chroma=444)
    save("exif 6.HEIC", rgb.transpose(_UNDO[6]), format="HEIF", quality=100, chroma=444, exif=exif_of(6).tobytes())
    for name in ("-rf.png", "ünï→.png", "new\nline.png", "CASE.png", "case.png", "Case.PNG", os.fsdecode(b"\xff.png")):
        save(name, rgb)
    np.save(folder / "array.npy", np.asarray(rgb).transpose(2, 0, 1))
    return sorted(folder.iterdir())


def write_grey(folder: Path) -> list[Path]:
    """Write `grey_picture` in every format and mode."""
    grey = grey_picture()
    deep = np.asarray(grey).astype(np.uint16) * 257
    grey.save(folder / "grey.jpg", quality=95)
    Image.fromarray(deep).save(folder / "sixteen bits.png")
    Image.fromarray(deep).save(folder / "sixteen bits.tif")
    Image.fromarray(deep.astype(">u2")).save(folder / "sixteen bits, the other way round.tif")
    Image.fromarray(np.asarray(grey) / np.float32(255)).save(folder / "floating point.tif")
    Image.merge("LA", (grey, grey.point(lambda value: 255 * (value < 255)))).save(folder / "grey alpha.png")
    np.save(folder / "array.npy", np.asarray(grey) / 255)
    return sorted(folder.iterdir())


def write_extreme(folder: Path) -> dict[Path, tuple[int, int]]:
    """Write files of extreme sizes; return their sizes."""
    sizes = {"wide.png": (20_000, 30), "one pixel wide.png": (1, 300), "one row.jpg": (300, 1), "one pixel.gif": (1, 1)}
    for name, size in sizes.items():
        Image.new("RGB", size, (200, 40, 40)).save(folder / name)
    return {folder / name: size for name, size in sizes.items()}


def write_refused(folder: Path) -> dict[Path, str]:
    """Write files that no program can use; return a part of the expected reason for each."""
    picture().save(folder / "cut off.jpg")
    (folder / "cut off.jpg").write_bytes((folder / "cut off.jpg").read_bytes()[:-200])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not a picture\n" * 20)
    _write_bomb(folder / "bomb.png")
    picture().save(folder / "unreadable.jpg")
    (folder / "unreadable.jpg").chmod(0)
    Image.merge("LAB", picture().split()).save(folder / "lab.tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), 1e6, np.float32)).save(folder / "floating point out of range.tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), 10**6, np.int32)).save(folder / "thirty-two bits.tif")
    (folder / "postscript.png").write_text(POSTSCRIPT)
    (folder / "damaged.heic").write_bytes(b"\0\0\0\x18ftypheic")
    np.save(folder / "objects.npy", np.array([print], dtype=object), allow_pickle=True)
    (folder / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    np.save(folder / "nan.npy", np.full((28, 28), np.nan))
    np.save(folder / "shape.npy", np.zeros((2, 28, 28)))
    np.save(folder / "integers.npy", np.zeros((28, 28), np.int64))
    (folder / "huge.npy").write_bytes(_npy_header((10**6, 10**6)))
    with (folder / "large.npy").open("wb") as file:  # a sparse file, which uses no disk space
        file.write(_npy_header((3, 30_000, 30_000)))
        file.truncate(3 * 30_000 * 30_000)
    reasons = {
        "cut off.jpg": "truncated",
        "empty.jpg": "an empty file",
        "text.jpg": "not an image",
        "bomb.png": "over the limit of",
        "unreadable.jpg": "Permission denied",
        "lab.tif": "LAB",
        "floating point out of range.tif": "outside 0 to 1",
        "thirty-two bits.tif": "32-bit",
        "postscript.png": "not an image",
        "damaged.heic": "",
        "objects.npy": "pickled objects",
        "pickle.npy": "pickled",
        "nan.npy": "not finite",
        "shape.npy": "shape (2, 28, 28)",
        "integers.npy": "int64",
        "huge.npy": "",
        "large.npy": "over the limit of",
    }
    return {folder / name: reason for name, reason in reasons.items()}


def write_passed_over(folder: Path, outside: Path) -> tuple[dict[Path, str], list[Path]]:
    """Write links, folders, and other entries that programs skip.

    Args:
        folder: of a class.
        outside: another folder, which programs must not read.

    Returns:
        A part of the expected reason for each, and files that must not be reported.
    """
    picture().save(outside / "outside.png")
    (folder / "link out.png").symlink_to(outside / "outside.png")
    (folder / "broken link.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder of links.png").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "inner").mkdir()
    picture().save(folder / "inner" / "deep.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "notes").write_text("not a picture")
    picture().save(folder / ".hidden.png")
    (folder / ".hidden").mkdir()
    picture().save(folder / ".hidden" / "deep.png")
    reasons = {
        **dict.fromkeys(("link out.png", "broken link.png", "loop.png", "folder of links.png", "up"), "a link"),
        "inner": "a folder",
        "pipe.png": "not a regular file",
        "notes": "not an image",
        ".hidden.png": "hidden",
        ".hidden": "hidden",
    }
    silent = [folder / name for name in ("Thumbs.db", "._photo.jpg")]
    for path in silent:  # files that Windows and macOS create
        path.write_bytes(b"\xd0\xcf")
    return {folder / name: reason for name, reason in reasons.items()}, silent


def write_ordinary(folder: Path, count: int, side: int = 40) -> list[Path]:
    """Write valid, different images."""
    generator = np.random.default_rng(int.from_bytes(folder.name.encode(), "big"))
    for number in range(count):
        blocks = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"ordinary {number:02d}.png")
    return sorted(folder.glob("ordinary *.png"))


def exif_of(orientation: int) -> Image.Exif:
    """Return EXIF data with only an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Pillow passes such a file to Ghostscript, which would run it as a program.
POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n0 0 64 48 rectfill\nshowpage\n"


def _to_cmyk(rgb: Image.Image) -> Image.Image:
    """Convert to CMYK without black."""
    inks = 255 - np.asarray(rgb)
    return Image.fromarray(np.dstack([inks, np.zeros(inks.shape[:2], np.uint8)]), "CMYK")


def _write_ycck(file: Path, rgb: Image.Image) -> None:
    """Write a JPEG like Adobe's programs: luminance, two colour differences and black, all inverted.

    Pillow only inverts four components; the byte `transform` of the Adobe segment says what they mean (libjpeg's
    `jdcolor.c`, "YCCK-to-CMYK").
    """
    # A decoder converts the first three to inks, here of the inverted picture; Adobe's inversion restores the picture.
    stored = Image.fromarray(255 - np.asarray(rgb)).convert("YCbCr")
    inverted = 255 - np.dstack([np.asarray(stored), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    Image.fromarray(inverted, "CMYK").save(file, quality=95, subsampling=0)
    content = bytearray(file.read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    file.write_bytes(content)


def _write_16_bits(file: Path, rgb: Image.Image) -> None:
    """Write a PNG with 16 bits per colour, which Pillow reads but cannot write."""
    rows = (np.asarray(rgb).astype(">u2") * 257).reshape(HEIGHT, -1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    _write_png(file, (WIDTH, HEIGHT, 16, 2), zlib.compress(content))


def _write_bomb(file: Path) -> None:
    """Write a PNG of 900 million white pixels in 110 KB."""
    compressor = zlib.compressobj(6)
    block = (b"\0" + bytes([255]) * 3750) * 1000
    content = b"".join(compressor.compress(block) for _ in range(30)) + compressor.flush()
    _write_png(file, (30_000, 30_000, 1, 0), content)


def _write_png(file: Path, form: tuple[int, int, int, int], content: bytes) -> None:
    """Write a PNG; `form` is width, height, bits and colour type, `content` the compressed rows."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", *form, 0, 0, 0)), (b"IDAT", content), (b"IEND", b""))
    with file.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
