"""How every figure is made: without a display, in colours that colour-blind readers can tell apart (Okabe-Ito)."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from common import printable, write_whole

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#999999"

_MOST_NAMED = 60  # names along an axis; beyond, they would be too small to read
_LONGEST_LABEL = 24  # letters
_MOST_TOLD = 10  # names that a note lists
_numbers: dict[str, int] = {}  # of words that no font here can write
_told: set[str] = set()  # those of them that a note has listed
_log = logging.getLogger(__name__)


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure of so many inches."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and asks for a display

    matplotlib.rcParams["text.parse_math"] = False  # a name may have dollar signs in it
    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes it whole as a PNG; the same figure gives the same bytes.

    Words that no font of this system can write are replaced by numbers, and a note says which.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    for text in texts:
        text.set_text(legible(text.get_text()))
    if len(_families()) > 1:
        for text in figure.findobj(Text):
            text.set_fontfamily(_families())
    _tell_numbers()
    with write_whole(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of signs that are no letters
        # zlib's 6, the default, takes more than twice as long as its 3, for an eighth less.
        figure.savefig(partial, dpi=110, pil_kwargs={"compress_level": 3})


def name_ticks(axis: Axis, names: Sequence[str], places: Iterable[float] | None = None, **style: object) -> None:
    """Writes names along an axis, at 0, 1, 2 and so on, or at the places given; of too many, their numbers only."""
    if len(names) <= _MOST_NAMED:
        axis.set_ticks(list(range(len(names)) if places is None else places), list(map(short_label, names)), **style)
    else:
        axis.set_label_text(f"{axis.get_label_text()}, {len(names)} classes in the order of their names".lstrip(", "))


def short_label(name: str) -> str:
    """A name as a figure has room for, in letters that can be drawn."""
    text = legible(name)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}\u2026"


def legible(text: str) -> str:
    """A text in letters that a font of this system has: other words are replaced by a number, such as `#1`.

    Matplotlib's own font has Latin, Greek, Cyrillic, Arabic and Hebrew letters, among others. For other ones a font of
    the system is looked for.
    """
    if text.isascii():
        return text
    lacking = _lacking(text)
    if not lacking:
        return text
    words = f"[{re.escape(''.join(sorted(lacking)))}]+"
    return re.sub(words, lambda match: f"#{_numbers.setdefault(match[0], len(_numbers) + 1)}", text)


def _lacking(text: str) -> set[str]:
    """The letters of a text that no font has. Fonts of the system that have some are used from now on."""
    lacking = {sign for sign in text if _is_letter(sign) and ord(sign) not in _coverage(_own_font())}
    for font in _fonts_in_use:
        lacking = {sign for sign in lacking if ord(sign) not in _coverage(font)}
    while lacking - _hopeless and (font := _find_font(lacking - _hopeless)):
        _fonts_in_use.append(font)
        lacking = {sign for sign in lacking if ord(sign) not in _coverage(font)}
    _hopeless.update(lacking)
    return lacking


_fonts_in_use: list[str] = []  # files, besides Matplotlib's own font
_hopeless: set[str] = set()  # letters that no font has


def _is_letter(sign: str) -> bool:
    return unicodedata.category(sign)[0] in "LMN"


def _find_font(letters: set[str]) -> str | None:
    """The font file of the system that has the most of some letters, best a regular one; None if none has any."""
    from matplotlib import font_manager

    wanted = set(map(ord, letters))
    counts = {file: len(wanted & _coverage(file)) for file in sorted(font_manager.findSystemFonts())}
    best = max(counts, key=lambda file: (counts[file], "regular" in Path(file).name.lower()), default=None)
    return best if best is not None and counts[best] else None


@cache
def _coverage(file: str) -> frozenset[int]:
    """The characters that a font has; none of one that cannot be drawn at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except Exception:  # damaged fonts, and such of other kinds, raise many kinds
        return frozenset()


@cache
def _own_font() -> str:
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


def _families() -> list[str]:
    """What Matplotlib is to take letters from, its own font first."""
    return ["DejaVu Sans", *map(_register, _fonts_in_use)]


@cache
def _register(file: str) -> str:
    """Makes a font file known to Matplotlib, also one that came after it listed the system's; returns its family."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(file)
    return font_manager.FontProperties(fname=file).get_name()


def _tell_numbers() -> None:
    new = [word for word in _numbers if word not in _told]
    if not new:
        return
    _told.update(new)
    listed = ", ".join(f"#{_numbers[word]} for {printable(word)}" for word in new[:_MOST_TOLD])
    more = f" and {len(new) - _MOST_TOLD} more" if len(new) > _MOST_TOLD else ""
    east_asian = any(
        unicodedata.name(sign, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for sign in new[0]
    )
    package = "fonts-noto-cjk" if east_asian else "fonts-noto-core"
    _log.warning(
        "figures show %s%s: no font here has glyphs for these letters (Debian, Ubuntu: apt install %s)",
        listed, more, package,
    )  # fmt: skip
