"""Copies of an image are found as near-duplicates of it; other images, blank ones and small symbols are not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from dataset import duplicates
from dataset.augmentation_data import resize_or_pad_image
from dataset.duplicates import find_near_duplicates, find_outstanding_pairs, fingerprint
from dataset.reading import read_image, upright_rgb
from dataset.sample import CLASSES, draw_numbered


def recompress(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize(image, scale):
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def crop(image, part):
    """Cuts this part of the width and of the height off, a third of it at the left and all of it at the top."""
    left, top = round(image.width * part / 3), round(image.height * part)
    return image.crop((left, top, left + round(image.width * (1 - part)), image.height))


# Each kind of copies, with the share of them that has to be found.
KINDS = {
    "quality 30": (lambda image: recompress(image, 30), 0.95),
    "enlarged": (lambda image: resize(image, 1.5), 0.98),
    "halved": (lambda image: resize(image, 0.5), 0.95),
    "quartered": (lambda image: resize(image, 0.25), 0.9),
    "cut by 2 %": (lambda image: crop(image, 0.02), 0.9),
    "cut by 5 %": (lambda image: crop(image, 0.05), 0.85),
    "cut by 10 %": (lambda image: crop(image, 0.1), 0.8),
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
def test_finds_copies_and_nothing_else(drawings, kind):
    make, least = KINDS[kind]
    copies = {(place, place + len(drawings)) for place in range(len(drawings))}
    pairs = set(find(drawings + [make(drawing) for drawing in drawings]))
    assert pairs <= copies
    assert len(pairs) >= least * len(copies)


def test_cuts_that_share_little_are_not_near_duplicates(drawings):
    for drawing in drawings:
        width, height = drawing.size
        assert find([drawing.crop((0, 0, width // 2, height)), drawing.crop((width // 2, 0, width, height))]) == []


def test_images_without_contrast_have_no_near_duplicates():
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(100, 108, (60, 60), dtype=np.uint8)) for _ in range(3)]
    blank = [Image.new("RGB", (50, 40), colour) for colour in ("black", "white", "white", "red")]
    assert find(blank + noise + noise) == []


def test_images_of_few_pixels(drawings):
    tiny = [
        Image.new("RGB", (1, 1), "white"),
        Image.new("L", (1, 300)),
        *(resize(drawing, 0.03) for drawing in drawings),
    ]
    places = range(2, len(tiny))
    assert find(tiny + tiny) == [(place, place + len(tiny)) for place in places]


def draw_symbol(generator):
    """A symbol of 28 x 28 pixels: a vertical stroke at about the same place, and a free one."""
    image = Image.new("L", (28, 28))
    stroke = ImageDraw.Draw(image)
    stroke.line([(14 + generator.integers(-2, 3), 2), (14 + generator.integers(-2, 3), 25)], fill=255, width=3)
    stroke.line(generator.integers(3, 25, 4).tolist(), fill=255, width=3)
    return image


def test_symbols_of_a_kind_are_told_apart():
    generator = np.random.default_rng(1)
    symbols = [draw_symbol(generator) for _ in range(60)]
    pairs = find([*symbols, symbols[7]])
    assert pairs == [(7, 60)]


def test_few_images():
    assert find([]) == []
    assert find([Image.linear_gradient("L")]) == []


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(30)))
def test_the_order_of_the_images_does_not_matter(drawings, order):
    images = drawings + [crop(drawing, 0.06) for drawing in drawings[:6]]
    expected = {frozenset(pair) for pair in find(images)}
    shuffled = find([images[place] for place in order])
    assert {frozenset(order[place] for place in pair) for pair in shuffled} == expected
    assert all(first < second for first, second in shuffled)
    assert shuffled == sorted(shuffled)


@settings(max_examples=50, deadline=None)
@given(number=st.integers(0, 23), size=st.tuples(st.integers(60, 400), st.integers(60, 400)), gain=st.floats(0.7, 1.0))
def test_a_resized_and_darkened_copy_is_found(drawings, number, size, gain):
    drawing = drawings[number]
    scale = min(wanted / side for wanted, side in zip(size, drawing.size, strict=True))
    assert find([drawing, ImageEnhance.Brightness(resize(drawing, scale)).enhance(gain)]) == [(0, 1)]


@pytest.mark.parametrize("kind", ["halved", "cut by 5 %", "cut by 10 %"])
def test_an_index_finds_what_comparing_all_finds(drawings, kind, monkeypatch):
    images = drawings + [KINDS[kind][0](drawing) for drawing in drawings]
    expected = find(images)
    monkeypatch.setattr(duplicates, "_EXACT", 0)
    assert find(images) == expected


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(30)))
def test_the_order_does_not_matter_to_an_index(drawings, order):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_EXACT", 0)
        patch.setattr(duplicates, "_LARGEST_CELL", 1)  # so that cells are divided
        images = drawings + [crop(drawing, 0.06) for drawing in drawings[:6]]
        shuffled = find([images[place] for place in order])
        assert {frozenset(order[place] for place in pair) for pair in shuffled} == {*map(frozenset, find(images))}


def test_thumbnails_are_shrunk_some_at_a_time(monkeypatch):
    thumbnails = list(np.random.default_rng(0).integers(0, 256, (5, 48, 48), dtype=np.uint8))
    together = duplicates._shrink(thumbnails, 8)
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    assert np.array_equal(duplicates._shrink(thumbnails, 8), together)


def test_each_image_is_closely_compared_with_few(monkeypatch):
    """Of many images that all resemble one another."""
    compared = []
    original = duplicates.compare_closely
    monkeypatch.setattr(
        duplicates, "compare_closely", lambda prints, pairs, _: compared.extend(pairs) or original(prints, pairs)
    )
    image, generator = noise(0), np.random.default_rng(0)
    pairs = find([with_noise(image, generator, 5) for _ in range(200)])
    assert len(compared) <= 200 * duplicates.MOST_COMPARED
    assert {place for pair in pairs for place in pair} == set(range(200))


def noise(seed, side=60):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def with_noise(image, generator, spread):
    pixels = np.asarray(image) + generator.normal(0, spread, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("spread", [2, 8, 30])
def test_copies_among_images_that_all_resemble_one_another(spread):
    """A fixed camera: one scene, in each image a few things of its own, and noise."""
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
    expected = [(place, place + len(images)) for place in range(len(copies))]
    assert find_outstanding_pairs(prints, labels, [0]) == expected
    labels[len(images) :] = 1
    for dense in ([0], [1], [0, 1]):
        found = find_outstanding_pairs(prints, labels, dense)
        assert [pair for pair in found if labels[pair[1]] == 1 != labels[pair[0]]] == expected
    assert find_outstanding_pairs(prints, labels, []) == []


@pytest.fixture(scope="module")
def real_images(photographs):
    """60 photographs, of every class."""
    files = sorted((photographs / "open_images").glob("*/*.jpg"))
    chosen = np.random.default_rng(3).permutation(len(files))[:60]
    return [upright_rgb(read_image(files[place])) for place in chosen]


def test_finds_copies_of_photographs(real_images):
    for kind, (make, least) in KINDS.items():
        found = [find([image, make(image)]) == [(0, 1)] for image in real_images]
        assert np.mean(found) >= least, kind


def test_different_photographs_are_told_apart(real_images):
    assert find(real_images) == []
