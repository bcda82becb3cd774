"""Balances, splits, pads and augments: from folders of photographs to classes of equal size and a test set."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import random
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from tqdm import tqdm

from common import UserError, available_cores, short_name, write_whole
from dataset.examining import STORE, Examined, examine, find_unreadable, find_white, why_unreadable
from dataset.folders import (
    AUGMENTED,
    augmented_name,
    canonical,
    class_folder,
    class_names,
    image_files,
    own_class_names,
    source_stem,
    stem_of,
)
from dataset.groups import file_key, find_links, find_stems, number_groups, read_photographs
from dataset.moving import LEFT_OUT, move_file, set_aside
from dataset.reading import read_image, upright_rgb
from dataset.tables import TESTING_BATCH, read_rows, write_rows

if TYPE_CHECKING:
    from torchvision.transforms import v2

_log = logging.getLogger(__name__)

_MOST_TIMES = 100  # the images of the largest class; a larger target is a slip, which would fill the disk
MINORITY, ALL = "minority", "all"  # which classes get augmented images
_EXTRA = "extra_"
QUALITY = 95  # of the augmented JPEGs
_WORTH_PROCESSES = 200  # fewer images are sooner made than torch is imported in every process


def resize_or_pad_image(image: Image.Image, size: int = 224) -> Image.Image:
    """Fits an image of any size and mode into a square: its aspect kept, centred, padded with black.

    EXIF orientation is honoured, transparency is laid on white, and 16-bit grey values are scaled to 8 bits.

    Args:
        image: as Pillow opened it.
        size: side of the square in pixels.

    Returns:
        An RGB image of (size, size).
    """
    image = upright_rgb(image)
    left, upper, right, lower = place_in_square(image.size, size)
    image = image.resize((right - left, lower - upper), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (size, size))
    padded.paste(image, (left, upper))
    return padded


def place_in_square(image_size: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """Where `resize_or_pad_image` puts an upright image of this width and height: left, upper, right and lower edge."""
    scale = size / max(image_size)
    width, height = (max(1, round(side * scale)) for side in image_size)
    left, upper = (size - width) // 2, (size - height) // 2
    return left, upper, left + width, upper + height


def reduce_classes(dataset_dir: Path, max_per_class: int = 1500, seed: int = 0) -> dict[str, int]:
    """Moves what a class has above a number of images to `<dataset_dir>/left_out/<class>/`.

    Each image is drawn by its name alone, so that a reduction that was broken off goes on as it would have.

    Returns:
        How many images of each class were moved.
    """
    moved = {}
    for name in class_names(dataset_dir):
        surplus = _find_surplus(dataset_dir, name, max_per_class, seed)
        reason = f"the class had more than {max_per_class} images"
        set_aside(dataset_dir, LEFT_OUT, dict.fromkeys(surplus, reason))
        moved[name] = len(surplus)
    return moved


def _find_surplus(dataset_dir: Path, name: str, max_per_class: int, seed: int) -> list[Path]:
    return _in_random_order(image_files(class_folder(dataset_dir, name)), seed, "reduce")[max_per_class:]


def create_testing_batch(dataset_dir: Path, testing_dir: Path, per_class: int = 30, seed: int = 0) -> dict[str, int]:
    """Moves images of each class to `<testing_dir>/<class>/`, once.

    A group of images, as `dataset.groups` has it, is never divided, so that nothing like a test image stays behind to
    train on: images that are alone in their group are drawn first, then whole groups of the class. Two groups of each
    class stay. Where whole groups do not make up `per_class` images, one image less is moved. A class that has a
    test folder with images keeps it as it is. The list of what is moved is written first, as
    `testing_batch.csv`: it tells later where the images came from, and a batch that was broken off goes on by it.

    Returns:
        How many images of each class were moved.

    Raises:
        UserError: a class has too few images for its batch and at least two groups to stay.
    """
    rows = draw_testing_batch(dataset_dir, testing_dir, per_class, seed)
    table = testing_dir / TESTING_BATCH
    if rows != (served := read_rows(table, ("class", "file"))):
        write_rows(table, ("class", "file"), rows)
    drawn = Counter(canonical(row["class"]) for row in rows if row not in served)
    for name in (name for name, count in drawn.items() if count < per_class):
        _log.warning("%s gets %d test images: groups of near-duplicates are not divided", name, drawn[name])
    moved = dict.fromkeys(class_names(dataset_dir), 0)
    for row in rows:
        name = canonical(row["class"])
        source, target = (class_folder(directory, name) / row["file"] for directory in (dataset_dir, testing_dir))
        if source.exists():
            move_file(source, target)
            moved[name] += 1
    for name in sorted({canonical(row["class"]) for row in served}):
        if not image_files(class_folder(testing_dir, name)):
            _log.warning("%s has none of its test images left; without its lines in %s others are drawn", name, table)
    return moved


def draw_testing_batch(
    dataset_dir: Path, testing_dir: Path, per_class: int, seed: int, without: Collection[Path] = ()
) -> list[dict[str, str]]:
    """The rows of `testing_batch.csv` after `create_testing_batch`, in the columns `class` and `file`; moves nothing.

    Args:
        dataset_dir: one folder per class.
        testing_dir: the same.
        per_class: how many images of a class are to be moved.
        seed: decides which.
        without: images that do not count.

    Raises:
        UserError: a class has too few images.
    """
    rows = read_rows(testing_dir / TESTING_BATCH, ("class", "file"))
    served = {canonical(row["class"]) for row in rows}
    folders = {name: class_folder(dataset_dir, name) for name in class_names(dataset_dir)}
    lacking = [name for name in folders if name not in served and not image_files(class_folder(testing_dir, name))]
    if not lacking or not per_class:
        return rows
    images = [path for folder in folders.values() for path in image_files(folder)]
    examined, _ = examine([path for path in images if path not in without], white=find_white(images))
    groups = _group_by_class(dataset_dir, examined)
    for name in lacking:
        own = [group for group in groups[name] if {path.parent for path in group} == {folders[name]}]
        chosen = _draw_groups(own, per_class, len(groups[name]) - 2, seed)
        if chosen is None:
            readable = sum(image.path.parent == folders[name] for image in examined)
            raise UserError(
                f"{folders[name]} has {readable} readable images in {len(groups[name])} groups of near-duplicates: too "
                f"few to move {per_class} to {testing_dir} and keep two groups (--testing-per-class asks for fewer)"
            )
        rows += [{"class": name, "file": path.name} for path in sorted(chosen)]
    return sorted(rows, key=lambda row: (row["class"], row["file"]))


def _group_by_class(dataset_dir: Path, examined: Sequence[Examined]) -> dict[str, list[list[Path]]]:
    """The groups that have images of each class."""
    photographs = read_photographs(dataset_dir, dataset_dir)
    labels = [canonical(image.path.parent.name) for image in examined]
    found = find_links(
        examined,
        labels,
        [photographs.get(file_key(image.path)) for image in examined],
        find_stems([image.path for image in examined], dataset_dir, dataset_dir),
        STORE,
    )
    members: dict[int, list[Path]] = defaultdict(list)
    for image, number in zip(examined, number_groups(len(examined), found.links).tolist(), strict=True):
        members[number].append(image.path)
    groups: dict[str, list[list[Path]]] = defaultdict(list)
    for paths in members.values():
        for name in {canonical(path.parent.name) for path in paths}:
            groups[name].append(paths)
    return groups


def _draw_groups(groups: Sequence[Sequence[Path]], count: int, most: int, seed: int) -> list[Path] | None:
    """Whole groups of so many images in all, single images first and at random; one less where no groups have so many.

    Args:
        groups: the groups to choose from.
        count: the number of images.
        most: how many groups may be drawn.
        seed: decides which.

    Returns:
        The images; None if it takes more groups.
    """
    ordered = [_in_random_order(group, seed, "test") for group in groups]
    first = {path: place for place, path in enumerate(_in_random_order([g[0] for g in ordered], seed, "test"))}
    ordered.sort(key=lambda group: (len(group) > 1, first[group[0]]))
    drawn: dict[tuple[int, int], list[Path]] = {(0, 0): []}  # by numbers of images and groups; earlier choices stand
    for group in ordered:
        for size, number in sorted(drawn, reverse=True):
            key = (size + len(group), number + 1)
            if key[0] <= count and key not in drawn:
                drawn[key] = [*drawn[size, number], *group]
        for number in range(min(count, most) + 1):
            if (count, number) in drawn:
                return drawn[count, number]
    sizes = {size for size, _ in drawn}
    fewer = (images for (size, number), images in drawn.items() if size == count - 1 > 0 and number <= most)
    return None if count in sizes else next(fewer, None)


def add_extra_testing(extra_dir: Path, testing_dir: Path) -> dict[str, int]:
    """Copies images of one's own, in a folder a class, to the test folders, as `extra_<name>`.

    Returns:
        How many images of each class were copied; those that are there already, or cannot be read, are not.

    Raises:
        UserError: another image has such a name there already.
    """
    copied = {}
    for name in own_class_names(extra_dir):
        copied[name] = 0
        folder = class_folder(testing_dir, name)
        for path in image_files(class_folder(extra_dir, name)):
            if why_unreadable(path):
                continue
            target = folder / short_name(f"{_EXTRA}{path.name}")
            if not target.exists():
                with write_whole(target) as partial:
                    shutil.copyfile(path, partial)
                copied[name] += 1
            elif target.read_bytes() != path.read_bytes():
                raise UserError(f"cannot copy {path}: {target} is another image; rename one of them")
    return copied


def plan_augmentation(sizes: Mapping[str, int], mode: str = MINORITY, target: int | None = None) -> dict[str, int]:
    """Computes how many augmented images each class is to have.

    Args:
        sizes: how many images each class has.
        mode: `MINORITY` brings every class up to the target, so that only small classes have augmented images. `ALL`
            gives every class the same share of them, so that an augmented look does not identify the class.
        target: the number of images, augmented ones included. With `MINORITY`, of every class; by default, the size of
            the largest class. With `ALL`, of the largest class; by default, every class is doubled. The numbers of
            augmented images of other classes are rounded to the nearest integer, halves up, and are at least 1.
    """
    largest = max(sizes.values())
    if mode == MINORITY:
        return {name: max(0, (target or largest) - size) for name, size in sizes.items()}
    more = largest if target is None else max(0, target - largest)
    return {name: max(min(1, more), (2 * size * more + largest) // (2 * largest)) for name, size in sizes.items()}


def check_augmentation(
    dataset_dir: Path, testing_dir: Path, max_per_class: int, per_class: int, seed: int, mode: str, target: int | None
) -> None:
    """Checks a target against the sizes that the classes will have after `reduce_classes` and `create_testing_batch`.

    Raises:
        UserError: the target makes no sense with them, or a class has too few images.
    """
    if target is None:
        return
    names = class_names(dataset_dir)
    surplus = {path for name in names for path in _find_surplus(dataset_dir, name, max_per_class, seed)}
    rows = draw_testing_batch(dataset_dir, testing_dir, per_class, seed, surplus)
    moved = {(canonical(row["class"]), row["file"]) for row in rows}
    stay = {
        name: [
            path
            for path in image_files(class_folder(dataset_dir, name))
            if path not in surplus and (name, path.name) not in moved
        ]
        for name in names
    }
    unreadable = find_unreadable([path for paths in stay.values() for path in paths])
    _check_target({name: sum(path not in unreadable for path in paths) for name, paths in stay.items()}, mode, target)


def _check_target(sizes: Mapping[str, int], mode: str, target: int | None) -> None:
    if target is None:
        return
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if mode == ALL and target <= sizes[largest]:
        raise UserError(
            f"--augment-to {target}: must be above the {sizes[largest]} images of {largest}, the largest class, "
            f"with --augment {ALL}"
        )
    if mode == MINORITY and target < sizes[smallest]:
        raise UserError(
            f"--augment-to {target}: every class has more images already, {smallest} the fewest, {sizes[smallest]}"
        )
    if target > _MOST_TIMES * sizes[largest]:
        raise UserError(
            f"--augment-to {target}: must be at most {_MOST_TIMES} times the {sizes[largest]} images of {largest}, the "
            "largest class"
        )


def prepare_to_augment(dataset_dir: Path, mode: str = MINORITY, target: int | None = None) -> bool:
    """Lets a process import torch in the background, from which those that augment are forked; it takes seconds.

    `create_augmented_data` does this itself. Who has other work before it, calls this first.

    Returns:
        Whether there are several cores, and so many images are missing that processes are worth it.
    """
    from multiprocessing import forkserver

    names = class_names(dataset_dir)
    sizes = {name: len(image_files(class_folder(dataset_dir, name))) for name in names}
    there = sum(len(image_files(class_folder(dataset_dir, name + AUGMENTED))) for name in names)
    if available_cores() == 1 or not any(sizes.values()):
        return False
    if sum(plan_augmentation(sizes, mode, target).values()) - there < _WORTH_PROCESSES:
        return False
    forkserver.set_forkserver_preload(["torchvision.transforms.v2"])
    forkserver.ensure_running()
    return True


def create_augmented_data(
    dataset_dir: Path, seed: int = 0, cores: int | None = None, mode: str = MINORITY, target: int | None = None
) -> dict[str, int]:
    """Makes images of 224x224 in `<class>_augmented/`, as many as `plan_augmentation` says of the readable images.

    Each is made from a random image of the class by 1 to 6 of the six transforms, in random order. It depends only on
    the seed, its own number and the images of the class, so that it is the same on any number of cores; what is there
    already is not made again. Augmented images that are too many, or whose source has left the class, are moved to
    `<dataset_dir>/left_out/`.

    Returns:
        How many images of each class were written.

    Raises:
        UserError: a class has no readable image, or the target makes no sense with the sizes of the classes.
    """
    names = class_names(dataset_dir)
    cores = cores or (available_cores() if prepare_to_augment(dataset_dir, mode, target) else 1)
    files = {name: image_files(class_folder(dataset_dir, name)) for name in names}
    unreadable = find_unreadable([path for name in names for path in files[name]])
    sources = {name: [path for path in files[name] if path not in unreadable] for name in names}
    if empty := [name for name in names if not sources[name]]:
        raise UserError(f"{class_folder(dataset_dir, empty[0])} has no readable image to make others from")
    sizes = {name: len(sources[name]) for name in names}
    _check_target(sizes, mode, target)
    counts = plan_augmentation(sizes, mode, target)
    missing = {name: _missing_numbers(dataset_dir, name, sources[name], counts[name]) for name in names}
    of_source: dict[tuple[str, Path], list[int]] = defaultdict(list)
    for name in names:
        for number in missing[name]:
            source = _generator(seed, name, number, "source").choice(sources[name])
            of_source[name, source].append(number)
    white = find_white([path for name in names for path in sources[name]])
    tasks = [
        _Task(dataset_dir, source, name, tuple(numbers), seed, white) for (name, source), numbers in of_source.items()
    ]
    with tqdm(desc="augmenting", total=sum(map(len, missing.values())), unit="image", disable=None) as bar:
        for count in _work(tasks, cores):
            bar.update(count)
    return {name: len(numbers) for name, numbers in missing.items()}


class _Task(NamedTuple):
    """Augmented images to be made from one source, which is read once for all of them."""

    dataset_dir: Path
    source: Path
    label: str
    numbers: tuple[int, ...]
    seed: int
    white: int


def _missing_numbers(dataset_dir: Path, name: str, sources: Sequence[Path], count: int) -> list[int]:
    """Which of the numbers from 1 to `count` have no augmented image yet; moves those aside that do not belong."""
    stems = {stem_of(path) for path in sources}
    there, aside = set(), {}
    for path in image_files(class_folder(dataset_dir, name + AUGMENTED)):
        number = int(re.search(r"\d+$", path.stem)[0]) if source_stem(path) else 0
        if source_stem(path) not in stems:
            aside[path] = f"the image that it was made from is not in {name}"
        elif not 1 <= number <= count or number in there:
            aside[path] = f"{name} is to have {count} augmented images"
        else:
            there.add(number)
    set_aside(dataset_dir, LEFT_OUT, aside)
    return [number for number in range(1, count + 1) if number not in there]


def _work(tasks: Sequence[_Task], cores: int) -> Iterator[int]:
    """Gives the number of images that each task wrote."""
    if cores == 1:
        yield from map(_write_augmented, tasks)
        return
    with ProcessPoolExecutor(cores, multiprocessing.get_context("forkserver"), _use_one_thread) as pool:
        yield from pool.map(_write_augmented, tasks)


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the processes keep all cores busy


def _write_augmented(task: _Task) -> int:
    image = resize_or_pad_image(read_image(task.source, task.white))
    folder = class_folder(task.dataset_dir, task.label + AUGMENTED)
    for number in task.numbers:
        path = folder / augmented_name(task.source, number)
        with write_whole(path) as partial:
            augment(image, task.label, number, task.seed).save(partial, quality=QUALITY)
    return len(task.numbers)


def augment(image: Image.Image, label: str, number: int, seed: int) -> Image.Image:
    """Applies the transforms that the augmented image of a class with this number gets, to an RGB image."""
    import torch

    generator = _generator(seed, label, number, "transforms")
    transforms = generator.sample(_transforms(), generator.randint(1, len(_transforms())))
    # oneDNN takes seven times as long for the blur as what stands in for it
    with torch.random.fork_rng(devices=[]), torch.backends.mkldnn.flags(enabled=False):
        # torch.manual_seed would see to accelerators too, which takes longer than a transform
        torch.default_generator.manual_seed(generator.getrandbits(63))
        for transform in transforms:
            image = transform(image)
    return image


def _generator(seed: int, label: str, number: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{label}/{number}/{purpose}".encode(errors="surrogateescape"))


@cache
def _transforms() -> tuple[v2.Transform, ...]:
    from torchvision.transforms import v2

    warnings.filterwarnings("ignore", "TF32 acceleration")  # of Intel's GPUs, told when oneDNN is switched back on
    return (
        v2.RandomRotation(40),
        v2.RandomAffine(degrees=0, translate=(0.2, 0.2)),
        v2.RandomHorizontalFlip(0.8),
        v2.RandomVerticalFlip(0.8),
        v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
        v2.GaussianBlur(3),
    )


def _in_random_order(paths: Iterable[Path], seed: int, purpose: str) -> list[Path]:
    """Files in an order that depends on each one's class and name alone."""

    def key(path: Path) -> bytes:
        text = f"{seed}/{purpose}/{canonical(path.parent.name)}/{path.name}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).digest()

    return sorted(paths, key=key)
