"""The array sets: an embedded default, sets made from others, and a look at how sets differ.

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, available_cores, own_name, run_program, say, short_name
from dataset.folders import AUGMENTED, ImageFolder, augmented_name, check_apart, read_folder, tell_left_out
from dataset.reading import UnreadableImage, upright_rgb

if TYPE_CHECKING:
    from dataset.examining import Examined

DARK = 128  # grey values below it are dark
DARK_SHARE = 0.5  # of an image's pixels: an image with more of them dark has a black background
SETS = ("TRAIN", "TEST", "TEST2")
_TRAINING, _TESTING = 100, 70  # images of a digit of which both have some; 100 + 70 are nearly all of the rarest
_SIDE, _MARGIN = 24, 2  # pixels of an enlarged digit, and around it
_BLOCK = 256  # images that a thread reads before it takes others
_COMPARED = 500  # images a class, drawn at random, that shift is measured on
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArraySet:
    """The images of a set, in grey, in the order of their names.

    Attributes:
        name: of the folder or file.
        labels: (N,) str.
        pixels: (N, H, W) uint8.
    """

    name: str
    labels: np.ndarray
    pixels: np.ndarray

    @cached_property
    def dark_shares(self) -> np.ndarray:
        """(N,) how much of each image is dark."""
        return (self.pixels < DARK).mean(axis=(1, 2))

    def of_class(self, name: str) -> np.ndarray:
        """(M, H, W) uint8, the images of a class; none where the set does not have it."""
        return self.pixels[self.labels == name]


def with_inversions(folder: ImageFolder) -> ImageFolder:
    """Every image, and after all of them every image once more with black and white exchanged, without files.

    An inversion counts as augmented, of the same source as its image: a split keeps the two together.
    """
    count = len(folder.paths)
    twice = folder.subset(np.tile(np.arange(count), 2))
    second = np.arange(2 * count) >= count
    return replace(twice, augmented=twice.augmented | second, inverted=twice.inverted ^ second)


def white_background(folder: ImageFolder, dark_share: float = DARK_SHARE) -> ImageFolder:
    """The images with a white background: those of which at most such a share of the pixels is dark.

    Raises:
        UserError: a class has none.
    """
    shares = {place: _dark_share(image) for place, image in _read_all(folder).items()}
    white = [place for place, share in shares.items() if share <= dark_share]
    chosen = folder.subset(white)
    if missing := set(range(len(folder.classes))) - set(chosen.labels.tolist()):
        raise UserError(
            f"{folder.directory / folder.classes[min(missing)]} has no image with a white background: "
            f"in all of them more than {dark_share:g} of the pixels are dark"
        )
    black = [share for share in shares.values() if share > dark_share]
    nearest = [f"{max(shares[place] for place in white):.3f}", *([f"{min(black):.3f}"] if black else [])]
    _log.info(
        "%s: %d of %d images have a white background, at most %g of their pixels being dark (nearest to that: %s)",
        folder.directory, len(white), len(shares), dark_share, " and ".join(nearest),
    )  # fmt: skip
    return chosen


def _dark_share(image: Image.Image) -> float:
    return float((np.asarray(_to_grey(image)) < DARK).mean())


def _to_grey(image: Image.Image) -> Image.Image:
    return image if image.mode == "L" else upright_rgb(image).convert("L")


def _read_all(folder: ImageFolder) -> dict[int, Image.Image]:
    """The images that can be read, by their places; the others are named in a note."""

    def read(places: range) -> list[Image.Image | str]:
        return [_read(folder, place) for place in places]

    count = len(folder.paths)
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    images: list[Image.Image | str] = []
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(desc=f"reading {folder.directory.name}", total=count, unit="image", disable=None) as bar,
    ):
        for block in pool.map(read, blocks):
            images += block
            bar.update(len(block))
    faults = {folder.paths[place]: image for place, image in enumerate(images) if isinstance(image, str)}
    tell_left_out(folder.directory, {**folder.passed_over, **faults})
    return {place: image for place, image in enumerate(images) if isinstance(image, Image.Image)}


def _read(folder: ImageFolder, place: int) -> Image.Image | str:
    """An image, or why it cannot be read."""
    try:
        return folder.read(place)
    except UnreadableImage as error:
        return str(error)


def write_digits(directory: Path) -> None:
    """Writes the embedded sets TRAIN/, TEST/ and TEST2/ as SET/LABEL/NNNN.npy, float32 (1, 28, 28) from 0 to 1.

    They are scikit-learn's handwritten digits, no image in two places. In TRAIN, each of the labels 1 to 5 is one of
    the digits 0 to 4, white on black. In TEST it has other images of that digit, and as many of one of the digits 5 to
    9, black on white; in TEST2, other images of the latter only. What is there already is left alone.

    Raises:
        UserError: one of the three is there, but with other files in it.
    """
    for name, arrays in _sort_digits().items():
        _write_set(directory / name, arrays)


def _sort_digits() -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each set, by the names of their files."""
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
    """(8, 8) from 0 to 16 to float32 (1, 28, 28) from 0 to 1, in steps of 1/255, smoothly and with a margin."""
    image = Image.fromarray((digit / 16).astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    levels = (np.asarray(image).clip(0, 1) * 255).round()
    return (np.pad(levels, _MARGIN)[np.newaxis] / 255).astype(np.float32)


def write_set(folder: ImageFolder, directory: Path) -> None:
    """Writes images as arrays, uint8 (H, W) or (3, H, W), in a folder a class, augmented ones beside it.

    Raises:
        UserError: no image can be read; or the folder is there with other files in it, or lies in that of the images.
    """
    check_apart([folder.directory, directory])
    arrays = {_file_name(folder, place): _to_array(image) for place, image in _read_all(folder).items()}
    if not arrays:
        raise UserError(f"{folder.directory} has no readable image")
    _write_set(directory, arrays)


def _file_name(folder: ImageFolder, place: int) -> str:
    label = folder.classes[folder.labels[place]]
    name = folder.paths[place].name.removesuffix(".npy") + ".npy"  # 1.png and 1.npy stay two
    if folder.inverted[place]:
        name = str(Path(augmented_name(Path(name), 1)).with_suffix(".npy"))
    return f"{label}{AUGMENTED if folder.augmented[place] else ''}/{short_name(name)}"


def _to_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image) if image.mode == "L" else np.asarray(upright_rgb(image)).transpose(2, 0, 1)


def _write_set(directory: Path, arrays: Mapping[str, np.ndarray]) -> None:
    free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if free and _write_folder_whole(directory, arrays):
        _log.info("%s: %d images written", directory, len(arrays))
    elif _holds(directory, arrays):
        _log.info("%s is there already", directory)
    else:
        raise UserError(f"{directory} is there already, with other files: remove it, or name another folder")


def _write_folder_whole(directory: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Writes a folder beside, and renames it at the end: nobody sees half a set. False if another was sooner there."""
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        for name, array in tqdm(arrays.items(), f"writing {directory.name}", unit="image", disable=None):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(_as_file(array))
        partial.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # which of them depends on the file system
            raise
        return False
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _holds(directory: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the visible files in a folder are just these arrays."""
    files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("[!.]*") if path.is_file()}
    return files.keys() == arrays.keys() and all(files[name].read_bytes() == _as_file(arrays[name]) for name in files)


def _as_file(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _read_folder(source: Path) -> ImageFolder:
    from dataset.examining import in_own_range

    return in_own_range(read_folder(source))


def load_set(source: Path) -> ArraySet:
    """Reads a folder of class folders, or an `.npz` file, leaving out images that are unlike most in size.

    Raises:
        UserError: as `read_folder`, or none of its images can be read.
    """
    folder = _read_folder(source)
    images = {place: np.asarray(_to_grey(image)) for place, image in _read_all(folder).items()}
    if not images:
        raise UserError(f"{source} has no readable image")
    shape, _ = Counter(image.shape for image in images.values()).most_common(1)[0]
    places = [place for place, image in images.items() if image.shape == shape]
    others = {folder.paths[other]: image.shape for other, image in images.items() if image.shape != shape}
    usual = f"pixels, where most images have {shape[1]}x{shape[0]}"
    tell_left_out(source, {path: f"of {width}x{height} {usual}" for path, (height, width) in others.items()})
    return ArraySet(
        name=own_name(source).removesuffix(".npz"),
        labels=np.array(folder.classes)[folder.labels[places]],
        pixels=np.stack([images[place] for place in places]),
    )


def inspect(sources: Sequence[Path], figures_dir: Path) -> None:
    """Prints what each set holds and how each differs from those before it, and draws them side by side.

    Args:
        sources: folders of class folders, or `.npz` files.
        figures_dir: where the PNGs go.

    Raises:
        UserError: as `load_set`, or two sets have the same name.
    """
    from dataset.plotting_dataset import plot_array_sets
    from dataset.shift import in_short, measure_shift

    sets = [load_set(source) for source in sources]
    if len({array_set.name for array_set in sets}) < len(sets):
        raise UserError("two of the sets have the same name, and could not be told apart in the figures: rename one")
    for array_set in sets:
        say("set", f"{array_set.name}: {_tell_counts(array_set)}")
    for (trained, training), (tested, testing) in combinations(zip(sets, map(_examine_some, sets), strict=True), 2):
        sentence = in_short(measure_shift(*training, *testing))
        say("shift", f"{tested.name} against {trained.name}: {sentence}")
    for path in plot_array_sets(sets, figures_dir):
        say("draw", str(path))


def _tell_counts(array_set: ArraySet) -> str:
    count, height, width = array_set.pixels.shape
    of_class = ", ".join(f"{number} of {name}" for name, number in sorted(Counter(array_set.labels.tolist()).items()))
    return f"{count} images of {width}x{height} pixels: {of_class}"


def _examine_some(array_set: ArraySet) -> tuple[list[Examined], np.ndarray]:
    """What shift is measured on: images of each class, drawn at random, and their labels (N,)."""
    from dataset.examining import examine_image

    generator = np.random.default_rng(0)
    of_classes = [np.flatnonzero(array_set.labels == name) for name in np.unique(array_set.labels)]
    places = np.concatenate([generator.permutation(of_class)[:_COMPARED] for of_class in of_classes])
    examined = [
        examine_image(
            Path(array_set.name, array_set.labels[place], str(place)), Image.fromarray(array_set.pixels[place])
        )
        for place in places
    ]
    return examined, array_set.labels[places]


def main() -> int:
    parser = ArgumentParser(description="Writes and compares sets of array images; running it again changes nothing.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    digits = commands.add_parser("digits", help="write the embedded sets TRAIN, TEST and TEST2")
    digits.add_argument("directory", type=Path, metavar="DIR", help="the folder for the three")
    invert = commands.add_parser("invert", help="write a set and its inversion: TRAIN2 is made from TRAIN")
    white = commands.add_parser("white", help="write a set's images with a white background: TRAIN3, from TEST")
    for command in (invert, white):
        command.add_argument("set", type=Path, metavar="SET", help="a folder of class folders, or an .npz file")
        command.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    white.add_argument(
        "--dark-share", type=float, default=DARK_SHARE, metavar="S",
        help=f"an image of which more is dark (below {DARK} of 255) has a black background (default: %(default)s)",
    )  # fmt: skip
    look = commands.add_parser("inspect", help="draw sets side by side, and tell how they differ")
    look.add_argument("sets", type=Path, nargs="+", metavar="SET", help="a folder of class folders, or an .npz file")
    look.add_argument(
        "--out", type=Path, default=Path("saved_models/figures/arrays"), metavar="DIR",
        help="for the figures (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.command == "white" and not 0 < arguments.dark_share < 1:
        raise UserError(f"--dark-share {arguments.dark_share}: must be above 0 and below 1")
    if arguments.command == "digits":
        write_digits(arguments.directory)
    elif arguments.command == "invert":
        write_set(with_inversions(_read_folder(arguments.set)), arguments.out)
    elif arguments.command == "white":
        write_set(white_background(_read_folder(arguments.set), arguments.dark_share), arguments.out)
    else:
        inspect(arguments.sets, arguments.out)
    return 0


if __name__ == "__main__":
    run_program(main)
