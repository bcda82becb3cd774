"""Creates and saves figures without a display, in a palette for colour-blind readers (Okabe-Ito)."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common import list_first, printable, write_atomically

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#999999"

_MOST_NAMED = 60  # names along an axis; more would be too small to read
_LONGEST_LABEL = 24  # characters
_MOST_LISTED = 10  # words in a log message
_fonts: list[str] = []  # files of system fonts in use, besides Matplotlib's own font
_unavailable: set[str] = set()  # letters that no font has
_numbers: dict[str, int] = {}  # of words with unavailable letters
_reported: set[str] = set()  # words in `_numbers` that were logged
_log = logging.getLogger(__name__)


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Return an empty figure; width and height are in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure and needs a display

    matplotlib.rcParams["text.parse_math"] = False  # names may contain dollar signs
    return Figure(figsize=(width, height), layout=layout)


def save_figures(figures: Mapping[str, Figure], figures_dir: Path) -> list[Path]:
    """Save figures under their names, and return the PNG files."""
    for name, figure in figures.items():
        save_figure(figure, figures_dir / f"{name}.png")
    return [figures_dir / f"{name}.png" for name in figures]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file; the same figure gives the same bytes.

    Words with letters that no installed font has are replaced by numbers, which are logged.
    """
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    for text in texts:
        text.set_text(legible(text.get_text()))
    for text in texts if _fonts else ():
        text.set_fontfamily(["DejaVu Sans", *map(_register, _fonts)])
    _report_numbers()
    with write_atomically(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of symbols, which are no letters
        # Level 3 takes less than half the time of zlib's default, 6, for files an eighth larger.
        figure.savefig(partial, dpi=110, pil_kwargs={"compress_level": 3})


def name_ticks(axis: Axis, names: Sequence[str], positions: Iterable[float] | None = None, **style: object) -> None:
    """Label an axis with names at 0, 1, 2, ... or at the given positions; only count the names if they are many."""
    if len(names) <= _MOST_NAMED:
        positions = range(len(names)) if positions is None else positions
        axis.set_ticks(list(positions), list(map(short_label, names)), **style)
    else:
        axis.set_label_text(f"{axis.get_label_text()}, {len(names)} classes in the order of their names".lstrip(", "))


def short_label(name: str) -> str:
    """Shorten a name for a figure, in letters that can be drawn."""
    text = legible(name)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}\u2026"


def legible(text: str) -> str:
    """Replace words with letters that no installed font has by numbers, such as `#1`.

    Matplotlib's own font has Latin, Greek, Cyrillic, Arabic and Hebrew letters, among others. For other letters a
    system font is searched.
    """
    if text.isascii() or not (missing := _find_missing(text)):
        return text
    words = f"[{re.escape(''.join(sorted(missing)))}]+"
    return re.sub(words, lambda match: f"#{_numbers.setdefault(match[0], len(_numbers) + 1)}", text)


def _find_missing(text: str) -> set[str]:
    """Return the letters of a text that no font has; add fonts that have some of them to `_fonts`."""
    letters = {sign for sign in text if unicodedata.category(sign)[0] in "LMN"}
    missing = letters.difference(*map(_letters, (_own_font(), *_fonts)))
    while font := _find_font(missing - _unavailable):
        _fonts.append(font)
        missing -= _letters(font)
    _unavailable.update(missing)
    return missing


def _find_font(wanted: set[str]) -> str | None:
    """Return the system font file with the most of the wanted letters, preferably a regular one, or None."""
    from matplotlib import font_manager

    if not wanted:
        return None
    counts = {file: len(wanted & _letters(file)) for file in sorted(font_manager.findSystemFonts())}
    best = max(counts, key=lambda file: (counts[file], "regular" in Path(file).name.lower()), default=None)
    return best if counts.get(best) else None


@cache
def _letters(file: str) -> frozenset[str]:
    """Return the characters of a font file; none if it cannot be read or scaled."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except Exception:  # damaged or unsupported fonts raise many kinds of errors
        return frozenset()


@cache
def _own_font() -> str:
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


@cache
def _register(file: str) -> str:
    """Register a font file with Matplotlib, which may not list it yet; return its family."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(file)
    return font_manager.FontProperties(fname=file).get_name()


def _report_numbers() -> None:
    new = [word for word in _numbers if word not in _reported]
    if not new:
        return
    _reported.update(new)
    listed = list_first([f"#{_numbers[word]} for {printable(word)}" for word in new], _MOST_LISTED)
    _log.warning(
        "figures show %s: no font here has glyphs for these letters (Debian, Ubuntu: apt install fonts-noto-core "
        "fonts-noto-cjk)", listed,
    )  # fmt: skip
