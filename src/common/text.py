"""Text for people to read."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: object) -> str:
    """Replace control characters, line breaks and other characters that a terminal cannot show by `?`."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table of these cells; the first row is the header."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def readable_size(size: float) -> str:
    """Format a number of bytes with a suitable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"
