"""Write the embedded array sets, make sets from others, and compare sets.

python src/dataset/array_images.py digits sets
python src/dataset/array_images.py invert sets/TRAIN sets/TRAIN2
python src/dataset/array_images.py white sets/TEST sets/TRAIN3
python src/dataset/array_images.py inspect sets/TRAIN sets/TEST sets/TEST2
"""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, base_name, print_step, run_program, short_name
from dataset.examining import Examined, examine_image, with_white_level
from dataset.folders import AUGMENTED_SUFFIX, ImageFolder, augmented_name, check_apart, log_skipped, read_folder
from dataset.parallel import on_all_cores
from dataset.plotting_arrays import DARK_BELOW, DARK_SHARE, ArraySet, plot_array_sets
from dataset.reading import UnreadableImage, upright_rgb
from dataset.shift import measure_shift, summarise_shift

SETS = ("TRAIN", "TEST", "TEST2")
_TRAINING, _TESTING = 100, 70  # images per digit; together they nearly exhaust the rarest digit
_SIDE, _MARGIN = 24, 2  # pixels of an enlarged digit, and around it
_COMPARED = 500  # random images per class on which shift is measured
_log = logging.getLogger(__name__)


def with_inversions(folder: ImageFolder) -> ImageFolder:
    """Append the inversion of every image, without writing files.

    Inversions count as augmented images of the same source, so a split keeps both on the same side.
    """
    count = len(folder.paths)
    twice = folder.subset(np.tile(np.arange(count), 2))
    second = np.arange(2 * count) >= count
    return replace(twice, augmented=twice.augmented | second, inverted=twice.inverted ^ second)


def white_background(folder: ImageFolder, dark_share: float = DARK_SHARE) -> ImageFolder:
    """Select the images with a white background: those with at most this share of dark pixels.

    Raises:
        UserError: a class has none.
    """
    shares = {i: float((np.asarray(_to_grey(image)) < DARK_BELOW).mean()) for i, image in _read_all(folder).items()}
    on_white = [i for i, share in shares.items() if share <= dark_share]
    chosen = folder.subset(on_white)
    if missing := set(range(len(folder.classes))) - set(chosen.labels.tolist()):
        raise UserError(
            f"{folder.directory / folder.classes[min(missing)]} has no image with a white background: "
            f"more than {dark_share:g} of the pixels are dark in all of them"
        )
    nearest = [max(shares[i] for i in on_white), *sorted(s for s in shares.values() if s > dark_share)[:1]]
    _log.info(
        "%s: %d of %d images have a white background: at most %g of their pixels are dark (closest: %s)",
        folder.directory, len(on_white), len(shares), dark_share, " and ".join(f"{share:.3f}" for share in nearest),
    )  # fmt: skip
    return chosen


def _to_grey(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else upright_rgb(image).convert("L")


def _read_all(folder: ImageFolder) -> dict[int, Image.Image]:
    """Read all images; return the readable ones by index, and log the others."""

    def read(index: int) -> Image.Image | str:
        try:
            return folder.read(index)
        except UnreadableImage as error:
            return str(error)

    images = on_all_cores(read, range(len(folder.paths)), f"reading {folder.directory.name}")
    faults = {path: image for path, image in zip(folder.paths, images, strict=True) if isinstance(image, str)}
    log_skipped(folder.directory, {**folder.skipped, **faults})
    return {i: image for i, image in enumerate(images) if isinstance(image, Image.Image)}


def write_digits(directory: Path) -> None:
    """Write the embedded sets TRAIN/, TEST/ and TEST2/ as SET/LABEL/NNNN.npy, float32 (1, 28, 28) from 0 to 1.

    They contain scikit-learn's handwritten digits, each image once. In TRAIN, the labels 1 to 5 are the digits 0 to 4,
    white on black. In TEST, each label has other images of the same digit, and as many of one of the digits 5 to 9,
    black on white; TEST2 has other images of the latter only. Existing sets are left alone.

    Raises:
        UserError: one of the three folders contains other files.
    """
    for name, arrays in _sort_digits().items():
        _write_set(directory / name, arrays)


def _sort_digits() -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each set by file name."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(0)
    sets: dict[str, dict[str, np.ndarray]] = {name: {} for name in SETS}
    for label in range(1, 6):
        known, other = (
            [_enlarge(image) for image in generator.permutation(digits.images[digits.target == digit])]
            for digit in (label - 1, label + 4)
        )
        other = [1 - image for image in other]
        members = (
            known[:_TRAINING],
            known[_TRAINING : _TRAINING + _TESTING] + other[:_TESTING],
            other[_TESTING : _TESTING + _TRAINING],
        )
        for name, images in zip(SETS, members, strict=True):
            sets[name] |= {f"{label}/{number:04d}.npy": image for number, image in enumerate(images, 1)}
    return sets


def _enlarge(digit: np.ndarray) -> np.ndarray:
    """Resize (8, 8) from 0 to 16 to float32 (1, 28, 28) from 0 to 1, in steps of 1/255, with a margin."""
    image = Image.fromarray((digit / 16).astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    levels = (np.asarray(image).clip(0, 1) * 255).round()
    return (np.pad(levels, _MARGIN)[np.newaxis] / 255).astype(np.float32)


def write_set(folder: ImageFolder, directory: Path) -> None:
    """Write images as arrays, uint8 (H, W) or (3, H, W), one folder per class; augmented ones go to its neighbour.

    Raises:
        UserError: no image is readable, or the folder contains other files or lies in that of the images.
    """
    check_apart([folder.directory, directory])
    arrays = {_file_name(folder, i): _to_array(image) for i, image in _read_all(folder).items()}
    if not arrays:
        raise UserError(f"{folder.directory} has no readable image")
    _write_set(directory, arrays)


def _file_name(folder: ImageFolder, index: int) -> str:
    label = folder.classes[folder.labels[index]]
    name = folder.paths[index].name.removesuffix(".npy") + ".npy"  # 1.png becomes 1.png.npy, distinct from 1.npy
    if folder.inverted[index]:
        name = str(Path(augmented_name(Path(name), 1)).with_suffix(".npy"))
    return f"{label}{AUGMENTED_SUFFIX if folder.augmented[index] else ''}/{short_name(name)}"


def _to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image) if image.mode == "L" else np.asarray(upright_rgb(image)).transpose(2, 0, 1)


def _write_set(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if free and _write_folder_whole(directory, arrays):
        _log.info("%s: %d images written", directory, len(arrays))
    elif _holds(directory, arrays):
        _log.info("%s exists already", directory)
    else:
        raise UserError(f"{directory} exists already and contains other files: remove it, or name another folder")


def _write_folder_whole(directory: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write a folder under a temporary name, then rename it; return False if another program created it meanwhile."""
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        for name, array in tqdm(arrays.items(), f"writing {directory.name}", unit="image", disable=None):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(_as_file(array))
        partial.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # depends on the file system
            raise
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _holds(directory: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the visible files in a folder are exactly these arrays."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("[!.]*") if path.is_file()}
    return files.keys() == arrays.keys() and all(files[name].read_bytes() == _as_file(arrays[name]) for name in files)


def _as_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def load_set(source: Path) -> ArraySet:
    """Read a folder of class folders or an `.npz` file, without images that differ from most in size.

    Raises:
        UserError: as `read_folder`, or no image is readable.
    """
    folder = with_white_level(read_folder(source))
    images = {i: np.asarray(_to_grey(image)) for i, image in _read_all(folder).items()}
    if not images:
        raise UserError(f"{source} has no readable image")
    [(shape, _)] = Counter(image.shape for image in images.values()).most_common(1)
    usual_size = [i for i, image in images.items() if image.shape == shape]
    other_shapes = {folder.paths[i]: image.shape for i, image in images.items() if image.shape != shape}
    usual = f"pixels, while most images have {shape[1]}x{shape[0]}"
    log_skipped(source, {path: f"{width}x{height} {usual}" for path, (height, width) in other_shapes.items()})
    name, labels = base_name(source).removesuffix(".npz"), np.array(folder.classes)[folder.labels[usual_size]]
    return ArraySet(name, labels, np.stack([images[i] for i in usual_size]))


def inspect(sources: Sequence[Path], figures_dir: Path) -> None:
    """Print the contents of each set and its shift relative to the previous ones, and draw figures.

    Raises:
        UserError: as `load_set`, or two sets have the same name.
    """
    sets = [load_set(source) for source in sources]
    if len({array_set.name for array_set in sets}) < len(sets):
        raise UserError("two of the sets have the same name, which the figures could not distinguish: rename one")
    for array_set in sets:
        count, height, width = array_set.pixels.shape
        labels = sorted(Counter(array_set.labels.tolist()).items())
        classes = ", ".join(f"{number} of {name}" for name, number in labels)
        print_step("set", f"{array_set.name}: {count} images of {width}x{height} pixels: {classes}")
    for (trained, training), (tested, testing) in combinations(zip(sets, map(_examine_some, sets), strict=True), 2):
        print_step(
            "shift", f"{tested.name} against {trained.name}: {summarise_shift(measure_shift(*training, *testing))}"
        )
    for path in plot_array_sets(sets, figures_dir):
        print_step("draw", str(path))


def _examine_some(array_set: ArraySet) -> tuple[list[Examined], np.ndarray]:
    """Examine random images of each class; also return their labels (N,)."""
    generator = np.random.default_rng(0)
    classes = [np.flatnonzero(array_set.labels == name) for name in np.unique(array_set.labels)]
    chosen = np.concatenate([generator.permutation(members)[:_COMPARED] for members in classes])
    images = map(Image.fromarray, array_set.pixels[chosen])
    return [examine_image(Path(array_set.name), image) for image in images], array_set.labels[chosen]


def main() -> int:
    parser = ArgumentParser(description="Write and compare sets of array images. A second run changes nothing.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    digits = commands.add_parser("digits", help="write the embedded sets TRAIN, TEST and TEST2")
    digits.add_argument("directory", type=Path, metavar="DIR", help="folder for the three sets")
    inverted = commands.add_parser("invert", help="write a set with its inversions: TRAIN2 from TRAIN")
    whites = commands.add_parser("white", help="write the images of a set with a white background: TRAIN3 from TEST")
    for command in (inverted, whites):
        command.add_argument("set", type=Path, metavar="SET", help="folder of class folders, or an .npz file")
        command.add_argument("out", type=Path, metavar="OUT", help="new folder")
    purpose = f"largest share of dark pixels (below {DARK_BELOW} of 255) on a white background"
    whites.add_setting("--dark-share", DARK_SHARE, "S", purpose)
    look = commands.add_parser("inspect", help="draw sets side by side and describe how they differ")
    look.add_argument("sets", type=Path, nargs="+", metavar="SET", help="folder of class folders, or an .npz file")
    look.add_setting("--out", Path("saved_models/figures/arrays"), "DIR", "folder for the figures")
    arguments = parser.parse_args()
    if arguments.command == "digits":
        write_digits(arguments.directory)
    elif arguments.command == "inspect":
        inspect(arguments.sets, arguments.out)
    elif arguments.command == "white" and not 0 < arguments.dark_share < 1:
        raise UserError(f"--dark-share {arguments.dark_share}: must be above 0 and below 1")
    else:
        folder = with_white_level(read_folder(arguments.set))
        invert = arguments.command == "invert"
        write_set(with_inversions(folder) if invert else white_background(folder, arguments.dark_share), arguments.out)
    return 0


if __name__ == "__main__":
    run_program(main)
