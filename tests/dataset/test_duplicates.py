"""Copies of an image are found as near-duplicates; other images, blank images and small symbols are not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from dataset import duplicates
from dataset.augmentation_data import resize_or_pad_image
from dataset.duplicates import find_candidates, find_copies_in_dense_classes, find_near_duplicates, fingerprint
from dataset.reading import read_image, upright_rgb
from dataset.sample import CLASSES, draw_numbered


def recompress(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize(image, scale):
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def crop(image, part):
    """Remove this part of the width and height, a third of it on the left and all of it at the top."""
    left, top = round(image.width * part / 3), round(image.height * part)
    return image.crop((left, top, left + round(image.width * (1 - part)), image.height))


# Kinds of copies, and the share that must be found.
KINDS = {
    "quality 30": (lambda image: recompress(image, 30), 0.95),
    "enlarged": (lambda image: resize(image, 1.5), 0.98),
    "halved": (lambda image: resize(image, 0.5), 0.95),
    "quartered": (lambda image: resize(image, 0.25), 0.9),
    "cropped by 2 %": (lambda image: crop(image, 0.02), 0.9),
    "cropped by 5 %": (lambda image: crop(image, 0.05), 0.85),
    "cropped by 10 %": (lambda image: crop(image, 0.1), 0.8),
    "grey": (lambda image: image.convert("L"), 1.0),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), 0.98),
    "darker": (lambda image: ImageEnhance.Brightness(image).enhance(0.85), 0.98),
    "padded": (resize_or_pad_image, 0.98),
    "all at once": (lambda image: recompress(resize(crop(image, 0.05), 0.6), 60), 0.9),
}


@pytest.fixture(scope="module")
def drawings():
    return [draw_numbered(label, 5, False, number)[0] for label in CLASSES for number in range(1, 9)]


def find(images):
    return find_near_duplicates([fingerprint(image) for image in images])


@pytest.mark.parametrize("kind", KINDS)
def test_finds_only_copies(drawings, kind):
    make, least = KINDS[kind]
    copies = {(index, index + len(drawings)) for index in range(len(drawings))}
    pairs = set(find(drawings + [make(drawing) for drawing in drawings]))
    assert pairs <= copies
    assert len(pairs) >= least * len(copies)


def test_disjoint_crops_are_not_near_duplicates(drawings):
    for drawing in drawings:
        width, height = drawing.size
        assert find([drawing.crop((0, 0, width // 2, height)), drawing.crop((width // 2, 0, width, height))]) == []


def test_images_without_contrast_have_no_near_duplicates():
    generator = np.random.default_rng(0)
    noisy = [Image.fromarray(generator.integers(100, 108, (60, 60), dtype=np.uint8)) for _ in range(3)]
    blank = [Image.new("RGB", (50, 40), colour) for colour in ("black", "white", "white", "red")]
    assert find(blank + noisy + noisy) == []


def test_copies_of_tiny_images_are_found(drawings):
    blank = [Image.new("RGB", (1, 1), "white"), Image.new("L", (1, 300))]
    tiny = [*blank, *(resize(drawing, 0.03) for drawing in drawings)]
    assert find(tiny + tiny) == [(index, index + len(tiny)) for index in range(2, len(tiny))]


def test_different_symbols_of_one_kind_are_not_near_duplicates():
    """A vertical stroke at roughly the same place, and a random one."""
    generator = np.random.default_rng(1)
    symbols = []
    for _ in range(60):
        symbols.append(Image.new("L", (28, 28)))
        stroke = ImageDraw.Draw(symbols[-1])
        stroke.line([(14 + generator.integers(-2, 3), 2), (14 + generator.integers(-2, 3), 25)], fill=255, width=3)
        stroke.line(generator.integers(3, 25, 4).tolist(), fill=255, width=3)
    assert find([*symbols, symbols[7]]) == [(7, 60)]


def test_fewer_than_two_images_have_no_pairs():
    assert find([]) == []
    assert find([Image.linear_gradient("L")]) == []


@pytest.mark.parametrize("indexed", [False, True])
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(30)))
def test_order_of_images_does_not_matter(drawings, indexed, order):
    images = drawings + [crop(drawing, 0.06) for drawing in drawings[:6]]
    with pytest.MonkeyPatch.context() as patch:
        if indexed:
            patch.setattr(duplicates, "_EXACT", 0)
            patch.setattr(duplicates, "_LARGEST_CELL", 1)  # so that cells are divided
        expected = {frozenset(pair) for pair in find(images)}
        shuffled = find([images[index] for index in order])
    assert {frozenset(order[index] for index in pair) for pair in shuffled} == expected
    assert all(first < second for first, second in shuffled)
    assert shuffled == sorted(shuffled)


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 23), size=st.tuples(st.integers(60, 400), st.integers(60, 400)), gain=st.floats(0.7, 1.0))
def test_resized_and_darkened_copies_are_found(drawings, number, size, gain):
    drawing = drawings[number]
    scale = min(wanted / side for wanted, side in zip(size, drawing.size, strict=True))
    assert find([drawing, ImageEnhance.Brightness(resize(drawing, scale)).enhance(gain)]) == [(0, 1)]


@pytest.mark.parametrize("kind", ["halved", "cropped by 5 %", "cropped by 10 %"])
def test_index_finds_the_same_as_comparing_all_pairs(drawings, kind, monkeypatch):
    images = drawings + [KINDS[kind][0](drawing) for drawing in drawings]
    expected = find(images)
    monkeypatch.setattr(duplicates, "_EXACT", 0)
    assert find(images) == expected


def noise(seed, side=60):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def with_noise(image, generator, spread):
    pixels = np.asarray(image) + generator.normal(0, spread, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_close_comparisons_are_limited_if_all_images_resemble_one_another():
    generator = np.random.default_rng(0)
    images = [with_noise(noise(0), generator, 5) for _ in range(200)]
    assert len(find_candidates([fingerprint(image) for image in images])) <= 200 * duplicates.MOST_COMPARED
    assert {index for pair in find(images) for index in pair} == set(range(200))


@pytest.mark.parametrize("spread", [2, 8, 30])
def test_copies_are_found_among_images_of_a_fixed_camera(spread):
    """One scene with a few objects and noise in each image."""
    generator = np.random.default_rng(2)
    scene, images = noise(0, 120), []
    for _ in range(150):
        image = with_noise(scene, generator, spread)
        for _ in range(4):
            image.paste(noise(generator.integers(1 << 30), 20), tuple(generator.integers(0, 100, 2).tolist()))
        images.append(image)
    copies = [recompress(images[0], 60), resize(images[1], 0.5), ImageEnhance.Brightness(images[2]).enhance(0.9)]
    prints = [fingerprint(image) for image in images + copies]
    labels = np.zeros(len(prints), dtype=np.int64)
    expected = [(index, index + len(images)) for index in range(len(copies))]
    assert find_copies_in_dense_classes(prints, labels, [0]) == expected
    labels[len(images) :] = 1
    for dense in ([0], [1], [0, 1]):
        found = find_copies_in_dense_classes(prints, labels, dense)
        assert [pair for pair in found if labels[pair[1]] == 1 != labels[pair[0]]] == expected
    assert find_copies_in_dense_classes(prints, labels, []) == []


def test_finds_only_copies_of_photographs(photographs):
    files = sorted((photographs / "open_images").glob("*/*.jpg"))
    chosen = np.random.default_rng(3).permutation(len(files))[:60]
    images = [upright_rgb(read_image(files[index])) for index in chosen]
    assert find(images) == []
    for kind, (make, least) in KINDS.items():
        assert np.mean([find([image, make(image)]) == [(0, 1)] for image in images]) >= least, kind
