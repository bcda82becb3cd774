"""Changes a batch of images at random, each by its own affine map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from pipeline.recipes import Jitter


def vary(images: Tensor, jitter: Jitter) -> Tensor:
    """Crops, zooms, rotates, shears and shifts; what comes into view continues the image's border.

    A crop is torchvision's RandomResizedCrop, except that each area is as likely as any other.

    Args:
        images: (B, C, H, W) float.
        jitter: how far.

    Returns:
        New images of the same shape, bilinearly interpolated.
    """
    if not len(images):
        return images  # a process's share of a small batch, which affine_grid would refuse

    def uniform(most: float) -> Tensor:
        return torch.empty(len(images), device=images.device).uniform_(-1, 1) * most

    area = 1 - uniform(jitter.crop).abs()
    aspect = area ** uniform(1)  # neither side may be longer than the image's
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    zoom = (1 + jitter.zoom) ** uniform(1)
    angle, shear = uniform(jitter.degrees).deg2rad(), uniform(jitter.shear).deg2rad().tan()
    # Where a point of the new image lies in the old one, both from -1 to 1.
    maps = torch.stack(
        [
            torch.stack([width * zoom * angle.cos(), width * zoom * (shear - angle.sin())], 1),
            torch.stack([height * zoom * angle.sin(), height * zoom * angle.cos()], 1),
        ],
        1,
    )
    shift = torch.stack([uniform(1) * (1 - width), uniform(1) * (1 - height)], 1)
    shift += 2 * torch.stack([uniform(jitter.shift), uniform(jitter.shift)], 1)
    grid = affine_grid(torch.cat([maps, shift.unsqueeze(2)], 2), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
