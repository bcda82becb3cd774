"""Downloads detections from Open Images V7 with FiftyOne and crops them: dataset/<Class>/NNNN.jpg."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs as a program
from common import ArgumentParser, UserError, check_minimum, run_program
from dataset.folders import canonical
from dataset.moving import lock_dataset
from dataset.open_images import SPLITS, Box, Candidate, Detection, Selection, Zoo, default_zoo_dir
from dataset.reading import UnreadableImage, read_image
from dataset.sample import CLASSES, is_drawing
from dataset.tables import OPEN_IMAGES, read_rows, write_rows

MAX_SAMPLES = 1000
MIN_SIZE = 32
_BATCH_SIZE = 2000  # boxes of all classes that are loaded, cropped and recorded at once
_log = logging.getLogger(__name__)


class Patches:
    """The patches in a dataset: which boxes were ever put there, and under which number.

    The images of a batch are written under hidden names, then recorded in the table, then renamed. Wherever a program
    is killed, the next one knows from the table which hidden images count. Rows remain when files are moved or deleted,
    so no box comes twice and no number is used again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        rows = read_rows(folder / OPEN_IMAGES, ("file", *Box._fields))
        self._boxes = {row["file"]: Box(*(row[name] for name in Box._fields)) for row in rows}  # by Axe/0001.jpg
        self.recover()

    @property
    def boxes(self) -> set[Box]:
        """All boxes that were ever put here."""
        return set(self._boxes.values())

    def count(self, label: str) -> int:
        """Return how many patches of a class were ever put here."""
        return sum(os.path.dirname(file) == _folder_name(label) for file in self._boxes)

    def add(self, patches: Iterable[tuple[str, Box, Image.Image]]) -> None:
        """Write patches, each with its class, under the next numbers, and record them: all of them or none."""
        added: dict[str, Box] = {}
        numbers: dict[str, int] = {}
        for label, box, image in patches:
            folder = _folder_name(label)
            number = numbers[folder] = (numbers.get(folder) or self._last_number(folder)) + 1
            hidden = self._folder / folder / f".{number:04d}.partial.jpg"
            hidden.parent.mkdir(parents=True, exist_ok=True)
            image.save(hidden, quality=95)
            added[f"{folder}/{number:04d}.jpg"] = box
        if added:
            boxes = self._boxes | added
            rows = [{"file": file, **box._asdict()} for file, box in sorted(boxes.items())]
            write_rows(self._folder / OPEN_IMAGES, ("file", *Box._fields), rows)
            self._boxes = boxes
        self.recover()

    def recover(self) -> None:
        """Make the hidden images visible that the table lists, and delete the others."""
        for hidden in self._folder.glob("*/.*.partial.jpg"):
            if match := re.fullmatch(r"\.(\d+)\.partial\.jpg", hidden.name):
                path = hidden.with_name(f"{match[1]}.jpg")
                if f"{path.parent.name}/{path.name}" in self._boxes and not path.exists():
                    os.replace(hidden, path)
                else:
                    hidden.unlink()

    def _last_number(self, folder: str) -> int:
        """Return the highest number in the table or among the files, which may be the user's own."""
        recorded = (Path(file) for file in self._boxes if os.path.dirname(file) == folder)
        stems = [path.stem for path in (*recorded, *(self._folder / folder).glob("*"))]
        return max((int(stem) for stem in stems if re.fullmatch("[0-9]+", stem)), default=0)


def _folder_name(label: str) -> str:
    return label.replace("/", "-")


def _check_spelling(dataset_dir: Path, labels: Iterable[str]) -> None:
    """Raise UserError if a class folder differs from its class in case or Unicode form only."""
    names = {canonical(name).casefold(): name for name in map(_folder_name, labels)}
    for folder in dataset_dir.iterdir() if dataset_dir.is_dir() else ():
        name = names.get(canonical(folder.name).casefold(), folder.name)
        if folder.is_dir() and name != folder.name:
            raise UserError(
                f"{dataset_dir} has a folder {folder.name!a}, which is called {name!a} in Open Images: rename it, or "
                "there would be two classes"
            )


def crop(image: Image.Image, box: Box, padding: float) -> Image.Image:
    """Crop a box, with `padding` times its width and height on each side as far as the image extends."""
    left, right = _widen(float(box.x_min), float(box.x_max), padding, image.width)
    upper, lower = _widen(float(box.y_min), float(box.y_max), padding, image.height)
    patch = image.crop((left, upper, right, lower))
    return patch if patch.mode in ("L", "RGB") else patch.convert("RGB")


def _widen(low: float, high: float, padding: float, size: int) -> tuple[int, int]:
    """Convert two edges from fractions of the image to pixels."""
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
    """Add patches of each class until it has `max_samples`, or Open Images has no more.

    Args:
        classes: names of Open Images' 600 boxable classes, in any case.
        dataset_dir: where <Class>/NNNN.jpg and the table `open_images.csv` are written.
        zoo_dir: Open Images in FiftyOne's layout, by default FiftyOne's own folder. Missing files are downloaded to it.
        splits: any of train, validation and test.
        max_samples: patches of each class in all, including those that are there.
        seed: decides which boxes are taken.
        min_size: the least length of a patch's shorter side in pixels.
        padding: context on each side of a box, as a fraction of its width and height.

    Returns the number of patches added, by class. UserError if the folder holds the drawn sample or is locked, a class
    is unknown, the table is damaged, there is no MongoDB, or a download fails.
    """
    if drawing := next(filter(is_drawing, dataset_dir.glob("*/*.jpg")), None):
        raise UserError(
            f"{drawing} belongs to the drawn sample, which must not be mixed with photographs: empty {dataset_dir} and "
            "the test folders, or name another --dataset-dir"
        )
    zoo = Zoo(zoo_dir or default_zoo_dir())
    label_ids = zoo.class_ids(classes)
    _check_spelling(dataset_dir, label_ids)
    dataset_dir.mkdir(parents=True, exist_ok=True)
    small: Counter[str] = Counter()
    with lock_dataset(dataset_dir), TemporaryDirectory(prefix="open-images-") as folder, ExitStack() as at_end:
        patches = Patches(dataset_dir)
        at_end.callback(patches.recover)
        present = {name: patches.count(name) for name in label_ids}
        if min(present.values()) < max_samples:
            selection = Selection(Path(folder), zoo, splits, label_ids.values())
            for candidates in _batches(selection, label_ids, patches, max_samples, seed):
                detections = sorted(zoo.load(candidates, list(label_ids)), key=lambda each: each.box.rank(seed))
                patches.add(_crop_all(detections, patches.boxes, min_size, padding, small))
        added = {name: patches.count(name) - present[name] for name in label_ids}
    for name, count in added.items():
        skipped = f", {small[name]} left out as too small" if small[name] else ""
        end = f"; no more in {', '.join(splits)}" if present[name] + count < max_samples else ""
        _log.info("%s: %d patches were there, %d added%s%s", name, present[name], count, skipped, end)
    return added


def _batches(
    selection: Selection, label_ids: Mapping[str, str], patches: Patches, max_samples: int, seed: int
) -> Iterator[list[Candidate]]:
    """Yield candidates for the missing patches until none is missing or no candidate is left."""
    tried: set[Box] = set()
    while True:
        missing = {name: max_samples - patches.count(name) for name in label_ids}
        missing = {name: count for name, count in missing.items() if count > 0}
        share = _BATCH_SIZE // max(1, len(missing))
        candidates: list[Candidate] = []
        for name, count in missing.items():
            candidates += selection.choose(label_ids[name], min(count, max(1, share)), patches.boxes | tried, seed)
        if not candidates:
            return
        yield candidates
        tried |= {candidate.box for candidate in candidates}


def _crop_all(
    detections: Sequence[Detection], present: set[Box], min_size: int, padding: float, small: Counter[str]
) -> Iterator[tuple[str, Box, Image.Image]]:
    """Yield the new patches that are large enough, each with its class and box; count the too small ones in `small`."""
    for label, box, file in tqdm(detections, "cropping", unit="patch", disable=None):
        if box in present:
            continue  # of another class
        try:
            patch = crop(read_image(file), box, padding)
        except UnreadableImage as error:
            _log.warning("left out: %s: %s", file, error)
            continue
        if min(patch.size) < min_size:
            small[label] += 1
            continue
        present.add(box)
        yield label, box, patch


def main() -> int:
    parser = ArgumentParser(description="Downloads image patches of some classes of Open Images V7 with FiftyOne.")
    parser.add_argument(
        "--classes", nargs="+", default=list(CLASSES), metavar="NAME",
        help=f"any of Open Images' 600 boxable classes (default: {' '.join(CLASSES)})",
    )  # fmt: skip
    parser.add_argument(
        "--splits", nargs="+", default=list(SPLITS), choices=SPLITS, metavar="SPLIT",
        help=f"where boxes are taken from (default: {' '.join(SPLITS)})",
    )  # fmt: skip
    parser.add_argument(
        "--zoo-dir", type=Path, metavar="DIR",
        help="Open Images' tables and images; missing files are downloaded to it (default: FiftyOne's own folder)",
    )  # fmt: skip
    parser.add_setting("--dataset-dir", Path("dataset"), "DIR", "where <Class>/NNNN.jpg are written")
    parser.add_setting("--max-samples", MAX_SAMPLES, "N", "patches of each class in all")
    parser.add_setting("--seed", 0, "N", "decides which boxes are taken")
    parser.add_setting("--min-size", MIN_SIZE, "PIXELS", "leave out patches with a shorter side than this")
    padding = "context on each side of a box, as a fraction of its width and height"
    parser.add_setting("--padding", 0.0, "FRACTION", padding)
    arguments = parser.parse_args()
    check_minimum(arguments, max_samples=1, seed=0, min_size=1)
    if not 0 <= arguments.padding < math.inf:
        raise UserError(f"--padding {arguments.padding}: must be a finite number of at least 0")
    fetch(**vars(arguments))
    return 0


if __name__ == "__main__":
    run_program(main)
