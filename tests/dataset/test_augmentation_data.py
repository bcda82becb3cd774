"""Images of every size and kind come out as upright RGB squares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.augmentation_data import resize_or_pad_image

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


@given(width=st.integers(1, 600), height=st.integers(1, 600))
def test_keeps_the_aspect_and_pads_centred_with_black(width, height):
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


def test_uses_bilinear_interpolation():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8))
    expected = image.resize((224, 224), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_or_pad_image(image), expected)


def test_honours_exif_orientation(tmp_path):
    """Orientation 6: the camera was turned, so that the left edge of the stored picture is the upper one."""
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
def test_modes(mode, colour, expected):
    result = np.asarray(resize_or_pad_image(Image.new(mode, (8, 8), colour), 8))
    assert np.abs(result.astype(int) - expected).max() <= 1


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "palette.png", transparency=0)
    with Image.open(tmp_path / "palette.png") as opened:
        assert (np.asarray(resize_or_pad_image(opened, 8)) == WHITE).all()
