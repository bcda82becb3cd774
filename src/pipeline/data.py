"""Training, validation and test images, and the batches in which they reach the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common import UserError
from dataset.examining import find_highest, with_white_level
from dataset.folders import ImageFolder, check_apart, read_folder
from dataset.reading import WHITE
from pipeline import distributed
from pipeline.cache import SHARED, Cache
from pipeline.images import DecodedImages, decode_images
from pipeline.settings import FOLDS
from pipeline.splits import Split, digest_split, load_groups, split_folder

_COPIED_AT_ONCE = 256  # images per copy to a device
_log = logging.getLogger(__name__)


class ImageDataset(Dataset):
    """M of the N images of a folder, or their features, in the order in which they are fetched.

    An index counts the N images of the folder, a position the M images of the dataset.

    Attributes:
        decoded: the N images, or their features as rows of a memory-mapped array.
        labels: (N,) int64.
        indices: (M,) int, of the images to use.
    """

    def __init__(self, decoded: DecodedImages | np.memmap, labels: np.ndarray, indices: np.ndarray) -> None:
        self.decoded, self.labels, self.indices = decoded, torch.from_numpy(labels), indices

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) uint8, channels last in memory, and labels (B,) int64."""
        indices = self.indices[np.array(positions, dtype=np.int64)]
        return self.read(indices), self.labels[indices]

    def __getitems__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Return a batch for torch's `DataLoader`."""
        return self.fetch(positions)

    def read(self, indices: np.ndarray) -> Tensor:
        """Return the images (B, C, H, W) at B of the N indices."""
        return to_nchw(torch.from_numpy(self.decoded[indices]))

    def select(self, indices: np.ndarray) -> ImageDataset:
        """Return a dataset of the images at other indices of the N images."""
        return type(self)(self.decoded, self.labels.numpy(), indices)


class ResidentDataset(ImageDataset):
    """The same images, stored on a device."""

    def __init__(self, source: ImageDataset, device: torch.device) -> None:
        super().__init__(source.decoded, source.labels.numpy(), source.indices)
        self.read, self.select = source.read, source.select  # the device has only M of the N images
        self._labels = self.labels[source.indices].to(device)
        first = to_nhwc(source.read(source.indices[:1]))
        self._rows = first.new_empty((len(source), *first.shape[1:]), device=device)
        for start in range(0, len(source), _COPIED_AT_ONCE):
            some = slice(start, start + _COPIED_AT_ONCE)
            self._rows[some] = to_nhwc(source.read(source.indices[some]))

    def fetch(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the same images and labels, on the device."""
        # From pinned memory: any other copy would synchronise with the GPU.
        rows = torch.tensor(positions, dtype=torch.int64, pin_memory=self._rows.is_cuda)
        rows = rows.to(self._rows.device, non_blocking=True)
        return to_nchw(self._rows[rows]), self._labels[rows]


def to_nchw(images: Tensor) -> Tensor:
    """Convert images and feature maps from (N, H, W, C) to (N, C, H, W); leave vectors unchanged."""
    return images.permute(0, 3, 1, 2) if images.dim() == 4 else images


def to_nhwc(images: Tensor) -> Tensor:
    """Convert images and feature maps from (N, C, H, W) to (N, H, W, C); leave vectors unchanged."""
    return images.permute(0, 2, 3, 1) if images.dim() == 4 else images


def preload_to_gpu(datasets: Sequence[ImageDataset], device: torch.device) -> Sequence[ImageDataset]:
    """Copy all images to the device if it is a GPU and they fit in half of its free memory."""
    if device.type != "cuda":
        return datasets
    size = sum(len(dataset) * dataset.read(dataset.indices[:1]).nbytes for dataset in datasets)
    free, _ = torch.cuda.mem_get_info(device)
    if size > free / 2:
        return datasets
    return [ResidentDataset(dataset, device) if len(dataset) else dataset for dataset in datasets]


def sample(indices: np.ndarray, most: int) -> np.ndarray:
    """Return the indices, or a sorted random sample of `most` of them if they are more."""
    if len(indices) <= most:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, most, replace=False))


class BatchOrder(Sampler[list[int]]):
    """Batch sampler: yields the positions of the images of each batch, in each process its share of them.

    When shuffling, a last batch that is too small for batch normalisation is dropped, and UserError is raised if none
    is left. With labels (N,) in `balanced`, every class is drawn equally often in N draws; otherwise each image is
    taken once.

    Attributes:
        batch_sizes: the number of images of each batch, over all processes.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool, balanced: np.ndarray | None = None) -> None:
        smallest = distributed.smallest_batch() if shuffle else 1
        sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
        self.batch_sizes = [size for size in sizes if size >= smallest]
        if shuffle and not self.batch_sizes:
            raise UserError(
                f"{count} training images in batches of {batch_size} give no batch of at least {smallest} images, as "
                "batch normalisation needs, on GPUs one per process: use more images, a larger -b, or fewer processes"
            )
        self._count, self._shuffle, self._labels = count, shuffle, balanced
        self._seed = self._first = 0

    def set_epoch(self, seed: int, first_batch: int = 0) -> None:
        """Set the seed of the next order, the same in all processes, and skip the batches before `first_batch`."""
        self._seed, self._first = seed, first_batch

    def __len__(self) -> int:
        return len(self.batch_sizes) - self._first

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng(self._seed)
        order = np.arange(self._count) if self._labels is None else _draw_balanced(self._labels, generator)
        if self._shuffle:
            generator.shuffle(order)
        ends = np.cumsum(self.batch_sizes)
        for batch in np.split(order, ends)[self._first : len(ends)]:
            yield batch[distributed.rank() :: distributed.world_size()].tolist()


def _draw_balanced(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw as many indices as there are labels, such that the counts of the classes differ by at most one.

    A class is drawn without replacement until all of its images have been drawn, then again.
    """
    classes = np.unique(labels)
    drawn = []
    for number, label in enumerate(generator.permutation(classes)):
        members = np.flatnonzero(labels == label)
        count = len(labels) // len(classes) + (number < len(labels) % len(classes))
        rounds = [generator.permutation(members) for _ in range(-(-count // len(members)))]
        drawn.append(np.concatenate(rounds)[:count])
    return np.concatenate(drawn)


def make_loader(
    dataset: ImageDataset, batch_size: int, shuffle: bool = False, balanced: np.ndarray | None = None
) -> DataLoader:
    """Make a loader of whole batches. It has no worker processes: copying 5 MB is faster than sending them."""
    return DataLoader(
        dataset,
        batch_sampler=BatchOrder(len(dataset), batch_size, shuffle, balanced),
        collate_fn=lambda batch: batch,
        generator=torch.Generator(),  # by default, the loader would draw a seed from the generator of dropout
        pin_memory=torch.cuda.is_available() and not isinstance(dataset, ResidentDataset),
    )


@dataclass(frozen=True)
class TrainingData:
    """The training and validation images of a run."""

    folder: ImageFolder
    split: Split
    train: ImageDataset
    validation: ImageDataset  # may be empty
    digest: str  # of the contents of both sides

    @property
    def classes(self) -> tuple[str, ...]:
        return self.folder.classes

    @property
    def originals(self) -> np.ndarray:
        """The indices of the training images that are not augmented."""
        return self.train.indices[~self.folder.augmented[self.train.indices]]


@dataclass(frozen=True)
class TestSet:
    """The N readable images of a folder."""

    name: str  # of the folder
    paths: tuple[Path, ...]
    files: tuple[str, ...]  # names from `ImageFolder.name_of`
    labels: np.ndarray  # (N,) int64
    images: ImageDataset

    @classmethod
    def of(cls, folder: ImageFolder, images: ImageDataset, name: str) -> TestSet:
        return cls(
            name,
            tuple(folder.paths[index] for index in images.indices),
            tuple(folder.name_of(index) for index in images.indices),
            folder.labels[images.indices],
            images,
        )


def read_folders(data_dir: Path, test_dirs: tuple[Path, ...], with_augmented: bool) -> list[ImageFolder]:
    """List the training folder and the test folders, without opening images; raise UserError if the classes differ."""
    check_apart([data_dir, *test_dirs])
    training = read_folder(data_dir, with_augmented)
    testing = [read_folder(directory) for directory in test_dirs]
    for folder in testing:
        if folder.classes != training.classes:
            only = [f"only {f.directory} has {', '.join(sorted(extra))}"
                    for f, other in ((training, folder), (folder, training))
                    if (extra := set(f.classes) - set(other.classes))]  # fmt: skip
            raise UserError(f"{data_dir} and {folder.directory} differ in their classes: {'; '.join(only)}")
    return [training, *testing]


def set_white_level(folders: Sequence[ImageFolder], cache: Cache = SHARED) -> list[ImageFolder]:
    """Return the training folder and the test folders with the white level of the training images.

    It scales 16-bit images, which may use only 12 bits, for example.
    """
    training = with_white_level(folders[0], cache.examined)
    if training.white_level != WHITE:
        bits = training.white_level.bit_length()
        _log.info("%s has %d-bit values in 16-bit files: %d is white", training.directory, bits, training.white_level)
        for folder in folders[1:]:
            highest = max(find_highest(folder.paths, cache.examined), default=0) if folder.arrays is None else 0
            if highest > training.white_level:
                _log.warning(
                    "%s has values up to %d, which become white: %s uses %d bits", folder.directory, highest,
                    training.directory, bits,
                )  # fmt: skip
    return [training, *(replace(folder, white_level=training.white_level) for folder in folders[1:])]


def load_training_data(
    folder: ImageFolder,
    input_size: tuple[int, int, int],
    cache: Cache = SHARED,
    groups: np.ndarray | None = None,
    folds: int = FOLDS,
    fold: int | None = 0,
) -> TrainingData:
    """Decode a training folder for a model with this input (channels, height, width), and split it: see `split_folder`.

    By default, `groups` are those of the folder alone.
    """
    decoded = decode_images(folder, input_size, cache)
    if groups is None:
        [groups] = load_groups([folder], cache).numbers
    split = split_folder(folder, decoded.readable, groups, folds, fold, cache)
    train, validation = (ImageDataset(decoded, folder.labels, side) for side in (split.train, split.validation))
    return TrainingData(folder, split, train, validation, digest_split(folder, split, cache))


def load_test_set(folder: ImageFolder, input_size: tuple[int, int, int], cache: Cache = SHARED) -> TestSet:
    """Decode a test folder for a model with this input (channels, height, width)."""
    decoded = decode_images(folder, input_size, cache)
    images = ImageDataset(decoded, folder.labels, np.flatnonzero(decoded.readable))
    return TestSet.of(folder, images, folder.name)
