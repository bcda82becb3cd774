"""Read and write small CSV tables of file names."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from common import UserError, decode_text, write_atomically

TESTING_BATCH = "testing_batch.csv"  # beside the test folders: the images that were moved there
OPEN_IMAGES = "open_images.csv"  # beside the class folders: the Open Images patch of each file


def read_rows(table: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """Read a CSV table of file names; a missing file has no rows.

    Raises:
        UserError: it is damaged: a column is missing, or a row names a file outside of the folder.
    """
    if not table.exists():
        return []
    try:
        names, numbered = parse_table(decode_text(table.read_bytes(), "surrogateescape"), columns)
        known, rows = set(columns) <= set(names), [row for _, row in numbered]
        # DictReader stores superfluous fields of a row under the key None.
        if known and all(None not in row and all(_is_inside(row[column]) for column in columns) for row in rows):
            return rows
    except (csv.Error, KeyError, TypeError, UnicodeDecodeError):
        pass
    raise UserError(f"{table} is damaged: fix or delete it; deleting it loses the history")


def parse_table(text: str, columns: Collection[str]) -> tuple[list[str], list[tuple[int, dict[str | None, str]]]]:
    """Return the column names of a CSV table, and its rows, each with the number of its last line.

    The separator may be a comma, semicolon or tab: the one that yields most of the given columns. The header may follow
    empty lines, comments (`#`) and the line `sep=;`.

    Raises:
        csv.Error: it is not a table.
    """
    lines = list(io.StringIO(text, newline=""))
    first = next((i for i, line in enumerate(lines) if not re.match(r"\s*(#|sep=.\s*$|$)", line)), len(lines))
    separated = {separator: next(csv.reader(lines[first:], delimiter=separator), []) for separator in ",;\t"}
    separator = max(separated, key=lambda separator: len(set(columns) & set(separated[separator])))
    reader = csv.DictReader(lines[first:], delimiter=separator)
    return list(reader.fieldnames or ()), [(first + reader.line_num, row) for row in reader]


def _is_inside(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in Path(name).parts and "\0" not in name


def write_rows(table: Path, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV table atomically, and wait until it is on the disk."""
    with (
        write_atomically(table, sync=True) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
