"""CSV tables beside the images: small, written whole, and bearing any name that a file can have."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from common import UserError, decode_text, write_whole

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
        names, numbered = parse_table(decode_text(table.read_bytes(), "surrogateescape"), columns)
        known, rows = set(columns) <= set(names), [row for _, row in numbered]
        # None is DictReader's key for what a row has beyond the columns.
        if known and all(None not in row and all(_is_inside(row[column]) for column in columns) for row in rows):
            return rows
    except (csv.Error, KeyError, TypeError, UnicodeDecodeError):
        pass
    raise UserError(f"{table} is damaged: fix or delete it; deleting it loses the history")


def parse_table(text: str, columns: Collection[str]) -> tuple[list[str], list[tuple[int, dict[str | None, str]]]]:
    """The names of the columns of a CSV table, and its rows, each with the number of its last line.

    Fields may be divided by commas, semicolons or tabs, as a spreadsheet saves them. Above the names there may be empty
    lines, comments (`#`), and the line `sep=;`.

    Args:
        text: the table.
        columns: names by which to tell what divides the fields.

    Raises:
        csv.Error: it is no table.
    """
    lines = list(io.StringIO(text, newline=""))
    first = next((place for place, line in enumerate(lines) if not re.match(r"\s*(#|sep=.\s*$|$)", line)), len(lines))
    separated = {separator: next(csv.reader(lines[first:], delimiter=separator), []) for separator in ",;\t"}
    separator = max(separated, key=lambda separator: len(set(columns) & set(separated[separator])))
    reader = csv.DictReader(lines[first:], delimiter=separator)
    return list(reader.fieldnames or ()), [(first + reader.line_num, row) for row in reader]


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
