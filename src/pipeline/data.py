"""From folders to batches: who trains, who validates, and how batches reach the model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common import UserError, own_name
from dataset.folders import ImageFolder, check_apart, read_folder
from pipeline import distributed
from pipeline.cache import SHARED, Cache
from pipeline.images import DecodedImages, decode_images

VALIDATION_SHARE = 0.2
_COPIED_AT_ONCE = 256  # images, on their way to a device
_SPLIT_SEED = 42  # not the run's: all runs are compared on the same validation images


@dataclass(frozen=True)
class Split:
    """Places in an `ImageFolder` of the images that train and that validate, each an int array.

    Attributes:
        left_out: how many augmented images neither side gets, because their source validates or is not known.
    """

    train: np.ndarray
    validation: np.ndarray
    left_out: int


def split_folder(folder: ImageFolder, readable: np.ndarray) -> Split:
    """Draws a fifth of each class's originals for validation; an augmented image trains if its source trains.

    Args:
        folder: the images.
        readable: (N,) bool; the others go nowhere.

    Raises:
        UserError: a class has fewer than two readable originals.
    """
    generator = np.random.default_rng(_SPLIT_SEED)
    validation: list[int] = []
    for label, name in enumerate(folder.classes):
        originals = np.flatnonzero((folder.labels == label) & ~folder.augmented & readable)
        if len(originals) < 2:
            raise UserError(
                f"{folder.directory / name} has {len(originals)} readable image(s): "
                "it needs at least 2, one to train on and one to validate on"
            )
        count = max(1, round(VALIDATION_SHARE * len(originals)))
        validation.extend(generator.permutation(originals)[:count])

    # By label and stem: where 1.jpg and 1.png of a class stand on different sides, what is made from "1" goes nowhere.
    sources = list(zip(folder.labels.tolist(), folder.sources, strict=True))
    in_validation = set(validation)
    places = np.flatnonzero(readable & ~folder.augmented).tolist()
    trains = [place for place in places if place not in in_validation]
    lenders = {sources[place] for place in trains} - {sources[place] for place in validation}
    augmented = np.flatnonzero(readable & folder.augmented).tolist()
    lent = [place for place in augmented if sources[place] in lenders]
    return Split(np.sort(trains + lent), np.sort(validation), len(augmented) - len(lent))


class ImageBatches(Dataset):
    """Batches as slices of the decoded images. Asked for a list of places, it answers with one batch.

    Attributes:
        decoded: the images of a folder, or what frozen layers make of them.
        labels: theirs, (N,) int64.
        places: (M,) int, which of them these batches are made from.
    """

    def __init__(self, decoded: DecodedImages | np.memmap, labels: np.ndarray, places: np.ndarray) -> None:
        self.decoded, self.labels, self.places = decoded, torch.from_numpy(labels), places

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) uint8, channels last in memory, and labels (B,) int64."""
        places = self.places[np.array(indices, dtype=np.int64)]
        return rows_to_maps(torch.from_numpy(self.decoded[places])), self.labels[places]


class ResidentBatches(ImageBatches):
    """The same batches, of images that all live on a device."""

    def __init__(self, batches: ImageBatches, device: torch.device) -> None:
        super().__init__(batches.decoded, batches.labels.numpy(), batches.places)
        self._labels = self.labels[batches.places].to(device)
        first = maps_to_rows(batches.__getitems__([0])[0])
        self._rows = torch.empty((len(batches), *first.shape[1:]), dtype=first.dtype, device=device)
        for start in range(0, len(batches), _COPIED_AT_ONCE):
            some = list(range(start, min(start + _COPIED_AT_ONCE, len(batches))))
            self._rows[some[0] : some[-1] + 1] = maps_to_rows(batches.__getitems__(some)[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """As of the batches that these were made from, on the device."""
        # From pinned memory: any other copy would wait for all that the GPU still has to do.
        places = torch.tensor(indices, dtype=torch.int64, pin_memory=self._rows.is_cuda)
        places = places.to(self._rows.device, non_blocking=True)
        return rows_to_maps(self._rows[places]), self._labels[places]


def rows_to_maps(rows: Tensor) -> Tensor:
    """Images and maps as they are kept, (N, H, W, C), as a model takes them, (N, C, H, W); vectors as they are."""
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


def maps_to_rows(maps: Tensor) -> Tensor:
    """The reverse."""
    return maps.permute(0, 2, 3, 1) if maps.dim() == 4 else maps


def bring_near(parts: Sequence[ImageBatches], device: torch.device) -> Sequence[ImageBatches]:
    """Has all images live on a GPU if together they take no more than half of what is free there."""
    if device.type != "cuda":
        return parts
    size = sum(len(batches) * batches.__getitems__([0])[0].nbytes for batches in parts)
    free, _ = torch.cuda.mem_get_info(device)
    return [ResidentBatches(batches, device) for batches in parts] if size <= free / 2 else parts


class BatchOrder(Sampler[list[int]]):
    """Which images make up each batch; of several joined processes each is given its share of every batch.

    When shuffling, a last batch of one image is dropped, since batch normalisation cannot train on it.

    Attributes:
        batch_sizes: the number of images of each batch, in all processes together.
    """

    def __init__(self, count: int, batch_size: int, shuffle: bool) -> None:
        self.batch_sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
        if shuffle and self.batch_sizes[-1] == 1:
            self.batch_sizes.pop()
        self._count, self._shuffle = count, shuffle
        self._seed = self._first = 0

    def set_epoch(self, seed: int, first_batch: int = 0) -> None:
        """Draws another order from now on, the same in all processes; leaves out the batches before `first_batch`."""
        self._seed, self._first = seed, first_batch

    def __len__(self) -> int:
        return len(self.batch_sizes) - self._first

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self._count)
        if self._shuffle:
            np.random.default_rng(self._seed).shuffle(order)
        ends = np.cumsum(self.batch_sizes)
        for batch in np.split(order, ends)[self._first : len(ends)]:
            yield batch[distributed.rank() :: distributed.world_size()].tolist()


def make_loader(batches: ImageBatches, batch_size: int, shuffle: bool = False) -> DataLoader:
    """Torch's loader over slices. Without worker processes: a copy of 5 MB is sooner done than handed over."""
    return DataLoader(
        batches,
        batch_sampler=BatchOrder(len(batches), batch_size, shuffle),
        collate_fn=_as_they_are,
        generator=torch.Generator(),  # the loader draws a seed from it, else from the one that dropout draws from
        pin_memory=torch.cuda.is_available() and not isinstance(batches, ResidentBatches),
    )


def _as_they_are(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and validates on.

    Attributes:
        augmented: how many augmented images there are.
        left_out: how many of them neither side gets, because their source validates or is not known.
        digest: of the names of all that train and all that validate.
    """

    classes: tuple[str, ...]
    train: ImageBatches
    validation: ImageBatches
    augmented: int
    left_out: int
    digest: str


@dataclass(frozen=True)
class TestSet:
    """A folder to test on.

    Attributes:
        name: the folder's own name.
        paths: (N) files, in the order of `images`.
        labels: (N,) int64.
    """

    name: str
    paths: tuple[Path, ...]
    labels: np.ndarray
    images: ImageBatches


def read_folders(data_dir: Path, test_dirs: tuple[Path, ...], with_augmented: bool) -> list[ImageFolder]:
    """Lists the training folder and the test folders; opens no image.

    Raises:
        UserError: a folder is missing or empty, a class has no images, or the classes differ.
    """
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


def load_training_data(folder: ImageFolder, input_size: tuple[int, int, int], cache: Cache = SHARED) -> TrainingData:
    """Decodes and splits a training folder.

    Args:
        folder: the images.
        input_size: channels, height and width that the model takes.
        cache: keeps the decoded images.

    Raises:
        UserError: a class has too few readable images.
    """
    decoded = decode_images(folder, input_size, cache)
    split = split_folder(folder, _readable(folder, decoded.unreadable))
    train, validation = (ImageBatches(decoded, folder.labels, places) for places in (split.train, split.validation))
    augmented = int(folder.augmented.sum())
    digest = digest_names(*([folder.paths[place] for place in places] for places in (split.train, split.validation)))
    return TrainingData(folder.classes, train, validation, augmented, split.left_out, digest)


def digest_names(*groups: Iterable[Path]) -> str:
    """Of the names of groups of images, by which a later start sees that some came or went."""
    digest = hashlib.sha256()
    for paths in groups:
        for path in paths:
            digest.update(os.fsencode("/".join(("", *path.parts[-2:]))))
        digest.update(b"\0")
    return digest.hexdigest()


def load_test_set(folder: ImageFolder, input_size: tuple[int, int, int], cache: Cache = SHARED) -> TestSet:
    """Decodes a test folder.

    Args:
        folder: the images.
        input_size: channels, height and width that the model takes.
        cache: keeps the decoded images.

    Raises:
        UserError: none of its images can be read.
    """
    decoded = decode_images(folder, input_size, cache)
    places = np.flatnonzero(_readable(folder, decoded.unreadable))
    return TestSet(
        name_test_set(folder),
        tuple(folder.paths[place] for place in places),
        folder.labels[places],
        ImageBatches(decoded, folder.labels, places),
    )


def name_test_set(folder: ImageFolder) -> str:
    """The name that a test set's results go by: the folder's own."""
    return own_name(folder.directory)


def _readable(folder: ImageFolder, unreadable: dict[int, str]) -> np.ndarray:
    readable = np.ones(len(folder.paths), dtype=bool)
    readable[list(unreadable)] = False
    return readable
