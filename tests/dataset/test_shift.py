"""A distribution shift of the test images is detected and described; another sample of the same data is no shift."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dataset import shift
from dataset.examining import examine
from dataset.shift import measure_shift, summarise_shift


@pytest.fixture
def save(tmp_path):
    """Write images (H, W) or (H, W, 3) uint8 to files, and examine them."""

    def save(images, suffix="png"):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        paths = [directory / f"{number}.{suffix}" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        examined, unreadable = examine(paths)
        assert not unreadable
        return examined

    return save


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, white on black, (N, 16, 16) uint8."""
    images = (load_digits().images * 15.9).astype(np.uint8)
    return images.repeat(2, 1).repeat(2, 2)


@pytest.fixture(scope="module")
def pictures():
    """Colour noise around medium grey, (N, 40, 48, 3) uint8."""
    return np.random.default_rng(0).normal(120, 25, (240, 40, 48, 3)).clip(0, 255).astype(np.uint8)


def compare(training, testing, classes=2):
    """Return the description of each shifted aspect."""
    labels = [np.arange(len(images)) % classes for images in (training, testing)]
    aspects = measure_shift(training, labels[0], testing, labels[1])
    return {aspect.name: aspect.sentence for aspect in aspects if aspect.shifted}


def test_another_sample_of_the_same_data_is_no_shift(digits, save):
    assert compare(save(digits[:600]), save(digits[600:700])) == {}


@pytest.mark.parametrize(("every", "share"), [(1, "all"), (2, "half"), (4, "25%")])
def test_inverted_images(digits, save, every, share):
    testing = digits[600:1000].copy()
    inverted = np.arange(400) // 4 % every == 0  # as many in each of four classes
    testing[inverted] = 255 - testing[inverted]
    shifted = compare(save(digits[:600]), save(testing), classes=4)
    assert shifted["background"] == (
        f"{share} of the test images are inverted: black on white, where training is white on black"
    )
    assert {"brightness", "intensities", "mean image"} <= set(shifted)
    back = compare(save(255 - digits[:600]), save(255 - testing), classes=4)
    assert back["background"] == (
        f"{share} of the test images are inverted: white on black, where training is black on white"
    )


def test_brightness(pictures, save):
    shifted = compare(save(pictures[:160]), save(pictures[160:].clip(0, 195) + np.uint8(60)))
    assert shifted["brightness"] == "the test images are brighter: 180 on average, 120 in training"
    assert not {"size", "format"} & shifted.keys()


def test_contrast(pictures, save):
    shifted = compare(save(pictures[:160]), save((pictures[160:] // 4 + 90).astype(np.uint8)))
    assert "lower in contrast" in shifted["contrast"]


def test_size(pictures, save):
    shifted = compare(save(pictures[:160]), save(pictures[160:].repeat(2, 1).repeat(2, 2)))
    assert shifted == {"size": "the test images are larger: the shorter side is about 80 pixels, 40 in training"}


def test_format(pictures, save):
    shifted = compare(save(pictures[:160]), save(pictures[160:], "bmp"))
    assert shifted == {"format": "all of the test images are BMP RGB, and none of training"}


def test_different_class_frequencies_are_no_shift(digits, save):
    bright, dark = 255 - digits[:300], digits[300:600]
    training = save(np.concatenate([bright[:40], dark[:240]]))
    testing = save(np.concatenate([bright[40:100], dark[240:300]]))
    labels = np.repeat([0, 1], [40, 240]), np.repeat([0, 1], [60, 60])
    assert not any(aspect.shifted for aspect in measure_shift(training, labels[0], testing, labels[1]))


def test_too_few_images_are_not_compared(pictures, save):
    images = save(pictures[:3])
    aspects = measure_shift(images[:1], np.array([0]), images[1:], np.array([0, 1]))
    assert aspects == []
    assert summarise_shift(aspects).startswith("not measured")


def test_results_do_not_depend_on_the_block_size(digits, save, monkeypatch):
    sets = save(digits[:60]), np.arange(60) % 3, save(digits[60:90]), np.arange(30) % 3
    expected = measure_shift(*sets)
    monkeypatch.setattr(shift, "_BLOCK", 7)
    for aspect, other in zip(measure_shift(*sets), expected, strict=True):
        assert aspect.distance == pytest.approx(other.distance, rel=1e-3, abs=1e-3)
        assert aspect.random_parts == pytest.approx(other.random_parts, rel=1e-3, abs=1e-3)
