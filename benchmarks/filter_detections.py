"""Filtering a table of Open Images' size: this project's stream, pandas with the whole file, and reading only.

Makes a table with the columns and class frequencies of the training split. Each measurement is a fresh process; the
kinds take turns. "From disk" means that the file is first dropped from the page cache.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from measuring import Measured, add_number, measure, take_turns, write_results  # isort: skip  (it adds src/ to the path)
from common import ArgumentParser, run_program
from dataset.open_images import wanted_rows

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
ROWS = 14_600_000
CLASSES = 601
WANTED = (19, 299, 309)  # ranks by frequency: one common class and two rare ones
BLOCK = 100_000  # rows that are made once and repeated with other image ids
BOXES_AN_IMAGE = 8


def make_table(path: Path, rows: int, seed: int) -> list[str]:
    """Write a table of `rows` boxes; return the ids of its classes, the most frequent first."""
    generator = np.random.default_rng(seed)
    label_ids = [
        f"/m/0{''.join(generator.choice(list('0123456789bcdfghjklmnpqrstvwxyz_'), 5))}" for _ in range(CLASSES)
    ]
    lines = _make_block(label_ids, generator)
    starts = np.cumsum([0, *map(len, lines)])
    block = np.frombuffer("".join(lines).encode(), np.uint8).copy()
    hexadecimal = np.frombuffer(b"0123456789abcdef", np.uint8)
    with path.open("wb") as file:
        file.write(HEADER.encode() + b"\n")
        for first in range(0, rows, BLOCK):
            count = min(BLOCK, rows - first)
            ids = np.arange(first, first + count) // BOXES_AN_IMAGE * 84533
            for digit in range(16):
                block[starts[:count] + digit] = hexadecimal[(ids >> 4 * (15 - digit)) & 15]
            file.write(block[: starts[count]].tobytes())
        file.flush()
        os.fsync(file.fileno())  # only data on the disk can be dropped from the page cache
    return label_ids


def _make_block(label_ids: list[str], generator: np.random.Generator) -> list[str]:
    frequencies = 1 / np.arange(1, CLASSES + 1) ** 1.2
    labels = generator.choice(label_ids, BLOCK, p=frequencies / frequencies.sum())
    edges = np.sort(generator.random((BLOCK, 2, 2))).reshape(BLOCK, 4)
    flags = generator.integers(0, 2, (BLOCK, 5))
    clicks = generator.random((BLOCK, 8))
    form = "{:016x},xclick,{},1," + ",".join(["{:.6f}"] * 4 + ["{}"] * 5 + ["{:.6f}"] * 8) + "\n"
    return [
        form.format(0, label, *edge, *flag, *click)
        for label, edge, flag, click in zip(labels, edges, flags, clicks, strict=True)
    ]


def read_bytes(table: Path, label_ids: list[str]) -> None:
    """Read the file without using it."""
    with table.open("rb", buffering=0) as file:
        while file.read(256 << 10):
            pass


def filter_stream(table: Path, label_ids: list[str]) -> None:
    """Run this project's filter."""
    with table.with_name("stream.csv").open("wb") as file:
        file.write(HEADER.encode() + b"\n")
        file.writelines(wanted_rows(table, label_ids))


def filter_pandas(table: Path, label_ids: list[str]) -> None:
    """Filter like FiftyOne's loader: the whole file as a frame, an index, and then the rows."""
    import pandas

    frame = pandas.read_csv(table)
    frame = frame.set_index("ImageID", drop=False)
    frame[frame[["LabelName"]].isin(label_ids).any(axis=1)].to_csv(table.with_name("pandas.csv"), index=False)


def read_boxes(path: Path) -> Iterator[tuple]:
    """Return image, class and edges of each row."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["ImageID"], row["LabelName"], *(float(row[edge]) for edge in ("XMin", "XMax", "YMin", "YMax"))


def drop_from_memory(table: Path, label_ids: list[str]) -> None:
    """Drop the file from the page cache, so that it is next read from the disk."""
    descriptor = os.open(table, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


KINDS: dict[str, tuple[Callable[[Path, list[str]], None], bool]] = {
    "bytes from disk": (read_bytes, True),
    "stream from disk": (filter_stream, True),
    "bytes from memory": (read_bytes, False),
    "stream from memory": (filter_stream, False),
    "pandas from memory": (filter_pandas, False),
}


def measure_kind(function: Callable[[Path, list[str]], None], from_disk: bool, *arguments: Any) -> Measured:
    """Measure a kind in a fresh process, with the file in memory or not."""
    (drop_from_memory if from_disk else read_bytes)(*arguments)
    return measure(function, *arguments)


def main() -> int:
    parser = ArgumentParser(description="Measures filtering a table of 14.6 million detections.")
    add_number(parser, "--rows", ROWS, "rows of the table")
    add_number(parser, "--repeats", 3, "repetitions")
    add_number(parser, "--seed", 0, "random seed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "detections.csv"
        label_ids = measure(make_table, table, arguments.rows, arguments.seed).result
        wanted = [label_ids[rank] for rank in WANTED]
        kinds = {kind: partial(measure_kind, *how, table, wanted) for kind, how in KINDS.items()}
        measured = take_turns(arguments.repeats, kinds)
        size = table.stat().st_size
        chosen = list(read_boxes(table.with_name("stream.csv")))
        if chosen != list(read_boxes(table.with_name("pandas.csv"))):
            raise RuntimeError("the two filters give different rows")
    medians = {
        kind: {
            "seconds": round(statistics.median(each.seconds for each in runs), 2),
            "peak_mb": round(statistics.median(each.peak_mb for each in runs)),
        }
        for kind, runs in measured.items()
    }
    table_facts = {"rows": arguments.rows, "bytes": size, "wanted_rows": len(chosen)}
    write_results("filter_detections", {**table_facts, "repeats": arguments.repeats, **medians})
    return 0


if __name__ == "__main__":
    run_program(main)
