"""Test data of another kind is noticed and told in a sentence; another draw of the same kind is not."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dataset import shift
from dataset.examining import examine
from dataset.shift import in_short, measure_shift


def save(images, directory, suffix="png"):
    """Examines images (H, W) or (H, W, 3) uint8 as files."""
    directory.mkdir()
    paths = [directory / f"{number}.{suffix}" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    examined, unreadable = examine(paths)
    assert not unreadable
    return examined


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, white on black, (N, 16, 16) uint8."""
    images = (load_digits().images * 15.9).astype(np.uint8)
    return images.repeat(2, 1).repeat(2, 2)


def compare(training, testing, classes=2):
    """The sentences on what is shifted, by aspect."""
    labels = [np.arange(len(images)) % classes for images in (training, testing)]
    aspects = measure_shift(training, labels[0], testing, labels[1])
    return {aspect.name: aspect.sentence for aspect in aspects if aspect.shifted}


def test_another_draw_of_the_same_is_no_shift(digits, tmp_path):
    assert compare(save(digits[:600], tmp_path / "a"), save(digits[600:700], tmp_path / "b")) == {}


@pytest.mark.parametrize(("every", "share"), [(1, "all"), (2, "half"), (4, "25%")])
def test_inverted(digits, tmp_path, every, share):
    """Every so-manieth test image is inverted; four classes, so that each has as many."""
    testing = digits[600:1000].copy()
    inverted = np.arange(400) // 4 % every == 0
    testing[inverted] = 255 - testing[inverted]
    shifted = compare(save(digits[:600], tmp_path / "a"), save(testing, tmp_path / "b"), classes=4)
    assert shifted["background"] == (
        f"{share} of the test images are inverted: black on white, where training is white on black"
    )
    assert {"brightness", "intensities", "mean image"} <= set(shifted)
    back = compare(save(255 - digits[:600], tmp_path / "c"), save(255 - testing, tmp_path / "d"), classes=4)
    assert back["background"] == (
        f"{share} of the test images are inverted: white on black, where training is black on white"
    )


@pytest.fixture(scope="module")
def pictures():
    """Colourful noise, (N, 40, 48, 3) uint8, of grey values around the middle."""
    return np.random.default_rng(0).normal(120, 25, (240, 40, 48, 3)).clip(0, 255).astype(np.uint8)


def test_brightness(pictures, tmp_path):
    shifted = compare(
        save(pictures[:160], tmp_path / "a"), save(pictures[160:].clip(0, 195) + np.uint8(60), tmp_path / "b")
    )
    assert shifted["brightness"] == "the test images are brighter: 180 on average, where training has 120"
    assert "size" not in shifted
    assert "format" not in shifted


def test_contrast(pictures, tmp_path):
    flat = (pictures[160:] // 4 + 90).astype(np.uint8)
    assert "poorer in contrast" in compare(save(pictures[:160], tmp_path / "a"), save(flat, tmp_path / "b"))["contrast"]


def test_size(pictures, tmp_path):
    shifted = compare(
        save(pictures[:160], tmp_path / "a"), save(pictures[160:].repeat(2, 1).repeat(2, 2), tmp_path / "b")
    )
    assert shifted == {"size": "the test images are larger: the shorter side is about 80 pixels, where training has 40"}


def test_format(pictures, tmp_path):
    shifted = compare(save(pictures[:160], tmp_path / "a"), save(pictures[160:], tmp_path / "b", "bmp"))
    assert shifted == {"format": "all of the test images are BMP RGB, and none of training"}


def test_a_different_mixture_of_classes_is_no_shift(digits, tmp_path):
    """Each class counts as much as another: that the test set has more bright ones of them is no news."""
    bright, dark = 255 - digits[:300], digits[300:600]
    training = save(np.concatenate([bright[:40], dark[:240]]), tmp_path / "a")
    testing = save(np.concatenate([bright[40:100], dark[240:300]]), tmp_path / "b")
    labels = np.repeat([0, 1], [40, 240]), np.repeat([0, 1], [60, 60])
    assert not any(aspect.shifted for aspect in measure_shift(training, labels[0], testing, labels[1]))


def test_nothing_to_compare(pictures, tmp_path):
    images = save(pictures[:3], tmp_path / "a")
    aspects = measure_shift(images[:1], np.array([0]), images[1:], np.array([0, 1]))
    assert aspects == []
    assert in_short(aspects).startswith("not measured")


def test_many_images_are_averaged_some_at_a_time(digits, tmp_path, monkeypatch):
    sets = save(digits[:60], tmp_path / "a"), np.arange(60) % 3, save(digits[60:90], tmp_path / "b"), np.arange(30) % 3
    together = measure_shift(*sets)
    monkeypatch.setattr(shift, "_BLOCK", 7)
    for aspect, other in zip(measure_shift(*sets), together, strict=True):
        assert aspect.distance == pytest.approx(other.distance, rel=1e-3, abs=1e-3)
        assert aspect.random_parts == pytest.approx(other.random_parts, rel=1e-3, abs=1e-3)
