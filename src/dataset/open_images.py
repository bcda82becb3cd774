"""Open Images V7 in FiftyOne's folder layout: its tables are downloaded and filtered here, its images by FiftyOne.

Tables: https://storage.googleapis.com/openimages/web/download_v7.html
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import heapq
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from common import UserError, first_line, printable
from dataset.database import connect
from dataset.download import download

if TYPE_CHECKING:
    import fiftyone

SPLITS = ("train", "validation", "test")
_SITE = "https://storage.googleapis.com/openimages"
_CLASSES_URL = f"{_SITE}/v5/class-descriptions-boxable.csv"
_DETECTIONS_URLS = {
    "train": f"{_SITE}/v6/oidv6-train-annotations-bbox.csv",
    "validation": f"{_SITE}/v5/validation-annotations-bbox.csv",
    "test": f"{_SITE}/v5/test-annotations-bbox.csv",
}
# The columns that FiftyOne reads; the training table has more after these.
_COLUMNS = (
    b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
_FIELDS = _COLUMNS.count(b",") + 1
_LABEL = 2  # index of LabelName
_CHUNK = 256 << 10  # bytes read at once


class Box(NamedTuple):
    """The identity of a patch: its image and its edges as fractions of the image, with six decimals."""

    split: str
    image_id: str
    x_min: str
    x_max: str
    y_min: str
    y_max: str

    @classmethod
    def from_edges(cls, split: str, image_id: str, *edges: float) -> Box:
        """Make a box from its left, right, upper and lower edge."""
        return cls(split, image_id, *(f"{edge:.6f}" for edge in edges))

    def rank(self, seed: int) -> bytes:
        """Return a sort key that is random, but does not depend on the other boxes."""
        return hashlib.blake2b(",".join((str(seed), *self)).encode(), digest_size=8).digest()


class Candidate(NamedTuple):
    """A box that may become a patch, with its row of the detections table."""

    rank: bytes
    box: Box
    row: bytes


class Detection(NamedTuple):
    """A box as FiftyOne has loaded it, with its class and its image."""

    label: str
    box: Box
    image: Path


class Zoo:
    """A folder `<split>/{metadata,labels,data}`. Missing tables are downloaded, existing ones are only read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def class_ids(self, names: Sequence[str]) -> dict[str, str]:
        """Return the id of each class, such as /m/01g317, by Open Images' spelling; UserError for an unknown one."""
        with self._classes_file().open(encoding="utf8", newline="") as file:
            ids = {row[1]: row[0] for row in csv.reader(file) if len(row) == 2}
        spellings = {name.casefold(): name for name in ids}
        for name in names:
            if name.casefold() not in spellings:
                near = difflib.get_close_matches(name.casefold(), spellings, n=3)
                nearest = ", ".join(map(spellings.__getitem__, near))
                hint = f": the nearest are {nearest}" if near else ", nor one with a similar name"
                raise UserError(f"Open Images has no class {name!r}{hint} (all are in {self._classes_file()})")
        return {spellings[name.casefold()]: ids[spellings[name.casefold()]] for name in names}

    def detections_file(self, split: str) -> Path:
        """Return the table of all boxes of a split: 2.2 GB for train, 25 and 75 MB for validation and test."""
        path = self.folder / split / "labels" / "detections.csv"
        if not path.exists():
            download(_DETECTIONS_URLS[split], path)
        return path

    def load(self, candidates: Sequence[Candidate], names: Sequence[str]) -> list[Detection]:
        """Load candidates with FiftyOne, which downloads missing images.

        FiftyOne gets a table of these rows only: it would read the whole table into several gigabytes of memory.
        UserError without MongoDB, or if the download fails.
        """
        detections: list[Detection] = []
        for split in sorted({candidate.box.split for candidate in candidates}):
            with TemporaryDirectory(prefix="open-images-") as view:
                self._write_view(Path(view), split, [each.row for each in candidates if each.box.split == split])
                with _loaded(Path(view), split, names) as dataset:
                    detections += _detections(dataset, split)
        return detections

    def _classes_file(self) -> Path:
        paths = [self.folder / split / "metadata" / "classes.csv" for split in SPLITS]
        for path in paths:
            if path.exists():
                return path
        download(_CLASSES_URL, paths[0])
        return paths[0]

    def _write_view(self, view: Path, split: str, rows: Sequence[bytes]) -> None:
        """Write a split in FiftyOne's layout that has only these rows; its images are those of the zoo."""
        data = self.folder / split / "data"
        for folder in (data, view / "labels", view / "metadata"):
            folder.mkdir(parents=True, exist_ok=True)
        (view / "data").symlink_to(data.resolve(), target_is_directory=True)
        shutil.copyfile(self._classes_file(), view / "metadata" / "classes.csv")
        (view / "metadata" / "hierarchy.json").write_text("{}")  # unused, but FiftyOne would download it
        ids = sorted({row.partition(b",")[0].decode() for row in rows})
        (view / "metadata" / "image_ids.csv").write_text("\n".join(["ImageID,Subset", *(f"{i},{split}" for i in ids)]))
        # The last row belongs to no image. It keeps pandas from reading ids of digits as numbers.
        rows = [b",".join(row.split(b",")[:_FIELDS]).rstrip() for row in rows] + [b"none" + b",0" * (_FIELDS - 1)]
        (view / "labels" / "detections.csv").write_bytes(b"\n".join([_COLUMNS, *rows]))


def default_zoo_dir() -> Path:
    """Return FiftyOne's folder of Open Images V7."""
    with redirect_stdout(sys.stderr):
        import fiftyone

    return Path(fiftyone.config.dataset_zoo_dir) / "open-images-v7"


def wanted_rows(table: Path, label_ids: Collection[str]) -> Iterator[bytes]:
    """Yield the rows of some classes, such as /m/01g317, of a detections table, in order and without the header.

    The table is read in chunks, since that of the training split has 14.6 million rows. UserError if it is damaged.
    """
    wanted = {label_id.encode() for label_id in label_ids}
    size = table.stat().st_size
    with (
        table.open("rb", buffering=_CHUNK) as file,
        tqdm(desc=f"filtering {table}", total=size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        header = file.readline()
        if not header.startswith(_COLUMNS):
            raise UserError(f"{table} is not a detections table of Open Images: delete it to download it again")
        while rows := file.readlines(_CHUNK):
            bar.update(file.tell() - bar.n)
            if not rows[-1].endswith(b"\n"):
                if rows[-1].count(b",") != header.count(b","):
                    raise UserError(f"{table} is truncated in its last line: delete it to download it again")
                rows[-1] += b"\n"
            for row in rows:
                fields = row.split(b",", _LABEL + 1)
                if len(fields) > _LABEL and fields[_LABEL] in wanted:
                    yield row


class Selection:
    """The rows of the wanted classes of all splits, in one temporary file per class, each row after its split."""

    def __init__(self, folder: Path, zoo: Zoo, splits: Sequence[str], label_ids: Collection[str]) -> None:
        self._files = {label_id: folder / f"{number}.csv" for number, label_id in enumerate(label_ids)}
        self._tables = {split: zoo.detections_file(split) for split in splits}
        with ExitStack() as stack:
            files = {key.encode(): stack.enter_context(path.open("wb")) for key, path in self._files.items()}
            for split, table in self._tables.items():
                for row in wanted_rows(table, self._files):
                    files[row.split(b",", _LABEL + 1)[_LABEL]].write(split.encode() + b"," + row)

    def choose(self, label_id: str, count: int, seen: Collection[Box], seed: int) -> list[Candidate]:
        """Return up to `count` boxes of a class that were not seen, in the order of the seed."""
        with self._files[label_id].open("rb") as rows:
            candidates = (self._candidate(row, seed) for row in rows)
            first = heapq.nsmallest(count, (candidate for candidate in candidates if candidate.box not in seen))
        return list({candidate.box: candidate for candidate in first}.values())  # a box may have two rows

    def _candidate(self, line: bytes, seed: int) -> Candidate:
        split, _, row = line.partition(b",")
        fields = row.split(b",", _FIELDS)[:_FIELDS]
        try:
            left, right, upper, lower = edges = [float(field) for field in fields[4:8]]
            list(map(int, fields[8:]))  # as FiftyOne does
            if len(fields) < _FIELDS or not (left <= right and upper <= lower):
                raise ValueError
        except ValueError:
            table, text = self._tables[split.decode()], printable(row.decode(errors="replace").rstrip())
            raise UserError(f"{table} has a damaged row: {text} (delete the file to download it again)") from None
        box = Box.from_edges(split.decode(), fields[0].decode(), *edges)
        return Candidate(box.rank(seed), box, row)


@contextmanager
def _loaded(view: Path, split: str, names: Sequence[str]) -> Iterator[fiftyone.Dataset]:
    """Load a split as a FiftyOne dataset, which is deleted afterwards."""
    with redirect_stdout(sys.stderr):
        connect()
        import fiftyone
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from fiftyone.utils import openimages
        from pymongo.errors import PyMongoError

        name = f"open-images-{uuid.uuid4().hex}"
        wanted = {"label_types": ["detections"], "classes": list(names)}
        try:
            openimages.download_open_images_split(str(view), split, version="v7", **wanted)
            yield fiftyone.Dataset.from_dir(
                str(view), fiftyone.types.OpenImagesV7Dataset, name=name, label_field="detections", **wanted,
                only_matching=True, load_hierarchy=False, progress=sys.stderr.isatty(),
            )  # fmt: skip
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise UserError(
                f"cannot download images of {split} (no network? {first_line(error)[:200]}); the downloaded ones are "
                "kept: run the same command again to continue"
            ) from error
        except PyMongoError as error:
            raise UserError(f"FiftyOne has lost its MongoDB: {first_line(error)[:200]}") from error
        finally:
            with suppress(PyMongoError):
                if fiftyone.dataset_exists(name):
                    fiftyone.delete_dataset(name)


def _detections(dataset: fiftyone.Dataset, split: str) -> Iterator[Detection]:
    for sample in dataset.iter_samples():
        path = Path(sample.filepath)
        for detection in sample.detections.detections:
            left, top, width, height = detection.bounding_box
            box = Box.from_edges(split, path.stem, left, left + width, top, top + height)
            yield Detection(detection.label, box, path.resolve())  # outside the view, which is deleted
