"""Open Images V7 as FiftyOne keeps it on the disk: tables downloaded whole, filtered as a stream, images by its loader.

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
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
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
# What FiftyOne reads of a detections table; the training split's has further columns after these.
_COLUMNS = (
    b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
_FIELDS = _COLUMNS.count(b",") + 1
_LABEL = 2  # the place of LabelName
_CHUNK = 256 << 10  # bytes read at once: what a core's own cache holds
_PADDING = bytes(8)  # so that eight bytes follow the last slash too


class Box(NamedTuple):
    """What a patch is known by: its image and the edges as fractions of the image, in six decimals."""

    split: str
    image_id: str
    x_min: str
    x_max: str
    y_min: str
    y_max: str

    @classmethod
    def from_edges(cls, split: str, image_id: str, *edges: float) -> Box:
        """A box from its left, right, upper and lower edge."""
        return cls(split, image_id, *(f"{edge:.6f}" for edge in edges))

    def rank(self, seed: int) -> bytes:
        """Its place in an order that is random, but the same whatever other boxes there are."""
        return hashlib.blake2b(",".join((str(seed), *self)).encode(), digest_size=8).digest()


class Candidate(NamedTuple):
    """A box that may become a patch, and its row of the detections table."""

    rank: bytes
    box: Box
    row: bytes


class Detection(NamedTuple):
    """A box as FiftyOne has loaded it, with its class and the image it lies in."""

    label: str
    box: Box
    image: Path


class Zoo:
    """A folder `<split>/{metadata,labels,data}`; tables that it lacks are downloaded, those it has are only read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def class_ids(self, names: Sequence[str]) -> dict[str, str]:
        """Open Images' spelling of each class and its id, as /m/01g317, in the order asked for.

        Raises:
            UserError: there is no such class; the message names the nearest.
        """
        with self._classes_file().open(encoding="utf8", newline="") as file:
            ids = {row[1]: row[0] for row in csv.reader(file) if len(row) == 2}
        spellings = {name.casefold(): name for name in ids}
        for name in names:
            if name.casefold() not in spellings:
                near = difflib.get_close_matches(name.casefold(), spellings, n=3)
                hint = f"the nearest are {', '.join(spellings[key] for key in near)}" if near else "nor one like it"
                raise UserError(f"Open Images has no class {name!r}: {hint} (all are in {self._classes_file()})")
        return {spellings[name.casefold()]: ids[spellings[name.casefold()]] for name in names}

    def detections_file(self, split: str) -> Path:
        """The table of all boxes of a split: 2.2 GB for train, 25 and 75 MB for validation and test."""
        path = self.folder / split / "labels" / "detections.csv"
        if not path.exists():
            download(_DETECTIONS_URLS[split], path)
        return path

    def load(self, candidates: Sequence[Candidate], names: Sequence[str]) -> list[Detection]:
        """Has FiftyOne load the candidates, and download the images that are not there.

        FiftyOne sees a table of these rows only: of the whole one it would make a pandas frame of several gigabytes.

        Raises:
            UserError: no MongoDB, or the images cannot be downloaded.
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
        """Writes what FiftyOne takes for a split that has only these rows; its images are the zoo's own."""
        data = self.folder / split / "data"
        for folder in (data, view / "labels", view / "metadata"):
            folder.mkdir(parents=True, exist_ok=True)
        (view / "data").symlink_to(data.resolve(), target_is_directory=True)
        shutil.copyfile(self._classes_file(), view / "metadata" / "classes.csv")
        (view / "metadata" / "hierarchy.json").write_text("{}")  # unused here, but downloaded where it is missing
        ids = sorted({row.partition(b",")[0].decode() for row in rows})
        (view / "metadata" / "image_ids.csv").write_text("\n".join(["ImageID,Subset", *(f"{i},{split}" for i in ids)]))
        # A last row that belongs to no image: where all ids are digits, pandas would take them for numbers.
        rows = [b",".join(row.split(b",")[:_FIELDS]).rstrip() for row in rows] + [b"none" + b",0" * (_FIELDS - 1)]
        (view / "labels" / "detections.csv").write_bytes(b"\n".join([_COLUMNS, *rows]))


def default_zoo_dir() -> Path:
    """Where FiftyOne keeps Open Images V7."""
    with redirect_stdout(sys.stderr):
        import fiftyone

    return Path(fiftyone.config.dataset_zoo_dir) / "open-images-v7"


def wanted_rows(table: Path, label_ids: Collection[str]) -> Iterator[bytes]:
    """The rows of some classes, as they are in a detections table, in its order; without the header.

    One chunk of the file is in memory at a time. A class id is looked for by the eight bytes after each slash, as one
    number: `benchmarks/filter_detections.py` measures it.

    Args:
        table: a detections.csv of Open Images.
        label_ids: such as /m/01g317.

    Raises:
        UserError: the file is not such a table, or is cut off.
    """
    wanted = {label_id.encode() for label_id in label_ids}
    probes = [_probe(label_id) for label_id in wanted]
    with table.open("rb", buffering=0) as file:
        for block in _read_blocks(file, table):
            yield from _find_rows(block, wanted, probes)


def _read_blocks(file: BinaryIO, table: Path) -> Iterator[bytes]:
    """A table's rows, many at a time, each block with `_PADDING` after it."""
    header = file.readline()
    if not header.startswith(_COLUMNS):
        raise UserError(f"{table} is not a table of detections of Open Images: delete it, and it is downloaded")
    rest = b""
    size = table.stat().st_size
    with tqdm(desc=f"filtering {table}", total=size, unit="B", unit_scale=True, disable=None) as bar:
        while chunk := file.read(_CHUNK):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield b"".join((rest, chunk[:end], _PADDING))
                rest = b""
            rest += chunk[end:]
            bar.update(len(chunk))
    if rest:
        if rest.count(b",") != header.count(b","):
            raise UserError(f"{table} is cut off in its last line: delete it, and it is downloaded again")
        yield rest + b"\n" + _PADDING


def _probe(label_id: bytes) -> tuple[np.uint64, np.uint64]:
    """The first eight bytes after the last slash, up to the comma that ends the field, and a mask of these."""
    tail = (label_id.rpartition(b"/")[2] + b",")[:8]
    target, mask = np.frombuffer(tail.ljust(8, b"\0") + (b"\xff" * len(tail)).ljust(8, b"\0"), "<u8")
    return target, mask


def _find_rows(block: bytes, wanted: set[bytes], probes: Sequence[tuple[np.uint64, np.uint64]]) -> list[bytes]:
    """The wanted ones of a block's rows."""
    size = len(block) - len(_PADDING)
    slashes = np.flatnonzero(np.frombuffer(block, np.uint8, size) == ord("/"))
    following = np.ndarray((size,), "<u8", block, offset=1, strides=(1,))[slashes]
    hit = np.zeros(len(slashes), bool)
    for target, mask in probes:
        hit |= (following & mask) == target
    rows: dict[int, bytes] = {}  # by their place: a row may have several hits
    for place in slashes[hit].tolist():
        start = block.rfind(b"\n", 0, place) + 1
        rows[start] = block[start : block.index(b"\n", place) + 1]
    return [row for row in rows.values() if row.split(b",", _LABEL + 1)[_LABEL] in wanted]


class Selection:
    """The rows of the wanted classes of all splits: a file a class in a folder, each row with its split before it."""

    def __init__(self, folder: Path, zoo: Zoo, splits: Sequence[str], label_ids: Collection[str]) -> None:
        self._files = {label_id: folder / f"{number}.csv" for number, label_id in enumerate(label_ids)}
        for path in self._files.values():
            path.touch()
        self._tables = {split: zoo.detections_file(split) for split in splits}
        for split, table in self._tables.items():
            self._append(split, table)

    def _append(self, split: str, table: Path) -> None:
        files = {label_id.encode(): path.open("ab") for label_id, path in self._files.items()}
        try:
            for row in wanted_rows(table, self._files):
                files[row.split(b",", _LABEL + 1)[_LABEL]].write(split.encode() + b"," + row)
        finally:
            for file in files.values():
                file.close()

    def choose(self, label_id: str, count: int, seen: Collection[Box], seed: int) -> list[Candidate]:
        """The first boxes of a class, in the seed's order, that were not seen: 1 to `count`, or none.

        Raises:
            UserError: a row of the class is damaged.
        """
        with self._files[label_id].open("rb") as rows:
            candidates = (self._candidate(row, seed) for row in rows)
            first = heapq.nsmallest(count, (candidate for candidate in candidates if candidate.box not in seen))
        return list({candidate.box: candidate for candidate in first}.values())  # one may be there twice

    def _candidate(self, line: bytes, seed: int) -> Candidate:
        split, _, row = line.partition(b",")
        fields = row.split(b",", _FIELDS)[:_FIELDS]
        try:
            left, right, upper, lower = edges = [float(field) for field in fields[4:8]]
            list(map(int, fields[8:]))  # what FiftyOne will do
            if len(fields) < _FIELDS or not (left <= right and upper <= lower):
                raise ValueError
        except ValueError:
            table, text = self._tables[split.decode()], printable(row.decode(errors="replace").rstrip())
            raise UserError(
                f"{table} has a damaged row: {text} (delete the file, and it is downloaded again)"
            ) from None
        box = Box.from_edges(split.decode(), fields[0].decode(), *edges)
        return Candidate(box.rank(seed), box, row)


@contextmanager
def _loaded(view: Path, split: str, names: Sequence[str]) -> Iterator[fiftyone.Dataset]:
    """A split as a FiftyOne dataset, which is deleted afterwards."""
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
                f"cannot download images of {split} (no network? {first_line(error)[:200]}); those that came are kept, "
                "and the same command goes on from there"
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
            yield Detection(detection.label, box, path.resolve())  # the view, which it is seen through, goes
