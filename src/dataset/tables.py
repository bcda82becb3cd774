"""CSV tables beside the images: small, written whole, and bearing any name that a file can have."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from common import write_whole


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV table; none where there is no such file."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def write_rows(table: Path, columns: Iterable[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Writes a CSV table whole."""
    with (
        write_whole(table) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
