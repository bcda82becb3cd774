"""Tests of reading, converting and padding images, and of the reasons for unreadable files."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import register_heif_opener

import hostile
from dataset.reading import (
    UnreadableImage,
    highest_value,
    read_image,
    resize_or_pad_image,
    upright_rgb,
    white_level_of,
)
from helpers import REPOSITORY


def refusal(path):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    return str(caught.value)


def test_reasons_for_unreadable_files(tmp_path, monkeypatch):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"")
    assert refusal(path) == "an empty file"
    path.write_text("text")
    assert refusal(path) == "not an image"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    assert "truncated" in refusal(path)
    Image.new("L", (1500, 1500)).save(path)
    for limit in (2_000_000, 1_000_000):  # Pillow warns above its limit, and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert refusal(path) == f"over the limit of {limit:,} pixels"
    assert refusal(tmp_path / "missing.jpg") == "No such file or directory"


@pytest.mark.parametrize(
    ("array", "pixels"),
    [
        (np.array([[0, 0.5], [0.25, 1]], np.float32), [[0, 128], [64, 255]]),
        (np.array([[[0, 1.0]]], np.float64), [[0, 255]]),
        (np.array([[7, 200]], np.uint8), [[7, 200]]),
        (np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0)),
    ],
)
def test_arrays_are_read(tmp_path, array, pixels):
    np.save(tmp_path / "image.npy", array)
    assert np.array_equal(read_image(tmp_path / "image.npy"), pixels)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 4, 4), np.float32), "an array of shape (2, 4, 4), not (H, W), (1, H, W) or (3, H, W)"),
        (np.zeros(4, np.float32), "an array of shape (4,), not (H, W), (1, H, W) or (3, H, W)"),
        (np.zeros((0, 4), np.float32), "an empty array"),
        (np.full((4, 4), np.nan, np.float32), "an array with values that are not finite"),
        (np.array([[0, -np.inf]]), "an array with values that are not finite"),
        (np.full((4, 4), 2.0, np.float32), "a floating-point array with values outside 0 to 1"),
        (np.zeros((4, 4), np.int64), "an array of int64, not of uint8 or floating point"),
    ],
)
def test_reasons_for_unusable_arrays(tmp_path, array, reason):
    np.save(tmp_path / "image.npy", array)
    assert refusal(tmp_path / "image.npy") == reason


def test_pickled_objects_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "image.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    assert refusal(tmp_path / "image.npy") == "an array of pickled objects"
    (tmp_path / "image.npy").write_bytes(pickle.dumps(Trap()))
    assert refusal(tmp_path / "image.npy") == "not an array, or a pickled one"


def test_truncated_array_files_have_a_reason(tmp_path):
    path = tmp_path / "image.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    content = path.read_bytes()
    for length in (0, 4, 9, 60, len(content) - 1):
        path.write_bytes(content[:length])
        assert "\n" not in refusal(path)
        assert (refusal(path) == "an empty file") == (length == 0)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_files_of_every_version_and_order(tmp_path, version, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5, 4)), dtype=np.uint8, order=order)
    with (tmp_path / "image.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    assert np.array_equal(read_image(tmp_path / "image.npy"), array.transpose(1, 2, 0))


def test_big_endian_arrays_are_read(tmp_path):
    np.save(tmp_path / "image.npy", np.array([[0, 0.2, 1]], dtype=">f4"))
    assert np.asarray(read_image(tmp_path / "image.npy")).tolist() == [[0, 51, 255]]


def test_orientation_is_read_from_every_format(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"image.{suffix}", exif=exif)
        upright = upright_rgb(read_image(tmp_path / f"image.{suffix}"))
        assert upright.size == (20, 40), suffix
        assert upright_rgb(upright).size == (20, 40), f"{suffix}: rotated twice"


@pytest.mark.parametrize(
    ("write", "expected"),
    [(hostile.write_coloured, hostile.COLOURS), (hostile.write_grey, hostile.GREYS[..., np.newaxis])],
    ids=["coloured", "grey"],
)
def test_images_of_every_format_look_the_same(tmp_path, capfd, write, expected):
    """Upright, transparent parts on white, 16 bits scaled to 8, and the first of several frames."""
    for path in write(tmp_path):
        found = hostile.quarters_of(resize_or_pad_image(read_image(path))).astype(int)
        assert np.abs(found - expected).max() <= 3, path
    assert capfd.readouterr() == ("", "")  # no messages of the decoders


def write_deep(path, values):
    """Write values (H, W) or (H, W, 3) of up to 16 bits."""
    if values.ndim == 2:
        Image.fromarray(values).save(path)
    else:
        cv2.imwrite(str(path), np.ascontiguousarray(values[..., ::-1]))
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_files_are_scaled_by_their_bits(tmp_path, suffix, shape, bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, shape).astype(np.uint16)
    values.flat[0] = 2**bits - 1
    path = write_deep(tmp_path / f"deep.{suffix}", values)
    assert white_level_of(highest_value(path)) == 2**bits - 1
    image = read_image(path, 2**bits - 1)
    assert image.format == {"png": "PNG", "tif": "TIFF"}[suffix]
    found = np.asarray(upright_rgb(image)).astype(float)
    expected = values.astype(float) * 255 / (2**bits - 1)
    if bits < 16 or len(shape) == 2:
        assert np.abs(found - (expected[..., None] if len(shape) == 2 else expected)).max() <= 0.5
    else:
        assert np.abs(found - expected).max() <= 1  # Pillow rounds down


def test_values_above_white_are_clipped_and_alpha_is_kept(tmp_path):
    path = write_deep(tmp_path / "deep.png", np.array([[0, 4095, 60000]], np.uint16))
    assert np.asarray(upright_rgb(read_image(path, 4095)))[0, :, 0].tolist() == [0, 255, 255]
    colours = np.array([[(4095, 0, 0, 65535), (4095, 0, 0, 0)]], np.uint16)
    cv2.imwrite(str(path), cv2.cvtColor(colours, cv2.COLOR_RGBA2BGRA))
    assert np.asarray(upright_rgb(read_image(path, 4095)))[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_orientation_is_applied_to_16_bit_files(tmp_path):
    for values in (np.full((20, 40), 900, np.uint16), np.full((20, 40, 3), 900, np.uint16)):
        path = write_deep(tmp_path / "deep.png", values)
        content = path.read_bytes()
        exif = hostile.exif_of(6).tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        path.write_bytes(content[:33] + chunk + content[33:])  # after the header
        assert upright_rgb(read_image(path, 1023)).size == (20, 40)


def test_highest_value_of_other_files_is_0(tmp_path):
    Image.new("RGB", (4, 4), "white").save(tmp_path / "photo.jpg")
    np.save(tmp_path / "array.npy", np.ones((4, 4)))
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "cut.png").write_bytes(write_deep(tmp_path / "deep.png", np.eye(40, dtype=np.uint16)).read_bytes()[:60])
    for name in ("photo.jpg", "array.npy", "text.png", "cut.png", "missing.png"):
        assert highest_value(tmp_path / name) == 0
    assert white_level_of(0) == 65535


def test_half_transparent_colours_are_blended_with_white(tmp_path):
    Image.new("RGBA", (4, 3000), (200, 0, 0, 51)).save(tmp_path / "image.png")
    found = np.asarray(upright_rgb(read_image(tmp_path / "image.png"))).reshape(-1, 3)
    assert np.abs(found.astype(int) - (244, 204, 204)).max() <= 1


def test_images_of_extreme_sizes_are_padded(tmp_path):
    for path, size in hostile.write_extreme(tmp_path).items():
        image = read_image(path)
        assert image.size == size
        content = np.asarray(resize_or_pad_image(image)).any(axis=2)
        long, short = sorted((content.any(axis=0).sum(), content.any(axis=1).sum()), reverse=True)
        assert (long, short) == (224, max(1, round(224 * min(size) / max(size)))), path


def test_every_unusable_file_has_a_reason(tmp_path):
    for path, reason in hostile.write_refused(tmp_path).items():
        if path.name != "unreadable.jpg" or os.geteuid() != 0:
            assert reason in refusal(path).lower() or reason in refusal(path)
            assert "\n" not in refusal(path)


def test_packages_in_a_folder_with_spaces(tmp_path):
    packages, place = Path(PIL.__file__).parents[1], tmp_path / "libtiff of mine"
    for name in ("PIL", "pillow.libs"):  # the latter only if Pillow was installed as a wheel
        if (packages / name).exists():
            shutil.copytree(packages / name, place / name)
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (4, 3)).save(file)
    script = "import sys, pathlib; from dataset.reading import *; print(read_image(pathlib.Path(sys.argv[1])).size)"
    environment = {**os.environ, "PYTHONPATH": f"{place}:{REPOSITORY / 'src'}"}
    result = subprocess.run(
        [sys.executable, "-c", script, file], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("(4, 3)\n", "")


def test_postscript_is_not_executed(tmp_path, monkeypatch):
    """Pillow would pass such a file to Ghostscript, whatever its name."""
    (tmp_path / "gs").write_text(f'#!/bin/sh\ntouch "{tmp_path}/ran"\necho 9')
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "image.jpg").write_text(hostile.POSTSCRIPT)
    assert refusal(tmp_path / "image.jpg") == "not an image"
    assert not (tmp_path / "ran").exists()


RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


@given(width=st.integers(1, 600), height=st.integers(1, 600))
def test_padding_keeps_the_aspect_ratio_and_centres(width, height):
    result = np.asarray(resize_or_pad_image(Image.new("RGB", (width, height), RED)))
    assert result.shape == (224, 224, 3)
    ys, xs = np.nonzero(result[..., 0])
    filled = (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
    assert max(filled) == 224
    scale = 224 / max(width, height)
    assert filled == (max(1, round(width * scale)), max(1, round(height * scale)))
    assert abs(xs.min() - (223 - xs.max())) <= 1
    assert abs(ys.min() - (223 - ys.max())) <= 1
    assert (result[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] == RED).all()


def test_padding_resizes_bilinearly():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8))
    expected = image.resize((224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_or_pad_image(image), expected)


def test_padding_applies_the_exif_orientation(tmp_path):
    """Orientation 6: the left edge of the stored image is the upper edge of the scene."""
    image = Image.new("RGB", (40, 20), BLACK)
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        result = np.asarray(resize_or_pad_image(turned, 40))
    assert (result[:18, 11:29] == RED).all()
    assert (result[22:] == BLACK).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, WHITE),
        ("P", 0, BLACK),
        ("CMYK", (0, 255, 255, 0), (254, 0, 0)),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("LA", (0, 0), WHITE),
        ("I;16", 65535, WHITE),
        ("I;16", 32896, (128, 128, 128)),
        ("I", 257, (1, 1, 1)),
    ],
)
def test_padding_converts_every_mode(mode, colour, expected):
    result = np.asarray(resize_or_pad_image(Image.new(mode, (8, 8), colour), 8))
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png", transparency=0)
    with Image.open(tmp_path / "palette.png") as opened:
        assert (np.asarray(resize_or_pad_image(opened, 8)) == WHITE).all()


# Prints by how many bytes peak memory grows while an image is read, padded and examined.
READ = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from dataset.examining import examine_image
from dataset.reading import read_image, resize_or_pad_image
from helpers import peak_memory

before = peak_memory()
path = Path(sys.argv[3])
image = read_image(path)
resize_or_pad_image(image)
examine_image(path, image)
print(peak_memory() - before)
"""
SIDE = 8060  # the square is just below the limit


def write_large(kind, path):
    exif = hostile.exif_of(6)
    if kind == "progressive CMYK":
        Image.new("CMYK", (SIDE, SIDE), 9).save(path, "JPEG", progressive=True, subsampling=0)
    elif kind == "turned, with alpha":
        Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 99)).save(path, "PNG", exif=exif, compress_level=1)
    elif kind == "sixteen bits":
        Image.new("I;16", (SIDE, SIDE), 999).save(path, "TIFF")
    elif kind == "floating point":
        Image.new("F", (SIDE, SIDE), 0.5).save(path, "TIFF")
    elif kind == "HEIC":
        register_heif_opener()
        Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 99)).save(path, "HEIF", quality=30)
    elif kind == "WebP":
        image = Image.new("RGBA", (SIDE, SIDE // 2), (9, 9, 9, 99))
        image.save(path, "WEBP", lossless=True, method=0, quality=0, exif=exif)
    else:
        np.save(path, np.zeros((SIDE, SIDE), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["progressive CMYK", "turned, with alpha", "sixteen bits", "floating point", "WebP", "HEIC", "array"]
)
def test_largest_images_take_less_than_1_gb(tmp_path, kind):
    path = tmp_path / f"image.{'npy' if kind == 'array' else 'jpg'}"
    write_large(kind, path)
    command = [sys.executable, "-c", READ, REPOSITORY / "src", REPOSITORY / "tests", path]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{kind}: {grown / 1e6:.0f} MB")
    assert grown < 1e9
