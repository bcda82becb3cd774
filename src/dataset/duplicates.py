"""Finds near-duplicates: copies of a photograph that were recompressed, resized or cropped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import available_cores
from dataset.verdicts import judge

SIDE = 48
COARSE_SIDE = 8
BLACK = 16  # grey values up to this are padding where a whole row or column has no other
LEAST_CONTRAST = 4  # grey levels of standard deviation; an image of less is noise on one colour
SMALL = 28 * 28  # pixels; two images of so few are not aligned, or all symbols of a kind would come to fit

# Measured on photographs and copies of them by benchmarks/near_duplicates.py.
COARSELY_ALIKE = 0.5
ALIKE = 0.82
COARSELY_ALIKE_SMALL = 0.95  # where both images are small
ALIKE_SMALL = 0.94
ALIKE_CUT = 0.75  # the coarse correlation with the best of the cuts, from which two images are compared closely

MOST_COMPARED = 10  # images that each is closely compared with
_MOST_RANKED = 256  # coarsely similar images among which these are chosen
_CUT = 0.1  # of width and height, by which the cuts are smaller
_TIGHT_SIDE = 16
_TIGHTLY_ALIKE = 0.8  # the least residual correlation of outstanding pairs
_NEARER = 4  # an outstanding pair is so many times closer than the class's images usually are
_REFERENCES = 1000  # images of a class that each of its images is held against
_LEAST_RESIDUAL = 0.002  # of the contrast; below it a residual is rounding

_EXACT = 10_000  # images up to which all pairs are compared coarsely
_PROBED = 2  # cells of the index that an image, and each of its cuts, is looked for in
_LARGEST_CELL = 8  # times the usual number of images; of a larger one a part is compared
_ITERATIONS = 6  # of k-means
_LARGEST_ASPECT_RATIO = 1.35
_LARGEST_DISTORTION = np.array([[0.25, 0.1], [0.1, 0.25]])
_LEAST_OVERLAP = 0.65
_BLOCK = 512  # rows of the matrix of pairs that are held at a time
_PAIRS = 64  # pairs that a thread compares before it takes others


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


def find_near_duplicates(fingerprints: Sequence[Fingerprint], store: Path | None = None) -> list[tuple[int, int]]:
    """Finds all pairs of images that show the same photograph.

    Copies are found that were recompressed, resized, made brighter, darker or grey, padded with black, or cut by up to
    a tenth of their width and height; so are two cuts of one photograph that share nearly all they show. Mirrored and
    turned copies are not found, nor are copies of images that are nearly of one colour. Two images of at most 28 x 28
    pixels have to agree much better and are not aligned, since symbols drawn twice look like copies that were cut.
    Being near-duplicates is not transitive.

    Thumbnails of 8 x 8 are compared first: of all pairs up to 10,000 images, above that only of images that lie in
    near cells of an index. Each image is then compared by `similarity` with the 10 most similar ones. The work
    grows with the power 1.5 of the number of images, the memory with their number.

    Args:
        fingerprints: of N images.
        store: a folder in which the results of close comparisons are kept; None keeps them in memory only.

    Returns:
        Pairs of places (i, j), i < j, in order; which pairs these are does not depend on the order of the images.
    """
    candidates = find_candidates(fingerprints)
    alike = compare_closely(fingerprints, candidates, store)
    return [pair for pair, same in zip(candidates, alike, strict=True) if same]


def compare_closely(
    fingerprints: Sequence[Fingerprint], pairs: Sequence[tuple[int, int]], store: Path | None = None
) -> list[bool]:
    """Whether the images of each pair of places show the same photograph; uses all cores.

    Images that were compared before, with this store or in this process, are not compared again.
    """
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    places, inverse = np.unique(ends, return_inverse=True)
    digests = b"".join(digest(fingerprints[place], 8) for place in places.tolist())
    hashes = np.frombuffer(digests, dtype=np.uint64)[inverse].reshape(-1, 2)
    keys, first, inverse = np.unique(hashes.sum(axis=1), return_index=True, return_inverse=True)

    def compare(unknown: np.ndarray) -> list[bool]:
        return _compare_all_closely(fingerprints, ends[first[unknown]].tolist())

    return judge(keys, compare, store)[inverse].tolist()


def _compare_all_closely(fingerprints: Sequence[Fingerprint], pairs: Sequence[tuple[int, int]]) -> list[bool]:
    def compare(start: int) -> list[bool]:
        return [are_alike(fingerprints[i], fingerprints[j]) for i, j in pairs[start : start + _PAIRS]]

    alike: list[bool] = []
    with (
        _one_thread_each(),
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(desc="comparing", total=len(pairs), unit="pair", delay=1, disable=None) as bar,
    ):
        for part in pool.map(compare, range(0, len(pairs), _PAIRS)):
            alike += part
            bar.update(len(part))
    return alike


def find_outstanding_pairs(
    fingerprints: Sequence[Fingerprint], labels: np.ndarray, dense: Collection[int]
) -> list[tuple[int, int]]:
    """Finds copies in classes whose images all resemble one another, as those of a fixed camera or of symbols do.

    The mean of the class is subtracted from the thumbnails (16 x 16, of equal brightness and contrast). Two images are
    copies if what is left correlates by 0.8 or more, and is four times closer than usual for either image, by what it
    has in common with the nearest tenth of its class. Copies that were recompressed or resized are so close; cropped
    ones seldom are.

    Args:
        fingerprints: of N images.
        labels: (N,) int64.
        dense: the labels of such classes.

    Returns:
        Pairs of places (i, j), i < j, in order, of which one image or both are of such a class.
    """
    places = in_order_of_content(fingerprints, range(len(fingerprints)))
    labels = labels[places]
    fine = _shrink([fingerprints[place].thumbnail for place in places], _TIGHT_SIDE)
    usual = np.full(len(fine), -1, dtype=np.float32)  # of images of other classes nothing is usual
    means: dict[int, np.ndarray] = {}
    pairs: set[tuple[int, int]] = set()
    for label in dense:
        members = np.flatnonzero(labels == label)
        means[label] = fine[members].mean(axis=0)
        residuals, clear = _residuals(fine[members], means[label])
        members, residuals = members[clear], residuals[clear]
        usual[members] = _usual_correlations(residuals)

        def choose(row: int, others: np.ndarray, correlations: np.ndarray, members=members) -> np.ndarray:
            return _outstanding(correlations, others, np.maximum(usual[members[row]], usual[members[others]]))

        pairs.update(_as_pairs(places[members], _search(residuals, _TIGHTLY_ALIKE, choose)))
    if not means:
        return []

    known = np.isin(labels, list(means))

    def choose_across(row: int, others: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        across = labels[others] != labels[row]
        if labels[row] not in means:
            across &= known[others]
        others, correlations = others[across], correlations[across]
        others = others[_largest(correlations, MOST_COMPARED)]
        if not len(others):
            return others
        # Beyond the mean of either class: an image of one class that is filed under the other has the look of it.
        own = [_correlations(fine[row], fine[others], means[labels[row]], True)] if labels[row] in means else []
        by_class = own + [
            _correlations(fine[row], fine[others], means[label], labels[others] == label)
            for label in np.unique(labels[others]).tolist()
            if label in means
        ]
        return _outstanding(np.min(by_class, axis=0), others, np.maximum(usual[row], usual[others]))

    common = np.mean(list(means.values()), axis=0)
    residuals, clear = _residuals(fine, common)
    residuals[~clear] = 0
    pairs.update(_as_pairs(places, _search(residuals, _TIGHTLY_ALIKE, choose_across)))
    return sorted(pairs)


def _residuals(vectors: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, D) less a mean, scaled to length 1, and whether more than rounding is left of each, bool (N,)."""
    residuals = vectors - mean
    lengths = np.linalg.norm(residuals, axis=1)
    return residuals / np.maximum(lengths, 1e-6)[:, np.newaxis], lengths >= _LEAST_RESIDUAL


def _usual_correlations(residuals: np.ndarray) -> np.ndarray:
    """(N,) how much the residual of each image usually correlates with those of the images nearest to it.

    It is the correlation with the last of the nearest tenth of the class, and at least the median of what an image has
    with the third nearest one: two copies of each image change neither.
    """
    references = residuals[:_REFERENCES]  # the order is random
    if len(references) < 5:
        return np.zeros(len(residuals), dtype=np.float32)
    third = np.median(np.partition(references @ references.T, -4, axis=1)[:, -4])  # each is nearest to itself
    nearest = max(20 * len(references) // len(residuals), len(references) // 10)
    place = max(len(references) - 1 - nearest, 0)
    starts = range(0, len(residuals), _BLOCK)
    blocks = (residuals[start : start + _BLOCK] @ references.T for start in starts)
    return np.concatenate([np.maximum(np.partition(block, place, axis=1)[:, place], third) for block in blocks])


def _outstanding(correlations: np.ndarray, others: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Those of the others that are four times closer than usual, at most 10."""
    least = np.maximum(_TIGHTLY_ALIKE, 1 - (1 - usual) / _NEARER)
    outstanding = correlations >= least
    return others[outstanding][_largest(correlations[outstanding], MOST_COMPARED)]


def _correlations(one: np.ndarray, others: np.ndarray, mean: np.ndarray, where: bool | np.ndarray) -> np.ndarray:
    """(N,) what vectors (N, D) have in common with one (D,) beyond a mean; 1 where that does not matter."""
    residual, clear = _residuals(one[np.newaxis], mean)
    residuals, others_clear = _residuals(others, mean)
    return np.where(where, np.where(clear & others_clear, (residuals * residual).sum(axis=1), -1), 1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keeps OpenCV from using threads of its own: the threads that call it keep all cores busy."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


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


def _without_padding(grey: Image.Image) -> Image.Image:
    """Cuts off black rows and columns at the edges."""
    return grey.crop(grey.point(lambda value: 255 * (value > BLACK)).getbbox())


def find_candidates(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """The pairs of places (i, j), i < j, in order, of images that are worth a close comparison.

    An image is compared with the others as it is, and as nine cuts of it; a cropped copy resembles one of the cuts.
    """
    clear = [place for place, f in enumerate(fingerprints) if f.thumbnail.std() >= LEAST_CONTRAST]
    places = in_order_of_content(fingerprints, clear)
    thumbnails = [fingerprints[place].thumbnail for place in places]
    coarse = _shrink(thumbnails, COARSE_SIDE)
    aspects = np.array([fingerprints[place].size[0] / fingerprints[place].size[1] for place in places])
    small = np.array([_is_small(fingerprints[place]) for place in places])

    def cut(rows: Sequence[int]) -> np.ndarray:
        return _shrink_cuts(np.stack([thumbnails[row] for row in rows]))

    def choose(row: int, others: np.ndarray, correlations: np.ndarray) -> np.ndarray:
        """Of the places `others` of coarsely similar images those that are worth a close comparison."""
        ratios = aspects[row] / aspects[others]
        both_small = small[row] & small[others]
        near = np.maximum(ratios, 1 / ratios) <= _LARGEST_ASPECT_RATIO
        near &= ~both_small | (correlations >= COARSELY_ALIKE_SMALL)
        others, correlations, both_small = others[near], correlations[near], both_small[near]
        if not len(others):
            return others
        chosen = _largest(correlations, _MOST_RANKED)
        others, correlations, both_small = others[chosen], correlations[chosen], both_small[chosen]
        scores = np.maximum(correlations, (coarse[others] @ cut([row]).T).max(axis=1))
        likely = both_small | (scores >= ALIKE_CUT)
        others, scores = others[likely], scores[likely]
        return others[_largest(scores, MOST_COMPARED)]

    return _as_pairs(places, _search(coarse, COARSELY_ALIKE, choose, cut))


def are_coarsely_alike(fingerprints: Sequence[Fingerprint], pairs: np.ndarray) -> np.ndarray:
    """Whether the images of each pair of places (N, 2) are worth a close comparison, bool (N,)."""
    places, ends = np.unique(pairs, return_inverse=True)
    first, second = ends.reshape(-1, 2).T
    chosen = [fingerprints[place] for place in places.tolist()]
    if not chosen:
        return np.zeros(0, dtype=bool)
    thumbnails = np.stack([each.thumbnail for each in chosen])
    coarse = _shrink(thumbnails, COARSE_SIDE)
    aspects = np.array([each.size[0] / each.size[1] for each in chosen])
    small = np.array([_is_small(each) for each in chosen])
    clear = thumbnails.std(axis=(1, 2)) >= LEAST_CONTRAST
    correlations = (coarse[first] * coarse[second]).sum(axis=1)
    ratios = aspects[first] / aspects[second]
    both_small = small[first] & small[second]
    alike = clear[first] & clear[second] & (np.maximum(ratios, 1 / ratios) <= _LARGEST_ASPECT_RATIO)
    alike &= correlations >= np.where(both_small, COARSELY_ALIKE_SMALL, COARSELY_ALIKE)
    cuts = _shrink_cuts(thumbnails).reshape(len(chosen), -1, COARSE_SIDE**2)
    for one, other in ((first, second), (second, first)):
        scores = np.einsum("ncd,nd->nc", cuts[one], coarse[other]).max(axis=1)
        correlations = np.maximum(correlations, scores)
    return alike & (both_small | (correlations >= ALIKE_CUT))


def in_order_of_content(fingerprints: Sequence[Fingerprint], places: Sequence[int]) -> np.ndarray:
    """Places sorted by a digest of the fingerprint there: a random order that does not depend on the given one."""
    return np.array(sorted(places, key=lambda place: digest(fingerprints[place], 16)), dtype=np.int64)


def digest(one: Fingerprint, size: int) -> bytes:
    """A digest of a fingerprint, of so many bytes."""
    return hashlib.blake2b(one.thumbnail.tobytes() + repr(one.size).encode(), digest_size=size).digest()


def _as_pairs(places: np.ndarray, found: Iterator[tuple[int, np.ndarray]]) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, each once and in order, of rows and of the rows found for each."""
    pairs = {
        (min(first, second), max(first, second))
        for row, others in found
        for first, second in zip([int(places[row])] * len(others), places[others].tolist(), strict=True)
    }
    return sorted(pairs)


_Near = tuple[int, np.ndarray, np.ndarray]  # a row, the rows that correlate with it, and their correlations


def _search(
    vectors: np.ndarray,
    least: float,
    choose: Callable[[int, np.ndarray, np.ndarray], np.ndarray],
    cut: Callable[[Sequence[int]], np.ndarray] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """For each vector the others that correlate with it, as far as `choose` keeps them.

    Args:
        vectors: (N, D) float32 of length 1, in an order that is as good as random.
        least: the least correlation.
        choose: is given a row, the rows that correlate with it, and their correlations; gives the rows to keep.
        cut: gives the vectors (M, D) of the cuts of the images in some rows, the same number of each: an index is also
            searched near these, where the copies are that were cropped.

    Returns:
        Rows, each with those kept for it; some rows may be missing.
    """
    near = _compare_all(vectors, least) if len(vectors) <= _EXACT else _compare_near(vectors, least, cut)
    for row, others, correlations in tqdm(near, "searching", len(vectors), unit="image", delay=1, disable=None):
        if len(others):
            yield row, choose(row, others, correlations)


def _compare_all(vectors: np.ndarray, least: float) -> Iterator[_Near]:
    for start in range(0, len(vectors), _BLOCK):
        correlations = vectors[start : start + _BLOCK] @ vectors.T
        rows = np.arange(len(correlations))
        correlations[rows, start + rows] = -1  # an image is not compared with itself
        found, others = np.nonzero(correlations >= least)
        ends = np.searchsorted(found, np.arange(len(rows) + 1))
        for row, low, high in zip(rows, ends[:-1], ends[1:], strict=True):
            yield start + int(row), others[low:high], correlations[row, others[low:high]]


def _compare_near(
    vectors: np.ndarray, least: float, cut: Callable[[Sequence[int]], np.ndarray] | None
) -> Iterator[_Near]:
    """Compares each vector with those in its own cell, and in the cells that it and its cuts are nearest to.

    There are as many cells as the square root of the number of vectors.
    """
    count = round(len(vectors) ** 0.5)
    most = _LARGEST_CELL * count
    centres = _find_centres(vectors, count)
    probed: list[np.ndarray] = []  # of each row the cells, its own first
    for start in range(0, len(vectors), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(vectors)))
        near = [_nearest_cells(vectors[start : rows.stop], centres)]
        if cut is not None:
            near.append(_nearest_cells(cut(rows), centres).reshape(len(rows), -1))
        probed += [np.array(list(dict.fromkeys(cells)), np.int32) for cells in np.concatenate(near, axis=1).tolist()]
    own = np.array([cells[0] for cells in probed])
    by_cell = np.argsort(own, kind="stable")
    vectors = vectors[by_cell]  # so that a cell is a slice
    ends = np.searchsorted(own[by_cell], np.arange(count + 1))
    for place, row in enumerate(by_cell.tolist()):
        slices = [slice(ends[cell], min(ends[cell + 1], ends[cell] + most)) for cell in probed[row]]
        if place >= slices[0].stop:  # its own cell is far larger than others
            slices[0] = slice(place - most // 2, min(place + most // 2, ends[own[row] + 1]))
        correlations = np.concatenate([vectors[part] @ vectors[place] for part in slices])
        found = np.flatnonzero(correlations >= least)
        others = np.concatenate([by_cell[part] for part in slices])[found]
        yield row, others[others != row], correlations[found][others != row]


def _nearest_cells(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, 2) the cells whose centres are nearest to vectors (N, D), nearest first."""
    return np.argsort(-(vectors @ centres.T), axis=1, kind="stable")[:, :_PROBED]


def _find_centres(vectors: np.ndarray, count: int) -> np.ndarray:
    """The centres (count, D) of cells, by k-means on the sphere of a part of the vectors."""
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
    """The places of the largest values, at most so many, largest first and equal ones in order."""
    return np.argsort(-values, kind="stable")[:count]


def _shrink(thumbnails: Sequence[np.ndarray], side: int) -> np.ndarray:
    """N thumbnails as vectors (N, side * side) float32 of mean 0 and length 1."""
    vectors = np.empty((len(thumbnails), side**2), dtype=np.float32)
    for start in range(0, len(thumbnails), _BLOCK):  # all at once would take another copy of them
        cells = np.array(thumbnails[start : start + _BLOCK]).reshape(-1, side, SIDE // side, side, SIDE // side)
        vectors[start : start + _BLOCK] = cells.mean((2, 4), dtype=np.float32).reshape(-1, side**2)
    return _normalise(vectors)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) shifted to mean 0 and scaled to length 1."""
    vectors = vectors - vectors.mean(1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)


def _shrink_cuts(thumbnails: np.ndarray) -> np.ndarray:
    """Nine cuts of each thumbnail (N, 48, 48), a tenth smaller, as vectors (9 * N, 64) like those of `_shrink`."""
    averages = _cut_averages()
    columns = thumbnails.astype(np.float32) @ averages.reshape(-1, SIDE).T  # (N, 48, 3 * 8)
    cuts = averages.reshape(-1, SIDE) @ columns  # (N, 3 * 8, 3 * 8)
    cuts = cuts.reshape(-1, 3, COARSE_SIDE, 3, COARSE_SIDE).swapaxes(2, 3)
    return _normalise(cuts.reshape(-1, COARSE_SIDE**2))


@cache
def _cut_averages() -> np.ndarray:
    """(3, 8, 48) float32: what averages 48 pixels to 8, of which the first, the middle or the last part is kept."""
    length = SIDE * (1 - _CUT)
    pixels = np.arange(SIDE)
    averages = []
    for start in (0, (SIDE - length) / 2, SIDE - length):
        edges = np.linspace(start, start + length, COARSE_SIDE + 1)[:, np.newaxis]
        shares = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        averages.append(shares.clip(0) * COARSE_SIDE / length)
    return np.array(averages, dtype=np.float32)


def _is_small(fingerprint: Fingerprint) -> bool:
    return fingerprint.size[0] * fingerprint.size[1] <= SMALL


def are_alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two images show the same photograph."""
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
