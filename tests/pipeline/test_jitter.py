"""Images vary as far as a recipe says, and no further."""

import math

import pytest
import torch

from pipeline.jitter import vary
from pipeline.recipes import RECIPES, Jitter


@pytest.fixture
def images():
    """Bright squares of 8 pixels in the middle of (500, 1, 28, 28)."""
    images = torch.zeros(500, 1, 28, 28)
    images[..., 10:18, 10:18] = 255
    return images


def moments(images):
    """Of each image, the mean and the standard deviation of the bright pixels' places, down and across."""
    weights = images.flatten(1) / images.flatten(1).sum(1, keepdim=True)
    places = torch.stack(torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")).flatten(1)
    means = weights @ places.T
    return means, (weights @ places.square().T - means.square()).sqrt()


def test_no_images_stay_none(images):
    assert vary(images[:0], RECIPES["adam-crop"].jitter).shape == (0, 1, 28, 28)


def test_no_jitter_changes_nothing(images):
    torch.testing.assert_close(vary(images, Jitter()), images)


def test_a_crop_enlarges_to_an_area_and_keeps_to_the_image(images):
    frames = torch.zeros(500, 1, 28, 28)
    frames[..., 0, :] = frames[..., -1, :] = 255
    _, before = moments(images)
    means, spreads = moments(vary(images, Jitter(crop=0.15)))
    growth = (spreads / before).prod(1)
    assert 1 <= growth.min() + 0.05 < 1.1
    assert 1.1 < growth.max() < 1 / 0.85 + 0.08
    assert (spreads / before).min() > 0.97, "no side may shrink"
    assert means.std() > 0.1, "crops were to lie in different places"
    assert vary(frames, Jitter(crop=0.15)).max() <= 255


def test_shift_zoom_and_rotation_have_their_bounds(images):
    means, _ = moments(vary(images, Jitter(shift=0.1)))
    assert 2 < (means - 13.5).abs().max() <= 2.8 + 0.1
    _, spreads = moments(vary(images, Jitter(zoom=0.2)))
    _, before = moments(images)
    assert (spreads / before).max() == pytest.approx(1.2, abs=0.03)
    assert (spreads / before).min() == pytest.approx(1 / 1.2, abs=0.03)
    bars = torch.zeros(500, 1, 28, 28)
    bars[..., 13:15, 4:24] = 255
    turned = vary(bars, Jitter(degrees=10))
    turned[..., :18] = 0  # the bars' right ends, 7 pixels from the middle on the mean
    ends, _ = moments(turned)
    assert 0.9 < (ends[:, 0] - 13.5).abs().max() <= 7 * math.tan(math.radians(10)) + 0.2


@pytest.mark.parametrize("background", [0.0, 255.0])
def test_the_background_stays_what_it_is(background):
    images = torch.full((50, 1, 28, 28), background)
    images[..., 12:16, 12:16] = 255 - background
    varied = vary(images, RECIPES["one-cycle"].jitter)
    torch.testing.assert_close(varied[..., :3, :], images[..., :3, :])


def test_depends_on_torchs_seed(images):
    drawn = [(torch.manual_seed(seed), vary(images, Jitter(crop=0.15)))[1] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
