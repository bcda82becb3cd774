"""Finding copies of photographs: the perceptual hashes of ImageHash and this project's `dataset.duplicates`.

Copies of random photographs are made in memory. For each method, this measures the seconds for all decoded photographs,
the number of pairs that it reports as near-duplicates, without those of identical pixels, and the share that it finds
of each kind of copies. Needs ImageHash (`pip install ImageHash`).
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance
from tqdm import tqdm

from measuring import add_number, median, parse_with_photographs, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.duplicates import find_near_duplicates, fingerprint
from dataset.examining import examine_image
from dataset.reading import read_image, resize_or_pad_image, upright_rgb

SAMPLE = 200
TURNS = 3

Copier = Callable[[Image.Image, np.random.Generator], Image.Image]


class Method(NamedTuple):
    """A method to find near-duplicates: the features of an image, and the pairs (i, j) that it finds with them."""

    describe: Callable[[Image.Image], Any]
    find_pairs: Callable[[Sequence[Any]], list[tuple[int, int]]]


def recompress(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resize(image: Image.Image, scale: float) -> Image.Image:
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def crop(image: Image.Image, part: float, generator: np.random.Generator) -> Image.Image:
    """Crop a share of the width and height, at least one pixel, divided at random between opposite sides."""
    width, height = (max(1, side - max(1, round(side * part))) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def brighten(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


KINDS: dict[str, Copier] = {
    "same pixels": lambda image, _: image.copy(),
    "quality 75": lambda image, _: recompress(image, 75),
    "quality 50": lambda image, _: recompress(image, 50),
    "quality 30": lambda image, _: recompress(image, 30),
    "150 %": lambda image, _: resize(image, 1.5),
    "50 %": lambda image, _: resize(image, 0.5),
    "25 %": lambda image, _: resize(image, 0.25),
    "cut by 2 %": lambda image, generator: crop(image, 0.02, generator),
    "cut by 5 %": lambda image, generator: crop(image, 0.05, generator),
    "cut by 10 %": lambda image, generator: crop(image, 0.10, generator),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "brighter": lambda image, _: brighten(image, 1.15),
    "darker": lambda image, _: brighten(image, 0.85),
    "padded": lambda image, _: resize_or_pad_image(image),
    "5 %, 60 %, 60": lambda image, generator: recompress(resize(crop(image, 0.05, generator), 0.6), 60),
}


def list_methods() -> dict[str, Method]:
    import imagehash

    def hashing(function: Callable[..., imagehash.ImageHash], size: int, radius: int) -> Method:
        return Method(lambda image: function(image, size).hash.ravel(), partial(find_within, radius=radius))

    return {
        "average_hash 8, distance 2": hashing(imagehash.average_hash, 8, 2),
        "dhash 8, distance 6": hashing(imagehash.dhash, 8, 6),
        "phash 8, distance 10": hashing(imagehash.phash, 8, 10),
        "phash 16, distance 64": hashing(imagehash.phash, 16, 64),
        "dataset.duplicates": Method(fingerprint, find_near_duplicates),
    }


def find_within(bits: Sequence[np.ndarray], radius: int) -> list[tuple[int, int]]:
    """Return the pairs of N hashes that differ in at most `radius` bits."""
    signs = np.array(bits) * np.float32(2) - 1
    distances = (signs.shape[1] - signs @ signs.T) / 2
    first, second = np.nonzero(np.triu(distances <= radius, 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def make_copies(images: Sequence[Image.Image], seed: int) -> dict[str, dict[int, Image.Image]]:
    """Return copies of random images for each kind, by the index of the image."""
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE].tolist()
    return {
        kind: {index: copier(images[index], np.random.default_rng([seed, index])) for index in chosen}
        for kind, copier in KINDS.items()
    }


def find_pairs(method: Method, images: Sequence[Image.Image]) -> tuple[float, list[tuple[int, int]]]:
    """Return the seconds, and the pairs."""
    begin = time.perf_counter()
    pairs = method.find_pairs([method.describe(image) for image in images])
    return time.perf_counter() - begin, pairs


def share_found(method: Method, images: Sequence[Image.Image], copies: dict[int, Image.Image]) -> float:
    """Return the share of copies that a method finds; the copies are by the index of their image."""
    found = [
        bool(method.find_pairs([method.describe(images[index]), method.describe(copy)]))
        for index, copy in copies.items()
    ]
    return float(np.mean(found))


def main() -> int:
    parser = ArgumentParser(description="Compares methods to find near-duplicate photographs.")
    add_number(parser, "--seed", 0, "random seed of the copies")
    arguments = parse_with_photographs(parser)
    paths = sorted(arguments.data.glob("*/*/*.jpg"))
    images = [upright_rgb(read_image(path)) for path in tqdm(paths, "reading", disable=None)]
    copies = make_copies(images, arguments.seed)
    pixels = [examine_image(path, image).pixels for path, image in zip(paths, images, strict=True)]
    identical = {(i, j) for i, j in itertools.combinations(range(len(paths)), 2) if pixels[i] == pixels[j]}
    results: dict[str, Any] = {"photographs": len(paths), "of identical pixels": len(identical), "methods": {}}
    methods = list_methods()
    measured = [{name: find_pairs(method, images) for name, method in methods.items()} for _ in range(TURNS)]
    for name, method in methods.items():
        results["methods"][name] = {
            "seconds": median(turn[name][0] for turn in measured),
            "further pairs": len(set(measured[0][name][1]) - identical),
            "found": {kind: share_found(method, images, made) for kind, made in copies.items()},
        }
    write_results("near_duplicates", results)
    return 0


if __name__ == "__main__":
    run_program(main)
