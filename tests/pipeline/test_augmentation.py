"""Augmented images vary within the bounds of their settings."""

import math

import pytest
import torch

from pipeline.augmentation import augment_batch
from pipeline.recipes import RECIPES, Augmentation


@pytest.fixture
def images():
    """Images (500, 1, 28, 28) with a bright square of 8 pixels in the middle."""
    images = torch.zeros(500, 1, 28, 28)
    images[..., 10:18, 10:18] = 255
    return images


def moments(images):
    """Returns the mean and standard deviation of the bright pixels' coordinates (y, x) in each image."""
    weights = images.flatten(1) / images.flatten(1).sum(1, keepdim=True)
    coordinates = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")).flatten(1)
    means = weights @ coordinates.T
    return means, (weights @ coordinates.square().T - means.square()).sqrt()


def test_an_empty_batch(images):
    assert augment_batch(images[:0], RECIPES["adam-crop"].augmentation).shape == (0, 1, 28, 28)


def test_zero_strength_changes_nothing(images):
    torch.testing.assert_close(augment_batch(images, Augmentation()), images)


def test_crops_stay_within_the_image_and_their_area(images):
    frames = torch.zeros(500, 1, 28, 28)
    frames[..., 0, :] = frames[..., -1, :] = 255
    _, before = moments(images)
    means, spreads = moments(augment_batch(images, Augmentation(crop=0.15)))
    growth = (spreads / before).prod(1)
    assert 1 <= growth.min() + 0.05 < 1.1
    assert 1.1 < growth.max() < 1 / 0.85 + 0.08
    assert (spreads / before).min() > 0.97, "no side may shrink"
    assert means.std() > 0.1, "crops must lie in different places"
    assert augment_batch(frames, Augmentation(crop=0.15)).max() <= 255


def test_bounds_of_shift_zoom_and_rotation(images):
    means, _ = moments(augment_batch(images, Augmentation(shift=0.1)))
    assert 2 < (means - 13.5).abs().max() <= 2.8 + 0.1
    _, spreads = moments(augment_batch(images, Augmentation(zoom=0.2)))
    _, before = moments(images)
    assert (spreads / before).max() == pytest.approx(1.2, abs=0.03)
    assert (spreads / before).min() == pytest.approx(1 / 1.2, abs=0.03)
    bars = torch.zeros(500, 1, 28, 28)
    bars[..., 13:15, 4:24] = 255
    turned = augment_batch(bars, Augmentation(degrees=10))
    turned[..., :18] = 0  # keep the right ends, on average 7 pixels from the middle
    ends, _ = moments(turned)
    assert 0.9 < (ends[:, 0] - 13.5).abs().max() <= 7 * math.tan(math.radians(10)) + 0.2


@pytest.mark.parametrize("background", [0.0, 255.0])
def test_border_pixels_are_repeated(background):
    images = torch.full((50, 1, 28, 28), background)
    images[..., 12:16, 12:16] = 255 - background
    varied = augment_batch(images, RECIPES["one-cycle"].augmentation)
    torch.testing.assert_close(varied[..., :3, :], images[..., :3, :])


def test_half_of_the_images_are_flipped_horizontally():
    images = torch.zeros(2000, 3, 8, 8, dtype=torch.uint8)
    images[..., 2, 1] = 200
    changed = augment_batch(images, Augmentation(flip=0.5))
    assert changed.dtype == torch.float32
    flipped = changed[:, 0, 2, 6] > 199
    assert torch.equal(flipped, changed[:, 0, 2, 1] < 1)
    assert 0.45 < flipped.float().mean() < 0.55


def test_bounds_of_colour_changes():
    images = torch.full((400, 3, 4, 4), 100, dtype=torch.uint8)
    changed = augment_batch(images, Augmentation(colour=0.2))[:, 0, 0, 0]
    assert 80 <= changed.min() < 84
    assert 116 < changed.max() <= 120.01
    red = images.clone()
    red[:, 0] = 200
    differences = augment_batch(red, Augmentation(colour=0.2))
    differences = (differences[:, 0] - differences[:, 1]).mean((1, 2))
    assert differences.min() < 75
    assert differences.max() > 125
    assert augment_batch(images * 2, Augmentation(colour=0.9)).max() <= 255


def test_no_tensor_is_made_from_a_list(tensors_from_lists):
    everything = Augmentation(0.5, 0.5, 0.2, 0.5, 0.1, 10, 10, 0.1)
    with tensors_from_lists as made:
        augment_batch(torch.rand(4, 3, 16, 16) * 255, everything, 8)
        assert made == []
        torch.tensor([1.0])
        assert len(made) == 1, "the fixture must notice it"


def test_erased_rectangles_have_the_mean_colour():
    images = torch.zeros(1000, 3, 32, 32)
    images[..., ::2] = 100
    changed = augment_batch(images, Augmentation(erase=0.25))
    touched = (changed != images).flatten(1).any(1)
    assert 0.2 < touched.float().mean() < 0.3
    area = (changed[touched] == 50).float().mean((1, 2, 3))
    assert area.min() > 0.01
    assert area.max() < 0.23
    assert ((changed == images) | (changed == 50)).all()


@pytest.mark.parametrize("side", [96, 160, 224])
def test_resizing_is_antialiased(side):
    ramp = torch.linspace(0, 255, 224).expand(2, 3, 224, 224)
    changed = augment_batch(ramp, Augmentation(), side)
    assert changed.shape == (2, 3, side, side)
    expected = torch.nn.functional.interpolate(ramp, (side, side), mode="bilinear", antialias=True)
    assert (changed - expected).abs().max() < 1.5


def test_augmentation_depends_on_the_seed_of_torch(images):
    drawn = [(torch.manual_seed(seed), augment_batch(images, Augmentation(crop=0.15)))[1] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
