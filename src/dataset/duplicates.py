"""Finds files of the same bytes, and near-duplicates: copies of a photograph, recompressed, resized or cropped."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SIDE = 48
COARSE_SIDE = 8
BLACK = 16  # grey values up to this are padding where a whole row or column has no other
LEAST_CONTRAST = 4  # grey levels of standard deviation; an image of less is noise on one colour
SMALL = 28 * 28  # pixels; two images of so few are not aligned, or all symbols of a kind would come to fit

# Measured on photographs and copies of them by benchmarks/near_duplicates.py.
COARSELY_ALIKE = 0.65
ALIKE = 0.82
COARSELY_ALIKE_SMALL = 0.95  # where both images are small
ALIKE_SMALL = 0.94

_LARGEST_ASPECT_RATIO = 1.35
_LARGEST_DISTORTION = np.array([[0.25, 0.1], [0.1, 0.25]])
_LEAST_OVERLAP = 0.65
_BLOCK = 512  # rows of the matrix of all pairs that are held at a time


@dataclass(frozen=True)
class Fingerprint:
    """What near-duplicates are found by.

    Attributes:
        thumbnail: (48, 48) uint8, grey, without black padding, its aspect not kept.
        size: width and height of the image without the padding, in pixels.
    """

    thumbnail: np.ndarray
    size: tuple[int, int]


def fingerprint(image: Image.Image) -> Fingerprint:
    """Takes the fingerprint of an upright RGB or grey image, of 2.3 KB."""
    grey = image.convert("L")
    if grey.width * grey.height > SMALL:  # a symbol's own background is not padding
        grey = _without_padding(grey)
    thumbnail = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    return Fingerprint(np.asarray(thumbnail), grey.size)


def find_near_duplicates(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Finds all pairs of images that show the same photograph.

    Copies are found that were recompressed, resized, made brighter, darker or grey, padded with black, or cut by up to
    a tenth of their width and height; so are two cuts of one photograph that share nearly all they show. Mirrored and
    turned copies are not found, nor are copies of images that are nearly of one colour. Two images of at most 28 x 28
    pixels have to agree much better and are not aligned, since symbols drawn twice look like copies that were cut.
    Being near-duplicates is not transitive.

    All pairs are compared by the correlation of 8 x 8 thumbnails, and those that correlate by `similarity`. The work
    grows with the square of the number of images, the memory with their number.

    Returns:
        Pairs of places (i, j), i < j, in order; which pairs these are does not depend on the order of the images.
    """
    candidates = tqdm(_find_candidates(fingerprints), "comparing", unit="pair", disable=None)
    return [pair for pair in candidates if _are_alike(*(fingerprints[place] for place in pair))]


def similarity(one: Fingerprint, other: Fingerprint) -> float:
    """How much alike two images are, up to 1: the structural similarity of their thumbnails, as they are or aligned.

    Both are first brought to the lower resolution of the two. The alignment is the affine one that maximises the
    enhanced correlation coefficient (Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation
    coefficient maximization", PAMI 2008); one that would move or stretch an image far does not count.
    """
    one, other = sorted((one, other), key=lambda fingerprint: (fingerprint.size, fingerprint.thumbnail.tobytes()))
    first, second = _blur_like(one.thumbnail, other.size), _blur_like(other.thumbnail, one.size)
    in_place = _structural_similarity(first, second, np.full((SIDE, SIDE), True))
    if in_place >= ALIKE or (_is_small(one) and _is_small(other)):
        return in_place
    return max(in_place, _aligned_similarity(first, second))


def find_exact_duplicates(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Finds all pairs of files of the same bytes; only files of the same size are read.

    Returns:
        Pairs of places (i, j), i < j, in order.
    """
    same_size = _group(range(len(paths)), lambda place: paths[place].stat().st_size)
    same_bytes = [same for group in same_size for same in _group(group, lambda place: _digest(paths[place]))]
    return sorted(pair for group in same_bytes for pair in itertools.combinations(group, 2))


def _group(places: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The places that share a key, two or more, in order."""
    groups = defaultdict(list)
    for place in places:
        groups[key(place)].append(place)
    return [group for group in groups.values() if len(group) > 1]


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _without_padding(grey: Image.Image) -> Image.Image:
    """Cuts off black rows and columns at the edges."""
    return grey.crop(grey.point(lambda value: 255 * (value > BLACK)).getbbox())


def _find_candidates(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Gives the pairs of places (i, j), i < j, in order, of images alike enough to be looked at closely."""
    clear = np.array([i for i, f in enumerate(fingerprints) if f.thumbnail.std() >= LEAST_CONTRAST], dtype=np.int64)
    coarse = _shrink([fingerprints[place].thumbnail for place in clear])
    aspects = np.array([fingerprints[place].size[0] / fingerprints[place].size[1] for place in clear])
    small = np.array([_is_small(fingerprints[place]) for place in clear])
    for start in range(0, len(clear), _BLOCK):
        correlations = np.triu(coarse[start : start + _BLOCK] @ coarse[start:].T, 1)
        first, second = np.nonzero(correlations >= COARSELY_ALIKE)
        correlations = correlations[first, second]
        first, second = first + start, second + start
        least = np.where(small[first] & small[second], COARSELY_ALIKE_SMALL, COARSELY_ALIKE)
        ratios = aspects[first] / aspects[second]
        near = (correlations >= least) & (np.maximum(ratios, 1 / ratios) <= _LARGEST_ASPECT_RATIO)
        yield from zip(clear[first[near]].tolist(), clear[second[near]].tolist(), strict=True)


def _shrink(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """N thumbnails as vectors (N, 64) float32 of mean 0 and length 1."""
    cells = np.array(thumbnails).reshape(-1, COARSE_SIDE, SIDE // COARSE_SIDE, COARSE_SIDE, SIDE // COARSE_SIDE)
    coarse = cells.mean((2, 4), dtype=np.float32).reshape(-1, COARSE_SIDE**2)
    coarse -= coarse.mean(1, keepdims=True)
    return coarse / np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1)


def _is_small(fingerprint: Fingerprint) -> bool:
    return fingerprint.size[0] * fingerprint.size[1] <= SMALL


def _are_alike(one: Fingerprint, other: Fingerprint) -> bool:
    least = ALIKE_SMALL if _is_small(one) and _is_small(other) else ALIKE
    return similarity(one, other) >= least


def _blur_like(thumbnail: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Takes from a thumbnail the detail that one of an image of this size lacks."""
    import cv2

    width, height = (min(side, SIDE) for side in size)
    if width == height == SIDE:
        return thumbnail
    shrunk = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _aligned_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """The structural similarity where two thumbnails overlap once aligned; -1 where they cannot be."""
    import cv2

    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 1e-3)
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        cv2.findTransformECC(one, other, warp, cv2.MOTION_AFFINE, criteria, None, 7)
    except cv2.error:  # it does not converge
        return -1.0
    if (np.abs(warp[:, :2] - np.eye(2)) > _LARGEST_DISTORTION).any():
        return -1.0

    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    overlap = cv2.warpAffine(np.ones(other.shape, np.float32), warp, other.shape, flags=flags) > 0.99
    if overlap.mean() < _LEAST_OVERLAP:
        return -1.0
    aligned = cv2.warpAffine(other, warp, other.shape, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return _structural_similarity(one, aligned, overlap)


def _structural_similarity(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """How well two thumbnails agree in each neighbourhood, whatever their brightness and contrast, up to 1.

    This is the contrast and structure term of the structural similarity index (Wang et al., "Image quality assessment:
    from error visibility to structural similarity", TIP 2004), of images of mean 0 and deviation 1, averaged over
    `where`, bool (48, 48).
    """
    import cv2

    def smooth(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), 1.5)

    one, other = _standardise(one, where), _standardise(other, where)
    mean, other_mean = smooth(one), smooth(other)
    variances = smooth(one * one + other * other) - mean * mean - other_mean * other_mean
    covariance = smooth(one * other) - mean * other_mean
    return float(((2 * covariance + 0.05) / (variances + 0.05))[where].mean())


def _standardise(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    values = image[where]
    return ((image - values.mean()) / max(values.std(), 1)).astype(np.float32)
