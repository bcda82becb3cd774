"""Fetches detections from Open Images V7 through FiftyOne and cuts them out: dataset/<Class>/NNNN.jpg."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, check_least, run_program
from dataset.folders import canonical
from dataset.moving import alone_in
from dataset.open_images import SPLITS, Box, Candidate, Detection, Selection, Zoo, default_zoo_dir
from dataset.reading import UnreadableImage, read_image
from dataset.tables import OPEN_IMAGES, read_rows, write_rows

CLASSES = ("Axe", "Book", "Hammer")
MAX_SAMPLES = 1000
MIN_SIZE = 32
_ROUND = 2000  # boxes that are loaded, cut and recorded at once, of all classes together
_log = logging.getLogger(__name__)


class Patches:
    """The patches in a dataset's folder: which were ever put there, and under which number.

    A patch has its number when its row is in the table. The images of a batch are complete, under hidden names, before
    the table names them, and get their own names afterwards: wherever a program is killed, the next one finds out
    which of them count. Rows stay when files are moved or deleted, so that no patch comes again and no number is given
    to another.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rows = read_rows(folder / OPEN_IMAGES, ("file", *Box._fields))
        self._boxes = {row["file"]: Box(*(row[name] for name in Box._fields)) for row in rows}  # by Axe/0001.jpg
        self._staged: dict[str, Box] = {}
        self._last_numbers: dict[str, int] = {}
        self.settle()

    @property
    def boxes(self) -> set[Box]:
        """All that were ever put here."""
        return set(self._boxes.values())

    def count(self, label: str) -> int:
        """How many of a class were ever put here."""
        return sum(os.path.dirname(file) == _folder_name(label) for file in self._boxes)

    def stage(self, label: str, box: Box, image: Image.Image) -> None:
        """Writes a patch under the next number of its class, hidden until `commit`."""
        folder = _folder_name(label)
        number = self._last_number(folder) + 1
        path = self._folder / folder / f".{number:04d}.partial.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95)
        self._staged[f"{folder}/{number:04d}.jpg"] = box
        self._last_numbers[folder] = number

    def commit(self) -> None:
        """Records what is staged, and shows it."""
        if self._staged:
            boxes = self._boxes | self._staged
            rows = [{"file": file, **box._asdict()} for file, box in sorted(boxes.items())]
            write_rows(self._folder / OPEN_IMAGES, ("file", *Box._fields), rows)
            self._boxes = boxes
        self.settle()

    def settle(self) -> None:
        """Shows the hidden images that the table names, and removes the others."""
        self._staged = {}
        self._last_numbers = {}
        for hidden in self._folder.glob("*/.*.partial.jpg"):
            if match := re.fullmatch(r"\.(\d+)\.partial\.jpg", hidden.name):
                path = hidden.with_name(f"{match[1]}.jpg")
                if f"{path.parent.name}/{path.name}" in self._boxes and not path.exists():
                    os.replace(hidden, path)
                else:
                    hidden.unlink()

    def _last_number(self, folder: str) -> int:
        """The highest number that the table, or a file that somebody else has put there, has."""
        if folder not in self._last_numbers:
            recorded = (Path(file) for file in self._boxes if os.path.dirname(file) == folder)
            stems = [path.stem for path in (*recorded, *(self._folder / folder).glob("*"))]
            self._last_numbers[folder] = max((int(stem) for stem in stems if re.fullmatch("[0-9]+", stem)), default=0)
        return self._last_numbers[folder]


def _folder_name(label: str) -> str:
    return label.replace("/", "-")


def _check_spelling(dataset_dir: Path, labels: Iterable[str]) -> None:
    """Refuses to put `Cat` beside a folder `cat`, or one that only looks the same: there would be two classes."""
    names = {canonical(name).casefold(): name for name in map(_folder_name, labels)}
    for folder in dataset_dir.iterdir() if dataset_dir.is_dir() else ():
        name = names.get(canonical(folder.name).casefold(), folder.name)
        if folder.is_dir() and name != folder.name:
            same = canonical(name) == canonical(folder.name)  # they may look alike
            shown, wanted = (f"{dataset_dir}/{folder.name!a}", ascii(name)) if same else (folder, name)
            raise UserError(f"{shown} is called {wanted} in Open Images: rename it, or there would be two classes")


@contextmanager
def _open_patches(folder: Path) -> Iterator[Patches]:
    """The patches in a folder, for this process alone; leaves nothing half done there."""
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        patches = Patches(folder)
        try:
            yield patches
        finally:
            patches.settle()


def cut_out(image: Image.Image, box: Box, padding: float) -> Image.Image:
    """The pixels of a box, and around it so much of its width and height on each side, as far as the image goes."""
    left, right = _widen(float(box.x_min), float(box.x_max), padding, image.width)
    upper, lower = _widen(float(box.y_min), float(box.y_max), padding, image.height)
    patch = image.crop((left, upper, right, lower))
    return patch if patch.mode in ("L", "RGB") else patch.convert("RGB")


def _widen(low: float, high: float, padding: float, size: int) -> tuple[int, int]:
    """Two edges, as fractions of the image, in pixels."""
    margin = padding * (high - low)
    return max(0, round((low - margin) * size)), min(size, round((high + margin) * size))


def fetch(
    classes: Sequence[str],
    dataset_dir: Path,
    zoo_dir: Path | None = None,
    splits: Sequence[str] = SPLITS,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
    min_size: int = MIN_SIZE,
    padding: float = 0.0,
) -> dict[str, int]:
    """Adds patches of each class until its quota is met, or Open Images has no more.

    Args:
        classes: of Open Images' 600 boxable ones, in any case.
        dataset_dir: gets <Class>/NNNN.jpg, and the table `open_images.csv` of the patches that were ever put there.
        zoo_dir: Open Images as FiftyOne keeps it; None for FiftyOne's own folder. What it lacks is downloaded into it.
        splits: which of train, validation and test to take boxes from.
        max_samples: how many patches of each class there are to be in all.
        seed: a number from 0 that decides which boxes are taken.
        min_size: pixels of a patch's shorter side below which it is left out.
        padding: context around a box, as a fraction of its width and height, on each side.

    Returns:
        How many patches of each class were added.

    Raises:
        UserError: the folder holds the drawn sample or is another program's, unknown class, no network, no MongoDB, an
            interrupted download, or a damaged table.
    """
    if drawing := next(dataset_dir.glob("*/sample_[0-9][0-9][0-9][0-9].jpg"), None):
        raise UserError(
            f"{drawing} is of the drawn sample, which photographs must not be mixed with: empty {dataset_dir} and the "
            "test folders, or name another --dataset-dir"
        )
    zoo = Zoo(zoo_dir or default_zoo_dir())
    label_ids = zoo.class_ids(classes)
    _check_spelling(dataset_dir, label_ids)
    with _open_patches(dataset_dir) as patches:
        present = {name: patches.count(name) for name in label_ids}
        added: Counter[str] = Counter()
        small: Counter[str] = Counter()
        if any(count < max_samples for count in present.values()):
            with TemporaryDirectory(prefix="open-images-") as folder:
                selection = Selection(Path(folder), zoo, splits, label_ids.values())
                for candidates in _rounds(selection, label_ids, patches, max_samples, seed):
                    detections = sorted(zoo.load(candidates, list(label_ids)), key=lambda d: d.box.rank(seed))
                    added_now, small_now = _add(patches, detections, min_size, padding)
                    added += added_now
                    small += small_now
    for name in label_ids:
        skipped = f", {small[name]} left out as too small" if small[name] else ""
        end = f"; no more in {', '.join(splits)}" if present[name] + added[name] < max_samples else ""
        _log.info("%s: %d patches were there, %d added%s%s", name, present[name], added[name], skipped, end)
    return {name: added[name] for name in label_ids}


def _rounds(
    selection: Selection, label_ids: Mapping[str, str], patches: Patches, max_samples: int, seed: int
) -> Iterator[list[Candidate]]:
    """Candidates for what the classes lack, again and again, until they lack nothing or none is left."""
    tried: set[Box] = set()
    while True:
        missing = {name: max_samples - patches.count(name) for name in label_ids}
        lacking = [name for name in label_ids if missing[name] > 0]
        seen = patches.boxes | tried
        candidates: list[Candidate] = []
        for name in lacking:
            share = min(missing[name], max(1, _ROUND // len(lacking)))
            candidates += selection.choose(label_ids[name], share, seen, seed)
        if not candidates:
            return
        yield candidates
        tried |= {candidate.box for candidate in candidates}


def _add(
    patches: Patches, detections: Sequence[Detection], min_size: int, padding: float
) -> tuple[Counter[str], Counter[str]]:
    """Cuts out and records what is large enough; counts what it added and what was too small, by class."""
    added: Counter[str] = Counter()
    small: Counter[str] = Counter()
    present = patches.boxes
    for detection in tqdm(detections, "cutting out", unit="patch", disable=None):
        if detection.box in present:
            continue  # under another class
        try:
            patch = cut_out(read_image(detection.image), detection.box, padding)
        except UnreadableImage as error:
            _log.warning("left out: %s: %s", detection.image, error)
            continue
        if min(patch.size) < min_size:
            small[detection.label] += 1
            continue
        patches.stage(detection.label, detection.box, patch)
        present.add(detection.box)
        added[detection.label] += 1
    patches.commit()
    return added, small


def main() -> int:
    parser = ArgumentParser(description="Fetches image patches of some classes from Open Images V7, through FiftyOne.")
    parser.add_argument(
        "--classes", nargs="+", default=list(CLASSES), metavar="NAME",
        help=f"any of Open Images' 600 boxable classes (default: {' '.join(CLASSES)})",
    )  # fmt: skip
    parser.add_argument(
        "--max-samples", type=int, default=MAX_SAMPLES, metavar="N",
        help="patches of each class that the folder is to get in all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--splits", nargs="+", default=list(SPLITS), metavar="SPLIT",
        help=f"where to take them from (default: {' '.join(SPLITS)})",
    )  # fmt: skip
    parser.add_argument(
        "--dataset-dir", type=Path, default=Path("dataset"), metavar="DIR",
        help="for <Class>/NNNN.jpg (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--zoo-dir", type=Path, metavar="DIR",
        help="where Open Images' tables and images are, or are downloaded to (default: FiftyOne's own folder)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another number takes other boxes (default: %(default)s)"
    )
    parser.add_argument(
        "--min-size", type=int, default=MIN_SIZE, metavar="PIXELS",
        help="leave out patches with a shorter side than this (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--padding", type=float, default=0.0, metavar="FRACTION",
        help="context around the box on each side, in parts of its width and height (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    check_least(arguments, max_samples=1, seed=0, min_size=1)
    _check(arguments.splits, arguments.padding)
    fetch(**vars(arguments))
    return 0


def _check(splits: Sequence[str], padding: float) -> None:
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"--splits {split}: unknown; choose from {', '.join(SPLITS)}")
    if not (math.isfinite(padding) and padding >= 0):
        raise UserError(f"--padding {padding}: must be a number from 0 up")


if __name__ == "__main__":
    run_program(main)
