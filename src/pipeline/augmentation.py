"""Random augmentation of whole batches on their device, with different random numbers for each image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from pipeline.recipes import Augmentation

_LUMA = (0.299, 0.587, 0.114)  # grey weights of red, green and blue (ITU-R BT.601)
_ERASED = (0.02, 0.2)  # minimum and maximum erased share of an image's area
_ELONGATION = 2.0  # maximum aspect ratio of an erased rectangle


def augment_batch(images: Tensor, how: Augmentation, image_size: int | None = None) -> Tensor:
    """Augment and resize a batch of images.

    One affine map per image crops, flips, zooms, rotates, shears, shifts and resizes; border pixels are repeated
    outside the image. Then colours change and a rectangle is erased. Random numbers come from torch's generator.

    Args:
        images: (B, C, H, W) uint8 or float, 0 to 255.
        how: the strengths.
        image_size: height and width of the result; by default those of the images.

    Returns:
        (B, C, image_size, image_size) float32, 0 to 255, bilinearly interpolated.
    """
    images = images.contiguous().float()  # making bytes contiguous is faster
    if not len(images):
        return images  # a process's share of a small batch; grid_sample would fail
    height, width = (image_size, image_size) if image_size else images.shape[2:]
    if (factor := images.shape[2] // height) > 1:
        images = avg_pool2d(images, factor)  # sampling alone would skip pixels
    points = _map_points(_draw_maps(len(images), how, images.device), height, width)
    images = grid_sample(images, points, padding_mode="border", align_corners=False)
    if how.colour:
        images = _change_colours(images, how.colour)
    return _erase(images, how.erase) if how.erase else images


def _uniform(count: int, most: float, device: torch.device) -> Tensor:
    """Return (count,) uniform random numbers from -most to most."""
    return torch.empty(count, device=device).uniform_(-1, 1) * most


def _draw_maps(count: int, how: Augmentation, device: torch.device) -> Tensor:
    """Return affine maps (count, 2, 3) from output to input coordinates, both from -1 to 1."""

    def uniform(most: float) -> Tensor:
        return _uniform(count, most, device)

    area = 1 - uniform(how.crop).abs()
    aspect = (area ** uniform(1)).clamp(3 / 4, 4 / 3)  # neither side exceeds the image's
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    zoom = (1 + how.zoom) ** uniform(1)
    angle, shear = uniform(how.degrees).deg2rad(), uniform(how.shear).deg2rad().tan()
    # Not `torch.where` with two numbers: it may copy them to the GPU and wait.
    direction = 1.0 - 2.0 * (torch.rand_like(area) < how.flip) if how.flip else 1.0
    maps = torch.stack(
        [
            torch.stack([direction * width * zoom * angle.cos(), width * zoom * (shear - angle.sin())], 1),
            torch.stack([direction * height * zoom * angle.sin(), height * zoom * angle.cos()], 1),
        ],
        1,
    )
    shift = torch.stack([uniform(1) * (1 - width), uniform(1) * (1 - height)], 1)
    shift += 2 * torch.stack([uniform(how.shift), uniform(how.shift)], 1)
    return torch.cat([maps, shift.unsqueeze(2)], 2)


def _map_points(maps: Tensor, height: int, width: int) -> Tensor:
    """Return the input coordinates (B, height, width, 2) of each output pixel, like affine_grid but faster."""

    def centres(pixels: int) -> Tensor:
        return (2 * torch.arange(pixels, device=maps.device) + 1) / pixels - 1

    x, y, shift = maps[:, None, None].unbind(-1)  # each (B, 1, 1, 2)
    return x * centres(width)[:, None] + (y * centres(height)[:, None, None] + shift)


def _change_colours(images: Tensor, most: float) -> Tensor:
    """Change brightness, contrast and, for RGB images, saturation, each by a factor from 1 - most to 1 + most.

    All changes are combined into one affine map of colours per image, which is faster than one after the other.
    """

    def factor() -> Tensor:
        return 1 + _uniform(len(images), most, images.device).view(-1, 1, 1)

    brightness, contrast = factor(), factor()
    colours = torch.eye(images.shape[1], device=images.device)  # (C, C)
    if images.shape[1] == 3:
        # Filled on the device: copying numbers to a GPU would wait for its pending work.
        luma = torch.stack([torch.full((), weight, device=images.device) for weight in _LUMA])
        colours = torch.lerp(luma.expand(3, 3), colours, factor())  # (B, 3, 3)
    middle = brightness * images.mean((1, 2, 3)).view(-1, 1, 1)
    changed = torch.baddbmm((1 - contrast) * middle, brightness * contrast * colours, images.flatten(2))
    return changed.view_as(images).clamp_(0, 255)


def _erase(images: Tensor, share: float) -> Tensor:
    """Fill a random rectangle with the image's mean colour, in a random share of the images."""
    count, _, height, width = images.shape
    area = torch.empty(count, device=images.device).uniform_(*_ERASED)
    aspect = _ELONGATION ** _uniform(count, 1, images.device)
    rows = _draw_intervals((area / aspect).sqrt(), height).view(count, 1, height, 1)
    columns = _draw_intervals((area * aspect).sqrt(), width).view(count, 1, 1, width)
    chosen = (torch.rand(count, device=images.device) < share).view(-1, 1, 1, 1)
    return torch.where(rows & columns & chosen, images.mean((2, 3), keepdim=True), images)


def _draw_intervals(lengths: Tensor, pixels: int) -> Tensor:
    """Return masks (B, pixels) bool of randomly placed intervals; lengths (B,) are fractions of the side."""
    start = (torch.rand_like(lengths) * (1 - lengths)).unsqueeze(1)
    centres = (torch.arange(pixels, device=lengths.device) + 0.5) / pixels
    return (centres >= start) & (centres < start + lengths.unsqueeze(1))
