"""Find near-duplicates: recompressed, resized or cropped copies of a photograph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.pair_cache import compare_unknown
from dataset.parallel import on_all_cores

SIDE = 48
COARSE_SIDE = 8
_BLACK = 16  # rows and columns at the edges without a higher grey value are padding
LEAST_CONTRAST = 4  # standard deviation in grey levels; an image below it is noise on a uniform colour
SMALL = 28 * 28  # pixels; two images this small are not aligned, since aligned symbols of one kind look like copies

# Thresholds of correlation and similarity, chosen by benchmarks/near_duplicates.py on photographs and their copies.
COARSELY_ALIKE = 0.5
ALIKE = 0.82
COARSELY_ALIKE_SMALL = 0.95  # if both images are small
ALIKE_SMALL = 0.94
ALIKE_CROPPED = 0.75  # coarse correlation with the best of nine crops, from which two images are compared closely

MOST_COMPARED = 10  # close comparisons per image
_MOST_RANKED = 256  # coarsely similar images from which these are chosen
_CROPPED = 0.1  # share of width and height that a crop lacks
_DENSE_SIDE = 16  # of the thumbnails by which copies in dense classes are found
_ALIKE_RESIDUALS = 0.8  # least correlation of the residuals of such copies
_CLOSER = 4  # how many times closer than usual in its class such a copy is
_REFERENCES = 1000  # images of a class that each of its images is compared with
_LEAST_RESIDUAL = 0.002  # relative to the contrast; below it, a residual is rounding error

_EXACT = 10_000  # images up to which all pairs are compared coarsely
_PROBED = 2  # cells of the index that are searched for an image, and for each of its crops
_LARGEST_CELL = 8  # times the usual number of images; only a part of a larger cell is compared
_ITERATIONS = 6  # of k-means
_LARGEST_ASPECT_RATIO = 1.35
_LARGEST_DISTORTION = np.array([[0.25, 0.1], [0.1, 0.25]])
_LEAST_OVERLAP = 0.65
_BLOCK = 512  # rows of the matrix of pairs in memory at a time

_Near = tuple[int, np.ndarray, np.ndarray]  # an index, the others that correlate with it, and their correlations
_Choice = Callable[[int, np.ndarray, np.ndarray], np.ndarray]  # which of these others to keep
_Crops = Callable[[Sequence[int]], np.ndarray]  # the vectors (M, D) of the crops of some images, as many for each


@dataclass(frozen=True)
class Fingerprint:
    """The properties of an image by which near-duplicates are found."""

    thumbnail: np.ndarray  # (48, 48) uint8, grey, without black padding, stretched to a square
    size: tuple[int, int]  # width and height without the padding, in pixels

    @property
    def is_small(self) -> bool:
        return self.size[0] * self.size[1] <= SMALL

    def digest(self, size: int) -> bytes:
        """Compute a digest of `size` bytes."""
        return hashlib.blake2b(self.thumbnail.tobytes() + repr(self.size).encode(), digest_size=size).digest()


def fingerprint(image: Image.Image) -> Fingerprint:
    """Compute the fingerprint (2.3 KB) of an upright RGB or grey image."""
    grey = image.convert("L")
    if grey.width * grey.height > SMALL:  # the background of a symbol is not padding
        grey = grey.crop(grey.point(lambda value: 255 * (value > _BLACK)).getbbox())
    thumbnail = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2)
    return Fingerprint(np.asarray(thumbnail), grey.size)


def sort_by_content(fingerprints: Sequence[Fingerprint], indices: Iterable[int]) -> np.ndarray:
    """Sort indices by a digest of their fingerprints: a random order that does not depend on the given one."""
    return np.array(sorted(indices, key=lambda index: fingerprints[index].digest(16)), dtype=np.int64)


def find_near_duplicates(fingerprints: Sequence[Fingerprint], store: Path | None = None) -> list[tuple[int, int]]:
    """Find all pairs of images that show the same photograph.

    This finds copies that were recompressed, resized, converted to grey, changed in brightness, padded with black, or
    cropped by up to a tenth of their width and height, and two crops of one photograph that share most of their
    content. It does not find mirrored or rotated copies, nor copies of nearly uniform images. Two images of at most
    28 x 28 pixels must agree more closely and are not aligned: symbols drawn twice look like cropped copies. Being
    near-duplicates is not transitive.

    Thumbnails of 8 x 8 pixels are compared first: all pairs up to 10,000 images, and beyond that only images in nearby
    cells of an index. Each image is then compared by `similarity` with the 10 most similar ones. For N images, time
    grows with N ** 1.5 and memory with N.

    Args:
        fingerprints: of N images.
        store: folder that keeps the results of close comparisons for later runs.

    Returns:
        Sorted pairs of indices (i, j), i < j. The result does not depend on the order of the images.
    """
    candidates = find_candidates(fingerprints)
    alike = compare_closely(fingerprints, candidates, store)
    return [pair for pair, same in zip(candidates, alike, strict=True) if same]


def compare_closely(
    fingerprints: Sequence[Fingerprint], pairs: Sequence[tuple[int, int]], store: Path | None = None
) -> list[bool]:
    """Return for each pair of indices whether the images show the same photograph; reuse the results in the store."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    images, inverse = np.unique(ends, return_inverse=True)
    digests = b"".join(fingerprints[index].digest(8) for index in images.tolist())
    hashes = np.frombuffer(digests, dtype=np.uint64)[inverse].reshape(-1, 2)
    keys, first, inverse = np.unique(hashes.sum(axis=1), return_index=True, return_inverse=True)

    def compare(unknown: np.ndarray) -> list[bool]:
        import cv2

        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the calling threads already use all cores
        try:
            chosen = ends[first[unknown]].tolist()
            return on_all_cores(lambda pair: are_alike(*(fingerprints[i] for i in pair)), chosen, "comparing", "pair")
        finally:
            cv2.setNumThreads(threads)

    return compare_unknown(keys, compare, store)[inverse].tolist()


def find_copies_in_dense_classes(
    fingerprints: Sequence[Fingerprint], labels: np.ndarray, dense: Collection[int]
) -> list[tuple[int, int]]:
    """Find copies in dense classes: the images of one resemble one another, as do those of a fixed camera, or symbols.

    The mean of the class is subtracted from the thumbnails (16 x 16, normalised in brightness and contrast). Two images
    are copies if the residuals correlate by at least 0.8 and are four times closer than usual for either image, as
    measured on the nearest tenth of its class. Recompressed and resized copies are that close; cropped ones rarely are.

    Args:
        fingerprints: of N images.
        labels: (N,) int64.
        dense: the labels of such classes.

    Returns:
        Sorted pairs of indices (i, j), i < j, with at least one image of such a class.
    """
    if not dense:
        return []
    order = sort_by_content(fingerprints, range(len(fingerprints)))
    labels = labels[order]
    vectors = _shrink([fingerprints[index].thumbnail for index in order], _DENSE_SIDE)
    usual = np.full(len(vectors), -1, dtype=np.float32)  # unknown outside of dense classes
    means: dict[int, np.ndarray] = {}
    pairs: set[tuple[int, int]] = set()
    for label in dense:
        members = np.flatnonzero(labels == label)
        means[label] = vectors[members].mean(axis=0)
        residuals, clear = _residuals(vectors[members], means[label])
        members, residuals = members[clear], residuals[clear]
        usual[members] = _usual_correlations(residuals)

        def choose(one: int, others: np.ndarray, correlations: np.ndarray, members=members) -> np.ndarray:
            return _keep_closer(correlations, others, np.maximum(usual[members[one]], usual[members[others]]))

        pairs |= _search(order[members], residuals, _ALIKE_RESIDUALS, choose)

    in_dense = np.isin(labels, list(means))

    def choose_across(one: int, others: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        across = (labels[others] != labels[one]) & (in_dense[one] | in_dense[others])
        others, correlations = others[across], correlations[across]
        others = others[_largest(correlations, MOST_COMPARED)]
        if not len(others):
            return others
        # Subtract the mean of either class: an image in the wrong class resembles the images of its true class.
        by_class = []
        for label in {labels[one], *labels[others]} & means.keys():
            either = (labels[one] == label) | (labels[others] == label)
            by_class.append(_correlations(vectors[one], vectors[others], means[label], either))
        return _keep_closer(np.min(by_class, axis=0), others, np.maximum(usual[one], usual[others]))

    residuals, clear = _residuals(vectors, np.mean(list(means.values()), axis=0))
    residuals[~clear] = 0
    return sorted(pairs | _search(order, residuals, _ALIKE_RESIDUALS, choose_across))


def _residuals(vectors: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract a mean from vectors (N, D) and scale to length 1; also return whether each exceeds rounding errors."""
    residuals = vectors - mean
    lengths = np.linalg.norm(residuals, axis=1)
    return residuals / np.maximum(lengths, 1e-6)[:, np.newaxis], lengths >= _LEAST_RESIDUAL


def _usual_correlations(residuals: np.ndarray) -> np.ndarray:
    """Return for each image (N,) how much its residual usually correlates with the nearest ones of its class.

    This is the correlation with the last of the nearest tenth of the class, but at least the median correlation of an
    image with the third nearest. Neither changes if each image has up to two copies.
    """
    references = residuals[:_REFERENCES]  # the order is random
    if len(references) < 5:
        return np.zeros(len(residuals), dtype=np.float32)
    third = np.median(np.partition(references @ references.T, -4, axis=1)[:, -4])  # the nearest is the image itself
    nearest = max(20 * len(references) // len(residuals), len(references) // 10)
    rank = max(len(references) - 1 - nearest, 0)
    starts = range(0, len(residuals), _BLOCK)
    blocks = (residuals[start : start + _BLOCK] @ references.T for start in starts)
    return np.concatenate([np.maximum(np.partition(block, rank, axis=1)[:, rank], third) for block in blocks])


def _keep_closer(correlations: np.ndarray, others: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return those of the others that are four times closer than usual, at most 10."""
    closer = correlations >= np.maximum(_ALIKE_RESIDUALS, 1 - (1 - usual) / _CLOSER)
    return others[closer][_largest(correlations[closer], MOST_COMPARED)]


def _correlations(one: np.ndarray, others: np.ndarray, mean: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Correlate the residuals of vectors (N, D) with that of one (D,); the result is 1 outside of `where` (N,)."""
    residual, clear = _residuals(one[np.newaxis], mean)
    residuals, others_clear = _residuals(others, mean)
    return np.where(where, np.where(clear & others_clear, (residuals * residual).sum(axis=1), -1), 1)


def find_candidates(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Find the sorted pairs of indices (i, j), i < j, of images that are worth a close comparison.

    An image and nine crops of it are compared with the others; a cropped copy resembles one of the crops.
    """
    clear = (index for index, each in enumerate(fingerprints) if each.thumbnail.std() >= LEAST_CONTRAST)
    order = sort_by_content(fingerprints, clear)
    coarse = _describe([fingerprints[index] for index in order])

    def choose(one: int, others: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        alike = coarse.match(one, others, correlations)
        others, correlations = others[alike], correlations[alike]
        ranked = _largest(correlations, _MOST_RANKED)
        others, correlations = others[ranked], correlations[ranked]
        scores = np.maximum(correlations, (coarse.vectors[others] @ coarse.crop([one]).T).max(axis=1))
        likely = (coarse.small[one] & coarse.small[others]) | (scores >= ALIKE_CROPPED)
        return others[likely][_largest(scores[likely], MOST_COMPARED)]

    return sorted(_search(order, coarse.vectors, COARSELY_ALIKE, choose, coarse.crop))


def are_coarsely_alike(fingerprints: Sequence[Fingerprint], pairs: np.ndarray) -> np.ndarray:
    """Return for each pair of indices (N, 2) whether the images are worth a close comparison, bool (N,)."""
    images, ends = np.unique(pairs, return_inverse=True)
    first, second = ends.reshape(-1, 2).T
    coarse = _describe([fingerprints[index] for index in images.tolist()])
    clear = np.array([thumbnail.std() for thumbnail in coarse.thumbnails]) >= LEAST_CONTRAST
    correlations = (coarse.vectors[first] * coarse.vectors[second]).sum(axis=1)
    alike = clear[first] & clear[second] & coarse.match(first, second, correlations)
    crops = coarse.crop(range(len(images))).reshape(len(images), -1, COARSE_SIDE**2)
    for one, other in ((first, second), (second, first)):
        products = np.einsum("ncd,nd->nc", crops[one], coarse.vectors[other])
        correlations = np.maximum(correlations, products.max(axis=1))
    return alike & ((coarse.small[first] & coarse.small[second]) | (correlations >= ALIKE_CROPPED))


class _Coarse(NamedTuple):
    """What N images look like coarsely."""

    thumbnails: list[np.ndarray]
    vectors: np.ndarray  # (N, 64) float32
    aspects: np.ndarray  # (N,) width divided by height
    small: np.ndarray  # (N,) bool

    def match(self, one: int | np.ndarray, others: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        """Return for pairs of indices, whose vectors correlate so, whether aspect ratio and correlation agree."""
        ratios = self.aspects[one] / self.aspects[others]
        both_small = self.small[one] & self.small[others]
        least = np.where(both_small, np.float32(COARSELY_ALIKE_SMALL), np.float32(COARSELY_ALIKE))
        return (np.maximum(ratios, 1 / ratios) <= _LARGEST_ASPECT_RATIO) & (correlations >= least)

    def crop(self, indices: Sequence[int]) -> np.ndarray:
        """Turn nine crops of each of M images, a tenth smaller, into vectors (9 * M, 64)."""
        averages = _crop_averages()
        thumbnails = np.stack([self.thumbnails[index] for index in indices]).astype(np.float32)
        columns = thumbnails @ averages.reshape(-1, SIDE).T  # (M, 48, 3 * 8)
        crops = averages.reshape(-1, SIDE) @ columns  # (M, 3 * 8, 3 * 8)
        crops = crops.reshape(-1, 3, COARSE_SIDE, 3, COARSE_SIDE).swapaxes(2, 3)
        return _normalise(crops.reshape(-1, COARSE_SIDE**2))


def _describe(fingerprints: Sequence[Fingerprint]) -> _Coarse:
    thumbnails = [each.thumbnail for each in fingerprints]
    aspects = np.array([each.size[0] / each.size[1] for each in fingerprints])
    small = np.array([each.is_small for each in fingerprints])
    return _Coarse(thumbnails, _shrink(thumbnails, COARSE_SIDE), aspects, small)


def _search(
    indices: np.ndarray, vectors: np.ndarray, least: float, choose: _Choice, crop: _Crops | None = None
) -> set[tuple[int, int]]:
    """Find the pairs of correlated vectors that `choose` keeps.

    Args:
        indices: (N,) what to return for each vector.
        vectors: (N, D) float32 of length 1, in random order.
        least: the least correlation.
        choose: takes a vector's index in this order, the others that correlate with it, and their correlations;
            returns the others to keep.
        crop: searching an index near these vectors, too, finds cropped copies.

    Returns:
        Pairs (i, j) from `indices`, i < j.
    """
    near = _compare_all(vectors, least) if len(vectors) <= _EXACT else _compare_near(vectors, least, crop)
    pairs = set()
    for one, others, correlations in tqdm(near, "searching", len(vectors), unit="image", delay=1, disable=None):
        if len(others):
            first, kept = int(indices[one]), indices[choose(one, others, correlations)].tolist()
            pairs.update((min(first, second), max(first, second)) for second in kept)
    return pairs


def _compare_all(vectors: np.ndarray, least: float) -> Iterator[_Near]:
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors.T
        for one, correlations in enumerate(block, start):
            correlations[one] = -1  # an image is not compared with itself
            others = np.flatnonzero(correlations >= least)
            yield one, others, correlations[others]


def _compare_near(vectors: np.ndarray, least: float, crop: _Crops | None) -> Iterator[_Near]:
    """Compare each vector with those in its own cell, and in the cells nearest to it and to its crops.

    The number of cells is the square root of the number of vectors.
    """
    count = round(len(vectors) ** 0.5)
    most = _LARGEST_CELL * count
    centres = _find_centres(vectors, count)
    probed: list[np.ndarray] = []  # the cells of each vector, its own first
    for start in range(0, len(vectors), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(vectors)))
        near = [_nearest_cells(vectors[start : rows.stop], centres)]
        if crop is not None:
            near.append(_nearest_cells(crop(rows), centres).reshape(len(rows), -1))
        probed += [np.array(list(dict.fromkeys(cells)), np.int32) for cells in np.concatenate(near, axis=1).tolist()]
    own = np.array([cells[0] for cells in probed])
    by_cell = np.argsort(own, kind="stable")
    vectors = vectors[by_cell]  # so that a cell is a slice
    ends = np.searchsorted(own[by_cell], np.arange(count + 1))
    for position, one in enumerate(by_cell.tolist()):
        slices = [slice(ends[cell], min(ends[cell + 1], ends[cell] + most)) for cell in probed[one]]
        if position >= slices[0].stop:  # beyond the compared part of its own, very large cell
            slices[0] = slice(position - most // 2, min(position + most // 2, ends[own[one] + 1]))
        correlations = np.concatenate([vectors[part] @ vectors[position] for part in slices])
        others = np.concatenate([by_cell[part] for part in slices])
        found = (correlations >= least) & (others != one)
        yield one, others[found], correlations[found]


def _nearest_cells(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return for vectors (N, D) the cells (N, 2) with the nearest centres, nearest first."""
    return np.argsort(-(vectors @ centres.T), axis=1, kind="stable")[:, :_PROBED]


def _find_centres(vectors: np.ndarray, count: int) -> np.ndarray:
    """Find the centres (count, D) of cells by k-means on the sphere, on a part of the vectors."""
    sample = vectors[: 64 * count]
    centres = sample[:count].copy()
    for _ in range(_ITERATIONS):
        cells = (sample @ centres.T).argmax(axis=1)
        by_cell = np.argsort(cells, kind="stable")
        used, starts = np.unique(cells[by_cell], return_index=True)
        sums = np.add.reduceat(sample[by_cell], starts, axis=0)
        centres[used] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return centres


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the largest values, at most `count`, largest first; ties keep their order."""
    return np.argsort(-values, kind="stable")[:count]


def _shrink(thumbnails: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Turn N thumbnails into vectors (N, side * side) float32 of mean 0 and length 1."""
    vectors = np.empty((len(thumbnails), side**2), dtype=np.float32)
    for start in range(0, len(thumbnails), _BLOCK):  # in blocks, to avoid a copy of all thumbnails
        cells = np.array(thumbnails[start : start + _BLOCK]).reshape(-1, side, SIDE // side, side, SIDE // side)
        vectors[start : start + _BLOCK] = cells.mean((2, 4), dtype=np.float32).reshape(-1, side**2)
    return _normalise(vectors)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """Shift vectors (N, D) to mean 0 and scale them to length 1."""
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


@cache
def _crop_averages() -> np.ndarray:
    """Return matrices (3, 8, 48) float32 that average the first, middle or last part of 48 pixels to 8."""
    length = SIDE * (1 - _CROPPED)
    pixels = np.arange(SIDE)
    averages = []
    for start in (0, (SIDE - length) / 2, SIDE - length):
        edges = np.linspace(start, start + length, COARSE_SIDE + 1)[:, np.newaxis]
        shares = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        averages.append(shares.clip(0) * COARSE_SIDE / length)
    return np.array(averages, dtype=np.float32)


def are_alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Return whether two images show the same photograph."""
    return similarity(one, other) >= (ALIKE_SMALL if one.is_small and other.is_small else ALIKE)


def similarity(one: Fingerprint, other: Fingerprint) -> float:
    """Compute the structural similarity of two thumbnails, as they are or aligned, up to 1.

    Both are first reduced to the lower of the two resolutions. The alignment is the affine one that maximises the
    enhanced correlation coefficient (Evangelidis and Psarakis, "Parametric image alignment using enhanced correlation
    coefficient maximization", PAMI 2008). Alignments that move or stretch an image far are ignored.
    """
    one, other = sorted((one, other), key=lambda fingerprint: (fingerprint.size, fingerprint.thumbnail.tobytes()))
    first, second = _blur_like(one.thumbnail, other.size), _blur_like(other.thumbnail, one.size)
    in_place = _structural_similarity(first, second, np.full((SIDE, SIDE), True))
    if in_place >= ALIKE or (one.is_small and other.is_small):
        return in_place
    return max(in_place, _aligned_similarity(first, second))


def _blur_like(thumbnail: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Remove the detail that the thumbnail of an image of this size lacks."""
    import cv2

    width, height = (min(side, SIDE) for side in size)
    if width == height == SIDE:
        return thumbnail
    shrunk = cv2.resize(thumbnail, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def _aligned_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the structural similarity where two thumbnails overlap after alignment; -1 if they cannot be aligned."""
    import cv2

    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 1e-3)
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        cv2.findTransformECC(one, other, warp, cv2.MOTION_AFFINE, criteria, None, 7)
    except cv2.error:  # no convergence
        return -1.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    overlap = cv2.warpAffine(np.ones(other.shape, np.float32), warp, other.shape, flags=flags) > 0.99
    if (np.abs(warp[:, :2] - np.eye(2)) > _LARGEST_DISTORTION).any() or overlap.mean() < _LEAST_OVERLAP:
        return -1.0
    aligned = cv2.warpAffine(other, warp, other.shape, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return _structural_similarity(one, aligned, overlap)


def _structural_similarity(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Compute how well two thumbnails agree locally, regardless of brightness and contrast, up to 1.

    This is the contrast and structure term of the structural similarity index (Wang et al., "Image quality assessment:
    from error visibility to structural similarity", TIP 2004) of the standardised images, averaged over `where`,
    bool (48, 48).
    """
    import cv2

    def standardise(image: np.ndarray) -> np.ndarray:
        values = image[where]
        return ((image - values.mean()) / max(values.std(), 1)).astype(np.float32)

    def smooth(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), 1.5)

    one, other = standardise(one), standardise(other)
    mean, other_mean = smooth(one), smooth(other)
    variances = smooth(one * one + other * other) - mean * mean - other_mean * other_mean
    covariance = smooth(one * other) - mean * other_mean
    return float(((2 * covariance + 0.05) / (variances + 0.05))[where].mean())
