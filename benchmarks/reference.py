"""What a competent person would write straight down from the specification: the other side of the benchmarks.

One process, one image after the other, float32 tensors throughout.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor
from torchvision import transforms

TRANSFORMS = [
    transforms.RandomRotation(40),
    transforms.RandomAffine(degrees=0, translate=(0.2, 0.2)),
    transforms.RandomHorizontalFlip(0.8),
    transforms.RandomVerticalFlip(0.8),
    transforms.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
    transforms.GaussianBlur(3),
]


def load_padded(path: Path, size: int = 224) -> Tensor:
    """One image as (3, size, size) float32 from 0 to 1, its aspect kept, padded with black."""
    image = Image.open(path).convert("RGB")
    scale = size / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    padded = Image.new("RGB", (size, size))
    padded.paste(image.resize((width, height), Image.Resampling.BILINEAR), ((size - width) // 2, (size - height) // 2))
    return transforms.functional.to_tensor(padded)


def augment_dataset(dataset_dir: Path, output_dir: Path) -> None:
    """Brings every class up to the largest: writes what is missing as `<output_dir>/<class>_augmented/<number>.jpg`."""
    paths = {folder.name: sorted(folder.iterdir()) for folder in sorted(dataset_dir.iterdir())}
    largest = max(map(len, paths.values()))
    for name, files in paths.items():
        folder = output_dir / f"{name}_augmented"
        folder.mkdir(parents=True)
        for number in range(largest - len(files)):
            image = load_padded(random.choice(files))
            for transform in random.sample(TRANSFORMS, random.randint(1, len(TRANSFORMS))):
                image = transform(image)
            plt.imsave(folder / f"{number:04d}.jpg", image.permute(1, 2, 0).clamp(0, 1).numpy())


def load_dataset(dataset_dir: Path) -> Tensor:
    """All images, padded, as one tensor (N, 3, 224, 224)."""
    return torch.stack([load_padded(path) for path in sorted(dataset_dir.glob("*/*"))])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
