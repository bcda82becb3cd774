"""Images of low quality are found, with the reason; others are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dataset.examining import examine, examine_image
from dataset.folders import image_files
from dataset.quality import BLANK, BLURRED, DARK, NARROW, UsualFlaw, find_flaws, find_poor_images
from dataset.sample import CLASSES, draw_numbered


def drawing(number=0):
    return draw_numbered("Axe", 0, False, number)[0]


def placeholder():
    """Draw a grey pictogram above a caption."""
    image = Image.new("RGB", (240, 180), "#eeeeee")
    draw = ImageDraw.Draw(image)
    draw.rectangle((70, 30, 170, 110), outline="#999999", width=4)
    draw.polygon([(75, 105), (110, 60), (130, 85), (145, 70), (165, 105)], fill="#999999")
    draw.text((120, 140), "image not found", fill="#777777", anchor="mm")
    return image


def noise(size, deviation):
    pixels = np.random.default_rng(0).normal(128, deviation, (*size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def flaws(image):
    return find_flaws(examine_image(Path("image.jpg"), image))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (50, 40), "white"), [BLANK]),
        (Image.new("RGB", (50, 40), "black"), [BLANK]),
        (noise((40, 50), 2), [BLANK]),
        (placeholder(), [BLANK]),
        (noise((40, 50), 40), []),
        (drawing(), []),
        (drawing().point(lambda value: value // 4), [DARK]),
        (drawing().resize((400, 400)).filter(ImageFilter.GaussianBlur(10)), [BLURRED]),
        (noise((20, 400), 40), [NARROW]),
        (noise((400, 20), 40), [NARROW]),
        (noise((20, 300), 40), []),
        (Image.new("RGB", (400, 20), "white"), [BLANK, NARROW]),
        (Image.new("L", (1, 1)), [BLANK]),
    ],
)
def test_flaws(image, expected):
    assert flaws(image) == expected


def deep(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


ROTATED = Image.Exif()
ROTATED[0x0112] = 6
FORMATS = {
    "rotated": lambda image, path: image.save(path.with_suffix(".jpg"), exif=ROTATED),
    "16 bits": lambda image, path: deep(image).save(path.with_suffix(".png")),
    "array": lambda image, path: np.save(path.with_suffix(".npy"), np.asarray(image.convert("L")) / 255),
    "palette": lambda image, path: image.quantize().save(path.with_suffix(".png")),
    "gif": lambda image, path: image.save(path.with_suffix(".gif")),
    "grey": lambda image, path: image.convert("L").save(path.with_suffix(".jpg")),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_file_format_does_not_matter(tmp_path, kind):
    dark = drawing().point(lambda value: value // 4)
    for name, image in (("bright", drawing()), ("dark", dark), ("nothing", placeholder())):
        FORMATS[kind](image, tmp_path / name)
    poor, rules = find_poor_images(examine(image_files(tmp_path))[0])
    assert {path.stem: found for path, found in poor.items()} == {"dark": [DARK], "nothing": [BLANK]}
    assert rules == []


def test_sparse_symbols_are_not_placeholders():
    symbol = np.zeros((28, 28), dtype=np.uint8)
    symbol[4:24, 13:15] = 255
    assert flaws(Image.fromarray(symbol)) == []
    assert flaws(Image.fromarray(symbol).resize((280, 280), Image.Resampling.NEAREST)) == [BLANK]


def test_properties_of_many_images_of_a_class_are_no_flaws():
    dark, bright = drawing().point(lambda value: value // 4), drawing()
    night = [examine_image(Path("data/night") / f"{k}.jpg", dark if k < 6 else bright) for k in range(30)]
    day = [examine_image(Path("data/day") / f"{k}.jpg", dark if k < 2 else bright) for k in range(30)]
    poor, rules = find_poor_images([*night, *day])
    assert list(poor) == [Path("data/day/0.jpg"), Path("data/day/1.jpg")]
    assert rules == [UsualFlaw(Path("data/night"), DARK, 6, 30)]
    few = [examine_image(Path("data/few") / f"{k}.jpg", dark) for k in range(5)]
    assert len(find_poor_images(few)[0]) == 5


def test_drawn_sample_has_no_flaws():
    images = [
        examine_image(Path(label) / f"{testing}{number}.jpg", draw_numbered(label, 0, testing, number)[0])
        for label in CLASSES
        for testing in (False, True)
        for number in range(1, 13)
    ]
    assert find_poor_images(images) == ({}, [])


def test_few_photographs_have_flaws(photographs):
    folders = [photographs / "open_images", photographs / "open_images_testing"]
    images, _ = examine([path for folder in folders for path in sorted(folder.glob("*/*.jpg"))])
    poor, rules = find_poor_images(images)
    assert rules == []
    assert 10 <= len(poor) <= 40
    assert all(path.parent.name == "Book" for path in poor)
    assert {"0023.jpg", "0605.jpg", "1411.jpg"} <= {path.name for path in poor}
