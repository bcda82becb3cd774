"""Text for people to read."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence


def printable(text: object) -> str:
    """Replace control characters, line breaks and other characters that a terminal cannot show by `?`."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as lines with columns that are aligned in a terminal."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(pad, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table of these cells; the first row is the header."""
    header, *body = ([str(cell).replace("|", r"\|") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes: two per Chinese, Japanese or Korean character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def pad(text: str, width: int) -> str:
    """Append spaces to a text until it takes a number of columns of a terminal."""
    return text + " " * (width - display_width(text))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def readable_size(size: float) -> str:
    """Format a number of bytes with a suitable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"


def pluralise(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: "1 image", "2 images". The plural is the noun with an "s" unless it is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def list_counts(counts: Mapping[str, int]) -> str:
    """Return numbers with what they count, as in "3 Axe, 4 Book"."""
    return ", ".join(f"{number} {printable(name)}" for name, number in counts.items())


def list_first(items: Sequence[object], most: int, noun: str = "") -> str:
    """Join the first items by commas and count the others, as in "a, b and 3 more", or "a, b and 3 more classes"."""
    listed = ", ".join(map(str, items[:most]))
    return f"{listed} and {len(items) - most} more {noun}".rstrip() if len(items) > most else listed
