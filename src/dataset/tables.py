"""CSV tables beside the images: small, written whole, and bearing any name that a file can have."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from common import UserError, write_whole

TESTING_BATCH = "testing_batch.csv"  # beside the test folders: which images were moved there
OPEN_IMAGES = "open_images.csv"  # beside the class folders: which patch of Open Images each file is


def read_rows(table: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """The rows of a CSV table of file names; none where there is no such file.

    Raises:
        UserError: it is damaged: a row lacks one of the columns, or names a file that lies elsewhere.
    """
    if not table.exists():
        return []
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            known = set(columns) <= set(reader.fieldnames or ())
            rows = list(reader)
        # None is DictReader's key for what a row has beyond the columns.
        if known and all(None not in row and all(_is_inside(row[column]) for column in columns) for row in rows):
            return rows
    except (csv.Error, KeyError, TypeError):
        pass
    raise UserError(f"{table} is damaged: mend it by hand, or remove it, and what it tells is forgotten")


def _is_inside(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def write_rows(table: Path, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV table whole, and wait until it is on the disk."""
    with (
        write_whole(table, sync=True) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
