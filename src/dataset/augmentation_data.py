"""Balances, splits and augments a dataset: classes of equal size to train on, and a test set."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import random
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from common import UserError, available_cores, short_name, write_atomically
from dataset.examining import STORE, Examined, examine, find_unreadable, find_white_level
from dataset.folders import (
    AUGMENTED_SUFFIX,
    augmented_name,
    canonical,
    class_folder,
    class_images,
    class_names,
    image_files,
    own_class_names,
    parse_augmented,
    stem_of,
)
from dataset.groups import find_dataset_links, number_groups
from dataset.moving import LEFT_OUT, move_file, set_aside
from dataset.reading import read_image, resize_or_pad_image
from dataset.tables import TESTING_BATCH, read_rows, write_rows

if TYPE_CHECKING:
    from torchvision.transforms import v2

_log = logging.getLogger(__name__)

MINORITY, ALL = "minority", "all"  # which classes get augmented images
QUALITY = 95  # of the augmented JPEGs
_LARGEST_FACTOR = 100  # a larger target, relative to the largest class, is taken for a mistake
_WORTH_PROCESSES = 200  # below so many images, importing torch in every process takes longer than it saves


def reduce_classes(dataset_dir: Path, max_per_class: int = 1500, seed: int = 0) -> dict[str, int]:
    """Move random images of each class that has too many to `<dataset_dir>/left_out/<class>/`.

    The choice depends only on the seed and the names, so an interrupted reduction continues with the same choice.
    Returns the number of images moved, by class.
    """
    moved = {}
    for name in class_names(dataset_dir):
        surplus = _find_surplus(dataset_dir, name, max_per_class, seed)
        set_aside(dataset_dir, LEFT_OUT, dict.fromkeys(surplus, f"the class had more than {max_per_class} images"))
        moved[name] = len(surplus)
    return moved


def _find_surplus(dataset_dir: Path, name: str, max_per_class: int, seed: int) -> list[Path]:
    return sorted(class_images(dataset_dir, name), key=partial(_rank, seed, "reduce"))[max_per_class:]


def create_testing_batch(dataset_dir: Path, testing_dir: Path, per_class: int = 30, seed: int = 0) -> dict[str, int]:
    """Move images of each class to `<testing_dir>/<class>/`, once. A class that has test images keeps them.

    The groups of `dataset.groups` stay whole, so that no near-duplicate of a test image remains in training. Images
    without a group are drawn first, then groups; at least two groups of each class stay. If whole groups do not add up
    to `per_class`, one image less is moved. The choice is written to `testing_batch.csv` before anything is moved, so
    that an interrupted split can be finished, and the origin of the test images is known later.

    Returns the number of images moved, by class; UserError if a class has too few.
    """
    rows = draw_testing_batch(dataset_dir, testing_dir, per_class, seed)
    table = testing_dir / TESTING_BATCH
    if rows != (recorded_rows := read_rows(table, ("class", "file"))):
        write_rows(table, ("class", "file"), rows)
    drawn = Counter(canonical(row["class"]) for row in rows if row not in recorded_rows)
    for name, count in drawn.items():
        if count < per_class:
            _log.warning("%s gets %d test images: groups of near-duplicates are not split", name, count)
        if (kept := len(class_images(dataset_dir, name)) - count) < count:
            _log.warning(
                "%s keeps only %d images to train on, beside %d to test on: add images, or move the test images back, "
                "delete their lines in %s, and lower --testing-per-class", name, kept, count, table,
            )  # fmt: skip
    moved = dict.fromkeys(class_names(dataset_dir), 0)
    for row in rows:
        name = canonical(row["class"])
        source, target = (class_folder(directory, name) / row["file"] for directory in (dataset_dir, testing_dir))
        if source.exists():
            move_file(source, target)
            moved[name] += 1
    for name in sorted({canonical(row["class"]) for row in recorded_rows}):
        if not class_images(testing_dir, name):
            _log.warning("%s has none of its test images left; delete its lines in %s to draw new ones", name, table)
    return moved


def draw_testing_batch(
    dataset_dir: Path, testing_dir: Path, per_class: int, seed: int, without: Collection[Path] = ()
) -> list[dict[str, str]]:
    """Return the rows of `testing_batch.csv` that `create_testing_batch` writes; images in `without` are not drawn."""
    rows = read_rows(testing_dir / TESTING_BATCH, ("class", "file"))
    recorded_classes = {canonical(row["class"]) for row in rows}
    folders = {name: class_folder(dataset_dir, name) for name in class_names(dataset_dir)}
    classes_without_test_images = [
        name for name in folders if name not in recorded_classes and not class_images(testing_dir, name)
    ]
    if not classes_without_test_images or not per_class:
        return rows
    images = [path for folder in folders.values() for path in image_files(folder)]
    examined, _ = examine([path for path in images if path not in without], white_level=find_white_level(images))
    groups = _group_by_class(dataset_dir, examined)
    for name in classes_without_test_images:
        own = [group for group in groups[name] if {path.parent for path in group} == {folders[name]}]
        chosen = _draw_groups(own, per_class, len(groups[name]) - 2, seed)
        if chosen is None:
            readable = sum(image.path.parent == folders[name] for image in examined)
            raise UserError(
                f"{folders[name]} has {readable} readable images in {len(groups[name])} groups of near-duplicates: too "
                f"few to move {per_class} to {testing_dir} and keep two groups (lower --testing-per-class)"
            )
        rows += [{"class": name, "file": path.name} for path in sorted(chosen)]
    return sorted(rows, key=lambda row: (row["class"], row["file"]))


def _group_by_class(dataset_dir: Path, examined: Sequence[Examined]) -> dict[str, list[list[Path]]]:
    """Return the groups that contain images of each class."""
    links = find_dataset_links(examined, dataset_dir, STORE).links
    members: dict[int, list[Path]] = defaultdict(list)
    for image, number in zip(examined, number_groups(len(examined), links).tolist(), strict=True):
        members[number].append(image.path)
    groups: dict[str, list[list[Path]]] = defaultdict(list)
    for group in members.values():
        for name in {canonical(path.parent.name) for path in group}:
            groups[name].append(group)
    return groups


def _draw_groups(groups: Sequence[Sequence[Path]], count: int, most: int, seed: int) -> list[Path] | None:
    """Draw at most `most` whole groups with `count` images in all, or with one less if no groups add up to `count`.

    Groups of one image come first, in random order. Returns None if it takes more than `most` groups.
    """
    rank = partial(_rank, seed, "test")
    ordered = sorted((sorted(group, key=rank) for group in groups), key=lambda group: (len(group) > 1, rank(group[0])))
    drawn: dict[tuple[int, int], list[Path]] = {(0, 0): []}  # by number of images and of groups; the first choice stays
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
    """Copy the readable images of a folder to the test folders as `extra_<name>`, unless they are there.

    Returns the number of images copied, by class; UserError if the name belongs to another image.
    """
    copied = {}
    for name in own_class_names(extra_dir):
        copied[name] = 0
        folder = class_folder(testing_dir, name)
        files = class_images(extra_dir, name)
        unreadable = find_unreadable(files)
        for path in (path for path in files if path not in unreadable):
            target = folder / short_name(f"extra_{path.name}")
            if not target.exists():
                with write_atomically(target) as file:
                    shutil.copyfile(path, file)
                copied[name] += 1
            elif target.read_bytes() != path.read_bytes():
                raise UserError(f"cannot copy {path}: {target} is another image; rename one of them")
    return copied


def plan_augmentation(sizes: Mapping[str, int], mode: str = MINORITY, target: int | None = None) -> dict[str, int]:
    """Compute the number of augmented images of each class.

    Args:
        sizes: the number of images of each class.
        mode: `MINORITY` fills every class up to the target. `ALL` gives every class the same share of augmented images,
            so that being augmented does not reveal the class.
        target: the number of images including augmented ones. For `MINORITY`, of every class, by default the size of
            the largest one. For `ALL`, of the largest class, by default twice its size; the numbers of the other
            classes are rounded, halves up, and at least 1.
    """
    largest = max(sizes.values())
    if mode == MINORITY:
        return {name: max(0, (target or largest) - size) for name, size in sizes.items()}
    more = largest if target is None else max(0, target - largest)
    return {name: max(min(1, more), (2 * size * more + largest) // (2 * largest)) for name, size in sizes.items()}


def check_augmentation(
    dataset_dir: Path, testing_dir: Path, max_per_class: int, per_class: int, seed: int, mode: str, target: int | None
) -> None:
    """Raise UserError if a target does not fit the class sizes after `reduce_classes` and `create_testing_batch`."""
    if target is None:
        return
    names = class_names(dataset_dir)
    surplus = {path for name in names for path in _find_surplus(dataset_dir, name, max_per_class, seed)}
    rows = draw_testing_batch(dataset_dir, testing_dir, per_class, seed, surplus)
    moved = {class_folder(dataset_dir, canonical(row["class"])) / row["file"] for row in rows}
    files = {name: class_images(dataset_dir, name) for name in names}
    gone = surplus | moved
    gone |= find_unreadable([path for paths in files.values() for path in paths if path not in gone]).keys()
    _check_target({name: sum(path not in gone for path in paths) for name, paths in files.items()}, mode, target)


def _check_target(sizes: Mapping[str, int], mode: str, target: int | None) -> None:
    if target is None:
        return
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    flag, limit = f"--augment-to {target}", f"the {sizes[largest]} images of {largest}, the largest class"
    if mode == ALL and target <= sizes[largest]:
        raise UserError(f"{flag}: must be above {limit}, with --augment {ALL}")
    if mode == MINORITY and target < sizes[smallest]:
        raise UserError(f"{flag}: every class has more images already, {smallest} the fewest, {sizes[smallest]}")
    if target > _LARGEST_FACTOR * sizes[largest]:
        raise UserError(f"{flag}: must be at most {_LARGEST_FACTOR} times {limit}")


def prepare_to_augment(dataset_dir: Path, mode: str = MINORITY, target: int | None = None) -> None:
    """If many images are missing, start to import torch in the process from which the augmenting ones are forked.

    `create_augmented_data` does this itself. Calling it earlier overlaps the seconds that the import takes.
    """
    from multiprocessing import forkserver

    names = class_names(dataset_dir)
    sizes = {name: len(class_images(dataset_dir, name)) for name in names}
    there = sum(len(class_images(dataset_dir, name + AUGMENTED_SUFFIX)) for name in names)
    if any(sizes.values()) and sum(plan_augmentation(sizes, mode, target).values()) - there >= _WORTH_PROCESSES:
        forkserver.set_forkserver_preload(["torchvision.transforms.v2"])
        forkserver.ensure_running()


def create_augmented_data(
    dataset_dir: Path, seed: int = 0, mode: str = MINORITY, target: int | None = None
) -> dict[str, int]:
    """Write 224 x 224 images to `<class>_augmented/`, as many as `plan_augmentation` gives for the readable images.

    Each is made from a random image of the class by 1 to 6 of the six transforms in random order. It depends only on
    the seed, its number and the images of the class, not on the number of cores. Existing images are kept.
    Augmented images that are too many, or whose source has left the class, are moved to `<dataset_dir>/left_out/`.

    Returns the number of images written, by class; UserError if a class has no readable image, or the target does not
    fit the class sizes.
    """
    prepare_to_augment(dataset_dir, mode, target)
    sources = _find_sources(dataset_dir)
    sizes = {name: len(paths) for name, paths in sources.items()}
    _check_target(sizes, mode, target)
    counts = plan_augmentation(sizes, mode, target)
    missing: dict[str, list[int]] = {}
    numbers_by_source: dict[tuple[str, Path], list[int]] = defaultdict(list)
    for name, paths in sources.items():
        present, misfits = _sort_augmented(dataset_dir, name, paths, counts[name])
        set_aside(dataset_dir, LEFT_OUT, misfits)
        missing[name] = [number for number in range(1, counts[name] + 1) if number not in present]
        for number in missing[name]:
            source = _generator(seed, name, number, "source").choice(paths)
            numbers_by_source[name, source].append(number)
    total = sum(map(len, missing.values()))
    white_level = find_white_level([path for paths in sources.values() for path in paths])
    write = partial(_write_augmented, dataset_dir, seed, white_level)
    with (
        ProcessPoolExecutor(available_cores(), multiprocessing.get_context("forkserver"), _use_one_thread) as pool,
        tqdm(desc="augmenting", total=total, unit="image", disable=None) as bar,
    ):
        apply = pool.map if total >= _WORTH_PROCESSES else map
        for count in apply(write, numbers_by_source.items()):
            bar.update(count)
    return {name: len(numbers) for name, numbers in missing.items()}


def _find_sources(dataset_dir: Path) -> dict[str, list[Path]]:
    """Return the readable images of each class; UserError if a class has none."""
    files = {name: class_images(dataset_dir, name) for name in class_names(dataset_dir)}
    unreadable = find_unreadable([path for paths in files.values() for path in paths])
    sources = {name: [path for path in paths if path not in unreadable] for name, paths in files.items()}
    if empty := [name for name, paths in sources.items() if not paths]:
        raise UserError(f"{class_folder(dataset_dir, empty[0])} has no readable image to augment")
    return sources


def _sort_augmented(
    dataset_dir: Path, name: str, sources: Sequence[Path], count: int
) -> tuple[set[int], dict[Path, str]]:
    """Return the numbers of the augmented images that belong to a class, and why each of the others does not."""
    stems = {stem_of(path) for path in sources}
    numbers: set[int] = set()
    misfits: dict[Path, str] = {}
    for path in class_images(dataset_dir, name + AUGMENTED_SUFFIX):
        source, number = parse_augmented(path)
        if source not in stems:
            misfits[path] = f"the image that it was made from is not in {name}"
        elif not 1 <= number <= count or number in numbers:
            misfits[path] = f"{name} needs only {count} augmented images"
        else:
            numbers.add(number)
    return numbers, misfits


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # the processes keep all cores busy


def _write_augmented(dataset_dir: Path, seed: int, white_level: int, task: tuple[tuple[str, Path], list[int]]) -> int:
    """Write the augmented images of one source, which is read once; return their number."""
    (label, source), numbers = task
    image = resize_or_pad_image(read_image(source, white_level))
    folder = class_folder(dataset_dir, label + AUGMENTED_SUFFIX)
    for number in numbers:
        with write_atomically(folder / augmented_name(source, number)) as file:
            augment(image, label, number, seed).save(file, quality=QUALITY)
    return len(numbers)


def augment(image: Image.Image, label: str, number: int, seed: int) -> Image.Image:
    """Apply the transforms of the augmented image of a class with this number to an RGB image."""
    import torch

    generator = _generator(seed, label, number, "transforms")
    transforms = generator.sample(_transforms(), generator.randint(1, len(_transforms())))
    # For the blur, oneDNN takes seven times as long as PyTorch's own convolution.
    with torch.random.fork_rng(devices=[]), torch.backends.mkldnn.flags(enabled=False):
        # torch.manual_seed would also seed accelerators, which takes longer than a transform.
        torch.default_generator.manual_seed(generator.getrandbits(63))
        for transform in transforms:
            image = transform(image)
    return image


def _generator(seed: int, label: str, number: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/{label}/{number}/{purpose}".encode(errors="surrogateescape"))


@cache
def _transforms() -> tuple[v2.Transform, ...]:
    from torchvision.transforms import v2

    warnings.filterwarnings("ignore", "TF32 acceleration")  # on Intel GPUs, when oneDNN is switched back on
    return (
        v2.RandomRotation(40),
        v2.RandomAffine(degrees=0, translate=(0.2, 0.2)),
        v2.RandomHorizontalFlip(0.8),
        v2.RandomVerticalFlip(0.8),
        v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5),
        v2.GaussianBlur(3),
    )


def _rank(seed: int, purpose: str, path: Path) -> bytes:
    """Return a sort key of an image that is random, but does not depend on the other images."""
    text = f"{seed}/{purpose}/{canonical(path.parent.name)}/{path.name}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
