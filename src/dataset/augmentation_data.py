"""Images as the models take them: upright, RGB, square."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def resize_or_pad_image(image: Image.Image, size: int = 224) -> Image.Image:
    """Fits an image of any size and mode into a square: its aspect kept, centred, padded with black.

    EXIF orientation is honoured, transparency is laid on white, and 16-bit grey values are scaled to 8 bits.

    Args:
        image: as Pillow opened it.
        size: side of the square in pixels.

    Returns:
        An RGB image of (size, size).
    """
    image = _to_rgb(ImageOps.exif_transpose(image))
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (size, size))
    padded.paste(image, ((size - width) // 2, (size - height) // 2))
    return padded


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would cut 16-bit values off at 255
        grey = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
